"""Prefixes that are run once: those that the texts of one call share, and those of earlier prompts.

Input: calls, the prefix cache. Output: sequences that fork off one another or start from a cached state. Must not know:
lanes, the loop.

Texts are sorted by their tokens, so that each follows the one with which it has most in common; a text forks off the
sequence that has just run their common prefix.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Final, overload

import numpy as np

from meari.errors import MeariError
from meari.runtime.engine.cache import EDGE_TOKENS, PrefixCache
from meari.runtime.engine.calls import Finish, ScoreCall, StateValue, TextScore
from meari.runtime.engine.handles import Scoring
from meari.runtime.engine.runner import Floats, Ids, Runner, RunResult, StateRow, States
from meari.runtime.engine.sequences import (
    LaneKind,
    Request,
    Sequence,
    Snapshot,
    TargetLog,
    TextSequence,
    not_finite,
)
from meari.runtime.engine.stats import EngineStats

FEW_TEXTS: Final = 4  # more are a list, which has a lane of its own
PIECE: Final = 64  # tokens that are compared at once


class CachedPrompts:
    """The prefix cache as sequences use it: look up, keep, release. Without a cache nothing is found or kept."""

    def __init__(self, runner: Runner, cache: PrefixCache | None, stats: EngineStats) -> None:
        self._runner = runner
        self._cache = cache
        self._stats = stats

    def look_up(self, root: Sequence) -> Floats | None:
        """Let a sequence start from the longest prefix whose state is known.

        returns  the hidden vector after the prompt, float32 [H], where the first token can be sampled at once

        The last token of a text's context is run in any case: the first token of the text is scored after it.
        """
        if self._cache is None or not root.num_to_cache:
            return None
        stats, handle = self._stats, root.request.handle
        stats.looked_up_tokens += root.num_to_cache - 1  # without the boundary token
        stats.cache_queries += 1
        root.num_to_cache = min(root.num_to_cache, self._cache.max_tokens)
        longest = root.num_to_cache if root.has_continuation else min(root.num_to_cache - 1, len(root.forced) - 2)
        match = self._cache.longest(root.forced[:longest])
        if match is None:
            return None
        root.fed, root.state = match.length, match.states
        while root.snapshots and root.snapshots[-1][0] == root.fed:
            root.snapshots.pop()[1].state = {name: values.copy() for name, values in match.states.items()}
        handle.cached_tokens = match.length - 1  # the boundary token does not belong to the prompt
        stats.cached_tokens += handle.cached_tokens
        stats.cache_hits += handle.cached_tokens > 0
        if not root.has_continuation or match.length < len(root.forced):
            return None
        return self._runner.hidden_in(match.states) if self._runner.hidden_states else match.hidden

    def wants_hidden(self, sequences: SequenceOf[Sequence]) -> bool:
        """Return True if hidden vectors of these sequences must be kept beside their states."""
        if self._cache is None or self._runner.hidden_states:
            return False
        return any(sequence.fed < sequence.num_to_cache for sequence in sequences)

    def keep(
        self, sequences: SequenceOf[Sequence], counts: SequenceOf[int], result: RunResult, failed: Collection[Request]
    ) -> None:
        """Keep the states of prompts after a run that feeds counts[row] tokens to each sequence.

        failed  requests of which no state is kept
        """
        if self._cache is None:
            return
        for sequence in sequences if failed else ():
            if sequence.request in failed:
                sequence.num_to_cache = 0
        if all(sequence.num_to_cache <= sequence.fed for sequence in sequences):
            return
        fresh = [max(0, min(s.fed + n, s.num_to_cache) - s.fed) for s, n in zip(sequences, counts, strict=True)]
        places = self._cache.keep(*_rows_of(result, np.array(fresh, np.int64)))
        for sequence, num in zip(sequences, fresh, strict=True):
            if num:
                self._add(self._cache, sequence, num, places[:num])
                places = places[num:]

    def _add(self, cache: PrefixCache, sequence: Sequence, num: int, places: Ids) -> None:
        """Take over the cached rows of a prompt's next `num` tokens; joining the tree is slow, so many do at a time."""
        kept = sequence.request.kept
        kept.append(places)
        last = sequence.fed + len(places)
        if len(places) < num:
            sequence.num_to_cache = last
        num_kept = sum(map(len, kept))
        if last >= sequence.num_to_cache or num_kept >= EDGE_TOKENS:
            cache.insert(sequence.forced, last - num_kept, np.concatenate(kept))
            kept.clear()

    def release(self, request: Request) -> None:
        """Drop the kept states of a prompt that will not be read to its end."""
        while request.kept and self._cache is not None:
            self._cache.drop(request.kept.pop())


def _rows_of(result: RunResult, counts: Ids) -> tuple[States, Floats]:
    """Return states and hidden vectors after the first counts[row] steps of every row, row after row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    hidden = result.hidden[steps, rows] if result.hidden.size else np.empty((len(rows), 0), np.float32)
    return {name: values[steps, rows] for name, values in result.states.items()}, hidden


@dataclass(frozen=True, eq=False, slots=True)
class _Planted:
    """A text's sequence, and the depth at which it forks off that of another text, its owner."""

    sequence: TextSequence
    owner: int | None
    depth: int


class _TextAfterContext(SequenceOf[int]):
    """The tokens of a text after those of a context that many texts share: all of them hold the same one."""

    __slots__ = ("_context", "_text")

    def __init__(self, context: list[int], text: list[int]) -> None:
        self._context = context
        self._text = text

    def __len__(self) -> int:
        return len(self._context) + len(self._text)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        """Return a token, or those of a slice without a step."""
        shared = len(self._context)
        if isinstance(place, slice):
            first, last, _ = place.indices(len(self))
            own = self._text[max(0, first - shared) : max(0, last - shared)]
            return own if first >= shared else [*self._context[first:last], *own]
        place += len(self) if place < 0 else 0
        return self._text[place - shared] if place >= shared else self._context[place]


class ScoringRequest(Request):
    """The texts of a ScoreCall as one tree of sequences."""

    handle: Scoring
    lane = LaneKind.SHORT

    def __init__(
        self, number: int, call: ScoreCall, handle: Scoring, end_id: int, num_alternatives: int, initial: StateRow
    ) -> None:
        """initial: the state before the first token."""
        self._call = call
        self._start = call.start or StateValue(initial, end_id, 0)
        self._num_alternatives = num_alternatives
        prefix = [self._start.token, *call.context]
        tail = [end_id] if call.add_end else []
        self._report_from = len(prefix)
        copied = [] if call.context else prefix
        self._num_common = len(prefix) - len(copied)  # tokens that are not in `_own`
        self._own = [[*copied, *text, *tail] for text in call.texts]
        self._forced = [_TextAfterContext(prefix, own) for own in self._own] if call.context else self._own
        self._order = sorted((i for i, f in enumerate(self._forced) if self._is_run(f)), key=self._own.__getitem__)
        self._seen = self._start.seen.union(call.context) if call.want_state else frozenset()
        super().__init__(number, handle, len(self._order))
        self._planted: dict[int, _Planted] = {}  # by text
        self._snapshots: dict[int, Snapshot] = {}
        self._plant()
        if call.want_state:
            self._place_snapshots()
        if self._order:
            self.root = self._first()

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> int:
        """End the handle, with the figures of all texts where everything was run."""
        if finish is Finish.LENGTH:
            self.handle.results = self._collect()
            figures = [(result.logprobs, result.alternative_logprobs) for result in self.handle.results]
            if not all(np.isfinite(values).all() for pair in figures for values in pair):
                self.note_failure(not_finite())
        return super().end(finish, now, failure)

    def drop_sequences(self) -> None:
        """Forget the sequences of all texts."""
        super().drop_sequences()
        self._planted.clear()

    def _is_run(self, forced: SequenceOf[int]) -> bool:
        """Return True if a text has a token to score, or a state to compute after more than its first token."""
        return len(forced) > self._report_from or (self._call.want_state and len(forced) > 1)

    def _plant(self) -> None:
        forced = self._forced
        path: list[tuple[int, int]] = []  # (text, depth at which it forked), outermost first
        previous: list[int] = []
        for text in self._order:
            tokens = forced[text]
            shared = self._num_common + shared_length(previous, self._own[text])
            # An owner feeds its tokens from where it forked off itself, all but the last, which is only a target.
            while path and min(shared, len(forced[path[-1][0]]) - 1, len(tokens) - 1) <= path[-1][1]:
                shared = min(shared, path.pop()[1])
            owner = path[-1][0] if path else None
            depth = 0 if owner is None else min(shared, len(forced[owner]) - 1, len(tokens) - 1)
            self._planted[text] = _Planted(self._sequence(tokens, depth), owner, depth)
            if owner is not None:
                self._planted[owner].sequence.forks.append((depth, self._planted[text].sequence))
            path.append((text, depth))
            previous = self._own[text]
        for planted in self._planted.values():
            planted.sequence.forks.sort(key=lambda fork: -fork[0])

    def _first(self) -> Sequence:
        """Return the sequence from which all others fork off."""
        root = self._planted[self._order[0]].sequence
        if self._call.start is None:
            root.num_to_cache = self._report_from if self._report_from > 1 else 0
        else:
            root.state = dict(self._call.start.rows)
        return root

    def _sequence(self, tokens: SequenceOf[int], depth: int) -> TextSequence:
        start = max(depth, self._report_from)
        num_targets = max(0, len(tokens) - start)
        log = TargetLog.empty(start, num_targets, self._num_alternatives, want_ranks=self._call.want_ranks)
        return TextSequence(request=self, forced=tokens, log=log, start=self._call.start)

    def _place_snapshots(self) -> None:
        """Let the sequence that feeds the token before each text's last one copy the state."""
        for text in self._order:
            depth, planted = self._num_before(text), self._planted[text]
            if depth == 0:
                continue  # the initial state
            while planted.owner is not None and depth <= planted.depth:
                planted = self._planted[planted.owner]
            self._snapshots[text] = Snapshot()
            planted.sequence.snapshots.append((depth, self._snapshots[text]))
        for planted in self._planted.values():
            planted.sequence.snapshots.sort(key=lambda snapshot: -snapshot[0])

    def _num_before(self, text: int) -> int:
        """Return the number of tokens before the last one of a text, or of the context where the text is empty."""
        return self._report_from + len(self._call.texts[text]) - 1

    def _state(self, text: int) -> StateValue | None:
        """Return the state at the end of a text, its last token pending."""
        if not self._call.want_state:
            return None
        depth = self._num_before(text)
        snapshot = self._snapshots.get(text)
        return replace(
            self._start,
            rows=self._start.rows if snapshot is None or snapshot.state is None else snapshot.state,
            token=self._forced[text][depth],
            position=self._start.position + depth,
            seen=self._seen.union(self._call.texts[text]),
        )

    def _collect(self) -> list[TextScore]:
        """Return one TextScore a text: what it shares is taken from the text it forked off."""
        done: dict[int, TextScore] = {}
        for text in self._order:
            planted = self._planted[text]
            log = planted.sequence.log
            shared = None if planted.owner is None else done[planted.owner]
            done[text] = _joined(shared, log, log.start - self._report_from)
        nothing = _joined(None, TargetLog.empty(0, 0, self._num_alternatives, want_ranks=self._call.want_ranks), 0)
        texts = range(len(self._call.texts))
        return [replace(done.get(text, nothing), state=self._state(text)) for text in texts]


def shared_length(left: SequenceOf[int], right: SequenceOf[int]) -> int:
    """Return the number of first tokens that two lists have in common."""
    length, first = min(len(left), len(right)), 0
    while first < length and left[first : first + PIECE] == right[first : first + PIECE]:
        first += PIECE
    pairs = zip(left[first : first + PIECE], right[first : first + PIECE], strict=False)
    return min(length, first + next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), PIECE))


def _joined(shared: TextScore | None, log: TargetLog, num_shared: int) -> TextScore:
    if shared is None or num_shared <= 0:
        return TextScore(log.logprobs, log.ranks, log.alternative_ids, log.alternative_logprobs)
    ranks = None
    if log.ranks is not None and shared.ranks is not None:
        ranks = np.concatenate([shared.ranks[:num_shared], log.ranks])
    return TextScore(
        np.concatenate([shared.logprobs[:num_shared], log.logprobs]),
        ranks,
        np.concatenate([shared.alternative_ids[:num_shared], log.alternative_ids]),
        np.concatenate([shared.alternative_logprobs[:num_shared], log.alternative_logprobs]),
    )

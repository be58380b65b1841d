"""Calls as sequences that run whatever they share once.

Texts are sorted by their tokens, so that each stands beside the one with which it has most in common; a text forks
off the sequence that has just run their common prefix. The samples of one prompt fork off after its last token.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from meari.runtime.engine.calls import GenerateCall, Sample, ScoreCall, StateValue, TextScore
from meari.runtime.engine.sampling import Sampler
from meari.runtime.engine.sequence import Continuation, Sequence, Snapshot, StateRow, TargetLog

if TYPE_CHECKING:
    from meari.runtime.engine.scheduler import Request


PIECE: Final = 64  # tokens that are compared at once


def generation_sequence(call: GenerateCall, samples: SequenceOf[Sample], request: Request, end_id: int) -> Sequence:
    """The sequence of the first sample; the others fork off it after the prompt. For beams it only reads the prompt."""
    forced = [end_id if call.start is None else call.start.token, *call.prompt]
    seen = {*call.prompt, *(call.start.seen if call.start is not None else ())}
    generated = call.start.generated if call.start is not None else {}
    sequences = [Sequence(request, forced, start=call.start)] if call.num_beams > 1 else []
    for index, sample in enumerate(samples if call.num_beams == 1 else ()):
        continuation = Continuation(
            sample,
            Sampler(call.sampling, index, seen, call.position, end_id, generated),
            call.max_tokens,
            call.num_alternatives,
            call.stop() if call.stop is not None else None,
            call.want_state,
            call.ignores_end,
        )
        sequences.append(Sequence(request, forced, continuation=continuation, start=call.start))
    first, *others = sequences
    first.forks = [(len(forced), other) for other in reversed(others)]
    if call.start is None:
        first.num_to_cache = len(forced)
    else:
        first.state = dict(call.start.rows)
    return first


@dataclass(frozen=True, eq=False)
class _Planted:
    """A text's sequence, and where it forks off that of another text, its owner."""

    sequence: Sequence
    owner: int | None
    depth: int


class SharedTexts:
    """The texts of a ScoreCall as one tree of sequences.

    initial  the state before anything was read
    root     the sequence to submit, or None where nothing needs to be run
    collect  the figures in the order of the texts, once all sequences have ended
    """

    def __init__(
        self, call: ScoreCall, request: Request, end_id: int, num_alternatives: int, initial: StateRow
    ) -> None:
        self._call = call
        self._start = call.start or StateValue(initial, end_id, 0)
        self._num_alternatives = num_alternatives
        prefix = [self._start.token, *call.context]
        tail = [end_id] if call.add_end else []
        self._report_from = len(prefix)
        self._forced = [[*prefix, *text, *tail] for text in call.texts]
        self._order = sorted((i for i, f in enumerate(self._forced) if self._is_run(f)), key=self._forced.__getitem__)
        self._planted: dict[int, _Planted] = {}  # by text
        self._snapshots: dict[int, Snapshot] = {}
        self._plant(request)
        if call.want_state:
            self._place_snapshots()
        self.root = self._root()

    @property
    def num_sequences(self) -> int:
        """How many sequences end before the call is done."""
        return len(self._order)

    def _is_run(self, forced: list[int]) -> bool:
        """Whether a text has a token to score, or a state to find after more than its first token."""
        return len(forced) > self._report_from or (self._call.want_state and len(forced) > 1)

    def _plant(self, request: Request) -> None:
        forced = self._forced
        path: list[tuple[int, int]] = []  # (text, depth at which it forked), outermost first
        previous: list[int] = []
        for text in self._order:
            tokens = forced[text]
            shared = shared_length(previous, tokens)
            # An owner feeds its tokens from where it forked off itself, all but the last, which is only a target.
            while path and min(shared, len(forced[path[-1][0]]) - 1, len(tokens) - 1) <= path[-1][1]:
                shared = min(shared, path.pop()[1])
            owner = path[-1][0] if path else None
            depth = 0 if owner is None else min(shared, len(forced[owner]) - 1, len(tokens) - 1)
            self._planted[text] = _Planted(self._sequence(tokens, depth, request), owner, depth)
            if owner is not None:
                self._planted[owner].sequence.forks.append((depth, self._planted[text].sequence))
            path.append((text, depth))
            previous = tokens
        for planted in self._planted.values():
            planted.sequence.forks.sort(key=lambda fork: -fork[0])

    def _root(self) -> Sequence | None:
        if not self._order:
            return None
        root = self._planted[self._order[0]].sequence
        if self._call.start is None:
            root.num_to_cache = self._report_from if self._report_from > 1 else 0
        else:
            root.state = dict(self._call.start.rows)
        return root

    def _sequence(self, tokens: list[int], depth: int, request: Request) -> Sequence:
        start = max(depth, self._report_from)
        log = TargetLog.empty(start, max(0, len(tokens) - start), self._num_alternatives, self._call.want_ranks)
        return Sequence(request, tokens, log=log, start=self._call.start)

    def _place_snapshots(self) -> None:
        """Let the sequence that comes by it copy the state before each text's last token."""
        for text in self._order:
            depth, planted = self._num_before(text), self._planted[text]
            if depth == 0:
                continue  # where everything starts
            while planted.owner is not None and depth <= planted.depth:
                planted = self._planted[planted.owner]
            self._snapshots[text] = Snapshot()
            planted.sequence.snapshots.append((depth, self._snapshots[text]))
        for planted in self._planted.values():
            planted.sequence.snapshots.sort(key=lambda snapshot: -snapshot[0])

    def _num_before(self, text: int) -> int:
        """How many tokens stand before the last one of a text, or of the context where the text is empty."""
        return self._report_from + len(self._call.texts[text]) - 1

    def _state(self, text: int) -> StateValue | None:
        """Where the text ends, its last token pending."""
        if not self._call.want_state:
            return None
        depth = self._num_before(text)
        snapshot = self._snapshots.get(text)
        return replace(
            self._start,
            rows=self._start.rows if snapshot is None or snapshot.state is None else snapshot.state,
            token=self._forced[text][depth],
            position=self._start.position + depth,
            seen=self._start.seen.union(self._call.context, self._call.texts[text]),
        )

    def collect(self) -> list[TextScore]:
        """One TextScore a text: what it shares is taken from the text it forked off."""
        done: dict[int, TextScore] = {}
        for text in self._order:
            planted = self._planted[text]
            log = planted.sequence.log
            assert log is not None
            shared = None if planted.owner is None else done[planted.owner]
            done[text] = _joined(shared, log, log.start - self._report_from)
        nothing = _joined(None, TargetLog.empty(0, 0, self._num_alternatives, self._call.want_ranks), 0)
        texts = range(len(self._call.texts))
        return [replace(done.get(text, nothing), state=self._state(text)) for text in texts]


def shared_length(left: SequenceOf[int], right: SequenceOf[int]) -> int:
    """How many first tokens two lists have in common."""
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

"""Calls as sequences that run whatever they share once.

Texts are sorted by their tokens, so that each stands beside the one with which it has most in common; a text forks
off the sequence that has just run their common prefix. The samples of one prompt fork off after its last token.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

import numpy as np

from service.engine.calls import GenerateCall, Sample, ScoreCall, TextScore
from service.engine.sampling import Sampler
from service.engine.sequence import Continuation, Sequence, TargetLog

if TYPE_CHECKING:
    from service.engine.scheduler import Request


def generation_sequence(call: GenerateCall, samples: SequenceOf[Sample], request: Request, end_id: int) -> Sequence:
    """The sequence of the first sample; the others fork off it after the prompt."""
    forced = [end_id, *call.prompt]
    sequences = []
    for index, sample in enumerate(samples):
        continuation = Continuation(
            sample,
            Sampler(call.sampling, index, forced[1:]),
            call.max_tokens,
            call.num_alternatives,
            call.stop() if call.stop is not None else None,
        )
        sequences.append(Sequence(request, forced, continuation=continuation))
    first, *others = sequences
    first.forks = [(len(forced), other) for other in reversed(others)]
    return first


class SharedTexts:
    """The texts of a ScoreCall as one tree of sequences.

    root     the sequence to submit, or None where no text has a token to score
    collect  the figures in the order of the texts, once all sequences have ended
    """

    def __init__(self, call: ScoreCall, request: Request, end_id: int, num_alternatives: int) -> None:
        self._call = call
        self._num_alternatives = num_alternatives
        prefix = [end_id, *call.context]
        tail = [end_id] if call.add_end else []
        self._report_from = len(prefix)
        forced = [[*prefix, *text, *tail] for text in call.texts]
        self._order = sorted((i for i, f in enumerate(forced) if len(f) > len(prefix)), key=forced.__getitem__)
        self._sequences: dict[int, tuple[Sequence, int | None]] = {}  # text -> its sequence, the text it forked off
        self.root = self._plant(forced, request)

    @property
    def num_sequences(self) -> int:
        """How many sequences end before the call is done."""
        return len(self._order)

    def _plant(self, forced: list[list[int]], request: Request) -> Sequence | None:
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
            self._sequences[text] = (self._sequence(tokens, depth, request), owner)
            if owner is not None:
                self._sequences[owner][0].forks.append((depth, self._sequences[text][0]))
            path.append((text, depth))
            previous = tokens
        for sequence, _ in self._sequences.values():
            sequence.forks.sort(key=lambda fork: -fork[0])
        return self._sequences[self._order[0]][0] if self._order else None

    def _sequence(self, tokens: list[int], depth: int, request: Request) -> Sequence:
        start = max(depth, self._report_from)
        log = TargetLog.empty(start, len(tokens) - start, self._num_alternatives, self._call.want_ranks)
        return Sequence(request, tokens, log=log)

    def collect(self) -> list[TextScore]:
        """One TextScore a text: what it shares is taken from the text it forked off."""
        done: dict[int, TextScore] = {}
        for text in self._order:
            sequence, owner = self._sequences[text]
            log = sequence.log
            assert log is not None
            shared = None if owner is None else done[owner]
            done[text] = _joined(shared, log, log.start - self._report_from)
        nothing = _joined(None, TargetLog.empty(0, 0, self._num_alternatives, self._call.want_ranks), 0)
        return [done.get(text, nothing) for text in range(len(self._call.texts))]


def shared_length(left: SequenceOf[int], right: SequenceOf[int]) -> int:
    """How many first tokens two lists have in common."""
    length = min(len(left), len(right))
    if not length:
        return 0
    differ = np.flatnonzero(np.asarray(left[:length]) != np.asarray(right[:length]))
    return int(differ[0]) if differ.size else length


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

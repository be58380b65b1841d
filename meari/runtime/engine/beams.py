"""Beam search: log-probabilities of the live hypotheses of a request → which of them go on, each with which token.

Enters: the distributions of a step. Leaves: hypotheses, the likeliest first. It knows nothing of states or of the loop,
which runs a row for every live hypothesis; a row's number is the hypothesis' rank.

A hypothesis' score is the plain sum of the model's log-probabilities on the grid of 2**-30 nats, so it is exact. Of
equals the one with the earlier parent goes first, then the one with the lower token id, and of finished ones the one
that finished first.

At each step the continuations of all live hypotheses are gone through, best first, until `num_beams` of them are live.
Those on the way that end, complete a stop string or reach `max_tokens` are finished; they take no place. What cannot
come among the `num_results` best finished ones any more is dropped at once: scores only fall, so it would not have
changed the result. With beams enough for every prefix that is still in play, the search is exhaustive. What has no
probability at all is no continuation.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.calls import Finish, StateValue, StopMatcher
from meari.runtime.engine.ranking import likeliest
from meari.runtime.engine.sampling import on_grid

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Alternatives = tuple[list[int], list[float]]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A token of a hypothesis; those before it hang on `before` and are shared with other hypotheses."""

    before: Step | None
    token: int
    logprob: float
    alternatives: Alternatives | None


@dataclass(eq=False, slots=True)
class Hypothesis:
    """A continuation, finished or live.

    last    its last token, None before the first one
    score   the sum of its tokens' log-probabilities
    row     whose state stands before its last token: of the step that finished it, or of the one that is due
    finish  None while it is live; END and STOP with their token counted in, as in a Sample
    state   for the loop to fill
    """

    last: Step | None
    score: float
    row: int
    finish: Finish | None = None
    matcher: StopMatcher | None = None
    state: StateValue | None = None

    @property
    def token_ids(self) -> list[int]:
        """Its tokens in order."""
        return [step.token for step in self._steps()]

    @property
    def logprobs(self) -> list[float]:
        """Of each token, on the grid."""
        return [step.logprob for step in self._steps()]

    @property
    def alternatives(self) -> list[Alternatives]:
        """The likeliest tokens in each token's place; empty where nobody asked."""
        return [step.alternatives for step in self._steps() if step.alternatives is not None]

    def _steps(self) -> list[Step]:
        steps = []
        step = self.last
        while step is not None:
            steps.append(step)
            step = step.before
        return steps[::-1]


class BeamSearch:
    """The search of one request.

    num_beams         hypotheses that stay live at most
    num_results       hypotheses wanted, at most num_beams
    max_tokens        after which a hypothesis is finished
    end_id            the token that finishes one
    num_alternatives  the likeliest tokens to note at each place, or None
    stop              makes a matcher that is fed a hypothesis' tokens. What a matcher raises, `advance` raises
    min_tokens        the end token is none of the first so many
    """

    def __init__(
        self,
        num_beams: int,
        num_results: int,
        max_tokens: int,
        end_id: int,
        num_alternatives: int | None,
        stop: Callable[[], StopMatcher] | None,
        min_tokens: int = 0,
    ) -> None:
        self._num_beams = num_beams
        self._num_before_end = min_tokens
        self._num_results = num_results
        self._num_tokens_left = max_tokens
        self._end_id = end_id
        self._num_alternatives = num_alternatives
        # No more tokens of a row are looked at than can go on live or finish, be it by the end token alone.
        self._num_likeliest = max(num_beams + (1 if stop is None else num_results), num_alternatives or 0)
        self._live = [Hypothesis(None, 0.0, 0, matcher=stop() if stop is not None else None)]
        self._finished: list[Hypothesis] = []  # at most num_results, best first
        self.just_finished: list[tuple[int, Hypothesis]] = []  # by the last `advance`: (parent row, hypothesis)

    @property
    def live(self) -> list[Hypothesis]:
        """Those that go on, in the order of their rows."""
        return self._live

    def advance(self, logprobs: Floats32) -> list[tuple[int, int]]:
        """Take the next token of every live hypothesis.

        logprobs  float32 [live, vocabulary_size]: of the prompt at first, then of what the last call returned
        returns   (parent row, token) of each hypothesis that goes on, best first; empty when the search is over
        """
        self._num_tokens_left -= 1
        best = likeliest(logprobs, self._num_likeliest)
        values = on_grid(np.take_along_axis(logprobs, best, axis=1))
        alternatives = self._alternatives(best, values)
        if self._num_before_end > 0:
            self._num_before_end -= 1
            values[best == self._end_id] = -np.inf
        live: list[Hypothesis] = []
        finished: list[Hypothesis] = []
        for score, row, token, logprob in self._candidates(best, values):
            if len(live) == self._num_beams or len(finished) == self._num_results:
                break
            parent = self._live[row]
            finish, matcher = self._end_of(parent, token)
            last = Step(parent.last, token, logprob, alternatives[row])
            (live if finish is None else finished).append(Hypothesis(last, score, row, finish, matcher))
        self._add(finished)
        self._live = [hypothesis for hypothesis in live if hypothesis.score > self._least_score]
        going_on = [(h.row, h.last.token) for h in self._live if h.last is not None]
        for row, hypothesis in enumerate(self._live):
            hypothesis.row = row
        return going_on

    def results(self, unfinished: Finish) -> list[Hypothesis]:
        """The best hypotheses, best first, at most `num_results`: live ones where not enough have finished.

        unfinished  why those end that are still live
        """
        live = self._live[: self._num_results - len(self._finished)]
        for hypothesis in live:
            hypothesis.finish = unfinished
        return sorted([*self._finished, *live], key=lambda hypothesis: -hypothesis.score)

    @property
    def _least_score(self) -> float:
        """What has no more than this will not be among the results."""
        return self._finished[-1].score if len(self._finished) == self._num_results else -np.inf

    def _candidates(self, best: Ids, values: Floats64) -> Iterator[tuple[float, int, int, float]]:
        """(score, row, token, log-probability) of what may follow, best first.

        best    int64 [live, n], each row's likeliest tokens, likeliest first
        values  float64 [live, n], their log-probabilities
        """
        scores = (values + np.array([[hypothesis.score] for hypothesis in self._live])).reshape(-1)
        order = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > self._least_score)]
        columns = scores[order], order // best.shape[1], best.reshape(-1)[order], values.reshape(-1)[order]
        return zip(*(column.tolist() for column in columns), strict=True)

    def _alternatives(self, best: Ids, values: Floats64) -> list[Alternatives | None]:
        """What is to be noted of each row."""
        count = self._num_alternatives
        if count is None:
            return [None] * len(best)
        return list(zip(best[:, :count].tolist(), values[:, :count].tolist(), strict=True))

    def _end_of(self, parent: Hypothesis, token: int) -> tuple[Finish | None, StopMatcher | None]:
        """Whether and why `token` finishes a hypothesis, and the matcher for what follows."""
        if token == self._end_id:
            return Finish.END, None
        matcher = parent.matcher.fork() if parent.matcher is not None else None
        if matcher is not None and matcher(token):
            return Finish.STOP, None
        return (Finish.LENGTH if self._num_tokens_left == 0 else None), matcher

    def _add(self, finished: list[Hypothesis]) -> None:
        for hypothesis in finished:
            insort(self._finished, hypothesis, key=lambda one: -one.score)
        del self._finished[self._num_results :]
        self.just_finished = [(hypothesis.row, hypothesis) for hypothesis in finished if hypothesis in self._finished]

"""Searches: the log-probabilities of a request's rows → the rows that continue.

Input: the distributions of a step, one row a live hypothesis in the order of rank. Output: hypotheses, the likeliest
first, as rows of the writing lane. Must not know: lanes, the loop. `BeamSearch` knows no sequences and no states. A
`TreeRequest` runs the places for which a caller's search asks; the rest of this page is about beams.

A hypothesis' score is the plain sum of the model's log-probabilities on the grid of 2**-30 nats, so it is exact. Ties
go to the earlier parent, then to the lower token id; among finished hypotheses, to the one that finished first.

Each step visits the continuations of all live hypotheses, best first, until `num_beams` of them are live. Continuations
that end, complete a stop string or reach `max_tokens` on the way are finished; they take no place. Those that can no
longer be among the `num_results` best are dropped at once: scores only fall, so the result is the same. With enough
beams for every prefix that is still in play, the search is exhaustive. A token of probability 0 is no continuation.
"""

from __future__ import annotations

import abc
import math
from bisect import insort
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

import numpy as np

from meari.errors import MeariError
from meari.runtime.engine.calls import (
    Finish,
    GenerateCall,
    StateValue,
    StopMatcher,
    TokenSearch,
    sample_seed,
)
from meari.runtime.engine.handles import Generation
from meari.runtime.engine.runner import States
from meari.runtime.engine.sampling import Floats32, Floats64, Ids, likeliest, on_grid
from meari.runtime.engine.sequences import (
    CopyState,
    FirstToken,
    GenerationRequest,
    GenerationSequence,
    TurnResult,
    matcher_failure,
    not_finite,
)

Alternatives = tuple[list[int], list[float]]
Places = SequenceOf[tuple[int, int]]  # (number of the place before, token) each, see TokenSearch


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A token of a hypothesis, linked to those before it, which other hypotheses share."""

    before: Step | None
    token: int
    logprob: float
    alternatives: Alternatives | None


@dataclass(eq=False, slots=True)
class Hypothesis:
    """A continuation, finished or live.

    last    its last token, None before the first one
    score   sum of its tokens' log-probabilities
    row     the row whose state is the one before its last token: of the last step if finished, else of the next one
    finish  None while it is live; END and STOP with their token counted in, as in a Sample
    state   the state before its last token, filled by BeamRequest
    """

    last: Step | None
    score: float
    row: int
    finish: Finish | None = None
    matcher: StopMatcher | None = None
    state: StateValue | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens in order."""
        return [step.token for step in self._steps()]

    @property
    def logprobs(self) -> list[float]:
        """The log-probability of each token, on the grid."""
        return [step.logprob for step in self._steps()]

    @property
    def alternatives(self) -> list[Alternatives]:
        """The likeliest tokens in each token's place; empty if not wanted."""
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

    num_beams         maximum number of live hypotheses
    num_results       hypotheses wanted, at most num_beams
    max_tokens        length at which a hypothesis is finished
    end_id            the token that finishes one
    num_alternatives  number of the likeliest tokens to keep at each place, or None
    stop              makes a matcher that is fed a hypothesis' tokens; `advance` raises what a matcher raises
    min_tokens        the first min_tokens tokens cannot be the end token
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
        # No more tokens of a row can stay live or finish, by the end token alone where there are no stop strings.
        self._num_likeliest = max(num_beams + (1 if stop is None else num_results), num_alternatives or 0)
        self.live = [Hypothesis(None, 0.0, 0, matcher=stop() if stop is not None else None)]  # in the order of rows
        self._finished: list[Hypothesis] = []  # at most num_results, best first
        self.just_finished: list[tuple[int, Hypothesis]] = []  # by the last `advance`: (parent row, hypothesis)

    def advance(self, logprobs: Floats32) -> list[tuple[int, int]]:
        """Add the next token to every live hypothesis.

        logprobs  float32 [live, vocabulary_size]: after the prompt at first, then after the last call's tokens
        returns   (parent row, token) of each hypothesis that continues, best first; empty when the search is over
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
            parent = self.live[row]
            finish, matcher = self._end_of(parent, token)
            last = Step(parent.last, token, logprob, alternatives[row])
            (live if finish is None else finished).append(Hypothesis(last, score, row, finish, matcher))
        self._add(finished)
        self.live = [hypothesis for hypothesis in live if hypothesis.score > self._score_to_beat]
        continuing = [(h.row, h.last.token) for h in self.live if h.last is not None]
        for row, hypothesis in enumerate(self.live):
            hypothesis.row = row
        return continuing

    def results(self, unfinished: Finish) -> list[Hypothesis]:
        """Return the best hypotheses, best first, at most `num_results`: live ones where not enough have finished.

        unfinished  the reason why those end that are still live
        """
        live = self.live[: self._num_results - len(self._finished)]
        for hypothesis in live:
            hypothesis.finish = unfinished
        return sorted([*self._finished, *live], key=lambda hypothesis: -hypothesis.score)

    @property
    def _score_to_beat(self) -> float:
        """A hypothesis with no higher score cannot be among the results."""
        return self._finished[-1].score if len(self._finished) == self._num_results else -np.inf

    def _candidates(self, best: Ids, values: Floats64) -> Iterator[tuple[float, int, int, float]]:
        """Yield (score, row, token, log-probability) of the possible continuations, best first.

        best    int64 [live, n], each row's likeliest tokens, likeliest first
        values  float64 [live, n], their log-probabilities
        """
        scores = (values + np.array([[hypothesis.score] for hypothesis in self.live])).reshape(-1)
        order = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > self._score_to_beat)]
        columns = scores[order], order // best.shape[1], best.reshape(-1)[order], values.reshape(-1)[order]
        return zip(*(column.tolist() for column in columns), strict=True)

    def _alternatives(self, best: Ids, values: Floats64) -> list[Alternatives | None]:
        """Return the alternatives to keep of each row."""
        count = self._num_alternatives
        if count is None:
            return [None] * len(best)
        return list(zip(best[:, :count].tolist(), values[:, :count].tolist(), strict=True))

    def _end_of(self, parent: Hypothesis, token: int) -> tuple[Finish | None, StopMatcher | None]:
        """Return why `token` finishes a hypothesis, if it does, and the matcher of what follows."""
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


@dataclass(eq=False, kw_only=True)
class SearchSequence(GenerationSequence):
    """The row of a prompt to search from, then of a live hypothesis or of a place in the tree."""

    request: SearchRequest

    def begin(self, first: FirstToken, result: TurnResult) -> None:
        """Find the first hypotheses or places, which wait for rows."""
        states = {name: values[None] for name, values in first.state.items()}
        for _, sequence in self.request.advance([self], first.logprobs, states, result):
            sequence.state = first.state
            result.continuing.append(sequence)


class SearchRequest(GenerationRequest, abc.ABC):
    """One search; it says after each step which rows continue."""

    handle: Generation

    def __init__(self, number: int, call: GenerateCall, handle: Generation, end_id: int) -> None:
        super().__init__(number, call, handle, end_id)
        self.num_rows, self.num_live = call.num_beams, 1

    def _sequences(
        self, call: GenerateCall, handle: Generation, forced: list[int], end_id: int
    ) -> SequenceOf[GenerationSequence]:
        return [SearchSequence(request=self, forced=forced, start=call.start)]

    @abc.abstractmethod
    def advance(
        self,
        parents: SequenceOf[SearchSequence],
        logprobs: Floats32,
        states: States,
        result: TurnResult,
    ) -> list[tuple[int, SearchSequence]]:
        """Run one step of the search.

        parents   the rows that were run, in the search's order
        logprobs  float32 [parents, vocabulary_size]
        states    state tensor -> float32 [parents, *shape], which nobody else writes to
        returns   the rows that continue, each with the number of its parent
        """


class TreeRequest(SearchRequest):
    """A caller's search in the tree of token sequences; a place may be continued at any later time."""

    def __init__(self, number: int, call: GenerateCall, handle: Generation, end_id: int, search: TokenSearch) -> None:
        super().__init__(number, call, handle, end_id)
        self._search = search
        self._states: list[tuple[States, int]] = []  # after each place: those of a step, and its row

    def advance(
        self,
        parents: SequenceOf[SearchSequence],
        logprobs: Floats32,
        states: States,
        result: TurnResult,
    ) -> list[tuple[int, SearchSequence]]:
        """Run one step of the search; its new places wait for rows with the states of their parents."""
        places = self.find(logprobs, states, result)
        if places:
            result.continuing += self.rows(places, parents[0])
        else:
            result.ended.append(parents[0])
        return []

    def find(self, logprobs: Floats32, states: States, result: TurnResult) -> Places:
        """Give the search what comes after the places that were run; returns the next ones, none once it is over.

        logprobs, states  as those of `advance`
        """
        self._states += [(states, row) for row in range(len(logprobs))]
        places: Places = ()
        try:
            places = self._search.advance(logprobs)
        except BaseException as error:  # noqa: BLE001 (a caller's search must not hurt other requests)
            self.note_failure(matcher_failure(error))
        result.num_searched += len(places)
        if not places:
            self._states.clear()
            self.handle.samples[0].finish = Finish.STOP
        return places

    def states_before(self, places: Places) -> States:
        """Return the states after the parents of some places, float32 [places, *shape] a tensor."""
        parents = [self._states[parent] for parent, _ in places]
        return {name: np.array([states[name][row] for states, row in parents]) for name in parents[0][0]}

    def rows(self, places: Places, one: SearchSequence) -> list[GenerationSequence]:
        """Return places as sequences that wait for rows; one: of the search's rows."""
        found: list[GenerationSequence] = []
        for parent, token in places:
            of_step, row = self._states[parent]
            state = {name: values[row] for name, values in of_step.items()}
            found.append(
                SearchSequence(
                    request=self, forced=one.forced, fed=one.fed, state=state, start=one.start, next_token=token
                )
            )
        return found


class BeamRequest(SearchRequest):
    """The results of one beam search; its rows are the live hypotheses."""

    def __init__(self, number: int, call: GenerateCall, handle: Generation, end_id: int) -> None:
        super().__init__(number, call, handle, end_id)
        self._search = BeamSearch(
            call.num_beams,
            call.num_samples,
            call.max_tokens,
            end_id,
            call.num_alternatives,
            call.stop,
            call.sampling.min_tokens,
        )

    def advance(
        self,
        parents: SequenceOf[SearchSequence],
        logprobs: Floats32,
        states: States,
        result: TurnResult,
    ) -> list[tuple[int, SearchSequence]]:
        """Run one step of the search; the rows are the live hypotheses."""
        result.changed.add(self.handle)
        try:
            continuing = self._search.advance(logprobs)
        except BaseException as error:  # noqa: BLE001 (a caller's matcher must not hurt other requests)
            self.note_failure(matcher_failure(error))
            for sample in self.handle.samples:
                sample.finish = Finish.FAILED
            result.ended.append(parents[0])
            return []
        result.num_searched += len(continuing)
        for parent, hypothesis in self._search.just_finished if self.want_state else ():
            state = {name: values[parent].copy() for name, values in states.items()}
            hypothesis.state = parents[parent].state_value(state, hypothesis.token_ids)
        if not continuing:
            self._fill_samples(Finish.LENGTH)
            result.ended.append(parents[0])
        return [(parent, replace(parents[parent], next_token=token, state=None)) for parent, token in continuing]

    def store_states(self, rows: list[tuple[GenerationSequence, CopyState]]) -> None:
        """Store the state of each live hypothesis before its last token."""
        for hypothesis, (sequence, copy_state) in zip(self._search.live, rows, strict=False):
            hypothesis.state = sequence.state_value(copy_state(), hypothesis.token_ids)

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> int:
        """End the handle, with the best hypotheses so far where the search was cut short."""
        if finish in (Finish.TIMEOUT, Finish.CANCELLED):
            self._fill_samples(finish)
        super().end(finish, now, failure)
        return sum(len(sample.token_ids) for sample in self.handle.samples)

    def _fill_samples(self, unfinished: Finish) -> None:
        """Make the best hypotheses the samples; `unfinished` is the reason why those end that are still live."""
        results = self._search.results(unfinished)
        for rank, (sample, hypothesis) in enumerate(zip(self.handle.samples, results, strict=False)):
            if not all(math.isfinite(value) for _, values in hypothesis.alternatives for value in values):
                self.note_failure(not_finite())
            sample.alternatives.extend(hypothesis.alternatives)
            sample.logprobs.extend(hypothesis.logprobs)
            sample.token_ids.extend(hypothesis.token_ids)  # after their figures: who sees a token looks for these
            if (state := hypothesis.state) is not None:
                sample.state = replace(state, seed=sample_seed(sample.seed, state.position, rank))
            sample.finish = hypothesis.finish  # last: who sees it sees all the rest

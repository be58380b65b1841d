"""Requests and their sequences.

Input: calls. Output: sequences of forced and sampled tokens, and the result of a turn. Must not know: lanes, the loop.

After `fed` tokens a sequence's recurrent state stands for exactly those, and the distribution at that depth is that of
token number `fed`: a forced token, reported if it was asked for, or one to sample.

A *fork* lets sequences share what they have in common (the prompt of several samples, the prefix of several texts):
a child is listed at a depth of its owner; when the owner has fed so many tokens, the child takes a copy of the
state, asks for the same distribution, and is independent from there. A *snapshot* is a fork that only wants the state.

Requests and sequences belong to the engine's thread once they are submitted.
"""

from __future__ import annotations

import abc
import enum
import logging
import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from meari.errors import MAY_QUOTE, EngineFailed, MeariError
from meari.runtime.engine.calls import Finish, GenerateCall, Sample, StateValue, StopMatcher
from meari.runtime.engine.handles import Generation, Handle
from meari.runtime.engine.runner import Floats, Ids, StateRow
from meari.runtime.engine.sampling import Sampler, alternatives

log = logging.getLogger(__name__)

CopyState = Callable[[], StateRow]


class LaneKind(enum.IntEnum):
    """The kind of lane that a request needs; of two that have had as much time the first comes first."""

    SHORT = 0  # to score few texts
    WRITING = 1
    LIST = 2


class Phase(enum.Enum):
    """The stage of a request: in the queue, in the lanes, or in neither any more."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


class Request:
    """A call inside the engine: a generation or a scoring.

    root        the sequence from which all others of the request fork off; taken when the request begins
    num_live    sequences that have not ended yet, forks to come included
    num_rows    sequences that may want a row at the same time
    num_tokens  of its prompt, or of its context and texts, and all that its samples or beams may write
    kept        rows of the cache that stand for tokens of its prompt and are not in the cache's tree yet
    """

    root: Sequence
    lane = LaneKind.WRITING
    num_rows = 1
    want_state = False
    share = ""  # name of the caller

    def __init__(self, number: int, handle: Handle, num_live: int) -> None:
        self.number = number
        self.handle = handle
        self.num_tokens = handle.num_prompt_tokens
        self.num_live = num_live
        self.phase = Phase.WAITING
        self.kept: list[Ids] = []

    def take_root(self) -> Sequence:
        """Return the root and forget it, so that it is freed as soon as it ends."""
        root = self.root
        del self.root
        return root

    def store_states(self, rows: list[tuple[GenerationSequence, CopyState]]) -> None:
        """Store the current states of the request's rows, because it ends early."""

    def note_failure(self, failure: MeariError) -> None:
        """Note why the request fails; the first reason counts."""
        self.handle.failure = self.handle.failure or failure

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> int:
        """End the handle; returns the number of tokens that were added to it only now."""
        self.drop_sequences()
        self.handle.end(finish, now, failure)
        return 0

    def drop_sequences(self) -> None:
        """Forget the sequences: each knows its request, and such circles stay in memory until a full collection."""
        vars(self).pop("root", None)


@dataclass(eq=False)
class Snapshot:
    """A state that is wanted; `state` is filled when its owner has fed so many tokens."""

    state: StateRow | None = None


@dataclass(eq=False)
class Sequence:
    """One row of work.

    forced        token ids, the boundary token first, or the pending token of the state that it starts from
    fed           number of tokens that were fed
    state         while it waits for a row; None stands for the initial state
    start         the state that it began at, None for the initial one
    num_to_cache  the states after so many of the forced tokens are worth keeping
    forks         (depth, child), deepest first; likewise the snapshots
    """

    request: Request
    forced: SequenceOf[int]
    fed: int = 0
    state: StateRow | None = None
    start: StateValue | None = None
    num_to_cache: int = 0
    forks: list[tuple[int, Sequence]] = field(default_factory=list)
    snapshots: list[tuple[int, Snapshot]] = field(default_factory=list)

    @property
    def has_continuation(self) -> bool:
        """True if tokens follow the forced ones: sampled, or found by beam search."""
        return False

    @property
    def num_to_feed(self) -> int:
        """Number of forced tokens still to feed: the last one is only a target where nothing follows it."""
        return len(self.forced) - self.fed - (not self.has_continuation)

    @property
    def position(self) -> int:
        """Number of tokens that its state stands for, those before its start included."""
        return self.fed + (self.start.position if self.start is not None else 0)


def _alternatives(num_targets: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    return np.zeros((num_targets, count), np.int64), np.zeros((num_targets, count))


_no_alternatives = lru_cache(_alternatives)  # of no numbers: texts of one length have the same two arrays


@dataclass(eq=False)
class TargetLog:
    """Figures of the forced tokens that are reported, filled in order.

    start          number of the first forced token that this sequence reports itself
    logprobs       float64 [targets]
    ranks          int64 [targets], or None if not wanted
    alternatives   ids int64 and log-probabilities float64 [targets, k]
    """

    start: int
    logprobs: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int64] | None
    alternative_ids: npt.NDArray[np.int64]
    alternative_logprobs: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, start: int, num_targets: int, num_alternatives: int, *, want_ranks: bool) -> TargetLog:
        """Make room for the figures of `num_targets` tokens."""
        ranks = np.zeros(num_targets, np.int64) if want_ranks else None
        ids, values = (_alternatives if num_alternatives else _no_alternatives)(num_targets, num_alternatives)
        return cls(start, np.zeros(num_targets), ranks, ids, values)

    @cached_property
    def num_alternatives(self) -> int:
        """Number of alternatives wanted at each token."""
        return int(self.alternative_ids.shape[1])

    @cached_property
    def is_plain(self) -> bool:
        """True where only the targets' log-probabilities are wanted."""
        return self.ranks is None and not self.num_alternatives


@dataclass(eq=False, kw_only=True)
class TextSequence(Sequence):
    """A text to score: forced tokens from log.start on are reported."""

    log: TargetLog


@dataclass(frozen=True, eq=False)
class FirstToken:
    """The token sampled after a prompt; `logprobs` (float32 [1, V], or empty) and `state` are those before it."""

    token: int
    logprob: float
    logprobs: Floats
    state: StateRow


@dataclass(eq=False, kw_only=True)
class GenerationSequence(Sequence, abc.ABC):
    """A prompt and the tokens that follow it; `next_token` is the one to feed next."""

    next_token: int = 0

    @property
    def has_continuation(self) -> bool:
        """Always true."""
        return True

    @property
    def row_sampler(self) -> Sampler | None:
        """The sampler of its row; None for beams, which sample nothing."""
        return None

    @property
    def wants_logprobs(self) -> bool:
        """True if the log-probabilities of all tokens are needed, as for beams."""
        return True

    @abc.abstractmethod
    def begin(self, first: FirstToken, result: TurnResult) -> None:
        """Take the first token after the prompt; what continues waits for a row."""

    def state_value(self, rows: StateRow, token_ids: SequenceOf[int], seed: int = 0) -> StateValue:
        """Return the state before the last of the generated tokens, which is pending."""
        before = self.start.seen if self.start is not None else frozenset[int]()
        return StateValue(
            rows=rows,
            token=token_ids[-1],
            position=self.position,
            seed=seed,
            seen=before.union(self.forced[1:], token_ids),
            generated=StateValue.counted(self.start, token_ids),
        )


@dataclass(eq=False, kw_only=True)
class SampledSequence(GenerationSequence):
    """A prompt and one sample."""

    sample: Sample
    sampler: Sampler
    max_tokens: int
    num_alternatives: int | None
    stop: StopMatcher | None
    ignores_end: bool

    @property
    def row_sampler(self) -> Sampler:
        """The sample's own."""
        return self.sampler

    @property
    def wants_logprobs(self) -> bool:
        """True where alternatives are wanted."""
        return self.num_alternatives is not None

    @property
    def num_left(self) -> int:
        """Number of tokens that may still be sampled."""
        return self.max_tokens - len(self.sample.token_ids)

    def begin(self, first: FirstToken, result: TurnResult) -> None:
        """Take the first token after the prompt; an unfinished sample waits for a row."""
        result.changed.add(self.request.handle)
        result.num_sampled += 1
        self.add_alternatives(first.logprobs)
        if self.take(first.token, first.logprob, lambda: first.state):
            result.ended.append(self)
        else:
            self.state = first.state
            result.continuing.append(self)

    def take_all(self, tokens: list[int], logprobs: list[float]) -> int:
        """Add the tokens before the first that may be the last one, which has to be looked at; returns their number."""
        if self.stop is not None:
            return 0
        num = min(len(tokens), self.num_left - 1)
        if not self.ignores_end and self.sampler.end_id in tokens:
            num = min(num, tokens.index(self.sampler.end_id))
        if num:
            self.sample.logprobs.extend(logprobs[:num])
            self.sample.token_ids.extend(tokens[:num])
            self.next_token = tokens[num - 1]
        return num

    def take(self, token: int, logprob: float, copy_state: CopyState) -> bool:
        """Add a sampled token; returns True when the sample is over. copy_state: of the state before the token."""
        self.next_token = token
        self.sample.logprobs.append(logprob)
        self.sample.token_ids.append(token)
        finish = self._finish(token)
        if finish is not None:
            self.store_state(copy_state)
            self.sample.finish = finish  # last: who sees it sees all the rest
        return finish is not None

    def add_alternatives(self, logprobs: Floats) -> None:
        """Add the likeliest tokens in the place of the next one, if wanted. logprobs: float32 [1, V]."""
        if self.num_alternatives is not None:
            ids, best = alternatives(logprobs, self.num_alternatives)
            if not math.isfinite(best.sum()):
                self.request.note_failure(not_finite())
            self.sample.alternatives.append((ids.tolist(), best.tolist()))

    def store_state(self, copy_state: CopyState) -> None:
        """Store the state before the sample's last token, if wanted."""
        if self.request.want_state and self.sample.token_ids:
            rows = copy_state()
            if not all(np.isfinite(values).all() for values in rows.values()):
                self.request.note_failure(not_finite())
            self.sample.state = self.state_value(rows, self.sample.token_ids, self.sampler.seed)

    def _finish(self, token: int) -> Finish | None:
        if token == self.sampler.end_id and not self.ignores_end:
            return Finish.END
        try:
            if self.stop is not None and self.stop(token):
                return Finish.STOP
        except BaseException as error:  # noqa: BLE001 (a caller's matcher must not hurt other requests)
            self.request.note_failure(matcher_failure(error))
            return Finish.FAILED
        return Finish.LENGTH if self.num_left <= 0 else None


def not_finite() -> EngineFailed:
    """Return the failure of a request for which the model computes NaN or an infinite number."""
    return EngineFailed("the model computed a number that is not finite")


def matcher_failure(error: BaseException) -> EngineFailed:
    """Log the error of a caller's stop matcher; returns the failure of its request."""
    log.error("a stop matcher failed", exc_info=error, extra=MAY_QUOTE)
    return EngineFailed(f"the stop matcher failed: {type(error).__name__}")


class GenerationRequest(Request):
    """The samples of one prompt, which fork off after its last token."""

    def __init__(self, number: int, call: GenerateCall, handle: Generation, end_id: int) -> None:
        super().__init__(number, handle, call.num_samples)
        self.num_rows = call.num_samples
        self.num_tokens += max(call.num_samples, call.num_beams) * call.max_tokens
        self.want_state = call.want_state
        forced = [end_id if call.start is None else call.start.token, *call.prompt]
        self.root, *others = self._sequences(call, handle, forced, end_id)
        self.root.forks = [(len(forced), other) for other in reversed(others)]
        if call.start is None:
            self.root.num_to_cache = len(forced)
        else:
            self.root.state = dict(call.start.rows)

    def _sequences(
        self, call: GenerateCall, handle: Generation, forced: list[int], end_id: int
    ) -> SequenceOf[GenerationSequence]:
        seen = {*call.prompt, *(call.start.seen if call.start is not None else ())}
        generated = call.start.generated if call.start is not None else {}
        return [
            SampledSequence(
                request=self,
                forced=forced,
                start=call.start,
                sample=sample,
                sampler=Sampler(call.sampling, index, seen, call.position, end_id, generated),
                max_tokens=call.max_tokens,
                num_alternatives=call.num_alternatives,
                stop=call.stop() if call.stop is not None else None,
                ignores_end=call.ignores_end,
            )
            for index, sample in enumerate(handle.samples)
        ]

    def store_states(self, rows: list[tuple[GenerationSequence, CopyState]]) -> None:
        """Store each sample's current state."""
        for sequence, copy_state in rows:
            if isinstance(sequence, SampledSequence):
                sequence.store_state(copy_state)


@dataclass
class TurnResult:
    """The result of one turn of a lane.

    num_rows         tokens fed
    num_output_rows  distributions computed
    num_sampled      tokens added to samples
    num_searched     tokens added to hypotheses of beam searches, or places of a tree
    num_steps        of the writing lane, one after another
    forked           texts that have forked off and have tokens of their own to feed
    continuing       sequences whose prompt is read, with a token to feed
    ended            sequences that are done
    failed           requests with a row whose numbers are not finite, or all of the turn if its run failed
    changed          handles to which something was added
    """

    num_rows: int = 0
    num_output_rows: int = 0
    num_sampled: int = 0
    num_searched: int = 0
    num_steps: int = 1
    forked: list[Sequence] = field(default_factory=list)
    continuing: list[GenerationSequence] = field(default_factory=list)
    ended: list[Sequence] = field(default_factory=list)
    failed: set[Request] = field(default_factory=set)
    changed: set[Handle] = field(default_factory=set)

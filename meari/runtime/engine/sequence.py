"""One row of work: the tokens to force, the tokens to sample, and where other sequences fork off.

After `fed` tokens a sequence's recurrent state stands for exactly those, and the distribution at that depth is that of
token number `fed`: a forced token, reported if anybody asked for it, or one to sample.

A *fork* lets sequences share what they have in common (the prompt of several samples, the prefix of several texts):
a child is listed at a depth of its owner; when the owner has fed so many tokens, the child takes a copy of the
state and asks for the same distribution, and goes its own way. A *snapshot* is a fork that only wants the state.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from meari.runtime.engine.calls import Finish, Sample, StateValue, StopMatcher
from meari.runtime.engine.sampling import Sampler

if TYPE_CHECKING:
    from meari.runtime.engine.scheduler import Request

StateRow = dict[str, npt.NDArray[np.float32]]  # state tensor -> [*shape], a copy that nobody else holds


@dataclass(eq=False)
class TargetLog:
    """Figures of the forced tokens that are reported, filled in order.

    start          number of the first forced token that this sequence reports itself
    logprobs       float64 [targets]
    ranks          int64 [targets], or None where nobody asked
    alternatives   ids int64 and log-probabilities float64 [targets, k]
    """

    start: int
    logprobs: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.int64] | None
    alternative_ids: npt.NDArray[np.int64]
    alternative_logprobs: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, start: int, num_targets: int, num_alternatives: int, want_ranks: bool) -> TargetLog:
        """Room for `num_targets` figures."""
        return cls(
            start,
            np.zeros(num_targets),
            np.zeros(num_targets, np.int64) if want_ranks else None,
            np.zeros((num_targets, num_alternatives), np.int64),
            np.zeros((num_targets, num_alternatives)),
        )

    @property
    def num_alternatives(self) -> int:
        """How many alternatives are wanted at each token."""
        return int(self.alternative_ids.shape[1])

    @property
    def is_plain(self) -> bool:
        """True where the targets' log-probabilities are all that is wanted."""
        return self.ranks is None and not self.num_alternatives


@dataclass(eq=False)
class Continuation:
    """Where sampled tokens go and when they end."""

    sample: Sample
    sampler: Sampler
    max_tokens: int
    num_alternatives: int | None
    stop: StopMatcher | None
    want_state: bool = False
    ignores_end: bool = False

    @property
    def num_left(self) -> int:
        """How many tokens may still be sampled."""
        return self.max_tokens - len(self.sample.token_ids)

    def take_all(self, tokens: list[int], logprobs: list[float], end_id: int) -> bool:
        """Add several tokens if none of them can be the last one; False when that has to be looked at one by one."""
        if self.stop is not None or self.num_left <= len(tokens) or (end_id in tokens and not self.ignores_end):
            return False
        self.sample.logprobs.extend(logprobs)
        self.sample.token_ids.extend(tokens)
        return True

    def take(self, token: int, logprob: float, end_id: int) -> Finish | None:
        """Add a sampled token; returns why the sample is over, if it is."""
        sample = self.sample
        sample.logprobs.append(logprob)
        sample.token_ids.append(token)
        if token == end_id and not self.ignores_end:
            return Finish.END
        if self.stop is not None and self.stop(token):
            return Finish.STOP
        return Finish.LENGTH if len(sample.token_ids) >= self.max_tokens else None


@dataclass(eq=False)
class Snapshot:
    """A state that somebody wants; `state` is filled when its owner comes by."""

    state: StateRow | None = None


@dataclass(eq=False)
class Sequence:
    """See the head of this file. Owned by the engine's thread once it is submitted."""

    request: Request
    forced: SequenceOf[int]  # begins with the boundary token, or with the pending one of the state it starts from
    log: TargetLog | None = None  # forced tokens from log.start on are reported
    continuation: Continuation | None = None  # sampled after the forced ones
    fed: int = 0
    next_token: int = 0  # the sampled one to feed
    state: StateRow | None = None  # while it waits for a row; None stands for the initial state
    hidden: npt.NDArray[np.float32] | None = None  # [H], where the state came from the cache and is to be sampled from
    start: StateValue | None = None  # where it began, if not at the initial state
    num_to_cache: int = 0  # states after so many of the forced tokens are worth keeping
    forks: list[tuple[int, Sequence]] = field(default_factory=list)  # by depth, deepest first
    snapshots: list[tuple[int, Snapshot]] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether tokens follow the forced ones: sampled, or found by beam search."""
        return self.request.samples

    @property
    def num_to_feed(self) -> int:
        """Forced tokens that are still to be fed: the last one is only a target where nothing follows it."""
        return len(self.forced) - self.fed - (not self.request.samples)

    @property
    def position(self) -> int:
        """How many tokens its state stands for, those before its start included."""
        return self.fed + (self.start.position if self.start is not None else 0)

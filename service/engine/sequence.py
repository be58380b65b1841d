"""One row of work: the tokens to force, the tokens to sample, and where other sequences fork off.

A sequence feeds tokens one a step. After `fed` tokens its recurrent state stands for exactly those, and the step's
distribution is that of token number `fed`: a forced token, reported if anybody asked for it, or one to sample.

A *fork* lets sequences share what they have in common (the prompt of several samples, the prefix of several texts):
a child is listed at a depth of its owner; when the owner has fed so many tokens, the child takes a copy of the
state and the same distribution, and goes its own way.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from service.engine.calls import Finish, Sample, StopMatcher
from service.engine.sampling import Sampler

if TYPE_CHECKING:
    from service.engine.scheduler import Request

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


@dataclass(eq=False)
class Continuation:
    """Where sampled tokens go and when they end."""

    sample: Sample
    sampler: Sampler
    max_tokens: int
    num_alternatives: int | None
    stop: StopMatcher | None

    def take(self, token: int, logprob: float, end_id: int) -> bool:
        """Add a sampled token; True when the sample is over."""
        sample = self.sample
        sample.logprobs.append(logprob)
        sample.token_ids.append(token)
        if token == end_id:
            sample.finish = Finish.END
        elif self.stop is not None and self.stop(token):
            sample.finish = Finish.STOP
        elif len(sample.token_ids) >= self.max_tokens:
            sample.finish = Finish.LENGTH
        return sample.finish is not None


@dataclass(eq=False)
class Sequence:
    """See the head of this file. Owned by the engine's thread once it is submitted."""

    request: Request
    forced: SequenceOf[int]  # begins with the boundary token
    log: TargetLog | None = None  # forced tokens from log.start on are reported
    continuation: Continuation | None = None  # sampled after the forced ones
    fed: int = 0
    next_token: int = 0
    state: StateRow | None = None  # while it waits; None stands for the initial state
    forks: list[tuple[int, Sequence]] = field(default_factory=list)  # by depth, deepest first

    def __post_init__(self) -> None:
        self.next_token = self.forced[0]

    @property
    def target(self) -> int | None:
        """The forced token whose log-probability is due now, if it is to be reported."""
        if self.log is not None and self.log.start <= self.fed < len(self.forced):
            return self.forced[self.fed]
        return None

    @property
    def samples_now(self) -> bool:
        """True when the next token is not forced."""
        return self.fed >= len(self.forced)

    def due_forks(self) -> list[Sequence]:
        """Take the sequences that fork off at this depth; they stand where this one stands."""
        due = []
        while self.forks and self.forks[-1][0] == self.fed:
            child = self.forks.pop()[1]
            child.fed = self.fed
            due.append(child)
        return due

    def force_next(self) -> bool:
        """Make the next forced token the one to feed; False when it need not be fed: nothing follows it."""
        if self.fed == len(self.forced) - 1 and self.continuation is None:
            return False
        self.next_token = self.forced[self.fed]
        return True

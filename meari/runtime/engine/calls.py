"""Calls of the engine, and the values that a caller gets back.

Input: token ids, limits, a deadline. Output: token ids and log-probabilities. Must not know: text, HTTP, handles.

Log-probabilities are natural, of the model's own distribution, as float64 on a grid of 2**-30 nats (`GRID`):
float32 values of at least 2**-7 lie on the grid already, and sums of up to eight million nats are exact in any order.
That is why the score of a text equals the sum of its tokens' log-probabilities bit for bit.
"""

from __future__ import annotations

import enum
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

GRID: Final = 2.0**30
Event = threading.Event  # set when something was added to a handle


def sample_seed(seed: int, position: int, index: int) -> int:
    """Return the seed of sample number `index` of a request whose text had `position` tokens so far.

    The first sample has the request's own seed. The others' seeds are in [0, 2**53), exact in every JSON reader, and
    hashed, so that samples of adjacent seeds, or taken at different positions of a text, are independent.
    """
    if not index:
        return seed
    name = b"%d,%d,%d" % (seed, position, index)
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 11


class TokenSearch(Protocol):
    """Looks for something in the tree of token sequences that follow a prompt; called in the engine's thread."""

    def advance(self, logprobs: npt.NDArray[np.float32]) -> Sequence[tuple[int, int]]:
        """Say where to look next.

        logprobs  float32 [places, vocabulary_size], after the prompt at first, then after the last call's places
        returns   (number of a place, token) of each new place; none when the search is over. The place after the
                  prompt has number 0; those of all calls are numbered in order
        """
        ...


class StopMatcher(Protocol):
    """Is fed each token id of a text as it grows; True ends the text."""

    def __call__(self, token: int, /) -> bool: ...

    def fork(self) -> StopMatcher:
        """Return a copy that has been fed the same tokens and is independent from now on."""
        ...


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one engine. A request past `max_waiting` is refused before any work is done for it."""

    max_slots: int = 64  # sequences that run in one step
    max_waiting: int = 128  # requests that have no slot yet
    cache_bytes: int = 0  # of the prefix cache; 0 switches it off
    offline: bool = False  # one caller, which waits for everything: lists share a lane, and turns are long

    def __post_init__(self) -> None:
        if self.max_slots < 1 or self.max_waiting < 1:
            raise ValueError(f"max_slots, max_waiting: got {self.max_slots}, {self.max_waiting}, expected >= 1")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes: got {self.cache_bytes}, expected >= 0")


@dataclass(frozen=True, eq=False)
class StateValue:
    """The recurrent state of a sequence before `token`, which is fed first when the sequence is resumed.

    rows      state tensor -> float32 [*shape], without a batch dimension
    token     the last token of the text so far, not fed yet
    position  number of tokens fed before it, the boundary token included
    seed      of the sampling that led here
    seen      the distinct tokens of the text so far, for the repetition penalty
    generated how often each token was generated in the text so far, for the frequency and presence penalties
    """

    rows: Mapping[str, npt.NDArray[np.float32]]
    token: int
    position: int
    seed: int = 0
    seen: frozenset[int] = frozenset()
    generated: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def counted(cls, start: StateValue | None, tokens: Sequence[int]) -> Mapping[int, int]:
        """Count how often each token was generated up to `start` and in `tokens` after it."""
        counts = Counter(None if start is None else start.generated)
        counts.update(tokens)
        return dict(counts)


@dataclass(frozen=True)
class Sampling:
    """Settings for choosing the next token; the defaults sample from the model's own distribution."""

    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0  # the first min_tokens tokens cannot be the end token
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class GenerateCall:
    """Continue `prompt` (ids without the boundary token, which the engine puts first) by up to `max_tokens` tokens.

    With `start`, `prompt` follows the tokens of that state. With `num_beams` over 1 nothing is sampled: the samples are
    the likeliest continuations that beam search finds, best first.
    """

    prompt: Sequence[int]
    max_tokens: int
    deadline: float  # on the engine's clock; then the samples end with Finish.TIMEOUT
    sampling: Sampling = Sampling()
    num_samples: int = 1
    num_alternatives: int | None = None  # None: no alternatives wanted
    stop: Callable[[], StopMatcher] | None = None  # makes a matcher for each sample
    start: StateValue | None = None
    want_state: bool = False
    num_beams: int = 1
    ignores_end: bool = False  # the end token ends no sample; what follows it is a new text
    event: Event | None = None  # shared by calls that are waited for together

    @property
    def position(self) -> int:
        """Number of tokens before the first sampled one, the boundary token included."""
        return len(self.prompt) + 1 + (self.start.position if self.start is not None else 0)


@dataclass(frozen=True)
class ScoreCall:
    """Score each of `texts` after `context` (ids without boundary tokens)."""

    context: Sequence[int]
    texts: Sequence[Sequence[int]]
    deadline: float  # on the engine's clock; then the call fails with ScoreTimeout
    add_end: bool = True
    num_alternatives: int = 0
    want_ranks: bool = False
    start: StateValue | None = None  # then `context` is empty
    want_state: bool = False


class Finish(enum.StrEnum):
    """Reason for which a sample ended."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(eq=False)
class Sample:
    """One continuation. `token_ids` holds the end token when `finish` is END, and the token that completed a stop.

    A call for one sample with this `seed` gives the same tokens.
    """

    seed: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[list[int], list[float]]] = field(default_factory=list)
    finish: Finish | None = None
    state: StateValue | None = None  # where it was wanted, once the sample has ended


@dataclass(frozen=True, eq=False)
class TextScore:
    """Figures of one scored text, one row a token, the end token last where it was asked for."""

    logprobs: npt.NDArray[np.float64]  # [tokens]
    ranks: npt.NDArray[np.int64] | None  # [tokens], 1 is the likeliest
    alternative_ids: npt.NDArray[np.int64]  # [tokens, num_alternatives], likeliest first
    alternative_logprobs: npt.NDArray[np.float64]  # [tokens, num_alternatives]
    state: StateValue | None = None  # after the text's last token, where it was wanted


class Reservation:
    """A place in the engine's queue, taken before any work is done for a call.

    share  name of the caller, among whom the engine shares its work evenly

    Use it as a context manager: a place that was not used is given back.
    """

    def __init__(self, give_back: Callable[[], None], share: str = "") -> None:
        self._give_back: Callable[[], None] | None = give_back
        self.share = share

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def use(self) -> None:
        """Hand the place over to the request that is added now."""
        if self._give_back is None:
            raise ValueError("reservation: already used or released, expected a fresh one for each call")
        self._give_back = None

    def release(self) -> None:
        """Give the place back, unless it was used."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

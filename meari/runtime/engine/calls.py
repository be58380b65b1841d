"""What a caller asks of the engine, and the handles that it gets back.

Enters: token ids, limits, a deadline. Leaves: token ids and log-probabilities. Nothing here knows text or HTTP.

Threads: the engine's thread alone fills a handle and ends it, exactly once. Every other thread may read what is there
(lists only grow), wait for news, and cancel.

Log-probabilities are natural, of the model's own distribution, as float64 on a grid of 2**-30 nats (`GRID`):
float32 values of at least 2**-7 lie on it already, and sums of up to eight million nats are exact in any order.
That is why the score of a text equals the sum of its tokens' figures bit for bit.
"""

from __future__ import annotations

import enum
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from meari.errors import EngineFailed, MeariError, ScoreTimeout
from meari.runtime.engine.tally import NONE, Tallied

GRID: Final = 2.0**30
News = threading.Event  # set when something was added to a handle


def sample_seed(seed: int, position: int, index: int) -> int:
    """The seed of sample number `index` of a request, whose text had `position` tokens so far.

    The first has the request's own. Those of others are in [0, 2**53), exact in every reader of JSON, and are no
    neighbours: samples of neighbouring seeds, or taken at different places of a text, have nothing in common.
    """
    if not index:
        return seed
    name = b"%d,%d,%d" % (seed, position, index)
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 11


class StopMatcher(Protocol):
    """Is fed each token id of a text as it grows; True ends the text."""

    def __call__(self, token: int, /) -> bool: ...

    def fork(self) -> StopMatcher:
        """Another that has been fed the same and goes its own way."""
        ...


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one engine. A request past `max_waiting` is refused before any work is done for it."""

    max_slots: int = 64  # sequences that run in one step
    max_waiting: int = 128  # requests that have no slot yet
    cache_bytes: int = 0  # of the prefix cache; 0 switches it off
    has_one_caller: bool = False  # then nobody is to be kept from waiting, and everything runs together

    def __post_init__(self) -> None:
        if self.max_slots < 1 or self.max_waiting < 1:
            raise ValueError(f"max_slots, max_waiting: got {self.max_slots}, {self.max_waiting}, expected >= 1")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes: got {self.cache_bytes}, expected >= 0")


@dataclass(frozen=True, eq=False)
class StateValue:
    """Where a sequence stands: the recurrent state before `token`, which is fed first when the sequence is resumed.

    rows      state tensor -> float32 [*shape], without a batch dimension
    token     the last token of the text so far, not fed yet
    position  how many tokens were fed before it, the boundary token included
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
        """How often each token was generated up to `start` and in `tokens` after it."""
        counts = Counter(None if start is None else start.generated)
        counts.update(tokens)
        return dict(counts)


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken from the distribution; the defaults sample from the model itself."""

    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0  # the end token is none of the first so many
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class GenerateCall:
    """Continue `prompt` (ids without the boundary token, which the engine puts first) by up to `max_tokens` tokens.

    With `start`, `prompt` follows what that state has read. With `num_beams` over 1 nothing is sampled: the samples are
    the likeliest continuations that beam search finds, best first.
    """

    prompt: Sequence[int]
    max_tokens: int
    deadline: float  # on the engine's clock; then the samples end with Finish.TIMEOUT
    sampling: Sampling = Sampling()
    num_samples: int = 1
    num_alternatives: int | None = None  # None: no alternatives wanted
    stop: Callable[[], StopMatcher] | None = None  # makes a matcher a sample: fed each token id, True ends the sample
    start: StateValue | None = None
    want_state: bool = False
    num_beams: int = 1
    ignores_end: bool = False  # the end token ends no sample; what follows it is a new text
    news: News | None = None  # one for several calls that are waited for together

    @property
    def position(self) -> int:
        """How many tokens stand before the first that is sampled, the boundary token included."""
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
    """Why a sample ended."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(eq=False)
class Sample:
    """One continuation. `token_ids` holds the end token when `finish` is END, and the token that completed a stop.

    A call of one sample with that `seed` gives the same.
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


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and what runs and waits now."""

    running: int
    waiting: int
    steps: int  # runs of the graph: a token of every sequence that writes, or some of those that read
    rows: int  # tokens fed, over all steps
    output_rows: int  # distributions computed
    tokens_sampled: int  # those of every hypothesis of a beam search included
    requests_refused: int
    cache_queries: int = 0  # requests that looked for their prefix in the cache
    cache_hits: int = 0  # requests that found at least one token there
    cached_tokens: int = 0  # tokens that were taken from the cache, not run
    cache_bytes: int = 0  # what the cache holds now
    requests_running: int = 0  # that have been admitted and have not ended
    tokens_written: int = 0  # of samples; of a beam search those of its results
    looked_up_tokens: int = 0  # whose state was looked for in the cache
    token_gaps: Tallied = NONE  # seconds from one token of a sample to the next, see gaps.py


class Awaited(Protocol):
    """What can be waited for, of one call or of several."""

    @property
    def calls(self) -> tuple[Handle, ...]: ...
    @property
    def deadline(self) -> float: ...
    @property
    def submitted_at(self) -> float: ...
    @property
    def started_at(self) -> float | None: ...
    @property
    def first_token_at(self) -> float | None: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    def wait_end(self, timeout: float | None = None) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def cancel(self) -> None: ...
    def raise_for_failure(self) -> None: ...


class Handle:
    """An accepted request, from any thread: wait for it, cancel it, see why it ended."""

    def __init__(self, deadline: float, num_prompt_tokens: int, news: News | None = None) -> None:
        self.deadline = deadline
        self.num_prompt_tokens = num_prompt_tokens  # given to be read: a prompt, or a context and its texts
        self.submitted_at = 0.0  # this and the next three on the engine's clock
        self.started_at: float | None = None  # first slot
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.failure: MeariError | None = None
        self.cancelled = False
        self._news = news or News()
        self._ended = threading.Event()
        self.on_cancel: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None

    @property
    def calls(self) -> tuple[Handle, ...]:
        """Itself: what is waited for is one call."""
        return (self,)

    @property
    def ended(self) -> bool:
        """True once nothing more will be added."""
        return self._ended.is_set()

    def wait_end(self, timeout: float | None = None) -> bool:
        """Block until the request ended, at most `timeout` seconds; returns whether it did."""
        return self._ended.wait(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until something was added since the last call or the request ended; returns whether that is so."""
        news = self._news.wait(timeout)
        self._news.clear()
        return news or self.ended

    def cancel(self) -> None:
        """Ask the engine to drop the request; its slots are free within a step."""
        self.cancelled = True
        self.on_cancel()

    def raise_for_failure(self) -> None:
        """Raise what ended the request early: EngineFailed, ScoreTimeout."""
        if self.failure is not None:
            raise self.failure

    # ---- the engine's thread only ----

    def notify(self) -> None:
        if not self._news.is_set():
            self._news.set()

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> None:
        assert not self.ended, "a request ends once"
        self.failure = failure or self.failure
        self._close(finish)
        self.ended_at = now
        self._ended.set()
        self.notify()
        self.on_end()

    def _close(self, finish: Finish) -> None:
        """Bring what is there into its final form; `finish` is LENGTH where everything was done."""


class Generation(Handle):
    """The samples of a GenerateCall, growing while the engine runs."""

    def __init__(self, call: GenerateCall) -> None:
        super().__init__(call.deadline, len(call.prompt), call.news)
        seed, is_sampled = call.sampling.seed, call.num_beams == 1
        self.samples = tuple(
            Sample(sample_seed(seed, call.position, index) if is_sampled else seed) for index in range(call.num_samples)
        )
        self.cached_tokens = 0  # tokens of the prompt whose state came from the cache

    def _close(self, finish: Finish) -> None:
        for sample in self.samples:
            if sample.finish is None:
                sample.finish = finish


class Scoring(Handle):
    """The figures of a ScoreCall, there once it ended without failure."""

    def __init__(self, call: ScoreCall) -> None:
        super().__init__(call.deadline, len(call.context) + sum(map(len, call.texts)))
        self.num_texts = len(call.texts)
        self.results: list[TextScore] = []
        self.computed_tokens = 0  # tokens really run: prefixes that texts share count once
        self.cached_tokens = 0  # tokens of the context whose state came from the cache
        self.collect: Callable[[], list[TextScore]] = list

    def end(self, finish: Finish, now: float, failure: MeariError | None = None) -> None:
        if finish is Finish.TIMEOUT:
            failure = ScoreTimeout(
                "the texts were not scored within the server's time limit; send fewer or shorter texts"
            )
        elif finish is Finish.CANCELLED:
            failure = EngineFailed("the request was cancelled")
        super().end(finish, now, failure)

    def _close(self, finish: Finish) -> None:
        if finish is Finish.LENGTH:
            self.results = self.collect()

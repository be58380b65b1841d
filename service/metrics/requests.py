"""A request that has ended → what is told of it: times, sizes, why it ended.

Enters: the engine's handles. Leaves: figures that only grow, which the worker's metrics carry over now and then. Every
way of asking ends in such handles: one for each prompt, one for a list of texts to score.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from meari.errors import ScoreTimeout
from meari.runtime.engine import Finish, Generation, Scoring
from meari.runtime.engine.calls import Handle
from meari.runtime.engine.tally import Tallied, Tally

__all__ = ["HISTOGRAMS", "Reason", "RequestFigures", "Told"]

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)
E2E: Final = "e2e_request_latency_seconds"
QUEUE: Final = "request_queue_time_seconds"
FIRST_TOKEN: Final = "time_to_first_token_seconds"
PREFILL: Final = "request_prefill_time_seconds"
DECODE: Final = "request_decode_time_seconds"
INFERENCE: Final = "request_inference_time_seconds"
PROMPT: Final = "request_prompt_tokens"
GENERATION: Final = "request_generation_tokens"
HISTOGRAMS: Final[dict[str, tuple[str, tuple[float, ...]]]] = {
    E2E: ("From the request's head to its last token", SECONDS),
    QUEUE: ("From queueing to the first slot", SECONDS),
    FIRST_TOKEN: ("From the request's head to its first token", SECONDS),
    PREFILL: ("From the first slot to the first token", SECONDS),
    DECODE: ("From the first token to the last one", SECONDS),
    INFERENCE: ("From the first slot to the end", SECONDS),
    PROMPT: ("Tokens of a request's prompt, or of its context and texts", TOKENS),
    GENERATION: ("Tokens of a choice", TOKENS),
}


class Reason(enum.StrEnum):
    """Why a choice or a scored text ended: vLLM's words, and two for what it does not have."""

    STOP = "stop"  # the end token, or a stop string
    LENGTH = "length"
    TIMEOUT = "timeout"
    SCORED = "scored"
    ABORT = "abort"  # the client has gone, or the service had to end
    ERROR = "error"


REASONS: Final = {
    Finish.END: Reason.STOP,
    Finish.STOP: Reason.STOP,
    Finish.LENGTH: Reason.LENGTH,
    Finish.TIMEOUT: Reason.TIMEOUT,
    Finish.CANCELLED: Reason.ABORT,
    Finish.FAILED: Reason.ERROR,
    None: Reason.ABORT,
}
BROKEN: Final = {Reason.ABORT, Reason.ERROR}  # how long such a request took says nothing


@dataclass
class Told:
    """Figures of the requests of one model.

    tallies  by the names of HISTOGRAMS
    reasons  choices and texts by why they ended
    """

    tallies: dict[str, Tallied] = field(default_factory=dict)
    reasons: dict[Reason, int] = field(default_factory=dict)


class RequestFigures:
    """Counts the requests of one model; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tallies = {name: Tally(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._reasons = dict.fromkeys(Reason, 0)

    def note(self, calls: Iterable[Handle], arrived_at: float) -> None:
        """Count the calls of a request that is over; a prompt that was scored and continued counts once.

        arrived_at  when the request's head came, on the engine's clock
        """
        everyone = list(calls)
        for call in [call for call in everyone if isinstance(call, Generation)] or everyone:
            values, reasons = list(_values(call, arrived_at)), _reasons(call)
            with self._lock:
                for name, value in values:
                    self._tallies[name].note(value)
                for reason in reasons:
                    self._reasons[reason] += 1

    def read(self) -> Told:
        """What has been counted so far."""
        with self._lock:
            return Told({name: tally.read() for name, tally in self._tallies.items()}, dict(self._reasons))


def _values(call: Handle, arrived_at: float) -> Iterator[tuple[str, float]]:
    """What goes into which histogram."""
    started, first, ended = call.started_at, call.first_token_at, call.ended_at
    is_whole = not BROKEN.intersection(_reasons(call))
    if started is not None:
        yield QUEUE, started - call.submitted_at
    if first is not None:
        yield FIRST_TOKEN, first - arrived_at
        if started is not None:
            yield PREFILL, first - started
    if first is not None or (isinstance(call, Scoring) and is_whole and call.failure is None):
        yield PROMPT, call.num_prompt_tokens
    if ended is None or not is_whole:
        return
    yield E2E, ended - arrived_at
    if started is not None:
        yield INFERENCE, ended - started
    if first is not None:
        yield DECODE, ended - first
    if isinstance(call, Generation):
        for sample in call.samples:
            yield GENERATION, len(sample.token_ids)


def _reasons(call: Handle) -> list[Reason]:
    """Of each choice, or of each text."""
    if isinstance(call, Generation):
        return [REASONS[sample.finish] for sample in call.samples]
    assert isinstance(call, Scoring)
    if not call.ended or call.cancelled:
        reason = Reason.ABORT
    elif call.failure is None:
        reason = Reason.SCORED
    else:
        reason = Reason.TIMEOUT if isinstance(call.failure, ScoreTimeout) else Reason.ERROR
    return [reason] * call.num_texts

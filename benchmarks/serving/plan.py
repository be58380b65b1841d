"""Plan of a run: bundles, servers, loads, and their times.

Input: options. Output: one frozen `BenchmarkPlan`. Must not know: servers, drivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SHARES = (0.5, 0.8, 1.1, 2.0)  # of capacity
INSIDE = ("raw", "engine")
HTTP_SERVERS = ("meari", "mosec", "bentoml", "litserve", "ray", "flask-torch")
CHOICES = (*INSIDE, *HTTP_SERVERS, "kenlm", "probes")  # what --only takes
RANDOM = ("lstm-int8", "lstm-fp32", "gru-fp32", "esn-fp32")
ENDLESS = frozenset({*RANDOM, "shakespeare-lstm", "shakespeare-gru", "shakespeare-rnn", "shakespeare-esn"})
RELEASED = ("shakespeare-lstm", "shakespeare-gru", "shakespeare-rnn", "shakespeare-esn", "nsmc-lstm")
FIRST_ROUND = (*INSIDE, *HTTP_SERVERS)
OTHER_ROUND = ("raw", "meari", "flask-torch", "mosec")


class LoadKind(StrEnum):
    """Kind of the requests of a load."""

    WHOLE = "whole"
    STREAM = "stream"
    MIXED = "mixed"
    GOODPUT = "goodput"
    SCORE_ONE = "score one"
    SCORE_LIST = "score list"
    SCORE_NBEST = "score n-best"


SCORING = frozenset({LoadKind.SCORE_ONE, LoadKind.SCORE_LIST, LoadKind.SCORE_NBEST})


@dataclass(frozen=True)
class Load:
    """One load: closed with so many clients, or open at a share of the capacity measured before.

    Of a goodput the share is found: the largest open mixed load under which tokens come quickly.
    """

    kind: LoadKind
    clients: int = 0
    share: float = 0.0

    @property
    def name(self) -> str:
        """Name in the tables."""
        if self.kind is LoadKind.GOODPUT:
            return str(self.kind)
        if self.share:
            return f"{self.kind} {self.share:.0%}"
        return f"{self.kind} × {self.clients}"


CAPACITY = Load(LoadKind.MIXED, clients=128)  # as many as two workers of 64 rows hold
SCORES = (Load(LoadKind.SCORE_ONE, 16), Load(LoadKind.SCORE_LIST, 4), Load(LoadKind.SCORE_NBEST, 4))
CLOSED = tuple(Load(kind, clients) for kind in (LoadKind.WHOLE, LoadKind.STREAM) for clients in (1, 16, 64))
GOODPUT = Load(LoadKind.GOODPUT)
MIXED = (CAPACITY, *(Load(LoadKind.MIXED, share=share) for share in SHARES), GOODPUT)
EVERYTHING = (*CLOSED, *MIXED, *SCORES)
SHORT = (Load(LoadKind.WHOLE, 1), Load(LoadKind.WHOLE, 64), Load(LoadKind.STREAM, 64))
BESIDE_RAW = frozenset({*SHORT, CAPACITY, SCORES[1]})  # loads that targets compare with the bare loop
SHORTEST = (Load(LoadKind.WHOLE, 1), Load(LoadKind.WHOLE, 64))


@dataclass(frozen=True)
class Round:
    """One bundle, its servers, and their loads."""

    model: str
    servers: tuple[str, ...]
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class BenchmarkPlan:
    """Plan of a whole run; times in seconds."""

    rounds: tuple[Round, ...]
    closed_seconds: float
    warmup_seconds: float
    open_seconds: float
    drain_seconds: float
    raw_seconds: float  # a batch size
    raw_batches: tuple[int, ...]
    flat_seconds: float  # of the load under which a worker's memory must stay flat
    budget_seconds: float  # of the whole run; the rest is listed as not measured
    probe_seconds: float  # of those, kept for the probes
    start_timeout: float = 90.0


def full_plan() -> BenchmarkPlan:
    """Return the plan of at most 40 minutes."""
    rounds = [
        Round("lstm-int8", FIRST_ROUND, EVERYTHING),
        Round("lstm-fp32", FIRST_ROUND, (*SHORT, SCORES[1])),
        *(Round(name, OTHER_ROUND, SHORT) for name in ("gru-fp32", "esn-fp32")),
        *(Round(name, ("raw", "meari"), SHORTEST) for name in RELEASED),
    ]
    return BenchmarkPlan(
        rounds=tuple(rounds),
        closed_seconds=4.0,
        warmup_seconds=1.0,
        open_seconds=8.0,
        drain_seconds=6.0,
        raw_seconds=0.8,
        raw_batches=(1, 4, 16, 32, 64, 128),
        flat_seconds=600.0,
        budget_seconds=39.5 * 60,
        probe_seconds=11.5 * 60,
    )


def quick_plan() -> BenchmarkPlan:
    """Return the plan of at most 5 minutes: the int8 LSTM under a few loads, and the loads that its ratios need."""
    few = (
        Load(LoadKind.WHOLE, 1),
        Load(LoadKind.WHOLE, 64),
        Load(LoadKind.STREAM, 64),
        CAPACITY,
        Load(LoadKind.MIXED, share=0.8),
    )
    rounds = (
        Round("lstm-int8", (*INSIDE, "meari"), (*few, Load(LoadKind.MIXED, share=2.0), *SCORES)),
        Round("lstm-fp32", ("raw", "meari", "flask-torch"), (Load(LoadKind.WHOLE, 1), *SHORT[1:])),
        Round("lstm-int8", HTTP_SERVERS[1:-1], few),
    )
    return BenchmarkPlan(
        rounds=rounds,
        closed_seconds=1.5,
        warmup_seconds=0.4,
        open_seconds=2.5,
        drain_seconds=2.0,
        raw_seconds=0.4,
        raw_batches=(1, 32, 64, 128),
        flat_seconds=10.0,
        budget_seconds=4.4 * 60,
        probe_seconds=80.0,
        start_timeout=40.0,
    )

"""Figures over many values. Pure Python."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Percentiles of some times, in milliseconds, and how many there were."""

    p50: float
    p95: float
    p99: float
    count: int


def percentile(ordered: list[float], share: float) -> float:
    """The value below which that share of the ordered values lies, between two of them in proportion."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_ms(seconds: Iterable[float]) -> Spread | None:
    """None where there are no values."""
    ordered = sorted(1000 * value for value in seconds)
    if not ordered:
        return None
    p50, p95, p99 = (round(percentile(ordered, share), 3) for share in (0.50, 0.95, 0.99))
    return Spread(p50, p95, p99, len(ordered))


def overlap_share(begin: float, end: float, window_begin: float, window_end: float) -> float:
    """The share of [begin, end] that lies in the window."""
    if end <= begin:
        return float(window_begin <= begin < window_end)
    return max(0.0, min(end, window_end) - max(begin, window_begin)) / (end - begin)

"""Test histograms that only count."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from meari.runtime.engine import stats
from meari.service.metric_families import Histogram

BOUNDS = (0.1, 1.0)


def test_value_belongs_to_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = stats.Histogram(BOUNDS)
    for value in (0.1, 0.11, 1.0, 1.1):
        histogram.add(value)
    assert histogram.read().counts == (1, 2, 1)


def test_increase_is_the_difference_of_two_readings() -> None:
    histogram = stats.Histogram(BOUNDS)
    histogram.add(0.5, times=3)
    before = histogram.read()
    histogram.add(2.0, times=2)
    assert before.since(stats.EMPTY) == before
    assert histogram.read().since(before).counts == (0, 0, 2)
    assert histogram.read().since(before).total == 4.0


def test_added_counts_equal_observed_values() -> None:
    values = (0.05, 0.1, 0.5, 0.5, 7.0)
    counted, observed = CollectorRegistry(), CollectorRegistry()
    histogram = stats.Histogram(BOUNDS)
    direct = Histogram("h", "h", ["model"], buckets=BOUNDS, registry=observed).labels("m")
    for value in values:
        direct.observe(value)
        histogram.add(value)
    Histogram("h", "h", ["model"], buckets=BOUNDS, registry=counted).labels("m").add(histogram.read())

    def samples(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert samples(counted) == samples(observed)

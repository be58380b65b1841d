"""Test percentiles and overlaps against values computed by hand."""

import pytest

from benchmarks.serving.results import overlap_share, percentile, spread_ms


def test_percentile_interpolates_between_two_values() -> None:
    assert percentile([10.0, 20.0], 0.25) == 12.5
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 0.5) == 3.0
    assert percentile([7.0], 0.99) == 7.0


def test_spread_is_in_milliseconds_and_none_without_values() -> None:
    spread = spread_ms([0.003, 0.001, 0.002])
    assert spread is not None
    assert (spread.p50, spread.count) == (2.0, 3)
    assert spread_ms([]) is None


@pytest.mark.parametrize(
    ("begin", "end", "share"), [(0, 1, 0.0), (1, 3, 0.5), (2, 4, 1.0), (4, 8, 0.25), (0, 10, 0.3), (6, 7, 0.0)]
)
def test_response_counts_by_the_share_of_its_time_in_the_window(begin: float, end: float, share: float) -> None:
    assert overlap_share(begin, end, 2.0, 5.0) == pytest.approx(share)

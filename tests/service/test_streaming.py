"""Test the pacing of streams."""

from __future__ import annotations

import pytest

from meari.service.routes.completions import EVENTS_PER_SECOND, pause_seconds

MAX_WAIT_SECONDS = 0.05  # seconds for an event, including waking a thread and writing


def test_single_stream_never_pauses() -> None:
    assert pause_seconds(1, 1) == 0.0


@pytest.mark.parametrize("num_streams", [2, 8, 16, 64, 1000])
def test_pause_is_bounded_for_any_number_of_streams(num_streams: int) -> None:
    assert 0.0 < pause_seconds(1, num_streams) <= 0.8 * MAX_WAIT_SECONDS


@pytest.mark.parametrize("num_streams", [2, 16, 32])
def test_event_rate_of_all_streams_is_bounded(num_streams: int) -> None:
    assert num_streams / pause_seconds(1, num_streams) == pytest.approx(EVENTS_PER_SECOND)


def test_pause_grows_with_the_number_of_choices() -> None:
    assert pause_seconds(4, 4) == pause_seconds(1, 16) > pause_seconds(1, 4)

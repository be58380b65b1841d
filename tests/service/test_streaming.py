"""How streams are paced."""

from __future__ import annotations

import pytest

from meari.service.routes.streaming import EVENTS_PER_SECOND, pause_seconds

LONGEST_WAIT = 0.05  # of a text, with the time to wake a thread and write an event


def test_a_lone_stream_never_pauses() -> None:
    assert pause_seconds(1, 1) == 0.0


@pytest.mark.parametrize("num_streams", [2, 8, 16, 64, 1000])
def test_no_text_waits_long_beside_however_many(num_streams: int) -> None:
    assert 0.0 < pause_seconds(1, num_streams) <= 0.8 * LONGEST_WAIT


@pytest.mark.parametrize("num_streams", [2, 16, 32])
def test_streams_together_make_no_more_events_than_a_worker_can_afford(num_streams: int) -> None:
    assert num_streams / pause_seconds(1, num_streams) == pytest.approx(EVENTS_PER_SECOND)


def test_more_choices_pause_longer() -> None:
    assert pause_seconds(4, 4) == pause_seconds(1, 16) > pause_seconds(1, 4)

"""Test the progress bar."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from meari.bulk.progress import Progress, duration


class Terminal(io.StringIO):
    """Stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def clock(*seconds: float) -> Iterator[float]:
    yield from seconds


def test_bar_shows_share_rate_and_remaining_time() -> None:
    times, stream = clock(0.0, 2.0), Terminal()
    Progress(1000, 0, lambda: next(times), stream).show(250, 10, 4000)
    assert stream.getvalue().strip() == " 25% █████░░░░░░░░░░░░░░░ 10 lines, 2,000 tokens/s, 0:06 left".strip()


def test_rate_excludes_the_work_of_an_earlier_run() -> None:
    times, stream = clock(0.0, 1.0), Terminal()
    Progress(1000, 500, lambda: next(times), stream).show(600, 10, 100)
    assert "60% " in stream.getvalue()
    assert "0:04 left" in stream.getvalue()


def test_input_of_unknown_size_has_no_share() -> None:
    times, stream = clock(0.0, 6.0), io.StringIO()
    Progress(None, 0, lambda: next(times), stream).show(250, 1234, 600)
    assert stream.getvalue() == "1,234 lines, 100 tokens/s, 0:06\n"


def test_bar_is_redrawn_at_a_limited_rate() -> None:
    times, stream = clock(0.0, 0.1, 0.15, 0.3), Terminal()
    progress = Progress(100, 0, lambda: next(times), stream)
    for num_bytes in (10, 20, 30):
        progress.show(num_bytes, 1, 1)
    assert stream.getvalue().count("\r") == 1


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (65, "1:05"), (3725, "1:02:05")])
def test_durations_are_formatted(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown

"""Test the buffered log: single lines are written at once, many lines together."""

from __future__ import annotations

import io
import logging

import pytest

from meari.service.log import MAX_LINES, WAIT_SECONDS, BufferedLines


class Stream(io.StringIO):
    """Stream that counts its writes."""

    num_writes = 0

    def write(self, text: str) -> int:
        self.num_writes += 1
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


class Log:
    def __init__(self) -> None:
        self.now = 0.0
        self.stream = Stream()
        self.handler = BufferedLines(self.stream, lambda: self.now)

    def add(self, text: str, level: int = logging.INFO) -> None:
        self.handler.handle(logging.LogRecord("service", level, "", 0, text, None, None))


@pytest.fixture
def log() -> Log:
    return Log()


def test_single_line_is_written_at_once(log: Log) -> None:
    log.add("one")
    log.now += WAIT_SECONDS
    log.add("two")
    assert log.stream.lines == ["one", "two"]


def test_frequent_lines_are_written_together_in_order(log: Log) -> None:
    log.add("first")
    for number in range(MAX_LINES):
        assert log.stream.num_writes == 1
        log.add(str(number))
    assert log.stream.lines == ["first", *map(str, range(MAX_LINES))]
    assert log.stream.num_writes == 2


def test_warning_is_written_at_once_after_earlier_lines(log: Log) -> None:
    log.add("one")
    log.add("two")
    log.add("three", logging.WARNING)
    assert log.stream.lines == ["one", "two", "three"]


def test_flush_writes_buffered_lines(log: Log) -> None:
    log.add("one")
    log.add("two")
    log.handler.flush()
    log.handler.flush()
    assert log.stream.lines == ["one", "two"]
    assert log.stream.num_writes == 2

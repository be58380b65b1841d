"""Lines of the log: at once where there are few, together where there are many."""

from __future__ import annotations

import io
import logging

import pytest

from meari.service.log import MAX_LINES, WAIT_SECONDS, BufferedLines


class Stream(io.StringIO):
    """Counts how often it is written to."""

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


def test_a_line_that_comes_alone_is_written_at_once(log: Log) -> None:
    log.add("one")
    log.now += WAIT_SECONDS
    log.add("two")
    assert log.stream.lines == ["one", "two"]


def test_lines_that_come_fast_are_written_together_and_in_order(log: Log) -> None:
    log.add("first")
    for number in range(MAX_LINES):
        assert log.stream.num_writes == 1
        log.add(str(number))
    assert log.stream.lines == ["first", *map(str, range(MAX_LINES))]
    assert log.stream.num_writes == 2


def test_a_warning_does_not_wait_nor_overtake(log: Log) -> None:
    log.add("one")
    log.add("two")
    log.add("three", logging.WARNING)
    assert log.stream.lines == ["one", "two", "three"]


def test_what_waits_is_written_when_asked_for(log: Log) -> None:
    log.add("one")
    log.add("two")
    log.handler.flush()
    log.handler.flush()
    assert log.stream.lines == ["one", "two"]
    assert log.stream.num_writes == 2

"""Test the formats of log records: JSON for programs, words for people, and no content of requests."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from meari.errors import MAY_QUOTE, EngineFailed, InvalidRequest, Overloaded, ScoreTimeout
from meari.runtime.answers import Work
from meari.service.log import JsonFormat, RequestLine, RequestOutcome, TextFormat, log_request
from tests.patience import PATIENCE
from tests.service.running import ROOT

SECRET = "nobody may read this"


def record(text: str, *arguments: object, error: BaseException | None = None, **extra: object) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("meari.service.x", logging.ERROR, "", 0, text, arguments, info)
    made.__dict__.update(extra)
    return made


def raised() -> BaseException:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(f"got {SECRET}") from cause
    except ValueError as error:
        return error


def line(**noted: object) -> RequestLine:
    made = RequestLine("id-1", "POST", "/score", "/score", 200)
    for name, value in noted.items():
        setattr(made, name, value)
    return made


def test_json_line_has_time_level_logger_process_and_message() -> None:
    members = json.loads(JsonFormat().format(record("two\nlines of %s", "ü한")))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", members.pop("time"))
    assert members == {"level": "error", "logger": "service.x", "process": os.getpid(), "message": "two\nlines of ü한"}


def test_json_line_contains_no_line_separator() -> None:
    [line] = JsonFormat().format(record("a\u2028b\u2029c\x85d")).splitlines()
    assert json.loads(line)["message"] == "a\u2028b\u2029c\x85d"


def test_lone_surrogates_are_written_as_valid_json() -> None:
    assert json.loads(JsonFormat().format(record("a file called \udcff")))["message"] == "a file called \udcff"


@pytest.mark.parametrize("format_", [JsonFormat(), TextFormat()], ids=["json", "text"])
def test_exception_that_may_quote_a_request_is_logged_with_types_and_locations_only(format_: logging.Formatter) -> None:
    told = format_.format(record("it failed", error=raised(), **MAY_QUOTE))
    assert SECRET not in told
    assert "ValueError" in told
    assert "KeyError" in told
    assert "in raised" in told
    assert format_.format(record("it failed", error=raised())).count(SECRET) >= 2


def test_request_is_one_line_of_words_in_the_text_format() -> None:
    noted = line(
        model="letters", work=Work(3, 1, 4, 0, ("end",)), total_seconds=0.0125, error=Overloaded("no room here")
    )
    text = TextFormat().format(record("POST /score 200", request=noted))
    assert "\n" not in text
    for word in ("request_id=id-1", "model=letters", "prompt_tokens=3", 'finish_reasons=["end"]', "total_ms=12.5"):
        assert f" {word}" in text
    assert text.count("/score") == 2, "the path in the message, then the route"


@pytest.mark.parametrize(("noted", "outcome", "level"), [
    ({}, RequestOutcome.OK, "INFO"),
    ({"status": 400, "error": InvalidRequest("x")}, RequestOutcome.INVALID, "INFO"),
    ({"status": 429, "error": Overloaded("x")}, RequestOutcome.REFUSED, "INFO"),
    ({"status": 503}, RequestOutcome.REFUSED, "INFO"),
    ({"status": 504, "error": ScoreTimeout("x")}, RequestOutcome.FAILED, "WARNING"),
    ({"status": 200, "error": EngineFailed("x")}, RequestOutcome.FAILED, "ERROR"),
    ({"status": 200, "aborted": True}, RequestOutcome.ABORTED, "INFO"),
    ({"status": 499, "aborted": True}, RequestOutcome.ABORTED, "INFO"),
])  # fmt: skip
def test_outcome_and_level_depend_on_whose_fault_an_error_is(
    noted: dict[str, object], outcome: RequestOutcome, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    access = logging.getLogger("meari.service.access")
    access.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.DEBUG, "meari.service.access"):
            log_request(line(**noted))
    finally:
        access.removeHandler(caplog.handler)
    assert line(**noted).outcome is outcome
    assert [found.levelname for found in caplog.records][:1] == [level]


def test_path_is_logged_as_one_ascii_word() -> None:
    assert line(path="/a b\n한" + "x" * 500).quoted_path.startswith("/a%20b%0A%ED%95%9C")
    assert len(line(path="x" * 500).quoted_path) == 200


@pytest.mark.parametrize(("line_format", "on_terminal", "is_json"), [
    ("auto", True, False),
    ("auto", False, True),
    ("json", True, True),
    ("text", False, False),
])  # fmt: skip
def test_terminal_gets_words_and_other_outputs_json(line_format: str, on_terminal: bool, is_json: bool) -> None:
    code = f"import meari.service.log as l, logging; l.configure_logging('info', {line_format!r}); "
    code += "logging.getLogger('meari.service.x').info('hello')"
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=writer, check=False, timeout=PATIENCE)
    os.close(writer)
    written = os.read(reader, 10_000).decode()
    os.close(reader)
    assert done.returncode == 0, written
    assert written.startswith("{") == is_json
    assert "hello" in written

"""Test the parsing of lines into records, and the messages for bad lines."""

from __future__ import annotations

import pytest

from meari.bulk.records import Problem, Reader, Record, is_like_object

TEXT = Reader("text", "text", with_context=True)
JSONL = Reader("jsonl", "text", with_context=True)


def problem(line: bytes) -> str:
    found = JSONL.read(line + b"\n", 7)[0]
    assert isinstance(found, Problem)
    return str(found)


def test_every_line_is_a_text_including_empty_lines() -> None:
    assert TEXT.read(b"a\n\n b \n", 3) == [Record(3, "a"), Record(4, ""), Record(5, " b ")]


def test_only_the_line_end_is_removed() -> None:
    found = TEXT.read("a\r\nb\r\r\n\u2028c\x0bd\r".encode(), 1)
    assert [line.text for line in found if isinstance(line, Record)] == ["a", "b\r", "\u2028c\x0bd\r"]


def test_invalid_utf8_affects_only_its_own_line() -> None:
    assert TEXT.read(b"a\nb\xff\nc\n", 1) == [
        Record(1, "a"),
        Problem(2, "got bytes that are not UTF-8 at byte 2, expected UTF-8"),
        Record(3, "c"),
    ]


def test_fields_are_copied_verbatim() -> None:
    [record] = JSONL.read(b'{"id": 1.50, "text": "a\\u0041", "x": [1, {}], "context": "c"}\n', 1)
    assert record == Record(1, "aA", "c", {"id": b"1.50", "text": b'"a\\u0041"', "x": b"[1, {}]", "context": b'"c"'})


def test_null_context_means_no_context() -> None:
    [record] = JSONL.read(b'{"text": "", "context": null}\n', 1)
    assert isinstance(record, Record)
    assert record.context is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", 'line 7: got nothing, expected a JSON object with "text"'),
        (b"[1, 2]", 'line 7: got [1, 2], expected a JSON object with "text"'),
        (b'{"id": 1}', "line 7: text: missing, expected a string"),
        (b'{"text": 5}', "line 7: text: got 5, expected a string"),
        (b'{"text": null}', "line 7: text: got null, expected a string"),
        (b'{"text": "a", "context": ["b"]}', 'line 7: context: got ["b"], expected a string'),
        (b'{"text": "a", "text": "b"}', "line 7: text: got the name twice, expected it once"),
        (b'{"text" : "a", "text" : "b"}', "line 7: text: got the name twice, expected it once"),
        (b'{"text": "\xff"}', "line 7: got bytes that are not UTF-8 at byte 11, expected UTF-8"),
    ],
)
def test_message_for_a_bad_line_has_the_value_and_the_expected_value(line: bytes, message: str) -> None:
    assert problem(line) == message


@pytest.mark.parametrize(
    "line", [b'{"text": "a"', b'{"text": "a"} x', b'{"text": "\\ud800"}', b"{'text': 'a'}", b"text"]
)
def test_malformed_json_is_reported(line: bytes) -> None:
    assert problem(line).startswith("line 7: got malformed JSON (")
    assert problem(line).endswith('), expected a JSON object with "text"')


def test_lone_surrogate_does_not_end_the_line() -> None:
    for line in (rb'{"text": "a\ud800"}', rb'{"text": "a\ud800b", "id": 1}', rb'{"id": "\ud800", "text": "a"}'):
        assert r"(\ud800 is half of a surrogate pair, which stands for no character)" in problem(line)
    assert "(it is cut off)" in problem(rb'{"text": "a\ud800')
    assert JSONL.read(rb'{"text": "\ud83d\ude00\\ud800"}', 1) != []


def test_deep_nesting_is_a_bad_line() -> None:
    assert "nested too deeply" in problem(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_colon_in_a_text_is_not_a_duplicate_name() -> None:
    [record] = JSONL.read(b'{"text": "a \\":\\": b"}\n', 1)
    assert isinstance(record, Record)


@pytest.mark.parametrize(("line", "is_object"), [(b'{"text":', True), (b" { }", True), (b"{ x", False), (b"a", False)])
def test_first_line_distinguishes_jsonl_and_text(line: bytes, is_object: bool) -> None:
    assert is_like_object(line) is is_object

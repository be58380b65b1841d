"""Test that a line read in pieces has the same record as the whole line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meari.bulk import long_text
from meari.bulk.backends import LocalBackend, open_local
from meari.bulk.frames import Begun, Done, Part
from meari.bulk.options import ScoreOptions
from meari.bulk.score import ScoreWork
from meari.bulk.totals import ScoreTotals
from meari.runtime.text.words import Words

TEXTS = [
    "good day, world. " * 40,
    "abc" * 200,
    "e\u0301" * 200 + " x",
    '"q" \t\\ ' * 60,
    " " * 500 + "b" + " " * 500 + "ccc ",
    "한국 é😀 " * 60,
    "",
    " \t\u3000" * 100,
    "a" * 350 + " " * 350,
    "我爱北京天安门，今天天气很好。" * 60 + "b",
    "สวัสดีชาวโลกวันนี้อากาศดี" * 40,
    "我爱北京天安门" * 900,  # longer than one piece
    "It's 3.14, o'clock! " * 40,
]
# Known and unknown letters, combining marks, all kinds of white space, and incomplete characters.
CHARACTERS = st.sampled_from(
    "abgd,.'\"  \t\n\r\u0301\u1112\u1161\u11ab\u00e9\ud55c\U0001f600\x00\x1c\x85\u2028\u3000我爱北京。，วันนี้'\u200d3"
)


@pytest.fixture(scope="module", params=["letters", "bytes", "words"])
def backend(request: pytest.FixtureRequest, bundles: Path) -> Iterator[LocalBackend]:
    backend = open_local(bundles / request.param)
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PIECE_CHARS", 100)


def written(begun: Begun) -> tuple[bytes, Done]:
    *parts, done = begun.messages()
    assert isinstance(done, Done)
    return b"".join(part.data for part in parts if isinstance(part, Part)), done


def in_pieces(work: ScoreWork, data: bytes) -> tuple[bytes, Done]:
    """Split the line into pieces of various lengths, like reads from a pipe."""
    long, at, lengths = work.begin_long(5), 0, random.Random(len(data))
    while at < len(data):
        end = min(len(data), at + lengths.choice([1, 7, 130]))
        long.feed(data[at:end], ends=end == len(data))
        at = end
    return written(long)


@pytest.mark.parametrize("output_format", ["jsonl", "tsv"])
@pytest.mark.parametrize("input_format", ["text", "jsonl"])
@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"tokens": True, "top": 1},
        {"words": True, "log_base": "2"},
        {"words": "unicode"},
        {"add_end": False, "with_text": False},
    ],
)
def test_record_equals_that_of_the_whole_line(
    backend: LocalBackend, output_format: Any, input_format: Any, figures: Any
) -> None:
    options = ScoreOptions(bundle="", input_format=input_format, format=output_format, context="day ", **figures)
    work = ScoreWork(backend, options)
    for text in TEXTS:
        line = text.encode() if input_format == "text" else msgspec.json.encode({"id": 1, "text": text, "context": "a"})
        assert in_pieces(work, line + b"\r\n") == written(work.begin(line + b"\r\n", 5))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(text=st.text(CHARACTERS, max_size=300), add_end=st.booleans(), words=st.sampled_from([True, "unicode"]))
def test_rows_of_words_and_of_tokens_add_up_to_the_text(
    backend: LocalBackend, text: str, add_end: bool, words: Words
) -> None:
    options = ScoreOptions(bundle="", input_format="jsonl", format="jsonl", tokens=True, words=words, add_end=add_end)
    work = ScoreWork(backend, options)
    line = msgspec.json.encode({"text": text}) + b"\n"
    data, _ = written(work.begin(line, 5))
    record = msgspec.json.decode(data)
    assert sum(word["logprob"] for word in record["words"]) == record["logprob"]
    assert sum(token["logprob"] for token in record["tokens"]) == record["logprob"]
    assert [row["text"] for row in record["words"] if row["start"] == row["end"]] == ["<|end|>"] * add_end
    rows = record["words"]
    assert [row["text"] for row in rows[: len(rows) - add_end]] == [
        text[row["start"] : row["end"]] for row in rows[: len(rows) - add_end]
    ]
    assert any(word["unknown"] for word in record["words"]) == (record["num_unknown"] > 0)
    assert in_pieces(work, line)[0] == data


def test_invalid_utf8_is_found_in_any_piece(backend: LocalBackend) -> None:
    work = ScoreWork(backend, ScoreOptions(bundle="", input_format="text", format="jsonl"))
    data = "한".encode() * 100 + b"\xed\n"
    found, done = in_pieces(work, data)
    assert json.loads(found) == {"line": 5, "error": "got bytes that are not UTF-8 at byte 301, expected UTF-8"}
    assert (found, done) == written(work.begin(data, 5))


def test_size_of_a_json_object_is_bounded(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "MAX_OBJECT_BYTES", 1000)
    options = ScoreOptions(bundle="", input_format="jsonl", format="jsonl", skip_bad=True)
    data, done = in_pieces(ScoreWork(backend, options), b'{"text": "' + b"a" * 2000 + b'"}\n')
    assert b'"error":"got a JSON object of more than 1,000 bytes' in data
    assert done.totals() == msgspec.structs.asdict(ScoreTotals(num_bad_lines=1))

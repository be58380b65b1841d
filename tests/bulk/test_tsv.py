"""Cells that every reader of tab-separated values understands."""

from __future__ import annotations

import csv
import io

import pytest

from bulk.tsv import cell, json_cell, row


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (1, "1"),
        (0.1, "0.1"),
        (-1e-16, "-1e-16"),
        ("a\tb\nc\rd\\", r"a\tb\nc\rd\\"),
        ('a"b', 'a"b'),
        ('"', '""""'),
    ],
)
def test_cells(value: object, expected: str) -> None:
    assert cell(value) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(None, ""), (b"null", ""), (b"1.50", "1.50"), (b'"a\\tb"', r"a\tb"), (b"[1, 2]", "[1, 2]"), (b"true", "true")],
)
def test_json_values_as_cells(raw: bytes | None, expected: str) -> None:
    assert json_cell(raw) == expected


def test_csv_reader_finds_a_text_that_begins_with_a_quotation_mark() -> None:
    data = row([cell('"So," he said'), cell("x")]).decode()
    assert next(csv.reader(io.StringIO(data), dialect="excel-tab")) == ['"So," he said', "x"]

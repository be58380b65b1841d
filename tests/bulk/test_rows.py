"""Test tab-separated values with several readers: Python's csv, pandas, and R if it is installed."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meari.bulk.rows import cell, escaped, json_cell, row
from tests.bulk.command import meari
from tests.patience import PATIENCE
from tests.service.running import ROOT

TEXTS = [
    *('He said "no" to me.', '5" nail', '"So," he said.', "\"it's\"", "'", '"', '""', "it's", "#x", "x#"),
    *("NA", "NaN", "null", "NULL", "TRUE", "T", "1e5", "0x10", "-1", "=1+1", "+1", "@x", ""),
    *(" lead", "trail ", " ", "a\tb", "a\r\nb", "\r", "\n", "\\", "\\n", "C:\\new", '\\"', '"\\', "\0", "\x0b\x0c\x1c"),
    *("a\u2028b\u2029c\x85d", "한국 \"어\"", "\ufeffé", "e\u0301", "😀", "a,b;c|d", "NA", '"\t"', "{\"x\":\"y\\n\"}"),
]  # fmt: skip
[R_COMMAND] = re.findall(
    r"^words <- read\.delim\(.*\)$", (ROOT / "docs" / "surprisal.md").read_text("utf-8"), re.MULTILINE
)
[PANDAS_COMMAND] = re.findall(
    r"^words = pd\.read_csv\(.*\)$", (ROOT / "docs" / "surprisal.md").read_text("utf-8"), re.MULTILINE
)
needs_r = pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed (Debian's r-base-core)")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (1, "1"),
        (True, "true"),
        (0.1, "0.1"),
        (-1e-16, "-1e-16"),
        ("a\tb\nc\rd\\", r"a\tb\nc\rd\\"),
        ("a\u2028b\0", r"a\u2028b\u0000"),
        ('a"b', '"a""b"'),
        ('"', '""""'),
    ],
)
def test_values_are_formatted_as_cells(value: object, expected: str) -> None:
    assert cell(value) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, ""),
        (b"null", ""),
        (b"1.50", "1.50"),
        (b'"a\\tb"', r"a\tb"),
        (b"[1, 2]", "[1, 2]"),
        (b"true", "true"),
        (b'{"a":1}', '"{""a"":1}"'),
    ],
)
def test_json_values_are_formatted_as_cells(raw: bytes | None, expected: str) -> None:
    assert json_cell(raw) == expected


def read_csv(path: Path) -> list[str]:
    """Read the column `word` with the standard library."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row["word"] for row in csv.DictReader(file, dialect="excel-tab")]


def read_pandas(path: Path) -> list[str]:
    """Read the column with pandas, as documented."""
    names = {"pd": pd}
    exec(PANDAS_COMMAND.replace("words.tsv", str(path)), names)
    return ["" if word is None or word != word else str(word) for word in names["words"]["word"]]


def read_r(path: Path) -> list[str]:
    """Read the column with R, as documented."""
    command = f"{R_COMMAND}\nwriteLines(words$word, useBytes = TRUE)".replace("words.tsv", str(path))
    done = subprocess.run(["Rscript", "--vanilla", "-e", command], capture_output=True, check=True, timeout=PATIENCE)
    assert done.stderr == b""
    return done.stdout.decode().split("\n")[:-1]


READERS = [read_csv, read_pandas, pytest.param(read_r, marks=needs_r)]


@pytest.mark.parametrize("read", READERS)
def test_readers_return_every_row_and_text(read: Callable[[Path], list[str]], tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    rows = [row([str(n), cell(text), cell(text), "0.5"]) for n, text in enumerate(TEXTS, 1)]
    path.write_bytes(row(["line", "word", "other", "logprob"]) + b"".join(rows))
    assert read(path) == [escaped(text) for text in TEXTS]


@pytest.mark.parametrize("read", READERS)
def test_readers_return_every_word_of_scored_texts(
    bundles: Path, read: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    texts = 'He said "no way" to me.\nThe 5" nail and the 6" board\n"So," he said.\nplain words here\nNA #1 \'x\n'
    path = tmp_path / "words.tsv"
    done = meari("score", "-", "--bundles", bundles, "--words", "--format", "tsv", "-o", path, stdin=texts)
    assert done.returncode == 0, done.stderr
    assert read(path) == [word for line in texts.splitlines() for word in [*line.split(), "<|end|>"]]


@given(st.lists(st.text(), min_size=2, max_size=5))
def test_every_text_is_one_cell_on_one_line(texts: list[str]) -> None:
    data = row(map(cell, texts)).decode()
    assert len(data.splitlines()) == 1
    assert next(csv.reader(io.StringIO(data), dialect="excel-tab")) == [escaped(text) for text in texts]

"""Test what is told of a text before a model is planned for it."""

import gzip
import textwrap
from pathlib import Path

import pytest

from examples.made_text import sentences
from meari.bundle_format.names import Document
from meari.models.errors import BrokenText, EmptyCorpus, UnreadableFile
from meari.models.text.facts import SAMPLE_CHARACTERS, look_at, unit_of

PROSE = "It rained for three days, and on the fourth the old man went down to the harbour to look for his boat. "
VERSE = "Now is the winter\nOf our discontent\nMade glorious summer\n\nBy this sun of York;\nAnd all the clouds\n\n"


def write(folder: Path, text: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ("a line that stands alone\n" * 30, Document.LINE),
        ("".join(f"{PROSE * (1 + number % 5)}\n" for number in range(40)), Document.LINE),
        ("one short poem\n\nanother short poem\n\n" * 30, Document.PARAGRAPH),
        ("\n\n".join(textwrap.fill(PROSE * 5, 72) for _ in range(40)), Document.PARAGRAPH),
        (textwrap.fill(PROSE * 200, 72), Document.FILE),
        (VERSE * 40, Document.FILE),
        ("def f(x):\n    y = x + 1\n    return y\nprint(f(1))\n" * 30, Document.FILE),
        (PROSE * 1000, Document.FILE),
    ],
    ids=["lines", "a paragraph a line", "spaced lines", "wrapped", "wrapped stream", "verse", "code", "one long line"],
)
def test_unit_of_a_document_follows_from_how_lines_stand_together(text: str, document: Document) -> None:
    assert unit_of([text])[0] is document


def test_each_of_many_files_is_a_document(tmp_path: Path) -> None:
    for number in range(25):
        write(tmp_path, f"article {number}\n" * 30, f"{number}.txt")
    facts = look_at([tmp_path])
    assert (facts.document, facts.num_documents, facts.num_files) == (Document.FILE, 25, 25)


def test_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path, PROSE * 20)
    (tmp_path / "link.txt").symlink_to(path)
    once = look_at([path])
    assert look_at([path, tmp_path, tmp_path / "link.txt"]) == once


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n' * 30, "text.txt holds JSON, whose"),
        ('[\n {"text": "one"},\n {"text": "two"}\n]\n' + " " * 500, "`jq -r '.[].text'`"),
        ("<!DOCTYPE html>\n<p>one</p>\n" * 30, "text.txt holds HTML or XML, whose"),
        ("[1] A note.\n[2] Another.\n" * 30, None),
        ('["What?" she said]\n{ a brace\n' * 30, None),
        ("< a < b\n" * 90, None),
    ],
)
def test_notation_that_would_be_learnt_is_told(tmp_path: Path, text: str, advice: str | None) -> None:
    told = look_at([write(tmp_path, text)]).advice
    assert (advice in told) if advice else told == ""


def test_sizes_and_script_of_a_korean_text(tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in sentences("korean", 100, 1))
    facts = look_at([write(tmp_path, text)])
    assert (facts.num_characters, facts.num_bytes) == (len(text), len(text.encode()))
    assert (facts.script, facts.num_kinds) == ("Hangul", len(set(text)))
    assert 2 < facts.bytes_per_character < 3


def test_sizes_of_long_and_packed_texts_are_estimated(tmp_path: Path) -> None:
    line = "the same line again and again, sixty characters of it, no more.\n"
    text = line * (2 * SAMPLE_CHARACTERS // len(line))
    assert look_at([write(tmp_path, text)]).num_characters == pytest.approx(len(text), rel=0.02)
    packed = look_at([write(tmp_path, gzip.compress(text.encode()), "text.txt.gz")])
    assert packed.document is Document.LINE


def test_text_without_text_is_refused(tmp_path: Path) -> None:
    for text in ("", "\n \n\t\n"):
        with pytest.raises(EmptyCorpus, match=r"text\.txt: got no text"):
            look_at([write(tmp_path, text)])


def test_files_that_are_no_text_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"text\.txt: got a binary file .*expected text"):
        look_at([write(tmp_path, b"\x00\x01\x02\x03" * 1000)])
    with pytest.raises(BrokenText, match=r"picture\.png, line 1: got byte 0x89"):
        look_at([write(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "picture.png")])
    with pytest.raises(UnreadableFile, match="no such file"):
        look_at([tmp_path / "missing.txt"])

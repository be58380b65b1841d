"""Documents of text files, in pieces that can be encoded apart.

Input: files, and the unit that counts as a document. Output: documents, or pieces of long ones. Must not know:
tokenizers. Raises `UnreadableFile` and `BrokenText`, which name the file and the line.

Text is UTF-8, plain or gzip; a byte-order mark at the head of a file is dropped; Windows line ends become "\n"; the
last line needs no line end. A line that is not UTF-8 is an error, or with `BadLines` a blank line. Documents are in
NFC, so that nothing depends on a file's form. By unit:

    line        every line that is not blank; its spaces are kept, its line end is not
    paragraph   every run of lines that are not blank, joined by "\n"
    file        every file that is not blank, as it is

Blank means: only white space. Lines are counted from 1, in the unpacked file.

A long document is cut where its pieces, encoded apart, give the ids of the whole (`meari.bundle_format.text_borders`).
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from meari.bundle_format.names import Document as Unit
from meari.bundle_format.text_borders import last_border, nfc
from meari.file_kinds import GZIP, kind_of_content, likely_encoding
from meari.models.errors import BrokenText, UnreadableFile
from meari.models.text.text_files import is_packed, list_files, refuse_kind

PIECE_CHARACTERS = 1 << 17
_READ_BYTES = 1 << 18
# A part of a document: text, line of its beginning, True for the document's last part.
_Part = tuple[str, int, bool]


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or the next part of a long one; the last part has `ends` set.

    line   where the piece begins; the source counts from 1
    """

    text: str
    source: str
    line: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A whole document and where it begins."""

    text: str
    source: str
    line: int


@dataclass
class BadLines:
    """Lines that are not UTF-8 and are read as blank ones, at most `most`; a line that is read again counts once."""

    most: int
    found: set[tuple[str, int]] = field(default_factory=set)

    def add(self, path: Path, line: int, content: bytes) -> None:
        """Record a line. Raises BrokenText for one too many."""
        self.found.add((str(path), line))
        if len(self.found) > self.most:
            message = f"got {len(self.found):,} lines that are not UTF-8, expected at most {self.most:,}"
            message += f"; --max-bad or corpus.max_bad sets the limit{_guess(path, content)}"
            raise BrokenText(message, source=str(path), line=line)


def read_documents(paths: Iterable[str | Path], unit: Unit) -> Iterator[Document]:
    """Yield the documents one by one, each whole in memory. Raises as `read_pieces`."""
    parts: list[str] = []
    line = 0
    for piece in read_pieces(list_files(paths), unit):
        line = line if parts else piece.line
        parts.append(piece.text)
        if piece.ends:
            text = "".join(parts)
            parts.clear()
            if text.strip():
                yield Document(text, piece.source, line)


def read_pieces(files: Sequence[Path], unit: Unit, bad: BadLines | None = None) -> Iterator[Piece]:
    """Yield the documents of the files in order, those over about PIECE_CHARACTERS in several pieces.

    bad   takes the lines that are not UTF-8; None: the first one is an error

    A document of several pieces may turn out blank; one of a single piece is not.
    Raises UnreadableFile (missing, no permission, damaged or truncated .gz) and BrokenText (not UTF-8).
    """
    cut = {Unit.LINE: _lines, Unit.PARAGRAPH: _paragraphs, Unit.FILE: _whole}[unit]
    for path in files:
        is_first = True
        for text, line, ends in cut(path, bad):
            if not (is_first and ends and not text.strip()):
                yield Piece(nfc(text), str(path), line, ends)
            is_first = ends


def _whole(path: Path, bad: BadLines | None) -> Iterator[_Part]:
    held, line = "", 1
    for chunk in _read_text(path, bad):
        held += chunk
        if len(held) > PIECE_CHARACTERS:
            head, held = _cut(held)
            yield head, line, False
            line += head.count("\n")
    yield held, line, True


def _lines(path: Path, bad: BadLines | None) -> Iterator[_Part]:
    held, line = "", 1
    for chunk in _read_text(path, bad):
        *complete, held = (held + chunk).split("\n")
        for text in complete:
            yield text, line, True
            line += 1
        if len(held) > PIECE_CHARACTERS:
            head, held = _cut(held)
            yield head, line, False
    yield held, line, True


def _paragraphs(path: Path, bad: BadLines | None) -> Iterator[_Part]:
    held: list[str] = []  # parts of lines, with line ends in between; at most PIECE_CHARACTERS and one part
    size, first, is_inside, is_line_start = 0, 1, False, True
    for text, line, ends in _lines(path, bad):
        if is_line_start and ends and not text.strip():
            if is_inside:
                yield "".join(held), first, True
            held, size, is_inside, is_line_start = [], 0, False, True
            continue
        if size > PIECE_CHARACTERS:
            head, rest = _cut("".join(held))
            yield head, first, False
            held, size = [rest], len(rest)
            first += head.count("\n")
        first = first if is_inside else line
        held += ["\n", text] if is_inside and is_line_start else [text]
        size += len(text) + 1
        is_inside, is_line_start = True, ends
    if is_inside:
        yield "".join(held), first, True


def _cut(text: str) -> tuple[str, str]:
    place = last_border(text)
    return text[:place], text[place:]


def _read_text(path: Path, bad: BadLines | None) -> Iterator[str]:
    """Yield the text of a file in chunks, with line ends as "\\n" and without the byte-order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, is_start, held = 1, True, ""
    for data in _read_bytes(path) if bad is None else _mended(path, bad):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _broken(path, line, error) from error
        line += data.count(b"\n")
        if is_start and text:
            text, is_start = text.removeprefix("\ufeff"), False
        held = "\r" if text.endswith("\r") and data else ""  # its "\n" may come with the next chunk
        yield text.removesuffix(held).replace("\r\n", "\n")


def _mended(path: Path, bad: BadLines) -> Iterator[bytes]:
    """Yield bytes as `_read_bytes`, in whole lines, with blank lines in place of those that are not UTF-8."""
    line, held = 1, b""
    for data in _read_bytes(path):
        lines = (held + data).split(b"\n")
        held = lines.pop() if data else b""
        good = [_good(path, number, content, bad) for number, content in enumerate(lines, start=line)]
        line += len(lines)
        if good:
            yield b"\n".join(good) + (b"\n" if data else b"")
    yield b""


def _good(path: Path, line: int, content: bytes, bad: BadLines) -> bytes:
    try:
        content.decode()
    except UnicodeDecodeError:
        bad.add(path, line, content)
        return b""
    return content


def _broken(path: Path, line: int, error: UnicodeDecodeError) -> BrokenText:
    # `object` may begin with bytes held over from the chunk before: they hold no line end.
    line += error.object[: error.start].count(b"\n")
    byte = error.object[error.start]
    guess = _guess(path, error.object[error.object.rfind(b"\n", 0, error.start) + 1 :])
    return BrokenText(f"got byte 0x{byte:02x} ({error.reason}), expected UTF-8{guess}", source=str(path), line=line)


def _guess(path: Path, data: bytes) -> str:
    """Return the end of a message about bytes that are not UTF-8: their encoding, if it can be guessed."""
    kind = likely_encoding(data)
    if kind is None:
        return ""
    is_gzip = is_packed(path)
    if path.is_file():  # a pipe is read once
        with _opened(path) as file:
            is_gzip = isinstance(file, gzip.GzipFile)
    return kind.guess(str(path), is_gzip=is_gzip)


def _read_bytes(path: Path) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file in chunks, and an empty chunk at the end."""
    line, is_start = 1, True
    try:
        with _opened(path) as file:
            # read1 returns the bytes unpacked before a damaged place, so that the line is right.
            while data := file.read1(_READ_BYTES):
                if is_start:
                    refuse_kind(path, kind_of_content(path.name, data), is_gzip=isinstance(file, gzip.GzipFile))
                is_start = False
                yield data
                line += data.count(b"\n")
        yield b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"got a damaged .gz ({error}), expected a complete one"
        raise UnreadableFile(message, source=str(path), line=line) from error
    except OSError as error:
        message = f"got {error.strerror or error}, expected a readable file"
        raise UnreadableFile(message, source=str(path), line=line) from error


@contextmanager
def _opened(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    with path.open("rb") as file:
        if is_packed(path) or file.peek(2)[:2] == GZIP:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file

"""Reading text files as documents.

Enters: names of files and folders, and what counts as a document. Leaves: documents, or pieces of them where they are
long. Knows nothing of tokenizers. Raises `UnreadableFile` and `BrokenText`, which name the file and the line.

How text is read: UTF-8, plain or (by its ending) .gz; a byte-order mark at the head of a file is dropped; Windows line
ends become "\n"; a last line needs no line end. Then, by unit:

    line        every line that is not blank; its spaces are kept, its line end is not
    paragraph   every run of lines that are not blank, joined by "\n"
    file        every file that is not blank, as it is

Blank means: nothing but white space. Lines are counted from 1, in the unpacked file.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.choices import Document as Unit
from models.errors import BrokenText, UnreadableFile
from models.text.borders import last_border

PIECE_CHARACTERS = 1 << 17
_READ_BYTES = 1 << 18
_SUFFIXES = (".txt", ".gz")


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or the next part of a long one: the document ends with the piece that says so.

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


def list_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files themselves and, sorted by name, the .txt and .gz files anywhere in the folders.

    Raises UnreadableFile: a name that does not exist, or a folder without such files.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if entry.suffix in _SUFFIXES and entry.is_file())
            if not inside:
                raise UnreadableFile("got a folder without .txt or .gz files, expected some", source=str(path))
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise UnreadableFile("got no such file or folder, expected a readable one", source=str(path))
    return files


def read_documents(paths: Iterable[str | Path], unit: Unit) -> Iterator[Document]:
    """The documents one by one, each whole in memory. Raises as `read_pieces`."""
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


def read_pieces(files: Sequence[Path], unit: Unit) -> Iterator[Piece]:
    """The documents of the files in order, those over about PIECE_CHARACTERS in several pieces.

    A document of several pieces may turn out blank; one of a single piece is not.
    Raises UnreadableFile (missing, no permission, damaged or truncated .gz) and BrokenText (not UTF-8).
    """
    cut = {Unit.LINE: _lines, Unit.PARAGRAPH: _paragraphs, Unit.FILE: _whole}[unit]
    for path in files:
        is_first = True
        for text, line, ends in cut(path):
            if not (is_first and ends and not text.strip()):
                yield Piece(text, str(path), line, ends)
            is_first = ends


# Below, a part of a document is (text, the line it begins in, whether the document ends with it).
_Part = tuple[str, int, bool]


def _whole(path: Path) -> Iterator[_Part]:
    held, line = "", 1
    for chunk in _read_text(path):
        held += chunk
        if len(held) > PIECE_CHARACTERS:
            head, held = _cut(held)
            yield head, line, False
            line += head.count("\n")
    yield held, line, True


def _lines(path: Path) -> Iterator[_Part]:
    held, line = "", 1
    for chunk in _read_text(path):
        *complete, held = (held + chunk).split("\n")
        for text in complete:
            yield text, line, True
            line += 1
        if len(held) > PIECE_CHARACTERS:
            head, held = _cut(held)
            yield head, line, False
    yield held, line, True


def _paragraphs(path: Path) -> Iterator[_Part]:
    held: list[str] = []  # parts of lines, line ends in between; no more than PIECE_CHARACTERS and a part
    size, first, is_inside, is_line_start = 0, 1, False, True
    for text, line, ends in _lines(path):
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


def _read_text(path: Path) -> Iterator[str]:
    """The text of a file in chunks, line ends made "\\n", the byte-order mark dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, is_start, held = 1, True, ""
    for data in _read_bytes(path):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _broken(path, line, error) from error
        line += data.count(b"\n")
        if is_start and text:
            text, is_start = text.removeprefix("\ufeff"), False
        held = "\r" if text.endswith("\r") and data else ""  # its "\n" may come with the next chunk
        yield text.removesuffix(held).replace("\r\n", "\n")


def _broken(path: Path, line: int, error: UnicodeDecodeError) -> BrokenText:
    # `object` may begin with bytes held over from the chunk before: they hold no line end.
    line += error.object[: error.start].count(b"\n")
    byte = error.object[error.start]
    return BrokenText(f"got byte 0x{byte:02x} ({error.reason}), expected UTF-8", source=str(path), line=line)


def _read_bytes(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in chunks; an empty one at the end."""
    line = 1
    try:
        with _open(path) as file:
            # read1 hands out what was unpacked before a damaged place, so that the line is right.
            while data := file.read1(_READ_BYTES):
                yield data
                line += data.count(b"\n")
        yield b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"got a damaged .gz ({error}), expected a complete one"
        raise UnreadableFile(message, source=str(path), line=line) from error
    except OSError as error:
        message = f"got {error.strerror or error}, expected a readable file"
        raise UnreadableFile(message, source=str(path), line=line) from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")

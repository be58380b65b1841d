"""Regular expressions that training text is held against: those of a blocklist, and those of a loss mask.

Input: a file with one regular expression a line; blank lines and lines that begin with "# " are skipped. Output:
whether and where they match in a document. Must not know: tokenizers, the use of the answer.

Case is ignored; ^ and $ match at the borders of lines; text is brought into NFC first. Long documents come in pieces: a
match of up to OVERLAP characters is found across their borders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from meari.file_kinds import likely_encoding
from meari.models.errors import BadExpression, BrokenText, UnreadableFile
from meari.paths import expand_home

OVERLAP = 4096


class Expressions:
    """Regular expressions, and the end of the current document that may belong to a longer match."""

    def __init__(self, patterns: tuple[re.Pattern[str], ...] = ()) -> None:
        self._patterns = patterns
        self._held = ""

    def __bool__(self) -> bool:
        """Return whether there is an expression at all."""
        return bool(self._patterns)

    def matches(self, text: str, *, ends: bool = True) -> bool:
        """Return whether an expression matches in this piece or across its border with the piece before.

        ends   the document ends with this piece: the next one is of another document
        """
        text = self._joined(text, ends=ends)
        is_found = any(pattern.search(text) for pattern in self._patterns)
        return is_found and (ends or any(self._complete(text, ends=ends)))

    def spans(self, text: str, *, ends: bool = True) -> Iterator[tuple[int, int]]:
        """Return the beginnings and ends of all matches, in characters from the beginning of this piece.

        What lies in the pieces before is below zero; a match there may have been told before. A match that touches the
        end of a piece is told with the next one, which may go on with it. Matches of no character are not told.
        """
        begin = len(self._held)
        found = (match.span() for match in self._complete(self._joined(text, ends=ends), ends=ends))
        return ((first - begin, last - begin) for first, last in found if first < last)

    def _joined(self, text: str, *, ends: bool) -> str:
        """Return the text behind what is held, and hold what may belong to a longer match."""
        if not self._patterns:
            return ""
        text = unicodedata.normalize("NFC", self._held + text)
        self._held = "" if ends else _tail(text)
        return text

    def _complete(self, text: str, *, ends: bool) -> Iterator[re.Match[str]]:
        """Find the matches that need not wait for the next piece."""
        held = len(text) - len(self._held)
        for pattern in self._patterns:
            for match in pattern.finditer(text):
                if ends or match.end() < len(text) or match.start() < held:
                    yield match


def _tail(text: str) -> str:
    tail = text[-OVERLAP:]
    return tail[tail.find("\n") + 1 :] if len(text) > OVERLAP else tail


def load_expressions(path: str) -> Expressions:
    """Read a file of expressions; the empty name gives none, which match nothing.

    Raises UnreadableFile, BrokenText, and BadExpression: a line that is not a regular expression or matches any text.
    """
    if not path:
        return Expressions()
    try:
        lines = Path(expand_home(path)).read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        message = f"got {error.strerror or error}, expected a file of regular expressions"
        raise UnreadableFile(message, source=path) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        kind = likely_encoding(error.object)
        guess = kind.guess(expand_home(path)) if kind else ""
        raise BrokenText(f"got {error.reason}, expected UTF-8{guess}", source=path, line=line) from error
    used = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    return Expressions(tuple(_compile(path, number, line) for number, line in used if line and line[:2] != "# "))


def _compile(path: str, number: int, line: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(unicodedata.normalize("NFC", line), re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        message = f"got {line!r} ({error}), expected a regular expression"
        raise BadExpression(message, source=path, line=number) from error
    if pattern.search(""):
        raise BadExpression(
            f"got {line!r}, which matches any text, expected one that does not", source=path, line=number
        )
    return pattern

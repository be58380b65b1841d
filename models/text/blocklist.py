"""Blocklist of documents that are left out of the training text.

Input: a file with one regular expression a line; blank lines and lines that begin with "# " are skipped. Output: for
each document, whether an expression matches in it. Must not know: tokenizers, the use of the answer.

Case is ignored; ^ and $ match at the borders of lines; text is brought into NFC first. Long documents come in pieces: a
match of up to OVERLAP characters is found across their borders.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from meari.file_kinds import likely_encoding
from meari.models.errors import BlocklistError, BrokenText, UnreadableFile
from meari.paths import expand_home

OVERLAP = 4096


class Blocklist:
    """Regular expressions, and the end of the current document that may belong to a longer match."""

    def __init__(self, patterns: tuple[re.Pattern[str], ...] = ()) -> None:
        self._patterns = patterns
        self._held = ""

    def matches(self, text: str, *, ends: bool = True) -> bool:
        """Return whether an expression matches in this piece or across its border with the piece before.

        ends   the document ends with this piece: the next one is of another document
        """
        if not self._patterns:
            return False
        text = unicodedata.normalize("NFC", self._held + text)
        self._held = "" if ends else _tail(text)
        return any(pattern.search(text) for pattern in self._patterns)


def _tail(text: str) -> str:
    tail = text[-OVERLAP:]
    return tail[tail.find("\n") + 1 :] if len(text) > OVERLAP else tail


def load_blocklist(path: str) -> Blocklist:
    """Read a blocklist; the empty name gives one that matches nothing.

    Raises UnreadableFile, BrokenText, and BlocklistError: a line that is not a regular expression or matches any text.
    """
    if not path:
        return Blocklist()
    try:
        lines = Path(expand_home(path)).read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UnreadableFile(f"got {error.strerror or error}, expected a blocklist", source=path) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        kind = likely_encoding(error.object)
        guess = kind.guess(expand_home(path)) if kind else ""
        raise BrokenText(f"got {error.reason}, expected UTF-8{guess}", source=path, line=line) from error
    used = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    return Blocklist(tuple(_compile(path, number, line) for number, line in used if line and line[:2] != "# "))


def _compile(path: str, number: int, line: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(unicodedata.normalize("NFC", line), re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        message = f"got {line!r} ({error}), expected a regular expression"
        raise BlocklistError(message, source=path, line=number) from error
    if pattern.search(""):
        raise BlocklistError(
            f"got {line!r}, which matches any text, expected one that does not", source=path, line=number
        )
    return pattern

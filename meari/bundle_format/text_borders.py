"""Positions at which a long text may be cut so that its pieces, encoded apart, give the token ids of the whole.

Input: text. Output: a position, or the text in NFC. Must not know: files, vocabularies.

Two things could join across a cut: NFC (a mark with its letter, jamo with jamo) and the pre-tokenizers of all kinds
(BPE merges never leave a pre-token). Neither ever joins a non-space with a space behind it, nor a letter with
punctuation behind it; and spaces and punctuation never stand second in a composition. Only a text with no such
border at all is cut inside a pre-token, and then still where NFC cannot join.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Final

__all__ = ["last_border", "last_space", "last_starter", "nfc", "word_border"]

_SPACE_AFTER_TEXT: Final = re.compile(r"\S(?=[ \n\t])")
_MARK_AFTER_LETTER: Final = re.compile(r"[^\W\d_](?=[!-/:-@\[-^`{-~、。，！？：；])")
_WINDOWS: Final = (4096, 65536)
MANY_MARKS: Final = 100


def nfc(text: str) -> str:
    """Return the normal form in which tokens are made, and in which characters and bytes are counted."""
    if text.isascii():
        return text
    if len(text) > MANY_MARKS:
        text = _with_ordered_marks(text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _with_ordered_marks(text: str) -> str:
    """Put long runs of marks into canonical order, which the library does in a time that grows with their square."""
    if unicodedata.is_normalized("NFC", text):
        return text
    parts = []
    for is_mark, group in itertools.groupby(text, lambda character: unicodedata.combining(character) != 0):
        run = "".join(group)
        if is_mark and len(run) > MANY_MARKS:
            marks = "".join(unicodedata.normalize("NFD", mark) for mark in run)
            run = "".join(sorted(marks, key=unicodedata.combining))
        parts.append(run)
    return "".join(parts)


def last_border(text: str) -> int:
    """Return the last position > 0 at which a text can be cut; its own end is none, for what follows is unknown.

    returns   in [1, len(text) − 1], or len(text) where the text is shorter than 2 or all marks
    """
    return word_border(text) or last_starter(text) or len(text)


def word_border(text: str) -> int:
    """Return the last position that no pre-token reaches over, whatever follows: in [1, len(text) − 1], or 0."""
    for window in (*_WINDOWS, len(text)):
        start = max(0, len(text) - window)
        spaces = [match.end() for match in _SPACE_AFTER_TEXT.finditer(text, start)]
        # Numbers that are no digits (½, Ⅳ) match the pattern of letters; the tokenizers count them as numbers.
        marks = [match.end() for match in _MARK_AFTER_LETTER.finditer(text, start) if match[0].isalpha()]
        if spaces or marks:
            return (spaces or marks)[-1]
    return 0


def last_space(text: str, start: int = 0) -> int:
    """Return the last position behind a non-space and before a space: in [1, len(text)), or 0 if there is none.

    start  first character that is searched
    """
    for begin in (max(start, len(text) - _WINDOWS[0]), start):
        ends = [match.end() for match in _SPACE_AFTER_TEXT.finditer(text, begin)]
        if ends:
            return ends[-1]
    return 0


def last_starter(text: str) -> int:
    """Return the last position at which NFC never joins or reorders: in [1, len(text)), or 0 if there is none."""
    return next((place for place in range(len(text) - 1, 0, -1) if _is_starter(text[place])), 0)


def _is_starter(char: str) -> bool:
    """Return whether NFC never joins or reorders this character with one before it."""
    composes_as_second = "\u1160" <= char <= "\u11ff" or "\U00016d63" <= char <= "\U00016d6a"
    return not composes_as_second and not unicodedata.category(char).startswith("M")

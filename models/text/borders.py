"""Where a long text may be cut so that its pieces, encoded apart, give the ids of the whole.

Enters: text. Leaves: a position, or the text in NFC. Knows nothing of files or vocabularies.

Two things could join across a cut: NFC (a mark with its letter, jamo with jamo) and the pre-tokenizers of all kinds
(BPE merges never leave a pre-token). Neither ever joins a non-space with a space behind it, nor a letter with
punctuation behind it; and spaces and punctuation never stand second in a composition. Only a text with no such
border at all is cut inside a pre-token, and then still where NFC cannot join.
"""

from __future__ import annotations

import re
import unicodedata

_SPACE_AFTER_TEXT = re.compile(r"\S(?=[ \n\t])")
_MARK_AFTER_LETTER = re.compile(r"[^\W\d_](?=[!-/:-@\[-^`{-~、。，！？：；])")
_WINDOWS = (4096, 65536)


def nfc(text: str) -> str:
    """The normal form in which tokens are made, and in which characters and bytes are counted."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def last_border(text: str) -> int:
    """The last position > 0 of a text at which it can be cut; its own end is none, for what follows is unknown.

    returns   in [1, len(text) − 1], or len(text) where the text is shorter than 2 or all marks
    """
    for window in (*_WINDOWS, len(text)):
        start = max(0, len(text) - window)
        spaces = [match.end() for match in _SPACE_AFTER_TEXT.finditer(text, start)]
        # Numbers that are no digits (½, Ⅳ) match the pattern of letters; the tokenizers count them as numbers.
        marks = [match.end() for match in _MARK_AFTER_LETTER.finditer(text, start) if match[0].isalpha()]
        if spaces or marks:
            return (spaces or marks)[-1]
    return _last_starter(text)


def _last_starter(text: str) -> int:
    return next((place for place in range(len(text) - 1, 0, -1) if _starts_anew(text[place])), len(text))


def _starts_anew(char: str) -> bool:
    """Whether NFC never joins or reorders this character with one before it."""
    composes_as_second = "\u1160" <= char <= "\u11ff" or "\U00016d63" <= char <= "\U00016d6a"
    return not composes_as_second and not unicodedata.category(char).startswith("M")

"""Where a long text may be cut so that its pieces, encoded apart, give the tokens of the whole.

Enters: text. Leaves: a position. Knows nothing of vocabularies.

Two things could join across a cut: NFC (a mark with its letter, jamo with jamo) and pre-tokenizers (BPE merges never leave
a pre-token). Neither joins a non-space with a space behind it. A text without such a border is cut for a tokenizer of
characters where NFC cannot join; for the others there is no place, and it must be held until there is one.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from service.text.tokenizer import TokenizerKind

__all__ = ["last_border"]

_SPACE_AFTER_TEXT: Final = re.compile(r"\S(?=[ \n\t])")
_WINDOW: Final = 4096


def last_border(text: str, kind: TokenizerKind) -> int:
    """The last position at which `text`, of which more will come, can be cut: in [1, len(text)), or 0."""
    for start in (max(0, len(text) - _WINDOW), 0):
        spaces = [match.end() for match in _SPACE_AFTER_TEXT.finditer(text, start)]
        if spaces:
            return spaces[-1]
    return _last_starter(text) if kind is TokenizerKind.CHAR else 0


def _last_starter(text: str) -> int:
    return next((place for place in range(len(text) - 1, 0, -1) if _starts_anew(text[place])), 0)


def _starts_anew(char: str) -> bool:
    """Whether NFC never joins or reorders this character with one before it."""
    composes_as_second = "\u1160" <= char <= "\u11ff" or "\U00016d63" <= char <= "\U00016d6a"
    return not composes_as_second and not unicodedata.category(char).startswith("M")

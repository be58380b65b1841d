"""Where a long text may be cut so that its pieces, encoded apart, give the tokens of the whole.

Enters: text. Leaves: a position. Knows nothing of vocabularies.

Two things could join across a cut: NFC (a mark with its letter, jamo with jamo) and pre-tokenizers (BPE merges never
leave a pre-token). Neither joins a non-space with a space behind it. Only a text with no such border is cut elsewhere,
where NFC cannot join: for a tokenizer of characters that is as good, for the others it may cut a token in two.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["last_border", "last_starter"]

_SPACE_AFTER_TEXT: Final = re.compile(r"\S(?=[ \n\t])")
_WINDOW: Final = 4096


def last_border(text: str, start: int = 0) -> int:
    """The last position behind a non-space and before a space: in [1, len(text)), or 0 where there is none.

    start  nothing before it is looked at
    """
    for begin in (max(start, len(text) - _WINDOW), start):
        borders = [match.end() for match in _SPACE_AFTER_TEXT.finditer(text, begin)]
        if borders:
            return borders[-1]
    return 0


def last_starter(text: str) -> int:
    """The last position at which NFC never joins or reorders: in [1, len(text)), or 0 where there is none."""
    return next((place for place in range(len(text) - 1, 0, -1) if _starts_anew(text[place])), 0)


def _starts_anew(char: str) -> bool:
    composes_as_second = "\u1160" <= char <= "\u11ff" or "\U00016d63" <= char <= "\U00016d6a"
    return not composes_as_second and not unicodedata.category(char).startswith("M")

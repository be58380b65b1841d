"""The name of a file → a name that a run and a bundle may have.

Input: the name of a file or folder in any script. Output: letters and digits of ASCII, `.`, `_` and `-`. Must not know:
what is in the file.

Hangul is written in Latin letters by the letters of each syllable, as the Revised Romanization of 2000 allows (rule 8),
with r and l, k, t and p where readers expect them; a hyphen stands before a syllable that begins with a vowel. Marks
over Latin letters are left out. Whatever has no such form is left out too, and six digits of a hash of the whole name
keep it apart from others.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Final

from meari.bundle_format.folders import IN_PASSING
from meari.bundle_format.names import NAME_PATTERN

__all__ = ["name_of_file"]

MAX_CHARACTERS: Final = 100
HASH_DIGITS: Final = 6
FIRST_SYLLABLE, NUM_SYLLABLES = 0xAC00, 11_172
INITIALS: Final = ("g", "kk", "n", "d", "tt", "r", "m", "b", "pp", "s", "ss", "-", "j", "jj", "ch", "k", "t", "p", "h")
VOWELS: Final = (
    "a", "ae", "ya", "yae", "eo", "e", "yeo", "ye", "o", "wa",
    "wae", "oe", "yo", "u", "wo", "we", "wi", "yu", "eu", "ui", "i",
)  # fmt: skip
FINALS: Final = (
    "", "k", "kk", "gs", "n", "nj", "nh", "t", "l", "lg", "lm", "lb", "ls", "lt", "lp", "lh", "m", "p",
    "bs", "s", "ss", "ng", "j", "ch", "k", "t", "p", "h",
)  # fmt: skip


def name_of_file(stem: str, default: str) -> str:
    """Return a name made of a file's name without its ending; the same file always has the same.

    default  in place of a name of which no letter or digit is left
    """
    composed = unicodedata.normalize("NFC", stem)
    name, is_whole = _in_ascii(composed)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    if is_whole and len(name) <= MAX_CHARACTERS:
        name = name or default
    else:
        digest = hashlib.sha256(composed.encode("utf-8", "surrogateescape")).hexdigest()[:HASH_DIGITS]
        name = f"{name[: MAX_CHARACTERS - HASH_DIGITS - 1].strip('-._') or default}-{digest}"
    if name.endswith(IN_PASSING):
        name = "-".join(name.rsplit(".", 1))
    return name if re.fullmatch(NAME_PATTERN, name) else default


def _in_ascii(text: str) -> tuple[str, bool]:
    """Return the text in ASCII, and whether every letter, digit and symbol has a form there."""
    parts, is_whole = [""], True
    for character in unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text)):
        form = _romanised(character)
        if form:
            parts.append(form if parts[-1][-1:].isalpha() else form.removeprefix("-"))
        elif character.isascii():
            parts.append(character)
        else:
            form = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            is_whole = is_whole and bool(form or unicodedata.category(character)[0] in "PZM")
            parts.append(form or "-")
    return "".join(parts), is_whole


def _romanised(character: str) -> str:
    """Return a Hangul syllable in Latin letters, with a hyphen in front if it begins with a vowel; "" for all else."""
    place = ord(character) - FIRST_SYLLABLE
    if not 0 <= place < NUM_SYLLABLES:
        return ""
    initial, rest = divmod(place, len(VOWELS) * len(FINALS))
    vowel, final = divmod(rest, len(FINALS))
    return INITIALS[initial] + VOWELS[vowel] + FINALS[final]

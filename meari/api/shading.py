"""A text shaded by surprisal, as HTML for a notebook.

Input: rows with places and surprisal. Output: HTML that stands alone. Must not know: how the rows were made.

Scale and colours are those of the playground: one hue that darkens (in the dark: brightens) with the bits, told apart
by those who see no red or green, and with a contrast of 4.5 to the text upon it. Every part also tells its bits.
"""

from __future__ import annotations

import bisect
import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["Part", "shaded"]

LIMITS: Final = (0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 11.0)  # bits: lower bounds of the shades, of tokens and characters
WORD_FACTOR: Final = 2.0  # a word has several tokens
_LIGHT: Final = "--p:#fbfbfd;--t:#1d1e24;--q:#565a68;--b1:#fdf3d8;--b2:#fbe3ae;--b3:#f9d083;--b4:#f8b965;--b5:#f5a051;--b6:#f08748;--b7:#ea7650;--b8:#e56a62"  # noqa: E501
_DARK: Final = "--p:#15161c;--t:#eceef4;--q:#adb2c2;--b1:#2b2620;--b2:#3d3020;--b3:#523a1e;--b4:#69431c;--b5:#7d461c;--b6:#91481f;--b7:#a14529;--b8:#ae4036"  # noqa: E501
_STYLE: Final = (
    f".meari-text{{{_LIGHT};background:var(--p);color:var(--t);padding:.5em .7em;border-radius:.4em;line-height:1.7;"
    "white-space:pre-wrap;overflow-wrap:anywhere}"
    f"@media(prefers-color-scheme:dark){{.meari-text{{{_DARK}}}}}"
    f"[data-jp-theme-light=true] .meari-text,.vscode-light .meari-text{{{_LIGHT}}}"
    f"[data-jp-theme-light=false] .meari-text,.vscode-dark .meari-text{{{_DARK}}}"
    + "".join(f".meari-text .b{level}{{background:var(--b{level})}}" for level in range(1, len(LIMITS) + 1))
    + ".meari-text span{border-radius:.15em}.meari-text .u{text-decoration:underline dotted}"
    ".meari-text small{color:var(--q);white-space:normal}"
)


class Row(Protocol):
    """A part of a text."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def unknown(self) -> bool: ...


@dataclass(frozen=True)
class Part:
    """Stretch of a text with the bits of all rows in it; the text's end has no length."""

    start: int
    end: int
    bits: float
    is_unknown: bool


def shaded(text: str, rows: Iterable[tuple[Row, float]], *, by_word: bool, title: str) -> str:
    """Return a text as HTML, each part shaded by its bits.

    rows  each with its surprisal in bits, in the order of the text
    """
    factor = WORD_FACTOR if by_word else 1.0
    pieces, place = [], 0
    for part in _parts(rows):
        pieces.append(html.escape(text[place : part.start]))
        shown = text[part.start : part.end]
        pieces.append(_span(shown, part, factor) if part.end > part.start else _end(part, factor))
        place = max(place, part.end)
    pieces.append(html.escape(text[place:]))
    legend = f"\n<small>{html.escape(title)}</small>"
    return f'<style>{_STYLE}</style><div class="meari-text">{"".join(pieces)}{legend}</div>'


def _parts(rows: Iterable[tuple[Row, float]]) -> Iterator[Part]:
    """Yield the parts; rows that overlap, such as the bytes of one character, are one."""
    last: Part | None = None
    for row, bits in rows:
        if last is not None and row.start < last.end:
            end = max(last.end, row.end)
            last = Part(last.start, end, last.bits + bits, last.is_unknown or row.unknown)
            continue
        if last is not None:
            yield last
        last = Part(row.start, row.end, bits, row.unknown)
    if last is not None:
        yield last


def _span(shown: str, part: Part, factor: float) -> str:
    """Return a stretch; white space before it is not shaded, unless there is nothing else."""
    own = shown.lstrip() or shown
    space = shown[: len(shown) - len(own)]
    return html.escape(space) + _marked(html.escape(own), part, factor)


def _end(part: Part, factor: float) -> str:
    return _marked("⏎", part, factor, " (end of the text)")


def _marked(content: str, part: Part, factor: float, note: str = "") -> str:
    level = bisect.bisect_right(LIMITS, part.bits / factor)
    names = f"b{level} u" if part.is_unknown else f"b{level}"
    note += ", unknown to the model" if part.is_unknown else ""
    return f'<span class="{names}" title="{part.bits:.2f} bits{note}">{content}</span>'

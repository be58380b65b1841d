"""A text shaded by surprisal, as HTML for a notebook.

Input: rows with places and surprisal. Output: HTML that stands alone. Must not know: how the rows were made.

Scales and colours are those of the playground: they darken (in the dark: brighten) with the bits, neighbours are told
apart by their brightness alone, and the text upon each has a contrast of 4.5. Every part also tells its bits.
"""

from __future__ import annotations

import bisect
import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["Part", "shaded"]

LIMITS: Final = (0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 11.0)  # bits: lower bounds of the shades, of tokens and characters
WORD_LIMITS: Final = (2.0, 4.0, 6.0, 8.0, 11.0, 14.0, 18.0, 24.0)  # a word has several tokens
_LIGHT: Final = "--p:#fff;--t:#1d1e24;--q:#565a68;--b1:#f6e7ab;--b2:#eecd73;--b3:#e8b349;--b4:#e49937;--b5:#df7f2a;--b6:#d7662d;--b7:#c1533d;--b8:#af3737;--i:#1d1e24;--l:#fff"  # noqa: E501
_DARK: Final = "--p:#1d1f27;--t:#eceef4;--q:#adb2c2;--b1:#3d3321;--b2:#564425;--b3:#745327;--b4:#9a5c26;--b5:#ca6421;--b6:#e67722;--b7:#ef9936;--b8:#f3bc22;--i:#14161f;--l:#14161f"  # noqa: E501
_STYLE: Final = (
    f".meari-text{{{_LIGHT};background:var(--p);color:var(--t);padding:.5em .7em;border-radius:.4em;line-height:1.7;"
    "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext}"
    f"@media(prefers-color-scheme:dark){{.meari-text{{{_DARK}}}}}"
    f"[data-jp-theme-light=true] .meari-text,.vscode-light .meari-text{{{_LIGHT}}}"
    f"[data-jp-theme-light=false] .meari-text,.vscode-dark .meari-text{{{_DARK}}}"
    + "".join(f".meari-text .b{level}{{background:var(--b{level})}}" for level in range(1, len(LIMITS) + 1))
    + ".meari-text :is(.b5,.b6){color:var(--i)}.meari-text :is(.b7,.b8){color:var(--l)}"
    ".meari-text span{border-radius:.15em}.meari-text .u{text-decoration:underline dotted}"
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
    limits = WORD_LIMITS if by_word else LIMITS
    pieces, place = [], 0
    for part in _parts(rows):
        pieces.append(html.escape(text[place : part.start]))
        shown = text[part.start : part.end]
        pieces.append(_span(shown, part, limits) if part.end > part.start else _end(part, limits))
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


def _span(shown: str, part: Part, limits: Sequence[float]) -> str:
    """Return a stretch; white space before it is not shaded, unless there is nothing else."""
    own = shown.lstrip() or shown
    space = shown[: len(shown) - len(own)]
    return html.escape(space) + _marked(html.escape(own), part, limits)


def _end(part: Part, limits: Sequence[float]) -> str:
    return _marked("⏎", part, limits, " (end of the text)")


def _marked(content: str, part: Part, limits: Sequence[float], note: str = "") -> str:
    level = bisect.bisect_right(limits, part.bits)
    names = f"b{level} u" if part.is_unknown else f"b{level}"
    note += ", unknown to the model" if part.is_unknown else ""
    return f'<span class="{names}" title="{part.bits:.2f} bits{note}">{content}</span>'

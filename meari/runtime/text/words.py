"""Words of a text: stretches between white space, or segments by the rules and dictionaries of Unicode (ICU).

Input: a text. Output: spans, in code points. Must not know: tokens.

ICU finds words of Chinese, Japanese, Thai, Lao, Khmer and Burmese by dictionaries, and treats marks as words. It gets
one run at a time: a stretch between white space, up to a mark that ends a sentence or a clause, of at most `MAX_RUN`
characters. So a text that comes in pieces has the words of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

from meari.errors import InvalidRequest, Problem

__all__ = ["Words", "num_words", "open_run", "require_segmenter", "word_spans"]

Words = bool | Literal["unicode"]  # none; by white space; by ICU
MAX_RUN: Final = 4096
_STRETCH: Final = re.compile(r"\S+")
_MARKS: Final = "。、！？!?「」『』（）()《》"
_RUN: Final = re.compile(rf"[^\s{_MARKS}]{{0,{MAX_RUN - 1}}}[{_MARKS}]|[^\s{_MARKS}]{{1,{MAX_RUN}}}")


def require_segmenter() -> None:
    """Raise InvalidRequest where ICU is not installed."""
    try:
        import icu4py.breakers  # noqa: F401
    except ImportError:
        expected = "spaces (true), or an installation of meari[segment]"
        raise InvalidRequest(Problem("words", '"unicode", which needs ICU', expected)) from None


def word_spans(text: str, words: Words) -> list[tuple[int, int]]:
    """Return start and end of every word, in order."""
    return list(_spans(text, words))


def num_words(text: str, words: Words) -> int:
    """Count the words of a text; none where none are wanted."""
    return sum(1 for _ in _spans(text, words)) if words else 0


def open_run(text: str) -> int:
    """Return the start of the last run if text that follows may change its words; else the text's end."""
    last = None
    for last in _RUN.finditer(text):  # noqa: B007
        pass
    is_open = last is not None and last.end() == len(text) and text[-1] not in _MARKS
    return last.start() if last is not None and is_open and len(last.group()) < MAX_RUN else len(text)


def _spans(text: str, words: Words) -> Iterator[tuple[int, int]]:
    if words != "unicode":
        yield from (match.span() for match in _STRETCH.finditer(text))
        return
    for match in _RUN.finditer(text):
        yield from _segments(match.group(), match.start())


def _segments(run: str, start: int) -> Iterator[tuple[int, int]]:
    from icu4py.breakers import WordBreaker

    for segment in WordBreaker(run, "und"):
        yield start, start + len(segment)
        start += len(segment)

"""Figures of a scored text → a table with a row for each token, word or character.

Input: a scored text. Output: a table that iterates, prints, and becomes a data frame. Must not know: where the model
runs.

The rows of a table add up to the text's score. Of characters the shares of a token are whole steps of the grid on which
log-probabilities lie, so the sum is exact in nats; a last bit may differ in other bases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from meari.api.arguments import shown_value
from meari.errors import InvalidRequest, Problem
from meari.runtime.engine.calls import GRID
from meari.runtime.scores import LN_OF, Scored

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from meari.runtime.requests import LogBase

__all__ = ["By", "Surprisal", "SurprisalRow", "checked_by", "surprisal_of"]

By = Literal["token", "word", "unicode", "char"]


@dataclass(frozen=True, slots=True)
class SurprisalRow:
    """Row of a table.

    text        of the token, word or character; of the end of the text the boundary token's
    start, end  code points of the scored text; equal for the end of the text
    surprisal   −log probability, in the table's base
    logprob     log-probability, in the table's base
    unknown     true if the model does not know it, or a part of it
    token_id    of a token, None for words and characters
    rank        of a token: 1 is the likeliest at its place; None for words and characters
    """

    text: str
    start: int
    end: int
    surprisal: float
    logprob: float
    unknown: bool
    token_id: int | None = None
    rank: int | None = None


class Surprisal(Sequence[SurprisalRow]):
    """The surprisal of a text's parts, in order: a sequence of `SurprisalRow`, and a table.

    text      the text that was scored
    by        what a row is
    log_base  of `surprisal` and `logprob`: "2" for bits
    """

    def __init__(self, text: str, by: By, log_base: LogBase, rows: Sequence[SurprisalRow]) -> None:
        self.text = text
        self.by = by
        self.log_base = log_base
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> SurprisalRow: ...
    @overload
    def __getitem__(self, place: slice) -> Surprisal: ...
    def __getitem__(self, place: int | slice) -> SurprisalRow | Surprisal:
        if isinstance(place, slice):
            return Surprisal(self.text, self.by, self.log_base, self._rows[place])
        return self._rows[place]

    def __iter__(self) -> Iterator[SurprisalRow]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Surprisal):
            return NotImplemented
        return (self.text, self.by, self.log_base, self._rows) == (other.text, other.by, other.log_base, other._rows)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Surprisal of {len(self)} rows by {self.by}, {self.total:.6g} to base {self.log_base}>"

    @property
    def total(self) -> float:
        """Sum of the rows' surprisal."""
        return sum(row.surprisal for row in self._rows)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table as lists by the names of the columns; `token_id` and `rank` of tokens only."""
        return {name: [getattr(row, name) for row in self._rows] for name in self._types()}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries by the names of the columns."""
        names = self._types()
        return [{name: getattr(row, name) for name in names} for row in self._rows]

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas data frame. Raises ImportError if pandas is not installed."""
        import pandas as pd

        return pd.DataFrame(self.columns()) if self._rows else self._empty_pandas()

    def _empty_pandas(self) -> pd.DataFrame:
        """Return the frame of a table without rows, whose columns have the types of all others."""
        import pandas as pd

        row = [kind() for kind in self._types().values()]
        return pd.DataFrame([row], columns=list(self._types())).iloc[:0]

    def _types(self) -> dict[str, type]:
        """Return the types of the columns by their names."""
        own = {"text": str, "start": int, "end": int, "surprisal": float, "logprob": float, "unknown": bool}
        return own | ({"token_id": int, "rank": int} if self.by == "token" else {})

    def to_polars(self) -> pl.DataFrame:
        """Return a polars data frame. Raises ImportError if polars is not installed."""
        import polars as pl

        return pl.DataFrame(self.columns(), schema=self._types())

    def _repr_html_(self) -> str:
        """Return the text shaded by surprisal, for a notebook."""
        from meari.api.shading import shaded

        per_bit = LN_OF[self.log_base] / LN_OF["2"]
        rows = [(row, row.surprisal * per_bit) for row in self._rows]
        by_word = self.by in ("word", "unicode")
        total = sum(bits for _, bits in rows)
        title = f"{total:.1f} bits by {self.by}: the darker (in the dark: the brighter), the more surprising"
        return shaded(self.text, rows, by_word=by_word, title=title)


def checked_by(by: object) -> By:
    """Return what the rows of a table are. Raises InvalidRequest for another word, and for what is none."""
    if isinstance(by, str):
        for kind in _MAKERS:
            if by == kind:
                return kind
    raise InvalidRequest(Problem("by", shown_value(by), '"token", "word", "unicode" or "char"'))


def surprisal_of(text: str, by: By, log_base: LogBase) -> Callable[[Scored], Surprisal]:
    """Return the function that makes a table of a scored text."""
    make_rows = _MAKERS[by]
    return lambda scored: Surprisal(text, by, log_base, make_rows(scored, text, log_base))


def _token_rows(scored: Scored, _text: str, _log_base: LogBase) -> list[SurprisalRow]:
    return [
        SurprisalRow(
            token.text, token.start, token.end, 0.0 - token.logprob, token.logprob, token.unknown, token.id, token.rank
        )
        for token in scored.tokens(0, scored.sums().num_tokens)
    ]


def _word_rows(scored: Scored, _text: str, _log_base: LogBase) -> list[SurprisalRow]:
    return [
        SurprisalRow(word.text, word.start, word.end, 0.0 - word.logprob, word.logprob, word.unknown)
        for word in scored.words()
    ]


def _character_rows(scored: Scored, text: str, log_base: LogBase) -> list[SurprisalRow]:
    """Return a row for each code point, then the end of the text where it counts.

    A token's log-probability is spread evenly over the code points that it spans. A token that is a part of a character
    counts to that character, and so do all parts of it; a code point in no token has none.
    """
    steps, unknown = [0] * len(text), [False] * len(text)
    ends = []
    for token in scored.tokens(0, scored.sums().num_tokens):
        total = round(token.logprob * LN_OF[log_base] * GRID)
        if token.start == len(text):
            ends.append((token, total))
            continue
        count = max(1, token.end - token.start)
        for place in range(token.start, token.start + count):
            nth = place - token.start
            steps[place] += total * (nth + 1) // count - total * nth // count
            unknown[place] |= token.unknown
    unit = GRID * LN_OF[log_base]
    rows = [
        _character(text[place], place, place + 1, steps[place] / unit, is_unknown=unknown[place])
        for place in range(len(text))
    ]
    return rows + [
        _character(token.text, token.start, token.end, total / unit, is_unknown=False) for token, total in ends
    ]


def _character(text: str, start: int, end: int, logprob: float, *, is_unknown: bool) -> SurprisalRow:
    return SurprisalRow(text, start, end, 0.0 - logprob, logprob + 0.0, is_unknown)


_MAKERS: Final[dict[By, Callable[[Scored, str, LogBase], list[SurprisalRow]]]] = {
    "token": _token_rows,
    "word": _word_rows,
    "unicode": _word_rows,
    "char": _character_rows,
}

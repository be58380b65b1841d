"""Scored texts → bytes of the output: JSONL as POST /score writes its results, or TSV with a row a text, token or word.

Input: a record and its figures. Output: its rows, piece by piece. Must not know: which backend made the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from meari.bulk.options import TEXT_FIGURES, ScoreOptions
from meari.bulk.records import Problem, Record
from meari.bulk.rows import CarriedColumns, CarriedFields, cell
from meari.runtime.answers import ScoredToken, ScoredWord
from meari.runtime.scores import SLICE, Scored, TextSums, array, parts_of

__all__ = ["ScoreRows", "TextRows", "TokenRows", "WordRows", "figure_members", "score_rows"]

_encode: Final = msgspec.json.Encoder().encode


class ScoreRows(Protocol):
    """A writer of records."""

    def head(self) -> bytes:
        """Return the bytes before the first record."""

    def rows(self, record: Record, scored: Scored, sums: TextSums) -> Iterator[bytes]:
        """Yield one scored text, piece by piece."""

    def problem(self, problem: Problem) -> bytes:
        """Return the record of a bad line."""


def score_rows(options: ScoreOptions) -> ScoreRows:
    """Return the writer that the options ask for."""
    if options.format == "jsonl":
        return JsonLines(options)
    if options.tokens:
        return TokenRows(options)
    return WordRows(options) if options.words else TextRows(options)


class JsonLines:
    """Writes a JSON object a text."""

    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self._carried = CarriedFields(options)
        self.problem = self._carried.problem

    def head(self) -> bytes:
        """Return nothing: JSONL has no head."""
        return b""

    def rows(self, record: Record, scored: Scored, sums: TextSums) -> Iterator[bytes]:
        """Yield the object."""
        options = self._options
        yield self._carried.opening(record) + b"," + figure_members(sums, options)
        for name, slices in parts_of(scored, sums, with_tokens=options.tokens, with_words=bool(options.words)):
            yield from array(_encode(options.prefix + name)[1:-1], slices)
        yield b"}\n"


def figure_members(sums: TextSums, options: ScoreOptions) -> bytes:
    """Return the figures of a text as members of its object."""
    figures = _encode(sums.figures(options.log_base))
    if options.prefix:
        members: dict[str, msgspec.Raw] = msgspec.json.decode(figures, type=dict[str, msgspec.Raw])
        figures = _encode({options.prefix + name: raw for name, raw in members.items()})
    return figures[1:-1]


class TextRows:
    """Writes a row a text."""

    def __init__(self, options: ScoreOptions) -> None:
        self._columns = CarriedColumns(options, with_text=options.with_text)
        self._log_base = options.log_base
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, scored: Scored, sums: TextSums) -> Iterator[bytes]:
        """Yield the row."""
        yield self.row(record, sums)

    def row(self, record: Record, sums: TextSums) -> bytes:
        """Return the row; the sums are enough for it."""
        figures = sums.figures(self._log_base)
        return self._columns.rows(record, [[cell(getattr(figures, name)) for name in TEXT_FIGURES]])


class TokenRows:
    """Writes a row a token, the end token included if it is counted."""

    def __init__(self, options: ScoreOptions) -> None:
        self._columns = CarriedColumns(options, with_text=False)
        self._with_top = options.top > 0
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, scored: Scored, sums: TextSums) -> Iterator[bytes]:
        """Yield the rows, a slice at a time."""
        for at in range(0, sums.num_tokens, SLICE):
            yield self.some(record, scored.tokens(at, min(at + SLICE, sums.num_tokens)), at)

    def some(self, record: Record, tokens: list[ScoredToken], num_before: int) -> bytes:
        """Return the rows of some tokens."""
        return self._columns.rows(record, (self._cells(n, token) for n, token in enumerate(tokens, num_before + 1)))

    def _cells(self, number: int, token: ScoredToken) -> Iterator[str]:
        yield from (str(number), cell(token.text), str(token.id), cell(token.logprob), cell(0.0 - token.logprob))
        yield from (str(token.rank), str(token.start), str(token.end), cell(token.unknown))
        if self._with_top:
            yield cell(msgspec.json.encode(token.top).decode("utf-8"))


class WordRows:
    """Writes a row a word, the end of the text included if it is counted."""

    def __init__(self, options: ScoreOptions) -> None:
        self._columns = CarriedColumns(options, with_text=False)
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, scored: Scored, sums: TextSums) -> Iterator[bytes]:
        """Yield the rows, a slice at a time."""
        words = scored.words()
        for at in range(0, len(words), SLICE):
            yield self.some(record, words[at : at + SLICE], at)

    def some(self, record: Record, words: list[ScoredWord], num_before: int) -> bytes:
        """Return the rows of some words."""
        return self._columns.rows(record, (self._cells(n, word) for n, word in enumerate(words, num_before + 1)))

    def _cells(self, number: int, word: ScoredWord) -> Iterator[str]:
        yield from (str(number), cell(word.text), cell(word.logprob), cell(0.0 - word.logprob))
        yield from (str(word.start), str(word.end), cell(word.unknown))

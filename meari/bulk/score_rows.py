"""Scored texts → bytes of the output.

JSONL as /score writes its results, or TSV with a row a text, a token or a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from meari.bulk.carried import CarriedColumns, CarriedFields
from meari.bulk.names import TEXT_FIGURES
from meari.bulk.options import ScoreOptions
from meari.bulk.records import Problem, Record
from meari.bulk.tsv import cell
from meari.runtime.answers import ScoredToken, ScoredWord
from meari.runtime.score_json import SLICE, array, parts_of
from meari.runtime.scores import ScoredText, TextSums

__all__ = [
    "JsonLines",
    "ScoreRows",
    "TextRows",
    "TokenRows",
    "WordRows",
    "figure_members",
    "prefixed",
    "score_rows",
]

_encode: Final = msgspec.json.Encoder().encode


class ScoreRows(Protocol):
    """How records are written."""

    def head(self) -> bytes:
        """What stands before the first record."""

    def rows(self, record: Record, scored: ScoredText, sums: TextSums) -> Iterator[bytes]:
        """One scored text, piece by piece."""

    def problem(self, problem: Problem) -> bytes:
        """A bad line."""


def score_rows(options: ScoreOptions) -> ScoreRows:
    """The way that `options` ask for."""
    if options.format == "jsonl":
        return JsonLines(options)
    if options.tokens:
        return TokenRows(options)
    return WordRows(options) if options.words else TextRows(options)


class JsonLines:
    """A JSON object a text. `carried` writes what stands before its figures."""

    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self.prefix = options.prefix
        self.carried = CarriedFields(options)

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def rows(self, record: Record, scored: ScoredText, sums: TextSums) -> Iterator[bytes]:
        """The object."""
        options = self._options
        yield self.carried.opening(record) + b"," + figure_members(sums, options)
        for name, slices in parts_of(scored, sums, options.tokens, bool(options.words)):
            yield from array(_encode(self.prefix + name)[1:-1], slices)
        yield b"}\n"

    def problem(self, problem: Problem) -> bytes:
        """An object with `line` and `error`."""
        return self.carried.problem(problem)


def figure_members(sums: TextSums, options: ScoreOptions) -> bytes:
    """The figures of a text as members of its object."""
    return prefixed(_encode(sums.figures(options.log_base)), options.prefix)[1:-1]


def prefixed(result: bytes, prefix: str) -> bytes:
    """An object with a prefix before each of its names."""
    if not prefix:
        return result
    members: dict[str, msgspec.Raw] = msgspec.json.decode(result, type=dict[str, msgspec.Raw])
    return _encode({prefix + name: raw for name, raw in members.items()})


class TextRows:
    """A row a text."""

    def __init__(self, options: ScoreOptions) -> None:
        self._columns = CarriedColumns(options, with_text=options.with_text)
        self._log_base = options.log_base
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, scored: ScoredText, sums: TextSums) -> Iterator[bytes]:
        """The row."""
        yield self.row(record, sums)

    def row(self, record: Record, sums: TextSums) -> bytes:
        """The row, of which the sums are enough."""
        figures = sums.figures(self._log_base)
        return self._columns.rows(record, [[cell(getattr(figures, name)) for name in TEXT_FIGURES]])


class TokenRows:
    """A row a token, the end token included where it is counted."""

    def __init__(self, options: ScoreOptions) -> None:
        self._columns = CarriedColumns(options, with_text=False)
        self._with_top = options.top > 0
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, scored: ScoredText, sums: TextSums) -> Iterator[bytes]:
        """The rows, a slice at a time."""
        for at in range(0, sums.num_tokens, SLICE):
            yield self.some(record, scored.tokens(at, min(at + SLICE, sums.num_tokens)), at)

    def some(self, record: Record, tokens: list[ScoredToken], num_before: int) -> bytes:
        """The rows of some tokens."""
        return self._columns.rows(record, (self._cells(n, token) for n, token in enumerate(tokens, num_before + 1)))

    def _cells(self, number: int, token: ScoredToken) -> Iterator[str]:
        """Of one token."""
        yield from (str(number), cell(token.text), str(token.id), cell(token.logprob), cell(0.0 - token.logprob))
        yield from (str(token.rank), str(token.start), str(token.end), cell(token.unknown))
        if self._with_top:
            yield cell(msgspec.json.encode(token.top).decode("utf-8"))


class WordRows:
    """A row a word, the end of the text included where it is counted."""

    def __init__(self, options: ScoreOptions) -> None:
        self._columns = CarriedColumns(options, with_text=False)
        self.head, self.problem = self._columns.head, self._columns.problem

    def rows(self, record: Record, scored: ScoredText, sums: TextSums) -> Iterator[bytes]:
        """The rows, a slice at a time."""
        words = scored.words()
        for at in range(0, len(words), SLICE):
            yield self.some(record, words[at : at + SLICE], at)

    def some(self, record: Record, words: list[ScoredWord], num_before: int) -> bytes:
        """The rows of some words."""
        return self._columns.rows(record, (self._cells(n, word) for n, word in enumerate(words, num_before + 1)))

    def _cells(self, number: int, word: ScoredWord) -> Iterator[str]:
        """Of one word."""
        yield from (str(number), cell(word.text), cell(word.logprob), cell(0.0 - word.logprob))
        yield from (str(word.start), str(word.end), cell(word.unknown))

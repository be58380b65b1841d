"""The output record of a long line, of which its text, tokens and words come piece by piece.

They are kept in temporary files, small ones in memory, until the figures of the whole are known and the record can be
written in its order. What is written is what `score_rows` would write.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, Final, TypeVar

import msgspec

from meari.bulk.carried import CarriedColumns, CarriedFields
from meari.bulk.long_words import LongWords
from meari.bulk.names import TEXT_FIGURES
from meari.bulk.options import ScoreOptions
from meari.bulk.records import Record
from meari.bulk.score_rows import TokenRows, WordRows, figure_members
from meari.bulk.tsv import cell, doubled, escaped
from meari.runtime.answers import ScoredToken, ScoredWord
from meari.runtime.score_json import SLICE
from meari.runtime.scores import ScoredText, TextSums

__all__ = ["LongRows"]

MEMORY_BYTES: Final = 1 << 20
READ_BYTES: Final = 1 << 18
Item = TypeVar("Item", ScoredToken, ScoredWord)
_encode: Final = msgspec.json.Encoder().encode


class Spool:
    """Bytes that are kept until they are read once."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 (closed by `close`)
        self.is_empty = True

    def write(self, data: bytes) -> None:
        """Add some."""
        self._file.write(data)
        self.is_empty = False

    def read(self) -> Iterator[bytes]:
        """All of them."""
        self._file.seek(0)
        while data := self._file.read(READ_BYTES):
            yield data

    def close(self) -> None:
        """Throw them away."""
        self._file.close()


class LongRows:
    """Takes the pieces of one line, then writes its record."""

    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self._is_json = options.format == "jsonl"
        self._text, self._tokens, self._words = Spool(), Spool(), Spool()
        self._token_rows, self._word_rows = TokenRows(options), WordRows(options)
        self._num_chars = self._num_tokens = self._num_words = 0
        self._joiner = LongWords(options.log_base, options.words)
        self._is_quoted = False

    def add_text(self, text: str) -> None:
        """The next part of a line of text, as it is repeated in the output."""
        if not self._options.with_text or not text:
            return
        if self._is_json:
            self._text.write(_encode(text)[1:-1])
            return
        self._is_quoted = self._is_quoted or '"' in text
        self._text.write(doubled(escaped(text)).encode("utf-8"))

    def add(self, record: Record, scored: ScoredText, sums: TextSums) -> None:
        """The next piece with its figures."""
        if self._options.tokens:
            for at in range(0, sums.num_tokens, SLICE):
                self._add_tokens(record, scored.tokens(at, min(at + SLICE, sums.num_tokens)))
        if self._options.words:
            self._write_words(record, self._joiner.add(scored))
        self._num_chars += len(scored.encoded.text)

    def finished(self, record: Record, sums: TextSums) -> Iterator[bytes]:
        """The whole record."""
        self._write_words(record, self._joiner.end())
        if self._is_json:
            yield from self._object(record, sums)
        elif self._options.tokens or self._options.words:
            yield from self._tokens.read()
            yield from self._words.read()
        else:
            yield from self._row(record, sums)

    def close(self) -> None:
        """Throw away what was kept."""
        for spool in (self._text, self._tokens, self._words):
            spool.close()

    def _add_tokens(self, record: Record, tokens: list[ScoredToken]) -> None:
        for token in tokens:
            token.start += self._num_chars
            token.end += self._num_chars
        if self._is_json:
            self._write_items(self._tokens, tokens)
        else:
            self._tokens.write(self._token_rows.some(record, tokens, self._num_tokens))
        self._num_tokens += len(tokens)

    def _write_words(self, record: Record, words: list[ScoredWord]) -> None:
        for at in range(0, len(words), SLICE):
            some = words[at : at + SLICE]
            if self._is_json:
                self._write_items(self._words, some)
            else:
                self._words.write(self._word_rows.some(record, some, self._num_words))
            self._num_words += len(some)

    @staticmethod
    def _write_items(spool: Spool, items: list[Item]) -> None:
        if items:
            spool.write((b"" if spool.is_empty else b",") + _encode(items)[1:-1])

    def _object(self, record: Record, sums: TextSums) -> Iterator[bytes]:
        if record.fields is None and self._options.with_text:
            yield CarriedFields(self._options).opening(record).removesuffix(b'"')
            yield from self._text.read()
            yield b'"'
        else:
            yield CarriedFields(self._options).opening(record)
        yield b"," + figure_members(sums, self._options)
        for name, wanted, spool in (
            ("tokens", self._options.tokens, self._tokens),
            ("words", bool(self._options.words), self._words),
        ):
            if wanted:
                yield b",%b:[" % _encode(self._options.prefix + name)
                yield from spool.read()
                yield b"]"
        yield b"}\n"

    def _row(self, record: Record, sums: TextSums) -> Iterator[bytes]:
        columns = CarriedColumns(self._options, with_text=self._options.with_text)
        figures = sums.figures(self._options.log_base)
        row = columns.rows(record, [[cell(getattr(figures, name)) for name in TEXT_FIGURES]])
        if record.fields is not None or not self._options.with_text:
            yield row
            return
        tail = b"\t\n" if self._options.skip_bad else b"\n"  # behind the cell of the text, which is empty so far
        yield row.removesuffix(tail) + (b'"' if self._is_quoted else b"")
        yield from self._text.read()
        yield (b'"' if self._is_quoted else b"") + tail

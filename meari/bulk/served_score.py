"""Texts → their figures by POST /score of a running service, a chunk of lines at a time, in a worker.

What is written is what `score.py` writes of the same lines: of the answer's objects as they came, or rows made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from meari.bulk.frames import Bad, Done, Part
from meari.bulk.names import new_names, text_name
from meari.bulk.options import ScoreOptions
from meari.bulk.records import Problem, Reader, Record, up_to_bad
from meari.bulk.score import RowsOf, ScoredChunk, by_context
from meari.bulk.score_rows import JsonLines, ScoreRows, TextRows, TokenRows, WordRows, prefixed, score_rows
from meari.bulk.served import Served
from meari.runtime.answers import ScoredToken, ScoredWord, TextFigures
from meari.runtime.engine.calls import GRID
from meari.runtime.requests import LogBase
from meari.runtime.scores import LN_OF, TextSums

__all__ = ["ServedScoreWork"]

BYTES_PER_CHAR: Final = 4  # of UTF-8, at most


class Result(TextFigures):
    """A result of /score."""

    tokens: list[ScoredToken] = msgspec.field(default_factory=list)
    words: list[ScoredWord] = msgspec.field(default_factory=list)


class Answer(msgspec.Struct):
    """What is read of an answer of /score."""

    results: list[msgspec.Raw]


_encode: Final = msgspec.json.Encoder().encode
_decode_answer: Final = msgspec.json.Decoder(Answer).decode
_decode_result: Final = msgspec.json.Decoder(Result).decode


class ServedScoreWork:
    """What `meari score --server` does with every chunk."""

    def __init__(self, served: Served, options: ScoreOptions) -> None:
        self.served = served
        self.options = options
        self.reader = Reader(options.input_format, text_name(options), with_context=True, taken=new_names(options))
        self.rows: ScoreRows = score_rows(options)

    @property
    def head(self) -> bytes:
        """What stands before the first record of the output."""
        return self.rows.head()

    def begin(self, data: bytes, first_line: int, file: str = "") -> ScoredChunk:
        """Ask for a chunk of whole lines."""
        return self.begin_lines(self.reader.read(data, first_line, file))

    def begin_long(self, line: int, file: str = "") -> ServedLongText:
        """A long line whose pieces follow."""
        return ServedLongText(self, line, file)

    def begin_lines(self, lines: list[Record | Problem]) -> ScoredChunk:
        """Ask for some lines."""
        lines = up_to_bad([self._checked(line) for line in lines], skips_bad=self.options.skip_bad)
        return ScoredChunk(self, lines, list(self._groups(lines)))

    def _checked(self, line: Record | Problem) -> Record | Problem:
        """A text that the service would not take is a bad line."""
        if isinstance(line, Problem):
            return line
        num_chars = len(line.text) + len(self.options.context if line.context is None else line.context)
        if num_chars <= self.served.max_text_chars:
            return line
        return Problem(line.line, f"got {num_chars:,} characters, {self.expected}", line.file)

    @property
    def expected(self) -> str:
        """What the service takes."""
        return f"expected at most {self.served.max_text_chars:,}, which {self.served.service.url} takes in one request"

    def _groups(self, lines: list[Record | Problem]) -> Iterator[ServedGroup]:
        for context, texts in by_context(lines, self.options.context).items():
            for some in self._requests(context, texts):
                body = _encode(self._request(context, [text for _, text in some]))
                yield ServedGroup(self, [place for place, _ in some], self.served.ask("/score", body))

    def _requests(self, context: str, texts: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
        """Neighbours together, as many as one request may have."""
        some: list[tuple[int, str]] = []
        num_chars = 0
        for place, text in texts:
            if some and (
                len(some) == self.served.max_texts or num_chars + len(text) + len(context) > self.served.max_text_chars
            ):
                yield some
                some, num_chars = [], 0
            some.append((place, text))
            num_chars += len(text)
        if some:
            yield some

    def _request(self, context: str, texts: list[str]) -> dict[str, object]:
        options = self.options
        return {
            "model": self.served.model,
            "texts": texts,
            "context": context,
            "add_end": options.add_end,
            "log_base": options.log_base,
            "tokens": options.tokens,
            "words": options.words,
            "top": options.top,
        }


@dataclass(frozen=True, eq=False)
class ServedGroup:
    """Records of a chunk that are scored by one request; see `meari.bulk.score.Group`."""

    work: ServedScoreWork
    places: list[int]
    answer: Callable[[], bytes]

    def results(self) -> Iterator[tuple[int, TextSums, RowsOf]]:
        """As `Group` says. Raises RemoteError."""
        results = _decode_answer(self.answer()).results
        for place, raw in zip(self.places, results, strict=True):
            result = _decode_result(raw)
            sums = _sums(result, self.work.options.log_base)
            yield place, sums, partial(_rows, self.work.rows, bytes(raw), result, sums)


def _sums(result: Result, log_base: LogBase) -> TextSums:
    """The engine's own sums, which lie on its grid: rounding finds them again."""
    units = GRID * LN_OF[log_base]
    return TextSums(
        round(result.logprob * units),
        round(result.logprob_without_unknown * units),
        result.num_tokens,
        result.num_chars,
        result.num_bytes,
        result.num_unknown,
    )


def _rows(rows: ScoreRows, raw: bytes, result: Result, sums: TextSums, record: Record) -> Iterator[bytes]:
    if isinstance(rows, JsonLines):
        yield rows.carried.opening(record) + b"," + prefixed(raw, rows.prefix)[1:] + b"\n"
    elif isinstance(rows, TextRows):
        yield rows.row(record, sums)
    elif isinstance(rows, TokenRows):
        yield rows.some(record, result.tokens, 0)
    elif isinstance(rows, WordRows):
        yield rows.some(record, result.words, 0)


class ServedLongText:
    """A long line on its way: held whole, up to what the service takes."""

    def __init__(self, work: ServedScoreWork, line: int, file: str) -> None:
        self._work = work
        self._file = file
        self._line = line
        self._held = bytearray()
        self._is_too_long = False
        self._chunk: ScoredChunk | None = None

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Take a piece of the line, with the last one its line end."""
        self._is_too_long |= len(self._held) + len(data) > BYTES_PER_CHAR * self._work.served.max_text_chars
        if self._is_too_long:
            self._held.clear()
        else:
            self._held += data
        if ends:
            self._chunk = self._begun()

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for it, then write its record."""
        assert self._chunk is not None
        return self._chunk.messages()

    def _begun(self) -> ScoredChunk:
        if self._is_too_long:
            num_bytes = BYTES_PER_CHAR * self._work.served.max_text_chars
            message = f"got more than {num_bytes:,} bytes, {self._work.expected}"
            return self._work.begin_lines([Problem(self._line, message, self._file)])
        return self._work.begin(bytes(self._held), self._line, self._file)

"""Lines → scored records, a chunk at a time, over either backend.

Input: chunks of lines, or pieces of a long line. Output: parts of the output in order, then sums. Must not know: which
backend scores, where output goes.

`begin` parses and queues a chunk; `ScoredChunk.messages` waits for the figures and writes. Between the two the backend
works on other chunks as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from meari.bulk.backends import Backend
from meari.bulk.frames import Bad, Begun, Done, LongLine, Part, in_parts
from meari.bulk.long_text import LongText
from meari.bulk.options import ScoreOptions, new_names, text_name
from meari.bulk.records import Problem, Reader, Record, up_to_bad
from meari.bulk.score_rows import ScoreRows, score_rows
from meari.bulk.totals import ScoreTotals
from meari.errors import EngineFailed
from meari.runtime.scores import Scored, TextSums

__all__ = ["ScoreWork", "ScoredChunk"]

BYTES_PER_CHAR: Final = 4  # of UTF-8, at most


class ScoreWork:
    """The work of `meari score` on every chunk. Raises InvalidRequest if the options do not fit."""

    def __init__(self, backend: Backend, options: ScoreOptions) -> None:
        backend.check(options)
        self._backend = backend
        self._options = options
        self._reader = Reader(options.input_format, text_name(options), with_context=True, taken=new_names(options))
        self._rows: ScoreRows = score_rows(options)
        self.head = self._rows.head()  # before the first record of the output

    def begin(self, data: bytes, first_line: int, file: str = "") -> ScoredChunk:
        """Queue a chunk of whole lines."""
        return self.begin_lines(self._reader.read(data, first_line, file))

    def begin_long(self, line: int, file: str = "") -> LongLine:
        """Begin a long line whose pieces follow."""
        scorer = self._backend.piece_scorer(self._options)
        if scorer is None:
            return WholeLine(self, line, file, BYTES_PER_CHAR * self._backend.max_text_chars)
        return LongText(scorer, self._reader, self._options, line, file)

    def begin_lines(self, lines: list[Record | Problem]) -> ScoredChunk:
        """Queue some lines, one call for each context."""
        lines = up_to_bad([self._checked(line) for line in lines], skips_bad=self._options.skip_bad)
        groups = [
            Group(functools.partial(self._backend.score, context, options=self._options), texts)
            for context, texts in by_context(lines, self._options.context).items()
        ]
        return ScoredChunk(self._rows, self._options, lines, groups)

    def too_long(self, length: str) -> str:
        """Return the problem of a text that the backend does not take."""
        limit = f"{self._backend.max_text_chars:,}, which {self._backend.source} takes in one request"
        return f"got {length}, expected at most {limit}"

    def _checked(self, line: Record | Problem) -> Record | Problem:
        """Return the line, or a problem if its text is too long for the backend."""
        if isinstance(line, Problem):
            return line
        num_chars = len(line.text) + len(self._options.context if line.context is None else line.context)
        if num_chars <= self._backend.max_text_chars:
            return line
        return Problem(line.line, self.too_long(f"{num_chars:,} characters"), line.file)


def by_context(lines: Sequence[Record | Problem], context: str) -> dict[str, list[tuple[int, str]]]:
    """Return the texts after each context, with their places; `context` is that of lines that name none."""
    found: dict[str, list[tuple[int, str]]] = {}
    for place, line in enumerate(lines):
        if isinstance(line, Record):
            found.setdefault(context if line.context is None else line.context, []).append((place, line.text))
    return found


class Group:
    """Texts after one context, with their places in a chunk; they are queued as one call.

    begin  queues texts, and returns a function that waits for their figures
    """

    def __init__(self, begin: Callable[[Sequence[str]], Callable[[], Iterable[Scored]]], texts: list[tuple[int, str]]):
        self._begin = begin
        self._texts = texts
        self._await = begin([text for _, text in texts])

    def results(self) -> Iterator[tuple[int, Scored | EngineFailed]]:
        """Yield the figures of each text, at its place; if the call failed, each text has another one of its own."""
        try:
            yield from zip([place for place, _ in self._texts], list(self._await()), strict=True)
        except EngineFailed as error:
            if len(self._texts) == 1:
                yield self._texts[0][0], error
            else:
                for text in self._texts:
                    yield from Group(self._begin, [text]).results()


@dataclass(frozen=True, eq=False)
class ScoredChunk(Begun):
    """A chunk that is being scored."""

    rows: ScoreRows
    options: ScoreOptions
    lines: list[Record | Problem]
    groups: list[Group]

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the figures, then yield parts of the output in order, then the sums."""
        found: dict[int, tuple[Scored, TextSums]] = {}
        lines = list(self.lines)
        for group in self.groups:
            for place, scored in group.results():
                if isinstance(scored, EngineFailed):
                    lines[place] = Problem(lines[place].line, str(scored), lines[place].file)
                else:
                    found[place] = scored, scored.sums()
        lines = up_to_bad(lines, skips_bad=self.options.skip_bad)
        yield from in_parts(self._pieces(lines, found), self.options)
        num_bad = sum(isinstance(line, Problem) for line in lines)
        blank = {place for place, line in enumerate(lines) if isinstance(line, Record) and line.is_blank}
        sums = [sums for place, (_, sums) in found.items() if place not in blank]
        yield Done.of(ScoreTotals.of(sums, num_blank=len(blank), num_bad_lines=num_bad))

    def _pieces(
        self, lines: list[Record | Problem], found: dict[int, tuple[Scored, TextSums]]
    ) -> Iterator[bytes | Bad]:
        for place, line in enumerate(lines):
            if isinstance(line, Record):
                yield from self.rows.rows(line, *found[place])
            else:
                yield Bad(str(line))
                yield self.rows.problem(line)


class WholeLine(LongLine):
    """A long line that goes to the backend whole, as far as the backend takes it."""

    def __init__(self, work: ScoreWork, line: int, file: str, max_bytes: int) -> None:
        self._work = work
        self._file = file
        self._line = line
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._is_too_long = False
        self._chunk: ScoredChunk | None = None

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Take a piece of the line, with the last one its line end."""
        self._is_too_long |= len(self._held) + len(data) > self._max_bytes
        if self._is_too_long:
            self._held.clear()
        else:
            self._held += data
        if ends:
            self._chunk = self._begun()

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the figures, then yield the record."""
        assert self._chunk is not None
        return self._chunk.messages()

    def _begun(self) -> ScoredChunk:
        if self._is_too_long:
            message = self._work.too_long(f"more than {self._max_bytes:,} bytes")
            return self._work.begin_lines([Problem(self._line, message, self._file)])
        return self._work.begin(bytes(self._held), self._line, self._file)

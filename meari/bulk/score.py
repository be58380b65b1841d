"""Texts → their figures, a chunk of lines at a time, in a worker.

`begin` parses, tokenizes and queues a chunk; `ScoredChunk.messages` waits for the engine and writes. Between the two
the engine runs other chunks as well. `served_score.py` does the same with a running service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import numpy as np

from meari.bulk.frames import Bad, Done, Part, in_parts
from meari.bulk.long_text import LongText
from meari.bulk.names import new_names, text_name
from meari.bulk.options import ScoreOptions
from meari.bulk.records import Problem, Reader, Record, up_to_bad
from meari.bulk.score_rows import ScoreRows, score_rows
from meari.bulk.totals import ScoreTotals
from meari.bundle_format.names import TokenizerKind
from meari.runtime.engine import ScoreCall, Scoring, StateValue, TextScore
from meari.runtime.model import LoadedModel
from meari.runtime.scores import ScoredText, TextSums
from meari.runtime.text.tokenizer import Encoded
from meari.runtime.text.words import require_segmenter

__all__ = ["NEVER_SECONDS", "RowsOf", "ScoreWork", "ScoredChunk", "batches", "by_context"]

NEVER_SECONDS: Final = 1e8
TOKENIZED_CHARS: Final = 1 << 16  # at once: the library holds much for each of them
_NOWHERE: Final = np.empty(0, np.int32)


RowsOf = Callable[[Record], Iterator[bytes]]


class Group(Protocol):
    """Records of a chunk with one context, which are being scored."""

    def results(self) -> Iterator[tuple[int, TextSums, RowsOf]]:
        """Wait for them; then of each its place in the chunk, its sums, and what writes its rows."""


class Work(Protocol):
    """What a chunk is written with."""

    rows: ScoreRows


@dataclass(frozen=True, eq=False)
class EngineGroup:
    """Scored by an engine of this process."""

    work: ScoreWork
    places: list[int]
    encoded: list[Encoded]
    scoring: Scoring

    def results(self) -> Iterator[tuple[int, TextSums, RowsOf]]:
        """As `Group` says."""
        self.scoring.wait_end()
        self.scoring.raise_for_failure()
        for place, encoded, scores in zip(self.places, self.encoded, self.scoring.results, strict=True):
            scored = self.work.scored(encoded, scores)
            sums = scored.sums()
            yield place, sums, partial(self._rows, scored, sums)

    def _rows(self, scored: ScoredText, sums: TextSums, record: Record) -> Iterator[bytes]:
        return self.work.rows.rows(record, scored, sums)


def by_context(lines: Sequence[Record | Problem], context: str) -> dict[str, list[tuple[int, str]]]:
    """The texts that stand after each context, with their places; `context` is that of lines that name none."""
    found: dict[str, list[tuple[int, str]]] = {}
    for place, line in enumerate(lines):
        if isinstance(line, Record):
            own = context if line.context is None else line.context
            found.setdefault(own, []).append((place, line.text))
    return found


class ScoreWork:
    """What `meari score` does with every chunk."""

    def __init__(self, model: LoadedModel, options: ScoreOptions) -> None:
        """Raises InvalidRequest where words are to be found by ICU, and there is none."""
        if options.words == "unicode":
            require_segmenter()
        self._model = model
        self.options = options
        self.reader = Reader(options.input_format, text_name(options), with_context=True, taken=new_names(options))
        self.rows: ScoreRows = score_rows(options)

    @property
    def head(self) -> bytes:
        """What stands before the first record of the output."""
        return self.rows.head()

    def begin(self, data: bytes, first_line: int, file: str = "") -> ScoredChunk:
        """Queue a chunk of whole lines."""
        lines = up_to_bad(self.reader.read(data, first_line, file), skips_bad=self.options.skip_bad)
        return ScoredChunk(self, lines, list(self._groups(lines)))

    def begin_long(self, line: int, file: str = "") -> LongText:
        """A long line whose pieces follow."""
        return LongText(self, line, file)

    def _groups(self, lines: Sequence[Record | Problem]) -> Iterator[Group]:
        for context, texts in by_context(lines, self.options.context).items():
            encoded = self.encode([text for _, text in texts])
            scoring = self.score_texts(context, [text.ids for text in encoded])
            yield EngineGroup(self, [place for place, _ in texts], encoded, scoring)

    def context_of(self, record: Record) -> str:
        """The record's own context, else that of all."""
        return self.options.context if record.context is None else record.context

    def score_texts(self, context: str, texts: list[list[int]]) -> Scoring:
        """Queue texts after one context."""
        return self._queue(ScoreCall(self._model.tokenizer.encode(context), texts, 0.0, self.options.add_end))

    def score_piece(self, context: str, start: StateValue | None, ids: list[int], *, is_last: bool) -> Scoring:
        """Queue a piece of a text: the first one after its context, the others from where the one before ended."""
        before = self._model.tokenizer.encode(context) if start is None else ()
        add_end = is_last and self.options.add_end
        return self._queue(ScoreCall(before, [ids], 0.0, add_end, start=start, want_state=not is_last))

    def _queue(self, call: ScoreCall) -> Scoring:
        engine, options = self._model.engine, self.options
        deadline = engine.clock() + NEVER_SECONDS
        call = replace(call, deadline=deadline, num_alternatives=options.top, want_ranks=options.tokens)
        with engine.reserve() as reservation:
            return engine.score(call, reservation)

    @property
    def has_characters(self) -> bool:
        """Whether every character is a token."""
        return self._model.tokenizer.vocabulary.kind is TokenizerKind.CHAR

    @property
    def reads_text(self) -> bool:
        """Whether a line is a text as it stands."""
        return self.options.input_format == "text"

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Offsets only where figures of tokens or words need them."""
        if self.options.tokens or self.options.words:
            return [self._model.tokenizer.encode_with_offsets(text) for text in texts]
        encoded = []
        for some in batches(texts, TOKENIZED_CHARS):
            for text, ids in zip(some, self._model.tokenizer.encode_all(some), strict=True):
                encoded.append(Encoded(text, ids, _NOWHERE, _NOWHERE))
        return encoded

    def scored(self, encoded: Encoded, scores: TextScore) -> ScoredText:
        """A text with its figures."""
        vocabulary, options = self._model.tokenizer.vocabulary, self.options
        return ScoredText(encoded, scores, vocabulary, options.log_base, split=options.words)


@dataclass(frozen=True, eq=False)
class ScoredChunk:
    """A chunk that is being scored."""

    work: Work
    lines: list[Record | Problem]
    groups: Sequence[Group]

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the figures, then write them: parts of the output in order, then the sums."""
        results = {place: (sums, rows) for group in self.groups for place, sums, rows in group.results()}
        yield from in_parts(self._pieces({place: rows for place, (_, rows) in results.items()}))
        num_bad = sum(isinstance(line, Problem) for line in self.lines)
        blank = {place for place, line in enumerate(self.lines) if isinstance(line, Record) and line.is_blank}
        sums = [sums for place, (sums, _) in results.items() if place not in blank]
        yield Done.of(ScoreTotals.of(sums, num_blank=len(blank), num_bad_lines=num_bad))

    def _pieces(self, rows: dict[int, RowsOf]) -> Iterator[bytes | Bad]:
        for place, line in enumerate(self.lines):
            if isinstance(line, Record):
                yield from rows[place](line)
            else:
                yield Bad(str(line))
                yield self.work.rows.problem(line)


def batches(texts: Sequence[str], max_chars: int) -> Iterator[list[str]]:
    """Neighbours together, up to `max_chars` characters; a longer one alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > max_chars:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch

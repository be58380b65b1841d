"""One line of any length → its figures, piece by piece, in flat memory.

A piece is scored from the state in which the one before ended, which gives the same bits as the whole at once. Tokens,
words and the text itself, which an output record may hold, wait in files until its figures are known. Of JSONL a whole
line is held, so there it has a limit.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meari.bulk.borders import last_border, last_starter
from meari.bulk.frames import Bad, Done, Part, in_parts
from meari.bulk.long_rows import LongRows
from meari.bulk.records import Problem, Record, not_utf8
from meari.bulk.totals import ScoreTotals
from meari.runtime.engine import Scoring, StateValue
from meari.runtime.scores import TextSums
from meari.runtime.text.tokenizer import Encoded

if TYPE_CHECKING:
    from meari.bulk.score import ScoreWork

__all__ = ["LongText"]

PIECE_CHARS: Final = 1 << 15
MAX_HELD_CHARS: Final = 1 << 20  # of a text without a border between two words
MAX_OBJECT_BYTES: Final = 1 << 24
NO_SUMS: Final = TextSums(0, 0, 0, 0, 0, 0)


class LongText:
    """A long line on its way; see `meari.bulk.worker.LongLine`."""

    def __init__(self, work: ScoreWork, line: int, file: str) -> None:
        self._work = work
        self._line = line
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._carriage_return = b""  # held back until it is known whether it belongs to the line end
        self._num_bytes = 0
        self._object: bytearray | None = None if work.reads_text else bytearray()
        self._problem: Problem | None = None
        self._record = Record(line, "", file=file)
        self._is_blank = True
        self._held = ""  # not tokenized yet
        self._context = work.context_of(self._record)
        self._state: StateValue | None = None
        self._running: tuple[Encoded, Scoring] | None = None
        self._sums = NO_SUMS
        self._rows = LongRows(work.options)

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Take a piece of the line, with the last one its line end."""
        data = self._carriage_return + data
        if ends and data.endswith(b"\n"):
            data = data.removesuffix(b"\n").removesuffix(b"\r")
        self._carriage_return = b"\r" if data.endswith(b"\r") and not ends else b""
        data = data.removesuffix(self._carriage_return)
        if self._problem is None:
            if self._object is None:
                self._feed_text(data, ends=ends)
            else:
                self._feed_object(self._object, data, ends=ends)
        self._num_bytes += len(data)

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the last piece, then write the record."""
        if self._problem is None:
            self._settle()
            yield from in_parts(self._rows.finished(self._record, self._sums))
            yield Done.of(ScoreTotals.of([] if self._is_blank else [self._sums], num_blank=int(self._is_blank)))
        else:
            yield Bad(str(self._problem))
            yield Part(self._work.rows.problem(replace(self._problem, file=self._record.file)))
            yield Done.of(ScoreTotals(num_bad_lines=1))
        self._rows.close()

    def _feed_text(self, data: bytes, *, ends: bool) -> None:
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=ends)
        except UnicodeDecodeError as error:
            self._problem = not_utf8(self._line, self._num_bytes - pending + error.start)
            return
        self._rows.add_text(text)
        self._add(text, ends=ends)

    def _feed_object(self, held: bytearray, data: bytes, *, ends: bool) -> None:
        if len(held) + len(data) > MAX_OBJECT_BYTES:
            message = f"got a JSON object of more than {MAX_OBJECT_BYTES:,} bytes, expected at most so many"
            self._problem = Problem(self._line, f"{message}; a line of text may have any length")
            held.clear()
            return
        held += data
        if not ends:
            return
        record = self._work.reader.line(bytes(held), self._line)
        held.clear()
        if isinstance(record, Problem):
            self._problem = record
            return
        self._record, self._context = replace(record, file=self._record.file), self._work.context_of(record)
        for at in range(0, len(record.text) or 1, PIECE_CHARS):
            self._add(record.text[at : at + PIECE_CHARS], ends=at + PIECE_CHARS >= len(record.text))

    def _add(self, text: str, *, ends: bool) -> None:
        """Score what can be cut off; the last piece with all that is left."""
        num_before = len(self._held)
        self._is_blank = self._is_blank and not text.strip()
        self._held += text
        while len(self._held) > PIECE_CHARS and (border := self._border(num_before)):
            self._score(self._held[:border], is_last=False)
            self._held, num_before = self._held[border:], 0
        if ends:
            self._score(self._held, is_last=True)
            self._held = ""

    def _border(self, num_before: int) -> int:
        """Where to cut a piece off: in what has come last, for before that there was no border."""
        head = self._held[: num_before + PIECE_CHARS]
        border = last_border(head, max(0, num_before - 1)) or last_border(self._held, max(0, num_before - 1))
        if not border and (self._work.has_characters or len(self._held) > MAX_HELD_CHARS):
            border = last_starter(head)
        return border

    def _score(self, text: str, *, is_last: bool) -> None:
        """Queue a piece behind the one that is running."""
        encoded = self._work.encode([text])[0]
        self._settle()
        scoring = self._work.score_piece(self._context, self._state, encoded.ids, is_last=is_last)
        self._running = (encoded, scoring)

    def _settle(self) -> None:
        """Wait for the piece that is running, and take up its figures."""
        if self._running is None:
            return
        encoded, scoring = self._running
        self._running = None
        scoring.wait_end()
        scoring.raise_for_failure()
        [scores] = scoring.results
        self._state = scores.state
        scored = self._work.scored(encoded, scores)
        sums = scored.sums()
        self._rows.add(self._record, scored, sums)
        self._sums = self._sums.plus(sums)

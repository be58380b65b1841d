"""One line of any length → its record, piece by piece, in flat memory.

Input: pieces of a line, and a scorer. Output: the record that the whole line would have. Must not know: the other
lines.

A piece is scored from the state in which the one before ended, which gives the same bits as the whole at once. Tokens,
words and the text itself, which an output record may hold, wait in temporary files (small ones in memory) until the
figures of the whole are known. A whole line of JSONL is held, so it has a limit there.
"""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Final, TypeVar

import msgspec

from meari.bulk.backends import PieceScorer
from meari.bulk.frames import Bad, Done, LongLine, Part, in_parts
from meari.bulk.long_words import LongWords
from meari.bulk.options import ScoreOptions
from meari.bulk.records import Problem, Reader, Record, not_utf8
from meari.bulk.rows import CarriedFields, doubled, escaped
from meari.bulk.score_rows import TextRows, TokenRows, WordRows, figure_members, score_rows
from meari.bulk.totals import ScoreTotals
from meari.bundle_format.text_borders import last_space, last_starter
from meari.errors import EngineFailed
from meari.runtime.answers import ScoredToken, ScoredWord
from meari.runtime.engine import Scoring, StateValue
from meari.runtime.scores import SLICE, ScoredText, TextSums
from meari.runtime.text.tokenizer import Encoded

__all__ = ["LongText"]

PIECE_CHARS: Final = 1 << 15
MAX_HELD_CHARS: Final = 1 << 20  # of a text without a border between two words
MAX_OBJECT_BYTES: Final = 1 << 24
MEMORY_BYTES: Final = 1 << 20  # of a spool
READ_BYTES: Final = 1 << 18
NO_SUMS: Final = TextSums(0, 0, 0, 0, 0, 0)
Item = TypeVar("Item", ScoredToken, ScoredWord)
_encode: Final = msgspec.json.Encoder().encode


class LongText(LongLine):
    """A long line whose text is scored piece by piece."""

    def __init__(self, scorer: PieceScorer, reader: Reader, options: ScoreOptions, line: int, file: str) -> None:
        self._scorer = scorer
        self._reader = reader
        self._options = options
        self._line = line
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._carriage_return = b""  # held back until the next byte shows if it belongs to the line end
        self._num_bytes = 0
        self._object: bytearray | None = None if options.input_format == "text" else bytearray()
        self._problem: Problem | None = None
        self._record = Record(line, "", file=file)
        self._is_blank = True
        self._held = ""  # text that is not tokenized yet
        self._context = options.context
        self._state: StateValue | None = None
        self._running: tuple[Encoded, Scoring] | None = None
        self._sums = NO_SUMS
        self._rows = LongRows(options)

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
        """Wait for the last piece, then yield the record."""
        self._settle()
        if self._problem is None:
            yield from in_parts(self._rows.finished(self._record, self._sums), self._options)
            yield Done.of(ScoreTotals.of([] if self._is_blank else [self._sums], num_blank=int(self._is_blank)))
        else:
            problem = replace(self._problem, file=self._record.file)
            yield from in_parts([Bad(str(problem)), score_rows(self._options).problem(problem)], self._options)
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
        record = self._reader.line(bytes(held), self._line)
        held.clear()
        if isinstance(record, Problem):
            self._problem = record
            return
        self._record = replace(record, file=self._record.file)
        self._context = self._options.context if record.context is None else record.context
        for at in range(0, len(record.text) or 1, PIECE_CHARS):
            self._add(record.text[at : at + PIECE_CHARS], ends=at + PIECE_CHARS >= len(record.text))

    def _add(self, text: str, *, ends: bool) -> None:
        """Score the pieces that can be cut off; the last piece takes all that is left."""
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
        """Return where to cut a piece off, 0 if nowhere yet; before the newest text there was no border."""
        head = self._held[: num_before + PIECE_CHARS]
        border = last_space(head, max(0, num_before - 1)) or last_space(self._held, max(0, num_before - 1))
        if not border and (self._scorer.has_characters or len(self._held) > MAX_HELD_CHARS):
            border = last_starter(head)
        return border

    def _score(self, text: str, *, is_last: bool) -> None:
        """Queue a piece once the one before has ended."""
        encoded = self._scorer.encode([text])[0]
        self._settle()
        if self._problem is not None:
            return
        scoring = self._scorer.score_piece(self._context, self._state, encoded.ids, is_last=is_last)
        self._running = (encoded, scoring)

    def _settle(self) -> None:
        """Wait for the running piece, and add its figures."""
        if self._running is None:
            return
        encoded, scoring = self._running
        self._running = None
        scoring.wait_end()
        try:
            scoring.raise_for_failure()
        except EngineFailed as error:
            self._problem = Problem(self._line, str(error))
            return
        [scores] = scoring.results
        self._state = scores.state
        scored = self._scorer.scored(encoded, scores)
        sums = scored.sums()
        self._rows.add(self._record, scored, sums)
        self._sums = self._sums.plus(sums)


class Spool:
    """Bytes that are kept until they are read, once."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 (closed by `close`)
        self.is_empty = True

    def write(self, data: bytes) -> None:
        """Add some bytes."""
        self._file.write(data)
        self.is_empty = False

    def read(self) -> Iterator[bytes]:
        """Yield all bytes."""
        self._file.seek(0)
        while data := self._file.read(READ_BYTES):
            yield data

    def close(self) -> None:
        """Throw the bytes away."""
        self._file.close()


class LongRows:
    """Takes the pieces of one line, then writes the record that `score_rows` would write of the whole."""

    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self._is_json = options.format == "jsonl"
        self._text, self._tokens, self._words = Spool(), Spool(), Spool()
        self._token_rows, self._word_rows = TokenRows(options), WordRows(options)
        self._num_chars = self._num_tokens = self._num_words = 0
        self._joiner = LongWords(options.log_base, options.words)
        self._is_quoted = False

    def add_text(self, text: str) -> None:
        """Take the next part of a line of text, which the output repeats."""
        if not self._options.with_text or not text:
            return
        if self._is_json:
            self._text.write(_encode(text)[1:-1])
            return
        self._is_quoted = self._is_quoted or '"' in text
        self._text.write(doubled(escaped(text)).encode("utf-8"))

    def add(self, record: Record, scored: ScoredText, sums: TextSums) -> None:
        """Take the next piece with its figures."""
        if self._options.tokens:
            for at in range(0, sums.num_tokens, SLICE):
                self._add_tokens(record, scored.tokens(at, min(at + SLICE, sums.num_tokens)))
        if self._options.words:
            self._write_words(record, self._joiner.add(scored))
        self._num_chars += len(scored.encoded.text)

    def finished(self, record: Record, sums: TextSums) -> Iterator[bytes]:
        """Yield the whole record."""
        self._write_words(record, self._joiner.end())
        if self._is_json:
            yield from self._object(record, sums)
        elif self._options.tokens or self._options.words:
            yield from self._tokens.read()
            yield from self._words.read()
        else:
            yield from self._row(record, sums)

    def close(self) -> None:
        """Throw away all that was kept."""
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
        for name, is_wanted, spool in (
            ("tokens", self._options.tokens, self._tokens),
            ("words", bool(self._options.words), self._words),
        ):
            if is_wanted:
                yield b",%b:[" % _encode(self._options.prefix + name)
                yield from spool.read()
                yield b"]"
        yield b"}\n"

    def _row(self, record: Record, sums: TextSums) -> Iterator[bytes]:
        row = TextRows(self._options).row(record, sums)
        if record.fields is not None or not self._options.with_text:
            yield row
            return
        tail = b"\t\n" if self._options.skip_bad else b"\n"  # behind the cell of the text, which is empty so far
        yield row.removesuffix(tail) + (b'"' if self._is_quoted else b"")
        yield from self._text.read()
        yield (b'"' if self._is_quoted else b"") + tail

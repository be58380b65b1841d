"""Scored lines → the lines themselves in three parts: head, middle and tail of a corpus.

Input: scores as `meari score --format tsv` writes them, the lines that they are of. Output: thresholds, and files with
the lines as they came. Must not know: how lines are scored, the command line.

The parts are those of CCNet (Wenzek et al., *CCNet: Extracting High Quality Monolingual Datasets from Web Crawl Data*,
LREC 2020): quantiles of a figure over a reference corpus, the head the likeliest lines. With two models the figure is
the difference of their cross-entropies (Moore and Lewis, *Intelligent Selection of Language Model Training Data*, ACL
2010). A quantile is exact, in flat memory: the smallest value that a given share of the values does not exceed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from meari.bulk.errors import BulkError
from meari.bulk.lines import Chunk
from meari.bulk.parquet import RowRange
from meari.bulk.parquet_output import ParquetParts
from meari.bulk.source import Source
from meari.bulk.storage import open_file

__all__ = [
    "DIGIT_BITS",
    "PARTS",
    "Counts",
    "Criterion",
    "DigitCounts",
    "Figure",
    "Scores",
    "Thresholds",
    "chunks_of_source",
    "find_thresholds",
    "split_lines_by",
    "split_rows_by",
]

Figure = Literal["bits_per_char", "bits_per_byte", "perplexity"]
PARTS: Final = ("head", "middle", "tail")
NO_PART: Final = len(PARTS)  # of a line without a figure: empty, or bad
AT_ONCE: Final = 1 << 14  # lines
READ_BYTES: Final = 1 << 20
DIGIT_BITS: Final = 16
HIGHEST: Final = 64 - DIGIT_BITS  # position of the highest digit
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Criterion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lines are compared by: a figure of one model, or the difference of the figures of two.

    model, against  SHA-256 of the bundles; `against` is "" for one model
    add_end         the probability that a text ends is counted
    """

    figure: Figure
    model: str
    against: str = ""
    add_end: bool = False


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest values of head and middle, as a file keeps them; None for a part that is empty.

    head_percent, middle_percent  shares of the reference's lines
    num_lines                     lines of the reference that have a figure
    """

    by: Criterion
    head_percent: float
    middle_percent: float
    head: float | None
    middle: float | None
    num_lines: int

    @classmethod
    def read(cls, path: str, by: Criterion) -> Thresholds:
        """Read a path or URL. Raises BulkError if it has no thresholds, or those of another criterion than `by`."""
        try:
            with open_file(path) as file:
                found = msgspec.json.decode(file.read(), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BulkError(f"{path}: got no thresholds ({error}), expected a file that `meari filter` wrote") from None
        for name in Criterion.__struct_fields__:
            came, wanted = getattr(found.by, name), getattr(by, name)
            if came != wanted:
                raise BulkError(f"{path}: {name}: got thresholds of {came!r}, expected those of {wanted!r}")
        return found

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises BulkError."""
        fresh = path.with_name(path.name + ".tmp")
        try:
            fresh.write_bytes(self.encode())
            fresh.rename(path)
        except OSError as error:
            raise BulkError(f"{path}: {error.strerror}, expected a file to write thresholds to") from None

    def parts_of(self, values: Floats) -> npt.NDArray[np.int64]:
        """Return the number of each value's part, NO_PART for nan."""
        bounds = [-math.inf if bound is None else bound for bound in (self.head, self.middle)]
        parts = np.searchsorted(np.maximum.accumulate(bounds), values, side="left")
        return np.where(np.isnan(values), NO_PART, parts)


class DigitCounts(Protocol):
    """The values of all lines, counted digit by digit; a digit of a value has 16 bits."""

    def count_digits(self, shift: int, higher: int) -> Counts:
        """Count the values by their digit that is `shift` bits high, of those whose higher digits are `higher`."""


@dataclass(frozen=True)
class Scores:
    """Files of scores of the same lines, by one model or two; figures of the second are subtracted.

    paths   or URLs
    column  name of the figure in the files
    """

    paths: tuple[str, ...]
    column: str

    def count_digits(self, shift: int, higher: int) -> Counts:
        """Count values; see `DigitCounts`."""
        counts = np.zeros(1 << DIGIT_BITS, np.int64)
        for values in self.values():
            keys = _keys(values[~np.isnan(values)])
            known = keys >> np.uint64(shift + DIGIT_BITS) if shift < HIGHEST else np.zeros_like(keys)
            digits = (keys[known == np.uint64(higher)] >> np.uint64(shift)) & np.uint64((1 << DIGIT_BITS) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=counts.size)
        return counts

    def values(self) -> Iterator[Floats]:
        """Yield the value of each line, some thousand at a time: float64 [lines], nan for lines without a figure."""
        columns = [self._column(path) for path in self.paths]
        for several in zip(*columns, strict=True):
            lengths = {len(values) for values in several}
            if len(lengths) > 1:
                raise BulkError(f"{self.paths[1]}: got another number of lines than {self.paths[0]} has")
            yield several[0] if len(several) == 1 else several[0] - several[1]

    def _column(self, path: str) -> Iterator[Floats]:
        with open_file(path) as rows:
            names = rows.readline().decode("utf-8").rstrip("\n").split("\t")
            place = names.index(self.column)
            while some := [row.split(b"\t", place + 1)[place] for row in islice(rows, AT_ONCE)]:
                yield np.array([float(cell) if cell else math.nan for cell in some])


def find_thresholds(
    scores: DigitCounts, by: Criterion, head_percent: float, middle_percent: float, of: str = "reference"
) -> Thresholds:
    """Measure the thresholds on a scored reference. Raises BulkError if no line of it has a figure.

    of  the reference, in the words of the error
    """
    counts = scores.count_digits(HIGHEST, 0)
    count = int(counts.sum())
    if not count:
        raise BulkError(f"{of}: got no line with a figure, expected some lines of text")
    ranks = [math.ceil(count * percent / 100) for percent in (head_percent, head_percent + middle_percent)]
    head, middle = (_smallest(scores, counts, rank) if rank else None for rank in ranks)
    return Thresholds(
        by=by, head_percent=head_percent, middle_percent=middle_percent, head=head, middle=middle, num_lines=count
    )


def _smallest(scores: DigitCounts, counts: Counts, rank: int) -> float:
    """Return the value with that rank, 1 the smallest: digit by digit from the highest, whose counts are there."""
    found = 0
    for shift in range(HIGHEST, -1, -DIGIT_BITS):
        if shift < HIGHEST:
            counts = scores.count_digits(shift, found)
        reached = np.cumsum(counts)
        digit = int(np.searchsorted(reached, rank))
        rank -= int(reached[digit - 1]) if digit else 0
        found = found << DIGIT_BITS | digit
    return _value(found)


SIGN: Final = np.uint64(1 << 63)


def _keys(values: Floats) -> npt.NDArray[np.uint64]:
    """Return unsigned integers in the order of the values; -0.0 is 0.0."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value(key: int) -> float:
    bits = np.uint64(key)
    return float((bits & ~SIGN if bits & SIGN else ~bits).view(np.float64))


def split_lines_by(
    thresholds: Thresholds, scores: Scores, chunks: Iterable[Chunk], outputs: Sequence[Path]
) -> list[int]:
    """Write each line, byte for byte, to the output of its part; a line without a figure to none.

    outputs  one a part; each is replaced when all of them are complete
    returns  the number of lines of each part, then of those without a figure
    Raises BulkError.
    """
    counts = np.zeros(NO_PART + 1, np.int64)
    parts = _Parts(thresholds, scores)
    with _replaced(outputs) as fresh, ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in fresh]
        for chunk in chunks:
            counts += _write(chunk, parts.take(chunk), files)
    return counts.tolist()


def split_rows_by(
    thresholds: Thresholds, scores: Scores, ranges: Sequence[RowRange], outputs: Sequence[Path]
) -> list[int]:
    """Write each row of some Parquet files to the Parquet file of its part; see `split_lines_by`."""
    counts = np.zeros(NO_PART + 1, np.int64)
    parts = _Parts(thresholds, scores)
    with _replaced(outputs) as fresh, ParquetParts(ranges, fresh) as files:
        for batch in files.batches():
            of_rows = parts.next(batch.num_rows)
            files.add(batch, of_rows)
            counts += np.bincount(of_rows, minlength=NO_PART + 1)
    return counts.tolist()


@contextmanager
def _replaced(outputs: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield files that become the outputs once all of them are complete. Raises BulkError."""
    fresh = [path.with_name(path.name + ".part") for path in outputs]
    try:
        yield fresh
        for path in fresh:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path, output in zip(fresh, outputs, strict=True):
            path.rename(output)
    except OSError as error:
        raise BulkError(f"{error.filename or outputs[0].parent}: {error.strerror}") from None


class _Parts:
    """The part of each line, in order, taken as the lines come."""

    def __init__(self, thresholds: Thresholds, scores: Scores) -> None:
        self._parts = (part for values in scores.values() for part in thresholds.parts_of(values).tolist())
        self._of_long: int | None = None

    def take(self, chunk: Chunk) -> list[int]:
        """Return the parts of a chunk's lines; of a piece of a long line, that of the line."""
        if not chunk.is_long:
            return self.next(chunk.num_lines)
        if self._of_long is None:
            [self._of_long] = self.next(1)
        part = self._of_long
        if chunk.num_lines:  # its last piece
            self._of_long = None
        return [part]

    def next(self, count: int) -> list[int]:
        """Return the parts of some whole lines. Raises BulkError if fewer were scored."""
        parts = list(islice(self._parts, count))
        if len(parts) < count:
            raise BulkError("FILE: got more lines than were scored, expected the same file as before")
        return parts


def chunks_of_source(source: Source) -> Iterator[Chunk]:
    """Yield all lines of local files. Raises BulkError."""
    while not source.is_done:
        chunk = source.take(AT_ONCE, READ_BYTES, partial=True)
        if chunk is not None:
            yield chunk
        elif source.failure is not None:
            raise source.failure
        else:
            source.read()


def _write(chunk: Chunk, parts: list[int], files: Sequence[IO[bytes]]) -> npt.NDArray[np.int64]:
    """Write a chunk's lines and count them."""
    if chunk.is_long:
        lines = [chunk.data]
        if chunk.num_lines and not chunk.data.endswith(b"\n"):
            lines = [chunk.data + b"\n"]
    else:
        lines = [line + b"\n" for line in chunk.data.removesuffix(b"\n").split(b"\n")]
    for part, file in enumerate(files):
        file.write(b"".join(line for line, own in zip(lines, parts, strict=True) if own == part))
    counts = np.bincount(parts, minlength=NO_PART + 1)
    return counts if chunk.num_lines else np.zeros_like(counts)

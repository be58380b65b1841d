"""Token ids of one part of a corpus in a memory-mapped file.

Input: documents in pieces. Output: `NAME.tokens` (ids, little-endian), `NAME.json` (counts) and, with a loss mask,
`NAME.masked` in a folder. Must not know: the reading or splitting of text.

    <|end|> document <|end|> document <|end|> … document <|end|>

The file begins and ends with the boundary token and every document is ended by one: inputs are ids[:-1], targets
ids[1:]. Ids are uint16 where the vocabulary has at most 65,536 entries, else uint32.

The masked tokens are those of which a character lies in a match of the loss mask. They are inputs like all others, but
no targets. Their places in the row of ids are kept in ascending order, as int64.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from meari.bundle_format.names import Document as Unit
from meari.models.errors import TokenFileError
from meari.models.files import write_file
from meari.models.text.corpus import Piece
from meari.models.text.expressions import OVERLAP, Expressions
from meari.models.text.tokenizer import Tokenizer

_BATCH_CHARACTERS = 1 << 17
_BATCH_PIECES = 4096
_FORMAT = 2  # of the counts
UNCOUNTED = -100  # target of a position that is neither scored nor learnt
MASKED = ".masked"
_PLACE = np.dtype("<i8")
MIN_FILES_WITH_ENDS = 100  # smallest number of files whose ends can be learned; two for lines and paragraphs
MAX_TOKENS_PER_END = 10_000


@dataclass(frozen=True)
class TokenCounts:
    """Counts of a token file, kept in the .json beside the ids.

    num_characters   of the documents in NFC, in Unicode code points; a document's end counts none
    num_bytes        of the same text in UTF-8
    num_unknown      tokens <|unk|>
    num_blocked      documents that the blocklist left out; not in the other counts
    num_masked       tokens that are read but not learnt
    """

    unit: Unit
    dtype: str
    num_tokens: int = 0
    num_documents: int = 0
    num_characters: int = 0
    num_bytes: int = 0
    num_unknown: int = 0
    num_blocked: int = 0
    num_masked: int = 0

    @property
    def has_ends(self) -> bool:
        """True if a model trained on this text learns where a text ends.

        There must be enough ends, and not too far apart: more than one line or paragraph, or a hundred files, of at
        most 10,000 tokens each on average. Otherwise the text is one stream, cut somewhere, and the probability of an
        end is noise.
        """
        fewest = MIN_FILES_WITH_ENDS if self.unit is Unit.FILE else 2
        return self.num_documents >= fewest and self.num_tokens <= MAX_TOKENS_PER_END * self.num_documents


@dataclass(frozen=True)
class TokenFile:
    """One part of a corpus.

    ids      uint16 or uint32 [num_tokens], read-only and memory-mapped
    masked   int64 [num_masked], ascending places in `ids`, the same
    """

    path: Path
    ids: NDArray[np.uint16] | NDArray[np.uint32]
    counts: TokenCounts
    masked: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def num_tokens(self) -> int:
        return self.counts.num_tokens

    @property
    def num_documents(self) -> int:
        return self.counts.num_documents

    @property
    def num_characters(self) -> int:
        return self.counts.num_characters

    @property
    def num_bytes(self) -> int:
        return self.counts.num_bytes

    @property
    def num_unknown(self) -> int:
        return self.counts.num_unknown

    @property
    def num_blocked(self) -> int:
        return self.counts.num_blocked

    @property
    def num_masked(self) -> int:
        return self.counts.num_masked

    @property
    def unit(self) -> Unit:
        return self.counts.unit


def open_token_file(path: Path) -> TokenFile:
    """Map a token file. Raises TokenFileError: missing, or its size contradicts its .json."""
    try:
        tables = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        counts = _counts(tables)
        size, dtype = path.stat().st_size, np.dtype(counts.dtype)
        masked = path.with_suffix(MASKED)
        masked_size = masked.stat().st_size if counts.num_masked else 0
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TokenFileError(f"{path}: got {error}, expected token ids and their counts") from error
    if size != counts.num_tokens * dtype.itemsize or not size:
        raise TokenFileError(f"{path}: got {size} bytes, expected {counts.num_tokens} ids of {dtype.itemsize} bytes")
    if masked_size != counts.num_masked * _PLACE.itemsize:
        raise TokenFileError(f"{masked}: got {masked_size} bytes, expected {counts.num_masked} places of 8 bytes")
    ids = np.memmap(path, dtype=dtype, mode="r")
    return TokenFile(path, ids, counts, np.memmap(masked, _PLACE, "r")) if masked_size else TokenFile(path, ids, counts)


def _counts(tables: dict[str, Any]) -> TokenCounts:
    """Read the counts. In the first format, which is unnamed, the end of a line or paragraph counted as one
    character.
    """
    earlier = tables.pop("format", 1) < _FORMAT
    counts = TokenCounts(**{**tables, "unit": Unit(tables["unit"])})
    num_ends = counts.num_documents if earlier and counts.unit is not Unit.FILE else 0
    return replace(counts, num_characters=counts.num_characters - num_ends, num_bytes=counts.num_bytes - num_ends)


@dataclass(frozen=True)
class Unlearnt:
    """What is not learnt of a text: documents that `blocklist` matches, and tokens in a match of `loss_mask`."""

    blocklist: Expressions = field(default_factory=Expressions)
    loss_mask: Expressions = field(default_factory=Expressions)


def write_token_file(
    path: Path, pieces: Iterable[Piece], tokenizer: Tokenizer, unit: Unit, unlearnt: Unlearnt | None = None
) -> TokenCounts:
    """Encode documents into a new token file, a batch of pieces at a time.

    The caller renames the folder into place: an interrupted file has no .json. A part without a document has the
    boundary token alone.
    """
    with path.open("wb") as file:
        writer = _Writer(file, tokenizer, unit, unlearnt or Unlearnt())
        for batch in _batches(pieces):
            writer.write(batch)
        counts = writer.counts()
    if counts.num_masked:
        write_file(path.with_suffix(MASKED), writer.masked().tobytes())
    described = {"format": _FORMAT, **asdict(counts)}
    write_file(path.with_suffix(".json"), (json.dumps(described, indent=2) + "\n").encode())
    return counts


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass
class _Sums:
    """Counts so far, as plain integers: they change once a document."""

    tokens: int = 1
    documents: int = 0
    characters: int = 0
    bytes: int = 0
    unknown: int = 0


class _Writer:
    """Writer of documents; it removes a document again if a later piece of it is blocked."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, unit: Unit, unlearnt: Unlearnt) -> None:
        self._file, self._tokenizer, self._unit, self._unlearnt = file, tokenizer, unit, unlearnt
        self._dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<u4")
        self._sums = _Sums()
        self._num_blocked = 0
        self._masker = _Masker(unlearnt.loss_mask, tokenizer) if unlearnt.loss_mask else None
        self._end = np.array([tokenizer.end_id], dtype=self._dtype).tobytes()
        file.write(self._end)
        self._begin_document()

    def _begin_document(self) -> None:
        self._mark, self._mark_sums = self._sums.tokens, replace(self._sums)
        self._is_blocked, self._is_blank = False, True

    def counts(self) -> TokenCounts:
        sums = self._sums
        return TokenCounts(
            unit=self._unit,
            dtype=self._dtype.name,
            num_tokens=sums.tokens,
            num_documents=sums.documents,
            num_characters=sums.characters,
            num_bytes=sums.bytes,
            num_unknown=sums.unknown,
            num_blocked=self._num_blocked,
            num_masked=len(self.masked()),
        )

    def masked(self) -> NDArray[np.int64]:
        """Return the places of the masked tokens, ascending."""
        return np.empty(0, _PLACE) if self._masker is None else self._masker.places()

    def write(self, pieces: list[Piece]) -> None:
        blocked = [self._unlearnt.blocklist.matches(piece.text, ends=piece.ends) for piece in pieces]
        kept = [piece.text for piece, is_blocked in zip(pieces, blocked, strict=True) if not is_blocked]
        encoded = iter(self._tokenizer.encode_arrays(kept))
        for piece, is_blocked in zip(pieces, blocked, strict=True):
            if self._masker is not None:
                self._masker.add(piece, self._sums.tokens)
            if is_blocked:
                self._is_blocked = True
            else:
                self._append(piece, next(encoded))
            if piece.ends:
                self._end_document()

    def _append(self, piece: Piece, ids: NDArray[np.uint32]) -> None:
        self._is_blank = self._is_blank and not piece.text.strip()
        self._file.write(ids.astype(self._dtype).tobytes())
        sums = self._sums
        sums.tokens += len(ids)
        sums.characters += len(piece.text)
        sums.bytes += len(piece.text.encode())
        if self._tokenizer.unknown_id is not None:
            sums.unknown += int(np.count_nonzero(ids == self._tokenizer.unknown_id))

    def _end_document(self) -> None:
        if self._is_blocked or self._is_blank:
            self._take_back()
        else:
            self._file.write(self._end)
            self._sums.tokens += 1
            self._sums.documents += 1
        self._begin_document()

    def _take_back(self) -> None:
        self._num_blocked += self._is_blocked
        if self._sums.tokens != self._mark:
            self._file.seek(self._mark * self._dtype.itemsize)
            self._file.truncate()
        if self._masker is not None:
            self._masker.take_back(self._mark)
        self._sums = self._mark_sums


class _Masker:
    """Finder of the tokens that lie in a match of the loss mask."""

    def __init__(self, loss_mask: Expressions, tokenizer: Tokenizer) -> None:
        self._loss_mask, self._tokenizer = loss_mask, tokenizer
        self._places: list[int] = []
        self._before = np.empty((0, 3), np.int64)

    def add(self, piece: Piece, first: int) -> None:
        """Take the next piece of a document, whose first token has this place in the row of ids."""
        matches = np.array(list(self._loss_mask.spans(piece.text, ends=piece.ends)), np.int64).reshape(-1, 2)
        if len(matches) or not piece.ends:
            spans = self._tokenizer.spans(piece.text)
            tokens = np.column_stack((np.arange(first, first + len(spans)), spans))
            tokens = np.concatenate((self._before, tokens))
            firsts = np.searchsorted(tokens[:, 2], matches[:, 0], side="right")
            lasts = np.searchsorted(tokens[:, 1], matches[:, 1], side="left")
            changes = np.bincount(firsts, minlength=len(tokens) + 1) - np.bincount(lasts, minlength=len(tokens) + 1)
            self._places += tokens[np.cumsum(changes)[:-1] > 0, 0].tolist()
            # Of a document that goes on: what the next piece's matches may reach back to, counted from its beginning.
            tokens[:, 1:] -= len(piece.text)
            self._before = tokens[tokens[:, 2] > -OVERLAP]
        if piece.ends:
            self._before = self._before[:0]

    def take_back(self, mark: int) -> None:
        """Forget the tokens from this place on."""
        while self._places and self._places[-1] >= mark:
            self._places.pop()

    def places(self) -> NDArray[np.int64]:
        """Return the places of the tokens found, ascending."""
        return np.unique(np.array(self._places, _PLACE))

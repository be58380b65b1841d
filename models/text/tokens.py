"""Preparation of a corpus: config → trained tokenizer and one token file a part.

Input: the [corpus] and [tokenizer] tables, and the folder of a run. Output, in that folder:

    tokenizer.json
    tokens/{train,validation,test}.tokens + .json    see `token_file`; train.masked with a loss mask
    tokens/prepared.json                             settings and hashes of all files that they were made from

Must not know: models.

The corpus is read three times at most: counted (only where a share is split off), read by the tokenizer's trainer (BPE
learns from an even sample of a large text), encoded. Files made from the same settings and files are reused.

A share is split off by character position. Lines and paragraphs go whole to the part in which they begin; a file is cut
at a character, and each side is a document of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from meari.bundle_format.names import Document as Unit
from meari.bundle_format.names import TokenizerKind
from meari.models.config import Config, CorpusConfig
from meari.models.errors import EmptyCorpus, ModelsError, UnreadableFile
from meari.models.files import current_folder, replaced_folder, settle_folder, write_file
from meari.models.text.corpus import BadLines, Piece, read_pieces
from meari.models.text.expressions import OVERLAP, Expressions, load_expressions
from meari.models.text.text_files import check_rereadable, is_packed, list_files, list_once
from meari.models.text.token_file import TokenFile, Unlearnt, open_token_file, write_token_file
from meari.models.text.tokenizer import Tokenizer, train_tokenizer
from meari.paths import expand_home

__all__ = ["PreparedCorpus", "TokenFile", "prepare"]

_BPE_LEARNS_BYTES = 1 << 24
_GZIP_RATIO = 3
BAD_LINES = "bad_lines"
_FORMAT = 2  # increased when the same settings and files would give other ids or counts


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus ready for training; `test` is None unless the config names a test part.

    num_bad_lines   that are not UTF-8 and were read as blank ones
    """

    tokenizer: Tokenizer
    train: TokenFile
    validation: TokenFile
    test: TokenFile | None
    num_bad_lines: int = 0


def prepare(config: Config, folder: Path) -> PreparedCorpus:
    """Train the tokenizer and encode every part of the corpus, or open the files of an earlier call with the same
    input.

    folder   of the run; made where it does not exist

    Raises CorpusError (UnreadableFile, BrokenText, EmptyCorpus, BadExpression), which names the file and, if known,
    the line; TokenizerError. The earlier files stay until all parts are written.
    """
    corpus = _Corpus(config.corpus)
    made_from = corpus.made_from(config)
    settle_folder(folder / "tokens")
    prepared = _reopen(folder, made_from, config, corpus.parts)
    if prepared is not None:
        return prepared
    folder.mkdir(parents=True, exist_ok=True)
    ends = corpus.part_ends()
    tokenizer = train_tokenizer(_training_texts(corpus, ends, config.tokenizer.kind), config.tokenizer)
    with replaced_folder(folder / "tokens") as tokens:
        for part in corpus.parts:
            unlearnt = corpus.unlearnt() if part is Part.TRAIN else None
            pieces = corpus.pieces(part, ends)
            counts = write_token_file(tokens / f"{part}.tokens", pieces, tokenizer, corpus.settings.document, unlearnt)
            if not counts.num_documents:
                raise corpus.empty(part)
        tokenizer.save(tokens / "tokenizer.json")
        write_file(tokens / "prepared.json", _as_json(made_from | {BAD_LINES: len(corpus.bad_lines.found)}))
    reopened = _reopen(folder, made_from, config, corpus.parts)
    assert reopened is not None, "what was just written can be opened"
    return reopened


class _Corpus:
    """Files of a config, and the pieces of each part."""

    def __init__(self, settings: CorpusConfig) -> None:
        self.settings = settings
        self._files = {
            Part.TRAIN: list_once(settings.train),
            Part.VALIDATION: list_files(settings.validation),
            Part.TEST: list_files(settings.test),
        }
        self._blocklist = [Path(expand_home(settings.blocklist))] if settings.blocklist else []
        self._loss_mask = [Path(expand_home(settings.loss_mask))] if settings.loss_mask else []
        for path in itertools.chain(*self._files.values(), self._blocklist, self._loss_mask):
            check_rereadable(path)
        self.bad_lines = BadLines(settings.max_bad)
        has_test = bool(settings.test or settings.test_share)
        self.parts = (Part.TRAIN, Part.VALIDATION, Part.TEST) if has_test else (Part.TRAIN, Part.VALIDATION)

    def made_from(self, config: Config) -> dict[str, Any]:
        """Return everything that the ids depend on, as plain tables."""
        tables = config.to_tables()
        used = ["document", "validation_share", "test_share", *(["max_bad"] if self.settings.max_bad else [])]
        used += ["training_share"] if self.settings.training_share < 1 else []
        return {
            "format": _FORMAT,
            "corpus": {key: tables["corpus"][key] for key in used},
            "tokenizer": tables["tokenizer"],
            "files": {part.value: [_hash(path) for path in files] for part, files in self._files.items()},
            "blocklist": [_hash(path) for path in self._blocklist],
            **({"loss_mask": [_hash(path) for path in self._loss_mask]} if self._loss_mask else {}),
        }

    def unlearnt(self) -> Unlearnt:
        """Return what is not learnt of the training text. Raises as `load_expressions`."""
        return Unlearnt(load_expressions(self.settings.blocklist), load_expressions(self.settings.loss_mask))

    def training_bytes(self) -> int:
        """Estimate the bytes of text in the training files from their sizes."""
        sizes = ((path.stat().st_size, is_packed(path)) for path in self._files[Part.TRAIN])
        num_bytes = sum(size * _GZIP_RATIO if is_packed else size for size, is_packed in sizes)
        return round(num_bytes * self.settings.training_share)

    def part_ends(self) -> tuple[int, int] | None:
        """Return the ends of the training and the validation part, in characters: training, then validation, then
        test.
        """
        shares = (self.settings.validation_share, self.settings.test_share)
        if not any(shares):
            return None
        unit = self.settings.document
        return part_ends(count_characters(self._read(Part.TRAIN), unit), *shares)

    def _read(self, part: Part) -> Iterator[Piece]:
        """Read all pieces of a part's own files."""
        return read_pieces(self._files[part], self.settings.document, self.bad_lines if self.settings.max_bad else None)

    def pieces(self, part: Part, ends: tuple[int, int] | None) -> Iterator[Piece]:
        """Return the pieces of one part, from its own files or from its share of the training files."""
        if self._files[part] and part is not Part.TRAIN:
            return self._read(part)
        pieces = self._read(Part.TRAIN)
        if ends is not None:
            pieces = (piece for owner, piece in split_pieces(pieces, self.settings.document, ends) if owner is part)
        if part is not Part.TRAIN or self.settings.training_share == 1:
            return pieces
        sampled = sampled_pieces if self.settings.document is Unit.FILE else _sampled_documents
        return sampled(pieces, self.settings.training_share)

    def empty(self, part: Part) -> EmptyCorpus:
        """Make the error for a part without a document."""
        sources = ", ".join(map(str, self._files[part] or self._files[Part.TRAIN]))
        after = " that the blocklist leaves" if part is Part.TRAIN and self.settings.blocklist else ""
        return EmptyCorpus(f"got no {self.settings.document}{after} for {part}, expected text", source=sources)


def _training_texts(corpus: _Corpus, ends: tuple[int, int] | None, kind: TokenizerKind) -> Iterator[str]:
    """Yield the text that the tokenizer is trained on: the training part, in pieces. Raises EmptyCorpus."""
    unlearnt = corpus.unlearnt()
    pieces = corpus.pieces(Part.TRAIN, ends)
    if kind is TokenizerKind.BPE:
        pieces = _thinned(pieces, corpus.training_bytes())
    pieces = _unblocked(pieces, unlearnt.blocklist)
    is_empty = True
    for text in _unmasked(pieces, unlearnt.loss_mask) if unlearnt.loss_mask else (piece.text for piece in pieces):
        is_empty = is_empty and not text.strip()
        yield text
    # BPE has its bytes, and the sample may lack text that the whole has: the token file is checked later.
    if is_empty and kind is not TokenizerKind.BPE:
        raise corpus.empty(Part.TRAIN)


def _unblocked(pieces: Iterable[Piece], blocklist: Expressions) -> Iterator[Piece]:
    """Yield the pieces; those that the blocklist matches are empty."""
    for piece in pieces:
        yield replace(piece, text="") if blocklist.matches(piece.text, ends=piece.ends) else piece


def _unmasked(pieces: Iterable[Piece], loss_mask: Expressions) -> Iterator[str]:
    """Yield the text between the matches of the loss mask: what is not learnt gets no tokens of its own.

    A piece is held back until no match of a later one can reach into it.
    """
    held = ""
    matches: list[tuple[int, int]] = []  # places in it
    for piece in pieces:
        begin = len(held)
        matches += [(begin + first, begin + last) for first, last in loss_mask.spans(piece.text, ends=piece.ends)]
        held += piece.text
        if piece.ends or len(piece.text) > OVERLAP:
            done = len(held) if piece.ends else begin
            yield from _between(held[:done], matches)
            held, matches = held[done:], [(first - done, last - done) for first, last in matches if last > done]


def _between(text: str, places: Iterable[tuple[int, int]]) -> Iterator[str]:
    end = 0
    for first, last in sorted(places):
        if first > end:
            yield text[end:first]
        end = max(end, last)
    yield text[end:]


def _thinned(pieces: Iterator[Piece], num_bytes: int) -> Iterator[Piece]:
    """Yield an even sample of the pieces, always the same, so that BPE learns from at most about _BPE_LEARNS_BYTES.

    Its trainer holds every distinct word and where each pair occurs: that would grow with the corpus.
    """
    share = min(1.0, _BPE_LEARNS_BYTES / max(1, num_bytes))
    chance = random.Random(0)  # noqa: S311  (no secret: the same draw each time)
    for piece in pieces:
        if chance.random() < share:
            yield piece


def _sampled_documents(pieces: Iterator[Piece], share: float) -> Iterator[Piece]:
    """Yield an even sample of the documents, each whole, always the same one."""
    chance = random.Random(1)  # noqa: S311  (no secret: the same draw each time)
    is_first = True
    for piece in pieces:
        if is_first:
            is_kept = chance.random() < share
        is_first = piece.ends
        if is_kept:
            yield piece


def sampled_pieces(pieces: Iterator[Piece], share: float) -> Iterator[Piece]:
    """Yield evenly spaced pieces, the first one included: short files whole, and of a long one parts that follow on.

    A document that has a piece among them ends with the last of these, so that there are as many ends as files.
    """
    num_kept, held = 0, None
    for number, piece in enumerate(pieces):
        if num_kept <= share * number:
            if held is not None:
                yield held
            num_kept, held = num_kept + 1, piece
        if piece.ends and held is not None:
            yield replace(held, ends=True)
            held = None


def _reopen(folder: Path, made_from: dict[str, Any], config: Config, parts: Sequence[Part]) -> PreparedCorpus | None:
    """Open the files that an earlier call made from the same settings; None if there are none or they are damaged."""
    tokens = current_folder(folder / "tokens")
    try:
        found = json.loads((tokens / "prepared.json").read_text("utf-8"))
        num_bad_lines = int(found.pop(BAD_LINES, 0))
        if _as_json(found) != _as_json(made_from):
            return None
        tokenizer = Tokenizer.load(tokens / "tokenizer.json", config.tokenizer.kind)
        files = {part: open_token_file(tokens / f"{part}.tokens") for part in parts}
    except (OSError, ValueError, TypeError, AttributeError, ModelsError):
        return None
    tokenizer.save(folder / "tokenizer.json")
    return PreparedCorpus(tokenizer, files[Part.TRAIN], files[Part.VALIDATION], files.get(Part.TEST), num_bad_lines)


def _as_json(tables: dict[str, Any]) -> bytes:
    return (json.dumps(tables, ensure_ascii=False, indent=2) + "\n").encode()


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFile(f"got {error.strerror or error}, expected a readable file", source=str(path)) from error


class Part(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_PARTS = (Part.TRAIN, Part.VALIDATION, Part.TEST)


def count_characters(pieces: Iterable[Piece], unit: Unit) -> int:
    """Count the characters of all documents; the end of a line or paragraph counts as one."""
    return sum(len(piece.text) + end_length(piece, unit) for piece in pieces)


def end_length(piece: Piece, unit: Unit) -> int:
    """Return 1 if the piece ends a line or paragraph, which has a line end in the corpus; else 0."""
    return int(piece.ends and unit is not Unit.FILE)


def part_ends(total: int, validation_share: float, test_share: float) -> tuple[int, int]:
    """Return the ends of the shares of the training files, in characters; None if nothing is split off."""
    # The hundredth prevents that 1 − 0.1 − 0.2 loses a character to rounding.
    ends = (1 - validation_share - test_share, 1 - test_share)
    train, validation = (min(total, math.floor(total * end + 0.01)) for end in ends)
    return train, validation


def split_pieces(pieces: Iterable[Piece], unit: Unit, ends: tuple[int, int]) -> Iterator[tuple[Part, Piece]]:
    """Yield each piece with its part; a document never spans two parts."""
    start, begun = 0, 0  # of this piece; of its document
    for piece in pieces:
        if unit is Unit.FILE:
            yield from _cut_at(piece, start, ends)
        else:
            yield _part_at(begun, ends), piece
        start += len(piece.text) + end_length(piece, unit)
        begun = start if piece.ends else begun


def _part_at(place: int, ends: tuple[int, int]) -> Part:
    return _PARTS[sum(place >= end for end in ends)]


def _cut_at(piece: Piece, start: int, ends: tuple[int, int]) -> Iterator[tuple[Part, Piece]]:
    for end in sorted(set(ends)):
        head = end - start
        if 0 < head <= len(piece.text):
            yield _part_at(start, ends), Piece(piece.text[:head], piece.source, piece.line, ends=True)
            line = piece.line + piece.text.count("\n", 0, head)
            piece, start = Piece(piece.text[head:], piece.source, line, piece.ends), end
    if piece.text:
        yield _part_at(start, ends), piece
    # Nothing is left: the head ended the document, and the next piece begins another.

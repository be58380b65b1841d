"""Dividing a stream of pieces into parts by character position.

Enters: the pieces of the training files, and where each part ends. Leaves: each piece with the part it belongs to.
Knows nothing of tokens. Lines and paragraphs go whole to the part in which they begin; a file is cut at a character,
and each side is a document of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import StrEnum

from meari.models.choices import Document as Unit
from meari.models.text.corpus import Piece


class Part(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_PARTS = (Part.TRAIN, Part.VALIDATION, Part.TEST)


def count_characters(pieces: Iterable[Piece], unit: Unit) -> int:
    """Characters of all documents; the end of a line or paragraph counts as one."""
    return sum(len(piece.text) + end_length(piece, unit) for piece in pieces)


def end_length(piece: Piece, unit: Unit) -> int:
    """1 where the piece ends a line or paragraph, which the corpus spells as a line end; else 0."""
    return int(piece.ends and unit is not Unit.FILE)


def part_ends(total: int, validation_share: float, test_share: float) -> tuple[int, int]:
    """Where the training and the validation part end, in characters: training, then validation, then test."""
    # The hundredth keeps 1 − 0.1 − 0.2 from losing a character to rounding.
    ends = (1 - validation_share - test_share, 1 - test_share)
    train, validation = (min(total, math.floor(total * end + 0.01)) for end in ends)
    return train, validation


def split_pieces(pieces: Iterable[Piece], unit: Unit, ends: tuple[int, int]) -> Iterator[tuple[Part, Piece]]:
    """Each piece with its part; a document never spans two parts."""
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
    # Nothing left: the document was ended with the head, and what follows begins another.

"""Dividing the training files by share."""

from collections.abc import Iterable

import pytest

from meari.models.choices import Document as Unit
from meari.models.text.corpus import Piece
from meari.models.text.split import Part, count_characters, part_ends, split_pieces


def parts_of(pieces: Iterable[Piece], unit: Unit, ends: tuple[int, int]) -> dict[Part, list[tuple[str, bool]]]:
    found: dict[Part, list[tuple[str, bool]]] = {part: [] for part in Part}
    for part, piece in split_pieces(pieces, unit, ends):
        found[part].append((piece.text, piece.ends))
    return found


@pytest.mark.parametrize(
    ("total", "shares", "ends"),
    [(1_115_394, (0.1, 0.0), (1_003_854, 1_115_394)), (10, (0.1, 0.2), (7, 8)), (10, (0.0, 0.3), (7, 7))],
)
def test_shares_are_the_last_of_the_text(total: int, shares: tuple[float, float], ends: tuple[int, int]) -> None:
    assert part_ends(total, *shares) == ends


def test_lines_go_whole_to_the_part_in_which_they_begin() -> None:
    pieces = [
        Piece("aaa", "f", 1, True),
        Piece("bb", "f", 2, False),
        Piece("bb", "f", 2, True),
        Piece("c", "f", 3, True),
    ]
    assert count_characters(pieces, Unit.LINE) == 4 + 5 + 2
    found = parts_of(pieces, Unit.LINE, (5, 10))
    assert [len(found[part]) for part in Part] == [3, 1, 0]
    assert parts_of(pieces, Unit.LINE, (4, 9))[Part.TEST] == [("c", True)]


@pytest.mark.parametrize("ends", [(4, 5), (6, 6), (3, 7), (1, 6), (9, 9), (6, 9), (3, 3)])
def test_file_is_cut_at_a_character_and_each_side_ends(ends: tuple[int, int]) -> None:
    pieces = [Piece("012", "f", 1, False), Piece("345", "f", 1, True), Piece("678", "g", 1, True)]
    found = parts_of(pieces, Unit.FILE, ends)
    joined = ["".join(text for text, _ in found[part]) for part in Part]
    assert joined == ["012345678"[: ends[0]], "012345678"[ends[0] : ends[1]], "012345678"[ends[1] :]]
    assert all(parts[-1][1] for parts in found.values() if parts)

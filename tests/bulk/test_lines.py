"""Test the splitting of input bytes into chunks of whole lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meari.bulk.lines import LONG_BYTES, Chunk, LineCutter


def cut(pieces: list[bytes], max_lines: int = 3, max_bytes: int = 20) -> list[Chunk]:
    cutter, chunks = LineCutter(), []
    for piece in pieces:
        cutter.feed(piece)
        while chunk := cutter.take(max_lines, max_bytes, partial=False):
            chunks.append(chunk)
    cutter.close()
    while chunk := cutter.take(max_lines, max_bytes, partial=False):
        chunks.append(chunk)
    assert cutter.is_done
    return chunks


@given(st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\x00", b"\n"))))
def test_chunks_are_the_input_in_order_with_its_line_numbers(pieces: list[bytes]) -> None:
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")  # a byte order mark is not part of the text
    line = 1
    for chunk in (chunks := cut(pieces)):
        assert chunk.first_line == line
        assert chunk.data.endswith(b"\n") or chunk is chunks[-1]
        line += chunk.num_lines
    assert b"".join(chunk.data for chunk in chunks) == data
    assert line - 1 == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


def test_chunk_ends_before_the_line_that_exceeds_its_size() -> None:
    assert [chunk.data for chunk in cut([b"a\nb\nc\nd\n"])] == [b"a\nb\nc\n", b"d\n"]
    assert [chunk.data for chunk in cut([b"a" * 15 + b"\n" + b"b" * 15 + b"\n"])] == [
        b"a" * 15 + b"\n",
        b"b" * 15 + b"\n",
    ]


def test_available_lines_are_returned_without_waiting_for_more() -> None:
    cutter = LineCutter()
    cutter.feed(b"one\ntw")
    assert cutter.take(3, 20, partial=False) is None
    chunk = cutter.take(3, 20, partial=True)
    assert chunk == Chunk(b"one\n", 1, 1, 4)
    assert cutter.take(3, 20, partial=True) is None


def test_byte_order_mark_is_dropped_and_counted_as_read() -> None:
    assert cut([b"\xef", b"\xbb\xbfa\n"]) == [Chunk(b"a\n", 1, 1, 5)]


def test_long_line_is_split_into_pieces_in_order() -> None:
    long = b"x" * (2 * LONG_BYTES + 5)
    chunks = cut([b"a\n", long[:100], long[100:], b"\nb\n"])
    assert [(len(chunk.data), chunk.is_long, chunk.num_lines) for chunk in chunks] == [
        (2, False, 1),
        (LONG_BYTES, True, 0),
        (LONG_BYTES, True, 0),
        (6, True, 1),
        (2, False, 1),
    ]
    assert chunks[-1].first_line == 3


def test_long_last_line_needs_no_line_end() -> None:
    chunks = cut([b"x" * (LONG_BYTES + 1)])
    assert [(len(chunk.data), chunk.num_lines) for chunk in chunks] == [(LONG_BYTES, 0), (1, 1)]

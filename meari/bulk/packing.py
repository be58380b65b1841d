"""Packed inputs: gzip is unpacked as it comes; what has to be converted before it is read is refused.

Enters: the first bytes of an input, then all of them. Leaves: unpacked bytes, or an error that names the command that
converts them.
"""

from __future__ import annotations

import zlib
from pathlib import PurePath
from typing import Final, Self

from meari.bulk.errors import BulkError
from meari.file_kinds import GZIP, kind_of_content

__all__ = ["Unpacker", "refuse_other_kinds"]

UNPACKED_BYTES: Final = 1 << 18  # at once


def refuse_other_kinds(name: str, head: bytes, *, is_unpacked: bool = False) -> None:
    """Raises BulkError for packed files and encodings that are not read here, with the command that converts them.

    is_unpacked  whether the first bytes were packed by gzip in the input
    """
    if kind := kind_of_content(name, head):
        file = "-" if name == "standard input" else name
        is_gzip = is_unpacked or head.startswith(GZIP)
        raise BulkError(f"{name}: {kind.refusal(file, is_gzip=is_gzip)}")
    if not is_unpacked and PurePath(name).suffix.lower() == ".gz" and head and not head.startswith(GZIP):
        raise BulkError(f"{name}: got a .gz that is not gzip, expected gzip, or plain text by another name")


class Unpacker:
    """Packed bytes as they come → unpacked ones, a bounded number at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._member = zlib.decompressobj(wbits=31)
        self._left = b""
        self.has_more = False  # whether there may be more without further bytes

    @classmethod
    def of(cls, name: str, head: bytes) -> Self | None:
        """None where the bytes are not gzip."""
        return cls(name) if head.startswith(GZIP) else None

    def unpack(self, data: bytes) -> bytes:
        """What is in some more bytes, or in those that are left. Raises BulkError where they are damaged."""
        data = self._left + data
        if self._member.eof:  # further members may follow, or zeros that fill a tape's block
            data = data.lstrip(b"\0")
            if not data:
                self._left, self.has_more = b"", False
                return b""
            self._member = zlib.decompressobj(wbits=31)
        try:
            unpacked = self._member.decompress(data, UNPACKED_BYTES)
        except zlib.error as error:
            raise self._damaged(str(error)) from None
        self._left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self.has_more = bool(self._left) or len(unpacked) == UNPACKED_BYTES
        return unpacked

    def end(self) -> None:
        """Nothing more comes. Raises BulkError where something is missing."""
        if not self._member.eof:
            raise self._damaged("it ends too early")

    def _damaged(self, reason: str) -> BulkError:
        return BulkError(f"{self._name}: got a damaged .gz ({reason}), expected a complete one")

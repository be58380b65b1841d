"""Of what kind the bytes of an input are: text, gzip, or what has to be converted before it is read.

Enters: the first bytes of an input, then all of them. Leaves: unpacked bytes, or an error that names the command that
converts them.
"""

from __future__ import annotations

import shlex
import zlib
from pathlib import PurePath
from typing import Final, Self

from meari.bulk.errors import BulkError

__all__ = ["Unpacker", "may_be_other", "refuse_other_kinds"]

UNPACKED_BYTES: Final = 1 << 18  # at once
GZIP: Final = b"\x1f\x8b"
_OTHERS: Final = (
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "zstd -dc"),
    (b"PK\3\4", "a ZIP archive", "unzip -p"),
    (b"\xff\xfe\0\0", "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
    *((b"BZh%d1AY&SY" % level, "bzip2", "bzip2 -dc") for level in range(1, 10)),
)
_MIN_TOLD: Final = 4  # bytes by which NULs tell something
_MIN_NUL_SHARE: Final = 0.3


def may_be_other(head: bytes) -> bool:
    """Whether more bytes are needed to know the kind."""
    return any(magic != head and magic.startswith(head) for magic in (GZIP, *(magic for magic, _, _ in _OTHERS)))


def refuse_other_kinds(name: str, head: bytes, *, is_unpacked: bool = False) -> None:
    """Raises BulkError for packed files and encodings that are not read here, with the command that converts them.

    is_unpacked  whether the first bytes were packed by gzip in the input
    """
    kind, command = next(((kind, how) for magic, kind, how in _OTHERS if head.startswith(magic)), _wide(head))
    if kind:
        file = "" if name == "standard input" else f" {shlex.quote(name)}"
        command, file = (f"gzip -dc{file} | {command}", "") if is_unpacked else (command, file)
        raise BulkError(f"{name}: got {kind}, expected UTF-8, plain or gzip; `{command}{file}` converts it")
    if not is_unpacked and PurePath(name).suffix.lower() == ".gz" and head and not head.startswith(GZIP):
        raise BulkError(f"{name}: got a .gz that is not gzip, expected gzip, or plain text by another name")


def _wide(head: bytes) -> tuple[str, str]:
    """UTF-16 and UTF-32 without a byte-order mark, by their NULs."""
    if len(head) >= 2 * _MIN_TOLD:
        for order, high in (("LE", (2, 3)), ("BE", (0, 1))):
            whole = head[: len(head) // 4 * 4]
            if not any(whole[high[0] :: 4] + whole[high[1] :: 4]) and any(whole):
                return f"UTF-32{order}", f"iconv -f UTF-32{order} -t UTF-8"
    if len(head) >= _MIN_TOLD:
        even, odd = head[: len(head) // 2 * 2 : 2], head[1::2]
        for order, some, others in (("LE", odd, even), ("BE", even, odd)):
            if some.count(0) >= _MIN_NUL_SHARE * len(some) and not others.count(0):
                return f"UTF-16{order}", f"iconv -f UTF-16{order} -t UTF-8"
    return "", ""


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

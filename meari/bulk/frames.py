"""What the processes of a run say to one another: length-prefixed msgpack over pipes.

To a worker: `Setup` once, then `Lines` for every chunk. From a worker: `Ready` once, then for each chunk, in the order
in which they came, some `Part`, before that of a bad line its `Bad`, and one `Done`; a `Took` for each piece of a long
line that is not its last. Or `Failed`, and it ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.bulk.totals import Totals

__all__ = [
    "Bad",
    "Done",
    "Failed",
    "Frames",
    "FromWorker",
    "Lines",
    "Part",
    "Ready",
    "Setup",
    "ToWorker",
    "Took",
    "frame",
    "in_parts",
    "write_all",
]

LENGTH_BYTES: Final = 4
PART_BYTES: Final = 1 << 18


class Setup(msgspec.Struct, tag="setup", frozen=True):
    """What all the work is about.

    api_key       for the service that does the work, where there is one
    num_requests  that it is asked at a time
    """

    options: ScoreOptions | GenerateOptions
    api_key: str = ""
    num_requests: int = 1


class Lines(msgspec.Struct, tag="lines", frozen=True):
    """A chunk: see `lines.Chunk`. `ends` is false for a piece of a long line that is not its last.

    file  as records call it, "" where they do not
    """

    data: bytes
    first_line: int
    is_long: bool = False
    ends: bool = True
    file: str = ""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The worker takes chunks. `head` is what stands before the first record of an output."""

    model: str
    head: bytes


class Part(msgspec.Struct, tag="part", frozen=True):
    """Bytes of the output."""

    data: bytes


class Bad(msgspec.Struct, tag="bad", frozen=True):
    """A bad line: everything before it was sent, its record comes next."""

    problem: str


class Done(msgspec.Struct, tag="done", frozen=True):
    """A chunk is done.

    counts  the sums by name, as JSON: an integer there may have any size
    """

    counts: str

    @classmethod
    def of(cls, totals: Totals) -> Done:
        """With these sums."""
        return cls(json.dumps(msgspec.structs.asdict(totals)))

    def totals(self) -> dict[str, int]:
        """The sums by name."""
        counts: dict[str, int] = json.loads(self.counts)
        return counts


class Took(msgspec.Struct, tag="took", frozen=True):
    """There is room for one more piece of a long line."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The worker cannot go on; `message` is for the user."""

    message: str


FromWorker = Ready | Part | Bad | Done | Took | Failed
ToWorker = Setup | Lines
Message = TypeVar("Message")
_encode: Final = msgspec.msgpack.Encoder().encode


def frame(message: FromWorker | ToWorker) -> bytes:
    """A message with its length in front."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def write_all(fd: int, data: bytes) -> None:
    """Write everything, waiting for room."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def in_parts(pieces: Iterable[bytes | Bad]) -> Iterator[Part | Bad]:
    """Pieces of the output, put together to parts of a good size that end before a bad line."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            held.append(piece)
            size += len(piece)
        if held and (size >= PART_BYTES or isinstance(piece, Bad)):
            yield Part(b"".join(held))
            held, size = [], 0
        if isinstance(piece, Bad):
            yield piece
    if held:
        yield Part(b"".join(held))


class Frames(Generic[Message]):
    """Bytes as they come → messages of one kind."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with `data`."""
        self._data += data
        while len(self._data) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._data[:LENGTH_BYTES], "little")
            if len(self._data) < end:
                return
            yield self._decoder.decode(memoryview(self._data)[LENGTH_BYTES:end].tobytes())
            del self._data[:end]

"""Messages between the processes of a run: length-prefixed msgpack over pipes.

Input: bytes of a pipe, or messages. Output: the other of the two. Must not know: what the work is.

To a worker: `Setup` once, then `Lines` for every chunk. From a worker: `Ready` once, then for each chunk, in the order
in which they came, some `Part`, before that of a bad line its `Bad`, and one `Done`; a `Took` for each piece of a long
line that is not its last. Or `Failed`, and the worker ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from meari.bulk.options import GenerateOptions, ScoreOptions, WorkOptions
from meari.bulk.totals import Totals
from meari.bundle_format.signatures import PublicKey
from meari.validation.parsing import escape_line_ends

__all__ = [
    "Bad",
    "Begun",
    "Done",
    "Failed",
    "Frames",
    "FromWorker",
    "LineWork",
    "Lines",
    "LongLine",
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
    """The options of the whole run.

    api_key       for the service that does the work, if one does
    num_requests  at a time, to that service; 0: each is sent when its answer is waited for
    signing_keys  keys of which one has signed the bundle; without any it need not be signed
    """

    options: ScoreOptions | GenerateOptions
    api_key: str = ""
    num_requests: int = 0
    signing_keys: tuple[PublicKey, ...] = ()


class Lines(msgspec.Struct, tag="lines", frozen=True):
    """A chunk; see `lines.Chunk`.

    ends  false for a piece of a long line that is not its last
    file  its name in records, "" if they name no file
    """

    data: bytes
    first_line: int
    is_long: bool = False
    ends: bool = True
    file: str = ""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The worker takes chunks.

    model  its name
    head   bytes of the output before the first record
    """

    model: str
    head: bytes


class Part(msgspec.Struct, tag="part", frozen=True):
    """Bytes of the output."""

    data: bytes


class Bad(msgspec.Struct, tag="bad", frozen=True):
    """A bad line: everything before it has been sent, its record comes next."""

    problem: str


class Done(msgspec.Struct, tag="done", frozen=True):
    """A chunk is done.

    counts  sums by name, as JSON, in which an integer may have any size
    """

    counts: str

    @classmethod
    def of(cls, totals: Totals) -> Done:
        """Return the message with these sums."""
        return cls(json.dumps(msgspec.structs.asdict(totals)))

    def totals(self) -> dict[str, int]:
        """Return the sums by name."""
        counts: dict[str, int] = json.loads(self.counts)
        return counts


class Took(msgspec.Struct, tag="took", frozen=True):
    """There is room for one more piece of a long line."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The worker cannot go on; `message` is for the user."""

    message: str


class Begun(Protocol):
    """A chunk that the backend works on."""

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for the results, then yield the output and the sums."""


class LongLine(Begun, Protocol):
    """A line that comes in pieces."""

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Take a piece, with the last one its line end."""


class LineWork(Protocol):
    """The work on lines.

    head  bytes of the output before the first record
    """

    head: bytes

    def begin(self, data: bytes, first_line: int, file: str = "") -> Begun:
        """Queue whole lines."""

    def begin_long(self, line: int, file: str = "") -> LongLine:
        """Begin a long line whose pieces follow."""


FromWorker = Ready | Part | Bad | Done | Took | Failed
ToWorker = Setup | Lines
Message = TypeVar("Message")
_encode: Final = msgspec.msgpack.Encoder().encode


def frame(message: FromWorker | ToWorker) -> bytes:
    """Return a message with its length in front."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes, waiting for room."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def in_parts(pieces: Iterable[bytes | Bad], options: WorkOptions) -> Iterator[Part | Bad]:
    """Join pieces of the output to parts of a good size that end before a bad line; JSONL keeps to single lines."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            held.append(piece)
            size += len(piece)
        if held and (size >= PART_BYTES or isinstance(piece, Bad)):
            yield _part(held, options)
            held, size = [], 0
        if isinstance(piece, Bad):
            yield piece
    if held:
        yield _part(held, options)


def _part(pieces: list[bytes], options: WorkOptions) -> Part:
    data = b"".join(pieces)
    return Part(escape_line_ends(data) if options.format == "jsonl" else data)


class Frames(Generic[Message]):
    """Decodes messages of one kind from bytes as they come."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes."""
        self._data += data
        while len(self._data) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._data[:LENGTH_BYTES], "little")
            if len(self._data) < end:
                return
            yield self._decoder.decode(memoryview(self._data)[LENGTH_BYTES:end].tobytes())
            del self._data[:end]

"""HTTP on a connection: what has come of a request, what it waits for, gunicorn's parser and writer.

Input: the bytes of a connection. Output: whether a whole request has come, gunicorn's request, the bytes of an answer.
Must not know: the application, threads.

`Incoming` only decides when the parser is asked, never what a request means: a request whose end it misjudges is
refused by the parser, which sees the same bytes and reads no more of them from the connection. So bytes that do not
begin like HTTP (TLS on the plain port, say) are refused at once, because their client waits for an answer. A refused
request keeps the part that was understood: `error.request`.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable
from typing import Any, Final

from gunicorn import util
from gunicorn.http.errors import InvalidRequestLine, LimitRequestLine, NoMoreData, ParseException
from gunicorn.http.message import ChunkedReader, Request
from gunicorn.http.parser import RequestParser, SocketUnreader
from gunicorn.http.wsgi import Response

from meari.service.clients import PING, Connection
from meari.service.requests.origins import client_network

__all__ = [
    "CONTINUE",
    "HEAD_SECONDS",
    "LIMIT",
    "NUM_FIELDS",
    "Held",
    "Incoming",
    "JoinedResponse",
    "QuickConfig",
    "Stage",
    "Waits",
]

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_SECONDS: Final = 10.0  # from the first byte of a head to its last
PIECE_BYTES: Final = 65536  # of a body, from memory
REST_BYTES: Final = 65536  # of a head that is refused by its first line
_ORIGIN: Final = re.compile(rb"^origin:[ \t]*([!-~]*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LIMIT: Final = 8190  # bytes of a line of the head, as gunicorn's own default
NUM_FIELDS: Final = 100
MAX_HEAD_BYTES: Final = LIMIT + NUM_FIELDS * (LIMIT + 2) + 4  # more than the parser accepts
_CODINGS: Final = {b"chunked", b"identity", b"gzip", b"deflate", b"compress"}
_FRAMING: Final = re.compile(rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)", re.IGNORECASE)
_POST: Final = re.compile(rb"(?:\r\n)?post ", re.IGNORECASE)
_SIZE_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,16})(?:[ \t]*;[^\r\n]*)?\r\n")


class Stage(enum.Enum):
    """How much of the next request has come."""

    REST = enum.auto()  # only some more of the body of the last one, which is skipped
    IDLE = enum.auto()  # nothing
    HEAD = enum.auto()  # a part of its head
    BODY = enum.auto()  # its head
    READY = enum.auto()  # all of it
    BROKEN = enum.auto()  # enough to refuse it: its head is malformed, or its client has ended before it was complete


class Incoming(SocketUnreader):  # type: ignore[misc]
    """The bytes of a connection that were received and not parsed yet; gunicorn's parser reads from here.

    until            time until which a thread may receive more, of a body that it reads as it comes
    has_ended        the client sends no more
    is_whole         all of the next request has come
    num_skipped      bytes to come of the last request's body
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.until = 0.0
        self.has_ended = False
        self.is_whole = False
        self.num_skipped = 0
        self._bytes = bytearray()
        self._begin()

    def _begin(self) -> None:
        """Begin with the next request."""
        self._searched = 0  # no head ends before this position
        self._head_size = 0  # once it is known
        self._size: int | None = 0  # of head and body; None for a chunked one, whose end is searched from _chunk_at
        self._chunk_at = 0
        self.expects_continue = False

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def body_size(self) -> int:
        """Bytes of the body as announced; of a chunked one those that have come."""
        return (len(self._bytes) if self._size is None else self._size) - self._head_size

    def announces_more_than(self, size: int) -> bool:
        """Tell whether the head announces a larger body; that of a chunked one announces nothing."""
        return self._size is not None and self._size - self._head_size > size

    def add(self, data: bytes) -> None:
        """Take in what was received; nothing at all is the end."""
        self._bytes += data
        self.has_ended = self.has_ended or not data

    def head(self) -> bytes:
        """Return the head of the next request, once it has come; else nothing."""
        return bytes(self._bytes[: self._head_size])

    def is_for(self, targets: tuple[bytes, ...]) -> bool:
        """Tell whether the next request begins with one of `targets`."""
        return self._bytes.startswith(targets)

    @property
    def is_posted(self) -> bool:
        """Tell whether the next request is a POST: all others, malformed ones too, are answered without waiting."""
        return _POST.match(self._bytes) is not None

    def skip(self, size: int) -> None:
        """Skip the next request, of `size` bytes, some of which may still be to come."""
        self.num_skipped = max(0, size - len(self._bytes))
        del self._bytes[:size]
        self._begin()

    def loses_rest(self, body: Any) -> bool:
        """Tell whether the end of a body cannot be found: it is malformed, or chunks are still to come."""
        is_chunked = isinstance(body.reader, ChunkedReader)
        return body.failed or (is_chunked and not self.is_whole and body.reader.parser is not None)

    def skip_rest(self, body: Any) -> None:
        """Skip what nobody read of a body. Raises OSError, ParseException."""
        if not self.is_whole and not isinstance(body.reader, ChunkedReader):
            self.num_skipped, body.reader.length = body.reader.length, 0
        while body.read(PIECE_BYTES):
            pass

    def stage(self) -> Stage:
        """Return how much of the next request has come."""
        if self.buf.tell():  # read ahead by the parser
            self._bytes[:0] = self.take_buffered()
        if self.num_skipped:
            size = min(self.num_skipped, len(self._bytes))
            self.num_skipped -= size
            del self._bytes[:size]
        if not self._bytes:
            return Stage.REST if self.num_skipped else Stage.IDLE
        has_head = bool(self._head_size) or self._find_head()
        self.is_whole = has_head and self._has_body()
        if self.is_whole:
            return Stage.READY
        if self.has_ended or (not has_head and self._is_refused_anyway()):
            return Stage.BROKEN
        return Stage.BODY if has_head else Stage.HEAD

    def _find_head(self) -> bool:
        end = self._bytes.find(b"\r\n\r\n", self._searched)
        self._searched = max(0, len(self._bytes) - 3)
        if end < 0:
            return False
        self._head_size = self._size = self._chunk_at = end + 4
        fields = [(found[1].lower(), found[2].strip()) for found in _FRAMING.finditer(self._bytes, 0, end)]
        self.expects_continue = (b"expect", b"100-continue") in [(name, value.lower()) for name, value in fields]
        framing = [field for field in fields if field[0] != b"expect"]
        if len(framing) == 1:  # the parser refuses more than one
            [(name, value)] = framing
            if name == b"content-length" and value.isdigit() and len(value) < 16:
                self._size = self._head_size + int(value)
            elif name == b"transfer-encoding" and value.lower().endswith(b"chunked") and _is_taken(value):
                self._size = None
        return True

    def _is_refused_anyway(self) -> bool:
        """Tell whether the parser refuses the head whatever follows."""
        start = 2 if self._bytes.startswith(b"\r\n") else 0  # an empty line before a request is allowed
        if len(self._bytes) > start and self._bytes != b"\r" and not _TOKEN.match(self._bytes, start):
            return True
        if self._bytes.count(b"\n") != self._bytes.count(b"\r\n"):
            return True
        has_line = self._bytes.find(b"\r\n", start, start + LIMIT + 2) >= 0
        return len(self._bytes) > (MAX_HEAD_BYTES if has_line else REST_BYTES)

    def _has_body(self) -> bool:
        if self._size is not None:
            return len(self._bytes) >= self._size
        while line := _SIZE_LINE.match(self._bytes, self._chunk_at):
            size = int(line[1], 16)
            if size == 0:
                return self._bytes.startswith(b"\r\n", line.end()) or self._bytes.find(b"\r\n\r\n", line.end()) >= 0
            end = line.end() + size
            if end + 2 > len(self._bytes):
                return False
            if not self._bytes.startswith(b"\r\n", end):
                return True
            self._chunk_at = end + 2
        rest = self._bytes[self._chunk_at : self._chunk_at + LIMIT + 2]
        return len(rest) > LIMIT or b"\n" in rest or bool(rest and not _HEX.match(rest))

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next piece: a whole head, if it has come, then pieces of the body. Raises TimeoutError."""
        size = self._head_size or min(size_hint or PIECE_BYTES, PIECE_BYTES)
        self._begin()
        piece = bytes(self._bytes[:size])
        del self._bytes[:size]
        if piece or self.has_ended:
            return piece
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the rest of the request did not come in time")
        self.sock.settimeout(left)
        piece = bytes(self.sock.recv(min(size_hint or PIECE_BYTES, PIECE_BYTES)))
        self.has_ended = not piece
        return piece


class PromptRequest(Request):  # type: ignore[misc]
    """A request that keeps the part that was understood, if it is refused."""

    uri: str | None

    def __init__(self, cfg: Any, unreader: Any, *arguments: Any) -> None:
        self._head = bytearray()  # or its end, as far as it was received
        try:
            super().__init__(cfg, unreader, *arguments)
        except ParseException as error:
            error.request = self
            if isinstance(error, LimitRequestLine):
                self._read_on(unreader)
            raise

    def _read_on(self, unreader: Any) -> None:
        """Read the fields after a first line that is too long, if they have come."""
        while b"\r\n\r\n" not in self._head and len(self._head) < REST_BYTES:
            try:
                super().read_into(unreader, self._head)
            except (OSError, NoMoreData):
                return

    @property
    def num_head_bytes(self) -> int:
        """Bytes of the head."""
        return len(self._head)

    @property
    def origin(self) -> str | None:
        """Origin of the page that sends the request, even if other fields are malformed."""
        found = _ORIGIN.search(self._head.partition(b"\r\n\r\n")[0])
        return None if found is None else found[1].decode("ascii")

    @property
    def target(self) -> str:
        """Target of the request, even if the first line is too long."""
        return self.uri or self._head.partition(b" ")[2][:100].decode("latin-1")

    def read_into(self, unreader: Any, buf: Any, stop: bool = False) -> None:  # noqa: FBT001, FBT002 (gunicorn's own)
        """Read one more piece of the head."""
        super().read_into(unreader, buf, stop)
        self._head = buf

    def read_line(self, unreader: Any, buf: Any, limit: int = 0) -> Any:
        """Read the first line."""
        if buf and not _TOKEN.match(buf):
            raise InvalidRequestLine("it does not begin with a method")
        return super().read_line(unreader, buf, limit)


class PromptParser(RequestParser):  # type: ignore[misc]
    """Yields the requests of a connection."""

    mesg_class = PromptRequest

    def __init__(self, cfg: Any, incoming: Incoming, client: object) -> None:
        super().__init__(cfg, incoming.sock, client)
        self.unreader = incoming


class JoinedResponse(Response):  # type: ignore[misc]
    """An answer whose head and first piece of the body are one write.

    Each write is a system call, a packet, and a moment in which another thread may take the interpreter.
    """

    headers_sent: bool

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._head = b""
        self.is_stream = False  # of events
        self.waiting: Any = None  # the body of a client that waits for permission to send it
        self.rest_is_lost: Callable[[], bool] = bool  # tells whether the end of the request's body cannot be found

    def should_close(self) -> bool:
        """Close also if a client still waits with its body, which it may or may not send."""
        return (self.waiting is not None and self.waiting.is_refused) or bool(super().should_close())

    def send_headers(self) -> None:
        """Keep the head until there is a piece of the body to send with it."""
        if not self.headers_sent:
            if self.waiting is not None:
                self.waiting.refuse()
            if self.rest_is_lost():
                self.force_close()
            self.sock.keeps_rest = self.response_length is not None
            self.is_stream = any(value.startswith("text/event-stream") for _, value in self.headers)
            fields = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self._head = "".join(fields).encode("latin-1")[self.sock.begin_answer() :]
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self.sock.sendall(head + self._framed(data))
        if head and self.is_stream:
            self.sock.filler = self._framed(PING)

    def _framed(self, data: bytes) -> bytes:
        return b"%X\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def close(self) -> None:
        """Send the rest: the head of an answer without a body, or the last chunk."""
        self.send_headers()
        self.sock.filler = b""
        if self.chunked:
            self._head += b"0\r\n\r\n"
        if self._head:
            util.write(self.sock, self._head)
            self._head = b""


def _is_taken(codings: bytes) -> bool:
    """Tell whether the parser takes these transfer codings; it refuses a head with any other, whatever follows."""
    return {coding.strip() for coding in codings.lower().split(b",")} <= _CODINGS


class QuickConfig:
    """gunicorn's configuration with each value looked up once: its parser reads some twenty of them per request."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        setattr(self, name, value)
        return value


class Waits(enum.Enum):
    """What a connection waits for."""

    HANDSHAKE = enum.auto()  # TLS
    IDLE = enum.auto()  # the first byte of a request
    HEAD = enum.auto()  # the rest of a head
    BODY = enum.auto()  # the rest of a body
    ANSWER = enum.auto()  # its client, to take the rest of an answer; the connection itself knows the time for that
    END = enum.auto()  # the end of what is discarded: the rest of a refused body, or all until the client closes


class Held:
    """A connection of a client, with what its worker knows about it.

    keeps      another request may follow the one that is answered
    is_asked   its client was told to send the body (Expect: 100-continue)
    is_read    a thread reads its body as it comes
    is_paused  it waits for a thread's step of its handshake
    has_place  there was room for its request
    is_counted a thread has its request, which is counted
    came_at    when a thread was given its request
    """

    __slots__ = (
        "came_at", "client", "has_place", "incoming", "is_asked", "is_counted", "is_paused", "is_read", "keeps",
        "network", "num_bytes", "parser", "server", "sock", "waits",
    )  # fmt: skip

    def __init__(self, sock: Connection, client: Any, server: Any) -> None:
        self.sock = sock
        self.client = client
        self.server = server
        self.incoming = Incoming(sock)
        self.parser: PromptParser | None = None
        self.network = client_network(client[0]) if isinstance(client, tuple) else ""
        self.waits: Waits | None = None
        self.num_bytes = 0  # held while it waits
        self.came_at = 0.0
        self.keeps = self.is_asked = self.is_read = self.is_paused = False
        self.has_place = self.is_counted = False

    def next_request(self, config: Any) -> Any:
        """Parse a request. Raises StopIteration, TimeoutError, ParseException and others of gunicorn's parser."""
        if self.parser is None:
            self.parser = PromptParser(config, self.incoming, self.client)
        request = next(self.parser)
        self.parser.mesg = None  # an idle connection would keep the last head, and all of it is read
        return request

    def fileno(self) -> int:
        """Return the descriptor; pollers want it."""
        return self.sock.fileno()

    @property
    def is_silent(self) -> bool:
        """True as long as nothing has come that was not received."""
        try:
            return not self.is_paused and self.sock.peek() is None
        except OSError:
            return True

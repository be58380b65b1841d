"""Connections of asyncio to one service, kept open between requests.

Input: paths and bodies. Output: answers that are read, whole or line by line. Must not know: what they mean.

HTTP/1.1 over asyncio's own streams, with the proxies and certificates of `connections.py`, and the same errors: those
of the operating system and of `http.client`. A request that is cancelled closes its connection, so the service stops
the work. All calls come from one event loop; a client that is used in a further one makes new connections there.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import urlsplit

from meari.client.connections import (
    CLOSED_MEANWHILE,
    CONNECT_SECONDS,
    MAX_IDLE,
    proxy_authorization,
    proxy_of,
    tls_context,
)

__all__ = ["AsyncAnswer", "AsyncConnections"]

PIECE_BYTES: Final = 1 << 16
MAX_HEAD_BYTES: Final = 1 << 20
INTERIM: Final = 200  # answers below it are followed by another
WITHOUT_BODY: Final = (204, 304)
Read = TypeVar("Read")


class Connection:
    """One connection; every wait for bytes ends with TimeoutError after `seconds`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
        self._reader = reader
        self._writer = writer
        self._seconds = seconds

    @property
    def was_closed(self) -> bool:
        """True if the other end has closed it."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)
        await self._in_time(self._writer.drain())

    async def read(self, count: int) -> bytes:
        """Return at most that many bytes, b"" at the end."""
        return await self._in_time(self._reader.read(min(count, PIECE_BYTES)))

    async def line(self) -> bytes:
        """Return a line of a head, b"" at the end."""
        try:
            return await self._in_time(self._reader.readline())
        except ValueError as error:  # longer than the reader's limit
            raise http.client.LineTooLong("line") from error

    async def head(self) -> tuple[str, int, str, http.client.HTTPMessage]:
        """Return version, status, reason and headers of the next answer that is not an interim one."""
        while True:
            first = await self.line()
            if not first:
                raise http.client.RemoteDisconnected("the connection was closed without an answer")
            version, status, reason = _status_line(first)
            lines, size = list[bytes](), 0
            while (line := await self.line()).strip():
                lines.append(line)
                size += len(line)
                if size > MAX_HEAD_BYTES:
                    raise http.client.LineTooLong("head")
            if status >= INTERIM:
                return version, status, reason, http.client.parse_headers(io.BytesIO(b"".join([*lines, b"\r\n"])))

    async def secure(self, host: str) -> None:
        """Begin TLS on a tunnel."""
        await self._in_time(self._writer.start_tls(tls_context(), server_hostname=host))

    def close(self) -> None:
        """Close it without waiting; a loop that has ended has closed it."""
        with contextlib.suppress(RuntimeError):
            self._writer.transport.abort()

    async def _in_time(self, read: Awaitable[Read]) -> Read:
        async with asyncio.timeout(self._seconds):
            return await read


class AsyncAnswer:
    """An answer whose body is still to be read. `close` gives the connection back once all of it was read."""

    def __init__(
        self,
        connection: Connection,
        head: tuple[str, int, str, http.client.HTTPMessage],
        keep: Callable[[Connection], None],
    ) -> None:
        self._connection = connection
        self._keep = keep
        self._is_closed = False
        self._is_read = False
        version, self.status, self.reason, self.headers = head
        self._is_chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        length = "0" if self.status in WITHOUT_BODY else self.headers.get("Content-Length", "")
        self._length = int(length) if length.isascii() and length.isdigit() else None
        is_framed = self._is_chunked or self._length is not None
        closes = "close" in self.headers.get("Connection", "").lower()
        self._stays_open = is_framed and version == "HTTP/1.1" and not closes

    async def read(self) -> bytes:
        """Return the rest of the body."""
        data = b"".join([piece async for piece in self._body()])
        self.close()
        return data

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the body line by line as it comes."""
        rest = b""
        async for piece in self._body():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line
        if rest:
            yield rest
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it if part of the answer was not read."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_read and self._stays_open:
            self._keep(self._connection)
        else:
            self._connection.close()

    async def _body(self) -> AsyncIterator[bytes]:
        if self._is_chunked:
            async for piece in self._chunks():
                yield piece
        elif self._length is not None:
            async for piece in self._exactly(self._length):
                yield piece
        else:
            while piece := await self._connection.read(PIECE_BYTES):
                yield piece
        self._is_read = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := _chunk_size(await self._connection.line()):
            async for piece in self._exactly(size):
                yield piece
            await self._connection.line()
        while (await self._connection.line()).strip():
            pass  # trailers

    async def _exactly(self, count: int) -> AsyncIterator[bytes]:
        while count:
            piece = await self._connection.read(count)
            if not piece:
                raise http.client.IncompleteRead(b"", count)
            count -= len(piece)
            yield piece


class AsyncConnections:
    """The connections to one service."""

    def __init__(self, url: str, answer_seconds: float) -> None:
        """answer_seconds: of silence, after which an answer is given up."""
        self._parts = urlsplit(url)
        self._answer_seconds = answer_seconds
        self._idle: list[Connection] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> AsyncAnswer:
        """Send a request; a kept connection that was closed meanwhile is replaced. Raises OSError, HTTPException."""
        data = self._request_bytes(method, path, body, headers)
        connection = self._take()
        while connection is not None:
            try:
                return await self._exchange(connection, data)
            except CLOSED_MEANWHILE:
                connection = self._take()
        return await self._exchange(await self._connect(), data)

    def close(self) -> None:
        """Close the idle connections; further requests open new ones."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def _exchange(self, connection: Connection, data: bytes) -> AsyncAnswer:
        try:
            await connection.send(data)
            return AsyncAnswer(connection, await connection.head(), self._keep)
        except BaseException:
            connection.close()
            raise

    def _take(self) -> Connection | None:
        """Return an idle connection of this event loop that the service has not closed, None if there is none."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.close()
            self._loop = loop
        while self._idle:
            connection = self._idle.pop()
            if not connection.was_closed:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        if len(self._idle) < MAX_IDLE and self._loop is asyncio.get_running_loop():
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> Connection:
        """Return a connection; one that is not made soon is given up earlier than an answer."""
        service, proxy = self._parts, proxy_of(self._parts)
        at = service if proxy is None else proxy
        is_secure = service.scheme == "https"
        port = at.port or (443 if at.scheme == "https" else 80)
        context = tls_context() if is_secure and proxy is None else None
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(at.hostname, port, ssl=context)
            connection = Connection(reader, writer, self._answer_seconds)
            if proxy is not None and is_secure:
                await self._tunnel(connection, proxy_authorization(proxy))
        return connection

    async def _tunnel(self, connection: Connection, headers: Mapping[str, str]) -> None:
        target = f"{self._parts.hostname}:{self._parts.port or 443}"
        try:
            await connection.send(_head("CONNECT", target, {"Host": target, **headers}))
            _check_tunnel(await connection.head())
            await connection.secure(self._parts.hostname or "")
        except BaseException:
            connection.close()
            raise

    def _request_bytes(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        host, proxy = self._parts.netloc.rpartition("@")[2], proxy_of(self._parts)
        target, more = self._parts.path + path, {}
        if proxy is not None and self._parts.scheme == "http":
            target, more = f"http://{host}{target}", proxy_authorization(proxy)
        length = {} if body is None else {"Content-Length": str(len(body))}
        head = _head(method, target, {"Host": host, "Accept-Encoding": "identity", **length, **headers, **more})
        return head + (body or b"")


def _head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request. Raises ValueError for what would end a line of it early."""
    for value in (target, *headers.values()):
        if any(character in value for character in "\r\n\0") or " " in target:
            raise ValueError("a header of the request has a line end in it, or its path has a space")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _check_tunnel(head: tuple[str, int, str, http.client.HTTPMessage]) -> None:
    """Raise OSError if the proxy has made no tunnel."""
    _, status, reason, _ = head
    if status != http.client.OK:
        raise OSError(f"the proxy refuses a tunnel: {status} {reason}")


def _status_line(line: bytes) -> tuple[str, int, str]:
    version, _, rest = line.decode("latin-1").strip().partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise http.client.BadStatusLine(repr(line[:80]))
    return version, int(status), reason


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise http.client.IncompleteRead(b"") from None

"""One HTTP/1.1 connection that measures: bytes of a request → when which bytes of the answer came.

The driver shares the machine with the server that it drives. So nothing is parsed while load runs but the end of an
answer: pieces are kept with their times, and read afterwards (`answers`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(eq=False)
class Exchange:
    """A request and what came back, on time.perf_counter's clock.

    scheduled   when the request was to be sent; waiting times count from here
    pieces      bytes in the order of their arrival, the head included
    ended       None while the answer is incomplete
    failure     why there is no whole answer; "" otherwise
    cut_off     when the load ended before the answer did; None otherwise
    """

    num_tokens: int
    scheduled: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float | None = None
    failure: str = ""
    cut_off: float | None = None

    @property
    def status(self) -> int:
        """Of the answer; 0 where none came."""
        if not self.pieces:
            return 0
        words = self.pieces[0][1][:20].split(b" ")
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


class Connection(asyncio.Protocol):
    """Kept alive as long as the server does; opens itself again where it was closed."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._body_left = -1  # bytes; -1 while the head is incomplete or the body is chunked
        self._head = b""
        self._tail = b""

    async def fetch(self, request: bytes, exchange: Exchange, timeout_seconds: float) -> None:
        """Send a request and wait for the end of its answer; failures are noted in the exchange."""
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(timeout_seconds, self._fail, f"no answer within {timeout_seconds:g} s")
        try:
            if self._transport is None or self._transport.is_closing():
                await asyncio.wait_for(loop.create_connection(lambda: self, self._host, self._port), timeout_seconds)
            self._exchange, self._done = exchange, loop.create_future()
            self._body_left, self._head, self._tail = -1, b"", b""
            assert self._transport is not None
            self._transport.write(request)
            await self._done
        except (OSError, TimeoutError) as error:
            exchange.failure = exchange.failure or f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            exchange.cut_off = time.perf_counter()
            self.close()
            raise
        finally:
            deadline.cancel()
            self._exchange = self._done = None

    def close(self) -> None:
        """Close the connection, whatever is going on."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        now = time.perf_counter()
        exchange.pieces.append((now, data))
        if self._is_complete(data):
            self._finish(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(f"the connection was closed before the answer was complete: {exc or 'no error'}")

    def _is_complete(self, data: bytes) -> bool:
        if self._body_left >= 0:
            self._body_left -= len(data)
            return self._body_left <= 0
        if self._head.endswith(HEAD_END):
            self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
            return self._tail == LAST_CHUNK
        head, end, body = (self._head + data).partition(HEAD_END)
        self._head = head + end
        if not end:
            return False
        lower = head.lower()
        place = lower.find(b"content-length:")
        if place < 0:
            self._tail = body[-len(LAST_CHUNK) :]
            return self._tail == LAST_CHUNK
        self._body_left = int(lower[place + 15 :].split(b"\r\n", 1)[0]) - len(body)
        return self._body_left <= 0

    def _finish(self, now: float) -> None:
        assert self._exchange is not None
        self._exchange.ended = now
        if b"connection: close" in self._head.lower() and self._transport is not None:
            self._transport.close()
        self._settle()

    def _fail(self, why: str) -> None:
        if self._exchange is not None and self._exchange.ended is None:
            self._exchange.failure = why
            self.close()
            self._settle()

    def _settle(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

"""Exchanges over one HTTP/1.1 connection, with the time of every piece, and the measurements taken from them.

Input: bytes of a request; finished exchanges. Output: exchanges; answers, refusals and failures. Must not know: loads.

The driver shares the machine with the server that it drives. So only the end of an answer is looked for while load
runs: pieces are kept with their times, and parsed afterwards.

All servers answer in one shape, meari's: whole, `{"choices": [{"text"}], "usage": {"generated_tokens"}}`; streamed,
one event a piece of text, then one with `usage`. BentoML puts a list around it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
OK = 200
REFUSALS = frozenset({429, 503})


@dataclass(eq=False)
class Exchange:
    """A request and what came back, on time.perf_counter's clock.

    scheduled   when the request was to be sent; waiting times count from here
    pieces      bytes in the order of their arrival, the head included
    ended       None while the answer is incomplete
    failure     reason of an incomplete answer; "" otherwise
    cut_off     end of the load, if the answer had not ended by then; None otherwise
    """

    num_tokens: int
    scheduled: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float | None = None
    failure: str = ""
    cut_off: float | None = None

    @property
    def status(self) -> int:
        """Status of the answer; 0 without one."""
        if not self.pieces:
            return 0
        words = self.pieces[0][1][:20].split(b" ")
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


class Connection(asyncio.Protocol):
    """Connection that is kept alive as long as the server keeps it, and opened again when closed."""

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
        """Close the connection."""
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


@dataclass(frozen=True)
class Answer:
    """One whole answer; times in seconds.

    tokens     as the server counts them: generated, or scored
    first      from when the request was due to the first text; of a whole answer, to its end
    gaps       from one event with text to the next
    """

    begin: float
    end: float
    tokens: int
    first: float
    gaps: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Answers:
    """Outcome of the requests of one load.

    late       waiting times of answers that were not complete when the load was over: to the first text if there was
               one, and to the end; both are too short where the load ended first
    problems   the first few reasons of failures
    """

    whole: list[Answer]
    refusal_seconds: list[float]
    late: list[tuple[float, float]]
    num_failed: int
    problems: tuple[str, ...]


def read_answers(exchanges: list[Exchange]) -> Answers:
    """Sort exchanges into answers, refusals and failures."""
    whole: list[Answer] = []
    refusals: list[float] = []
    late: list[tuple[float, float]] = []
    problems: list[str] = []
    for exchange in exchanges:
        if exchange.cut_off is not None:
            late.append(_waited(exchange, exchange.cut_off))
        elif exchange.ended is not None and exchange.status in REFUSALS:
            refusals.append(exchange.ended - exchange.scheduled)
        elif exchange.ended is None or exchange.status != OK:
            problems.append(_reason(exchange))
        else:
            answer = _read(exchange)
            whole.append(answer) if isinstance(answer, Answer) else problems.append(answer)
    return Answers(whole, refusals, late, len(problems), tuple(sorted(set(problems))[:3]))


def _waited(exchange: Exchange, cut_off: float) -> tuple[float, float]:
    first = next((moment for moment, piece in exchange.pieces if b'"text"' in piece), cut_off)
    return first - exchange.scheduled, cut_off - exchange.scheduled


def _reason(exchange: Exchange) -> str:
    if exchange.failure or not exchange.pieces:
        return exchange.failure or "no answer in time"
    text = b"".join(piece for _, piece in exchange.pieces)
    return f"status {exchange.status}: {text.partition(HEAD_END)[2][:200].decode('utf-8', 'replace')}"


def _read(exchange: Exchange) -> Answer | str:
    """Return the answer, or its fault."""
    head, _, body = b"".join(piece for _, piece in exchange.pieces).partition(HEAD_END)
    assert exchange.ended is not None
    try:
        if b"\ndata:" in body or body.startswith(b"data:"):  # not every server says text/event-stream
            return _read_stream(exchange)
        return _read_whole(exchange, _plain(head, body))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return f"an answer of another shape ({type(error).__name__}: {error}): {body[:120]!r}"


def _read_whole(exchange: Exchange, body: bytes) -> Answer:
    answer = json.loads(body)
    answer = answer[0] if isinstance(answer, list) else answer
    assert exchange.ended is not None
    tokens = _tokens(answer["usage"])
    return Answer(exchange.scheduled, exchange.ended, tokens, exchange.ended - exchange.scheduled, ())


def _tokens(usage: dict[str, Any]) -> int:
    return int(usage["generated_tokens"] if "generated_tokens" in usage else usage["scored_tokens"])


def _read_stream(exchange: Exchange) -> Answer | str:
    times: list[float] = []
    tokens = 0
    for moment, event in _events(exchange):
        if "error" in event:
            return f"error event: {event['error']}"
        if any(choice.get("text") for choice in event.get("choices", [])):
            times.append(moment)
        tokens = _tokens(event["usage"]) if event.get("usage") else tokens
    if not times or not tokens:
        return "a stream without text or without usage"
    assert exchange.ended is not None
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    return Answer(exchange.scheduled, exchange.ended, tokens, times[0] - exchange.scheduled, gaps)


def _events(exchange: Exchange) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield events, each with the time of its last byte. Chunk sizes are lines that no event begins like."""
    left = b""
    for moment, piece in exchange.pieces:
        *lines, left = (left + piece).split(b"\n")
        for line in lines:
            data = line.strip()
            if data.startswith(b"data:") and not data.endswith(b"[DONE]"):
                yield moment, json.loads(data[5:])


def _plain(head: bytes, body: bytes) -> bytes:
    """Return the body without the frames of chunked transfer."""
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    plain = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            break
        plain, body = plain + body[:length], body[length + 2 :]
    return plain

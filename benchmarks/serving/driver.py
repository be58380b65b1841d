"""Driver of a server: clients that wait for their answers (closed loop), or arrivals at given times (open loop).

Input: requests as bytes, an address, a duration. Output: exchanges and the edges of the measured window. Must not know:
the content of requests and answers.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from benchmarks.serving.answers import Connection, Exchange

REQUEST_TIMEOUT_SECONDS = 30.0
MAX_CONNECTIONS = 1000
MAX_TIMES = 3  # as long as asked for is the window of a slow server at most
POLL_SECONDS = 0.05
Edge = TypeVar("Edge")
Edge_co = TypeVar("Edge_co", covariant=True)


class EdgeReader(Protocol[Edge_co]):
    """Reads what a server has used so far, at both edges of the window; its memory at the end alone."""

    def __call__(self, *, with_memory: bool) -> Edge_co: ...


@dataclass(frozen=True)
class LoadRequest:
    """Bytes of a request, and the number of tokens that it asks for."""

    request: bytes
    num_tokens: int


@dataclass(frozen=True)
class Address:
    """Address of a server on this machine."""

    port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class LoadResult(Generic[Edge]):
    """Result of one load.

    first, last   what `edge` returned at the beginning of the window and, with the memory, at its end
    begin, end    the window, on time.perf_counter's clock
    driver_cpu_seconds   what this process itself used within the window
    """

    exchanges: list[Exchange]
    begin: float
    end: float
    first: Edge
    last: Edge
    driver_cpu_seconds: float


def drive_closed(
    address: Address,
    asks: Iterator[LoadRequest],
    *,
    num_clients: int,
    seconds: float,
    warmup_seconds: float,
    drain_seconds: float,
    edge: EdgeReader[Edge],
) -> LoadResult[Edge]:
    """Run clients, each sending its next request after its answer; the window begins after the warm-up.

    A slow server gets a longer window, up to three times as long, until every client has had an answer in the mean.
    Requests that are under way when the window closes run to their end, so that their share of it is known, but no
    longer than `drain_seconds`.
    """
    return _without_gc(lambda: _closed(address, asks, num_clients, seconds, warmup_seconds, drain_seconds, edge))


def drive_open(
    address: Address,
    arrivals: Sequence[tuple[float, LoadRequest]],
    *,
    seconds: float,
    drain_seconds: float,
    edge: EdgeReader[Edge],
) -> LoadResult[Edge]:
    """Send each request at its time (seconds from the start), answered or not; wait at most `drain_seconds` after."""
    return _without_gc(lambda: _open(address, arrivals, seconds, drain_seconds, edge))


def _without_gc(make: Callable[[], asyncio.Future[LoadResult[Edge]] | object]) -> LoadResult[Edge]:
    """Run without garbage collection, which would show up as gaps between tokens."""
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(make())  # type: ignore[arg-type]
    finally:
        gc.enable()


async def _closed(
    address: Address,
    asks: Iterator[LoadRequest],
    num_clients: int,
    seconds: float,
    warmup: float,
    drain: float,
    edge: EdgeReader[Edge],
) -> LoadResult[Edge]:
    exchanges: list[Exchange] = []
    over = asyncio.Event()

    async def client() -> None:
        connection = Connection(address.host, address.port)
        while not over.is_set():
            ask = next(asks)
            exchange = Exchange(ask.num_tokens, time.perf_counter())
            exchanges.append(exchange)
            await connection.fetch(ask.request, exchange, REQUEST_TIMEOUT_SECONDS)
            if exchange.failure or exchange.status != 200:
                await asyncio.sleep(0.01)  # a server that refuses everything must not be hammered
        connection.close()

    clients = [asyncio.create_task(client()) for _ in range(num_clients)]
    await asyncio.sleep(warmup)
    first, begin, cpu = edge(with_memory=False), time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    while len(exchanges) < 2 * num_clients and time.perf_counter() < begin + MAX_TIMES * seconds:
        await asyncio.sleep(POLL_SECONDS)
    over.set()
    real_end, cpu, last = time.perf_counter(), time.process_time() - cpu, edge(with_memory=True)
    await _drain(set(clients), drain)
    return LoadResult(exchanges, begin, real_end, first, last, cpu)


async def _open(
    address: Address,
    arrivals: Sequence[tuple[float, LoadRequest]],
    seconds: float,
    drain: float,
    edge: EdgeReader[Edge],
) -> LoadResult[Edge]:
    idle: list[Connection] = []
    exchanges: list[Exchange] = []
    running: set[asyncio.Task[None]] = set()

    async def send(ask: LoadRequest, scheduled: float) -> None:
        exchange = Exchange(ask.num_tokens, scheduled)
        exchanges.append(exchange)
        connection = idle.pop() if idle else Connection(address.host, address.port)
        await connection.fetch(ask.request, exchange, REQUEST_TIMEOUT_SECONDS)
        idle.append(connection)

    first, begin, cpu = edge(with_memory=False), time.perf_counter(), time.process_time()
    for offset, ask in arrivals:
        pause = begin + offset - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        if len(running) >= MAX_CONNECTIONS:
            lost = Exchange(ask.num_tokens, begin + offset, failure="the driver has no connection left")
            exchanges.append(lost)
            continue
        task = asyncio.create_task(send(ask, begin + offset))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.sleep(max(0.0, begin + seconds - time.perf_counter()))
    end, cpu, last = time.perf_counter(), time.process_time() - cpu, edge(with_memory=True)
    await _drain(running, drain)
    for connection in idle:
        connection.close()
    return LoadResult(exchanges, begin, end, first, last, cpu)


async def _drain(running: set[asyncio.Task[None]], seconds: float) -> None:
    if not running:
        return
    _, late = await asyncio.wait(set(running), timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)

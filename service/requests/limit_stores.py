"""Buckets of tokens and counts of requests, which the workers of a host share, or all hosts.

Input: a caller, and the tokens that a request takes or gives back. Output: a `Standing`. Must not know: Flask, models.

A *bucket* holds at most as many tokens as a minute allows, and fills by itself. The workers of a host share buckets and
counts in a file in memory; with Redis all hosts do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from meari.errors import RateLimited
from meari.service.requests.keys import Caller
from meari.service.requests.origins import client_network

__all__ = ["HostStore", "RedisStore", "Standing", "Store", "seconds_until"]

WRONG_KEYS_PER_MINUTE: Final = 20  # of an address
MAX_ENTRIES: Final = 4096  # of each table: keys or addresses that were active within a minute, workers × keys
LEASE_SECONDS: Final = 15.0  # a request of a worker that was killed counts this long at Redis
RENEW_SECONDS: Final = 5.0
REDIS_SECONDS: Final = 0.25  # for an answer
SHARED_FILE: Final = "limits"  # in the runtime folder
_BUCKET: Final = np.dtype([("name", "<u8"), ("level", "<f8"), ("changed_at", "<f8")])
_OPEN: Final = np.dtype([("name", "<u8"), ("pid", "<u4"), ("count", "<i4"), ("started", "<u8")])
Table = npt.NDArray[np.void]

log = logging.getLogger("meari.service.limits")  # as operators know it


@dataclass(frozen=True)
class Standing:
    """Where a key stands.

    granted   whether what was asked for was given
    level     tokens in its bucket
    num_open  its requests in progress
    """

    granted: bool
    level: float = 0.0
    num_open: int = 0


class Store(Protocol):
    """Buckets and counts that several workers share."""

    def open(self, caller: Caller, lease: str) -> Standing:
        """Count a request, if there is room for it and a token in the bucket."""

    def take(self, caller: Caller, count: int) -> Standing:
        """Take tokens, all or none."""

    def let_go(self, lease: str) -> None:
        """Let the place of a request run out, whether or not `close` can be told."""

    def close(self, caller: Caller, unused: int, lease: str) -> None:
        """Give back tokens, and the place of a request."""


class HostStore:
    """Buckets and counts of a host, in memory that its workers share; safe from any thread.

    Counts are kept by worker: those of a worker that was killed end with it. A table that is full forgets the bucket
    that was not used for longest, which is full by then.
    """

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Share a file in that folder; without one, or where it has no room, the worker is alone."""
        sizes = [MAX_ENTRIES * kind.itemsize for kind in (_BUCKET, _OPEN, _BUCKET)]
        self._descriptor = None if folder is None else _shared_file(folder / SHARED_FILE, sum(sizes))
        memory = mmap.mmap(-1 if self._descriptor is None else self._descriptor, sum(sizes))
        self._buckets: Table = np.frombuffer(memory, _BUCKET, MAX_ENTRIES)
        self._open: Table = np.frombuffer(memory, _OPEN, MAX_ENTRIES, sizes[0])
        self._addresses: Table = np.frombuffer(memory, _BUCKET, MAX_ENTRIES, sizes[0] + sizes[1])
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._started = _start_of(self._pid) or 0

    def open(self, caller: Caller, lease: str) -> Standing:
        """Count a request, if there is room for it and a token in the bucket."""
        name, limit = _number(caller.key_id), caller.requests_at_once
        with self._locked():
            _, level = self._level(self._buckets, name, caller.tokens_per_minute or math.inf)
            if limit is None or level < 1:
                return Standing(level >= 1, level)
            num_open = self._num_open(name)
            if num_open >= limit:
                self._forget_dead()
                num_open = self._num_open(name)
            if num_open >= limit:
                return Standing(granted=False, level=level, num_open=num_open)
            self._count(name, 1)
            return Standing(granted=True, level=level, num_open=num_open + 1)

    def take(self, caller: Caller, count: int) -> Standing:
        """Take tokens, all or none."""
        assert caller.tokens_per_minute is not None
        with self._locked():
            return self._take(self._buckets, _number(caller.key_id), caller.tokens_per_minute, count)

    def let_go(self, lease: str) -> None:
        """Do nothing: `close` is always told."""

    def close(self, caller: Caller, unused: int, lease: str) -> None:
        """Give back tokens, and the place of a request."""
        name = _number(caller.key_id)
        with self._locked():
            if caller.tokens_per_minute is not None and unused:
                self._take(self._buckets, name, caller.tokens_per_minute, -unused)
            if caller.requests_at_once is not None:
                self._count(name, -1)

    def are_too_many(self, address: str) -> bool:
        """Tell whether so many wrong keys came from an address that it has to wait."""
        with self._locked():
            return self._level(self._addresses, _number(client_network(address)), WRONG_KEYS_PER_MINUTE)[1] < 1

    def note(self, address: str) -> None:
        """Count a wrong key. Raises RateLimited if there were too many."""
        with self._locked():
            standing = self._take(self._addresses, _number(client_network(address)), WRONG_KEYS_PER_MINUTE, 1)
        if not standing.granted:
            seconds = seconds_until(1, standing.level, WRONG_KEYS_PER_MINUTE)
            raise RateLimited(
                f"too many wrong keys came from this address; retry in {seconds} s", "wrong_keys", seconds
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep out other threads and workers; the lock ends with its process."""
        with self._lock:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if self._descriptor is not None:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _level(self, table: Table, name: int, per_minute: float) -> tuple[int, float]:
        """Return the entry of a bucket, -1 where it has none, and its level."""
        found = np.flatnonzero(table["name"] == name)
        if not found.size:
            return -1, per_minute
        entry = int(found[0])
        waited = self._clock() - float(table["changed_at"][entry])
        if waited < 0:  # written before the machine was started again
            return entry, per_minute
        return entry, min(per_minute, float(table["level"][entry]) + waited * per_minute / 60)

    def _take(self, table: Table, name: int, per_minute: int, count: int) -> Standing:
        entry, level = self._level(table, name, per_minute)
        granted = count <= level
        if granted:
            level = min(level - count, float(per_minute))
            if entry < 0:
                entry = int(np.argmin(table["changed_at"]))
            table["level"][entry], table["changed_at"][entry] = level, self._clock()
            table["name"][entry] = name
        return Standing(granted, level)

    def _num_open(self, name: int) -> int:
        return int(self._open["count"][self._open["name"] == name].sum())

    def _count(self, name: int, change: int) -> None:
        """Change the count of this worker's requests with a key."""
        table = self._open
        is_own = (table["name"] == name) & (table["pid"] == self._pid) & (table["started"] == self._started)
        found = np.flatnonzero(is_own & (table["count"] > 0))
        if not found.size and change > 0:
            found = np.flatnonzero(table["count"] == 0)
            if not found.size:
                return  # no key has so many workers
            table["name"][found[0]], table["pid"][found[0]] = name, self._pid
            table["started"][found[0]] = self._started
        if found.size:
            table["count"][found[0]] += change

    def _forget_dead(self) -> None:
        """Free the entries of workers that have ended."""
        table = self._open
        for entry in np.flatnonzero(table["count"] > 0):
            if _start_of(int(table["pid"][entry])) != int(table["started"][entry]):
                table["count"][entry] = 0


def _shared_file(path: Path, size: int) -> int | None:
    """Open a file of that size, with all of its room taken: memory that is missing later would end the process."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        log.warning("%s: %s; each worker limits its requests by itself", path, error.strerror)
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _start_of(pid: int) -> int | None:
    """Return when a process was started, which tells it from a later one of the same number; None if it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") | 1  # 0 is free


def seconds_until(wanted: float, level: float, per_minute: int) -> int:
    """Return when a bucket will have as many tokens, in whole seconds, at least one."""
    return max(1, math.ceil((wanted - level) * 60 / per_minute))


# ---- Redis ----

_BEGIN: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local capacity = tonumber(ARGV[1])
local function put(value)
  value = math.min(capacity, value)
  redis.call('HSET', KEYS[1], 'level', string.format('%.17g', value), 'at', string.format('%.17g', now))
  redis.call('PEXPIRE', KEYS[1], math.ceil((capacity - value) * 60000 / capacity) + 60000)
end
local function level()
  local kept = redis.call('HMGET', KEYS[1], 'level', 'at')
  if not kept[1] then return capacity end
  if tonumber(kept[2]) > now then put(tonumber(kept[1])) end -- the clock was set back
  return math.min(capacity, kept[1] + math.max(0, now - kept[2]) * capacity / 60000)
end
"""
_OPEN_SCRIPT: Final = (
    _BEGIN
    + """
local limit = tonumber(ARGV[2])
local left = capacity == 0 and 1 or level()
local granted, count = 1, 0
if left < 1 then granted = 0 end
if limit > 0 and granted == 1 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], string.format('%.17g', now + 2 * ARGV[3]), '+inf') -- the clock was set back
  count = redis.call('ZCARD', KEYS[2])
  if count < limit then
    redis.call('ZADD', KEYS[2], string.format('%.17g', now + ARGV[3]), ARGV[4])
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
    count = count + 1
  else
    granted = 0
  end
end
return {granted, string.format('%.17g', left), count}
"""
)
_TAKE_SCRIPT: Final = (
    _BEGIN
    + """
local left, cost = level(), tonumber(ARGV[2])
local granted = 0
if cost <= left then
  granted, left = 1, left - cost
  put(left)
end
return {granted, string.format('%.17g', left), 0}
"""
)
_CLOSE_SCRIPT: Final = (
    _BEGIN
    + """
if tonumber(ARGV[2]) > 0 then put(level() + ARGV[2]) end
redis.call('ZREM', KEYS[2], ARGV[3])
return {1, '0', 0}
"""
)
_RENEW_SCRIPT: Final = (
    _BEGIN
    + """
redis.call('ZADD', KEYS[2], 'XX', string.format('%.17g', now + ARGV[2]), ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {1, '0', 0}
"""
)


class RedisStore:
    """Buckets and counts that all hosts share. Its methods raise `failures`.

    The place of a request is a lease, which a thread renews: those of a worker that was killed run out.
    """

    def __init__(self, url: str) -> None:
        import redis  # the optional package, and only where it is asked for
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self.failures: type[Exception] = redis.RedisError
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 1),  # a connection may have been closed while it was idle
        )
        self._leases: dict[str, Caller] = {}
        self._ended = threading.Event()

    def start(self) -> None:
        """Start to renew leases."""
        threading.Thread(target=self._renew_all, name="leases", daemon=True).start()

    def stop(self) -> None:
        """Stop renewing leases."""
        self._ended.set()

    def open(self, caller: Caller, lease: str) -> Standing:
        """Count a request, if there is room for it and a token in the bucket."""
        limit, milliseconds = caller.requests_at_once or 0, int(1000 * LEASE_SECONDS)
        standing = self._run(_OPEN_SCRIPT, caller, limit, milliseconds, lease)
        if standing.granted and limit:
            self._leases[lease] = caller
        return standing

    def take(self, caller: Caller, count: int) -> Standing:
        """Take tokens, all or none."""
        return self._run(_TAKE_SCRIPT, caller, count)

    def let_go(self, lease: str) -> None:
        """Renew the place of a request no longer: it runs out if Redis cannot be told to free it."""
        self._leases.pop(lease, None)

    def close(self, caller: Caller, unused: int, lease: str) -> None:
        """Give back tokens, and the place of a request."""
        self._run(_CLOSE_SCRIPT, caller, unused, lease)

    def _run(self, script: str, caller: Caller, *arguments: object) -> Standing:
        names = [f"meari:{{{caller.key_id}}}:{kind}" for kind in ("tokens", "open")]  # braces: one slot of a cluster
        answer: Any = self._client.eval(script, 2, *names, caller.tokens_per_minute or 0, *arguments)  # type: ignore[arg-type]
        return Standing(bool(answer[0]), float(answer[1]), int(answer[2]))

    def _renew_all(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(self.failures):  # said where a request meets it
                for lease, caller in list(self._leases.items()):
                    self._run(_RENEW_SCRIPT, caller, int(1000 * LEASE_SECONDS), lease)

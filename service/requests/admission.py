"""How much work a worker takes on: requests in flight and the bytes they hold.

Asked before a body is read, parsed or tokenized; past a bound a request is refused at once. Knows nothing of Flask or
models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from meari.errors import Overloaded, TooLarge
from meari.service.requests.overload import OverloadGate

__all__ = ["Admission", "Ticket"]


class Admission:
    """The bounds of one worker; safe from any thread. `knee` says how many requests keep the engine at its best."""

    def __init__(self, max_requests: int, max_bytes: int, gate: OverloadGate, knee: Callable[[], int]) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._gate = gate
        self._knee = knee
        self._lock = threading.Lock()
        self._requests = 0
        self._bytes = 0

    @property
    def num_requests(self) -> int:
        """Requests in flight, from their admission until their answer is sent."""
        return self._requests

    @property
    def num_bytes(self) -> int:
        """Bytes that they hold."""
        return self._bytes

    def enter(self) -> Ticket:
        """Admit a request; its ticket must be released. Raises Overloaded."""
        with self._lock:
            if not self._gate.admits(self._requests, self._knee):
                error = Overloaded("more is asked of the service than it can do; try again")
                error.retry_after_seconds = self._gate.retry_after_seconds()
                raise error
            if self._requests >= self._max_requests:
                raise Overloaded(
                    f"{self._requests} requests are being handled, at most {self._max_requests} may; try again"
                )
            self._requests += 1
        return Ticket(self)

    def take(self, count: int) -> None:
        """Account for bytes about to be held. Raises TooLarge where they could never fit, Overloaded where not now."""
        with self._lock:
            if count > self._max_bytes:
                raise TooLarge(
                    f"the request needs {count} bytes of memory, at most {self._max_bytes} may be used: "
                    "ask for less at once"
                )
            if self._bytes + count > self._max_bytes:
                raise Overloaded(
                    f"{self._bytes} bytes of requests are being handled, no room for {count} more; try again"
                )
            self._bytes += count

    def give_back(self, count: int) -> None:
        """The counterpart of `enter` and `take`, called by tickets."""
        with self._lock:
            self._requests -= 1
            self._bytes -= count
            self._gate.note_left()


class Ticket:
    """An admitted request's share; released once, however often that is asked for."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        self._bytes = 0

    def take_bytes(self, count: int) -> None:
        """Hold `count` bytes more. Raises TooLarge, Overloaded."""
        assert self._admission is not None, "a released ticket holds nothing"
        self._admission.take(count)
        self._bytes += count

    def release(self) -> None:
        """Give everything back."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.give_back(self._bytes)

"""The requests that the engine has accepted and not ended yet, and when each must end.

A request is ended by whoever claims it, so it ends once, whatever happens at the same time.
Any thread may call any of this; one lock guards it.
"""

from __future__ import annotations

import heapq
import threading

from meari.runtime.engine.scheduler import Request


class LiveRequests:
    """Accepted requests by number, and a heap of their deadlines that holds nothing else of them."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        """From now on the request has to be ended."""
        with self._lock:
            self._requests[request.number] = request
            heapq.heappush(self._deadlines, (request.handle.deadline, request.number))
            if len(self._deadlines) > 64 + 2 * len(self._requests):
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
                heapq.heapify(self._deadlines)

    def claim(self, request: Request) -> bool:
        """True for the one caller who is to end the request."""
        with self._lock:
            return self._requests.pop(request.number, None) is not None

    def expired(self, now: float) -> list[Request]:
        """Requests whose deadline is past."""
        if not self._deadlines or self._deadlines[0][0] > now:
            return []
        due = []
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                number = heapq.heappop(self._deadlines)[1]
                if number in self._requests:
                    due.append(self._requests[number])
        return due

    def cancelled(self) -> list[Request]:
        """Requests that their callers gave up."""
        with self._lock:
            return [request for request in self._requests.values() if request.handle.cancelled]

    def everyone(self) -> list[Request]:
        """All requests that have not ended."""
        with self._lock:
            return list(self._requests.values())

"""Several calls of one request, waited for, cancelled and failed as one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from service.engine.calls import Handle, News

__all__ = ["Together"]


class Together:
    """Handles whose calls share `news`, from any thread; see `Awaited`."""

    def __init__(self, handles: Sequence[Handle], news: News, now: float) -> None:
        """now: on the engine's clock, for a request that asks nothing of the engine."""
        self._handles = tuple(handles)
        self._news = news
        self._now = now

    @property
    def calls(self) -> tuple[Handle, ...]:
        """All of them."""
        return self._handles

    @property
    def deadline(self) -> float:
        """When the last of them must end."""
        return max((handle.deadline for handle in self._handles), default=self._now)

    @property
    def submitted_at(self) -> float:
        """When the first of them was."""
        return min((handle.submitted_at for handle in self._handles), default=self._now)

    @property
    def started_at(self) -> float | None:
        """When the first of them had a slot."""
        return _earliest(handle.started_at for handle in self._handles)

    @property
    def first_token_at(self) -> float | None:
        """When the first token of all was sampled."""
        return _earliest(handle.first_token_at for handle in self._handles)

    @property
    def cancelled(self) -> bool:
        """True once any of them was."""
        return any(handle.cancelled for handle in self._handles)

    @property
    def ended(self) -> bool:
        """True once all have."""
        return all(handle.ended for handle in self._handles)

    def wait_end(self, timeout: float | None = None) -> bool:
        """Block until all have ended or one has failed, at most `timeout` seconds; returns whether that is so."""
        until = None if timeout is None else time.monotonic() + timeout
        for handle in self._handles:
            if not handle.wait_end(None if until is None else max(0.0, until - time.monotonic())):
                return self._any_failed
            if handle.failure is not None:
                return True
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until something was added to any of them since the last call, or all have ended."""
        if not self.ended:
            self._news.wait(timeout)
        news = self._news.is_set()
        self._news.clear()
        return news or self.ended

    def cancel(self) -> None:
        """Ask the engine to drop all of them."""
        for handle in self._handles:
            handle.cancel()

    def raise_for_failure(self) -> None:
        """Raise what ended one of them early."""
        for handle in self._handles:
            handle.raise_for_failure()

    @property
    def _any_failed(self) -> bool:
        return any(handle.failure is not None for handle in self._handles)


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time_ for time_ in times if time_ is not None), default=None)

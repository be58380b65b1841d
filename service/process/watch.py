"""Waiting for the engine on behalf of a client that may go away, in a worker that may have to end. No Flask here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meari.errors import EngineFailed, NotReady
from meari.runtime.engine.calls import Awaited
from meari.service.process.client import Client, ClientGone
from meari.service.process.drain import Drain

__all__ = ["Watch"]

LOOK_SECONDS: Final = 0.25  # for what nobody calls back about
LATE_SECONDS: Final = 10.0  # past its deadline the engine must have ended a request long ago


@dataclass(frozen=True, eq=False)
class Watch:
    """Of one request: its client, the worker's drain, the engine's clock."""

    client: Client
    drain: Drain
    clock: Callable[[], float]

    def await_end(self, handle: Awaited) -> None:
        """Block until the request ended. Raises ClientGone, EngineFailed."""
        while not handle.wait_end(LOOK_SECONDS):
            self.check(handle)
        self._check_cancelled(handle)

    def await_scores(self, handle: Awaited) -> None:
        """Block until all figures are there: a part of them is no answer.

        Raises ScoreTimeout, NotReady where the worker had to end, EngineFailed, ClientGone.
        """
        self.await_end(handle)
        try:
            handle.raise_for_failure()
        except EngineFailed:
            if self.drain.must_end:
                raise NotReady("the service is shutting down") from None
            raise

    def await_news(self, handle: Awaited, seconds: float) -> bool:
        """Block until something was added or the request ended; False after `seconds`, or where a sign is wanted.

        Raises ClientGone, EngineFailed.
        """
        until = self.clock() + seconds
        while not handle.wait(max(0.0, min(LOOK_SECONDS, until - self.clock()))):
            self.check(handle)
            if self.client.takes_sign() or self.clock() >= until:
                return False
        self._check_cancelled(handle)
        return True

    def end_if_draining(self, handle: Awaited) -> None:
        """Cancel what cannot be finished before the worker has to end."""
        if self.drain.must_end and not handle.cancelled:
            handle.cancel()

    def _check_cancelled(self, handle: Awaited) -> None:
        if handle.cancelled and self.client.is_gone:
            raise ClientGone

    def check(self, handle: Awaited) -> None:
        """Cancel what nobody waits for any more. Raises ClientGone, EngineFailed."""
        if self.client.is_gone:
            handle.cancel()
            raise ClientGone
        self.end_if_draining(handle)
        if self.clock() > handle.deadline + LATE_SECONDS:
            handle.cancel()
            raise EngineFailed("the engine did not end the request in time")

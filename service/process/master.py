"""gunicorn's master process, which starts, replaces and ends the workers of a host.

Input: signals, the ends of workers, the board on which they report. Output: as many workers as there should be. Must
not know: bundles, requests.
"""

from __future__ import annotations

from gunicorn.arbiter import Arbiter

from meari.service.workers import BOARD

__all__ = ["HostArbiter"]


class HostArbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's master, which tells its workers when the whole host ends."""

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 (gunicorn's own)
        """End all workers. Those of another master may have taken over the socket; then these only leave it."""
        if not self.reexec_pid:
            BOARD.drain()
        super().stop(graceful)

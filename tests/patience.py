"""Waiting in the tests: its time limit ends tests that hang and never measures speed."""

import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 300.0  # seconds; busy machines can be five times slower


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)

"""Fixtures: engines on tiny bundles, stepped by the test under a settable clock or running in their own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.engine import Engine, EngineLimits
from tests.runtime.tiny_bundle import write_tiny_bundle


class Clock:
    """Clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock at 0."""
    return Clock()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Make a tiny bundle whose figures depend on the number of fed tokens."""
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", peak=4.0, decay=0.125)
    return open_bundle(folder, max_slots=8)


@pytest.fixture(scope="session")
def leaky_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Make a bundle whose graph lets rows influence one another."""
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "leaky", peak=4.0, decay=0.125, leak=True)
    return open_bundle(folder, max_slots=8)


@pytest.fixture
def make_engine(bundle: Bundle, clock: Clock) -> Callable[..., Engine]:
    """Make an engine without a thread; the test calls `step`."""

    def make(max_slots: int = 4, max_waiting: int = 8) -> Engine:
        return Engine(bundle.runner, EngineLimits(max_slots, max_waiting), clock)

    return make


@pytest.fixture
def running_engine(bundle: Bundle) -> Iterator[Engine]:
    """Run an engine in its own thread, on the real clock."""
    engine = Engine(bundle.runner, EngineLimits(max_slots=4, max_waiting=64))
    engine.start()
    yield engine
    engine.stop()

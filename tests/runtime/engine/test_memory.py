"""Test that the engine keeps nothing of a request that has ended, even if no garbage is ever collected."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from meari.runtime.engine import Engine, GenerateCall, Generation, Sampling, ScoreCall
from meari.runtime.engine.calls import Sample, TextScore
from meari.runtime.engine.handles import Handle
from meari.runtime.engine.sequences import Request
from meari.runtime.engine.sequences import Sequence as EngineSequence
from tests.runtime.engine.conftest import Clock

MakeEngine = Callable[..., Engine]
Submit = Callable[[Engine], Handle]
A, B, C = 2, 3, 4
WARM = Sampling(temperature=0.5, seed=3)


@pytest.fixture
def num_alive() -> Iterator[Callable[[], int]]:
    """Return a counter of the engine's objects that are in memory, and collect no garbage meanwhile."""
    kinds = (Request, EngineSequence, Handle, Sample, TextScore)
    gc.collect()
    gc.disable()
    yield lambda: sum(issubclass(type(each), kinds) for each in gc.get_objects())
    gc.enable()


class FirstTwo:
    """Search that looks at the two likeliest tokens of each place, three tokens deep."""

    def __init__(self) -> None:
        self._num_calls = self._num_places = 0

    def advance(self, logprobs: npt.NDArray[np.float32]) -> Sequence[tuple[int, int]]:
        self._num_calls += 1
        first = self._num_places
        self._num_places += len(logprobs)
        if self._num_calls > 3:
            return ()
        likely = np.argsort(-logprobs, axis=1)[:2, :2]
        return [(first + row, int(token)) for row, tokens in enumerate(likely) for token in tokens]


def generate(**settings: object) -> Submit:
    def submit(engine: Engine) -> Generation:
        given = {"max_tokens": 20, "deadline": 100.0, "sampling": WARM, **settings}
        call = GenerateCall([A, B], **given)  # type: ignore[arg-type]
        return engine.generate(call, engine.reserve())

    return submit


def search(engine: Engine) -> Handle:
    return engine.search(GenerateCall([A], 4, 100.0, num_beams=8), FirstTwo(), engine.reserve())


def score(num_texts: int, **settings: object) -> Submit:
    def submit(engine: Engine) -> Handle:
        texts = [[A, B, 2 + n % 20, 2 + n % 7] for n in range(num_texts)]
        call = ScoreCall([C], texts, **{"deadline": 100.0, "want_ranks": True, **settings})  # type: ignore[arg-type]
        return engine.score(call, engine.reserve())

    return submit


REQUESTS = {
    "samples": generate(num_samples=4, num_alternatives=3),
    "samples with states": generate(want_state=True, num_samples=2),
    "beams": generate(num_beams=4, num_samples=2, num_alternatives=2, sampling=Sampling()),
    "a search": search,
    "few texts": score(2, num_alternatives=2),
    "many texts": score(30),
    "texts with states": score(8, want_state=True),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("num_steps", [0, 1, 3, 1000])
@pytest.mark.parametrize("ends_by", ["deadline", "cancel"])
def test_nothing_is_left_of_a_request_that_has_ended(
    make_engine: MakeEngine, clock: Clock, num_alive: Callable[[], int], name: str, num_steps: int, ends_by: str
) -> None:
    engine = make_engine(max_slots=16)
    before = num_alive()
    handle = REQUESTS[name](engine)
    for _ in range(num_steps):
        if not handle.ended:
            engine.step()
    if ends_by == "deadline":
        clock.now = 101.0
    else:
        handle.cancel()
    engine.step()
    assert handle.ended
    del handle
    assert num_alive() == before


def test_samples_that_ended_are_freed_while_others_run(make_engine: MakeEngine, num_alive: Callable[[], int]) -> None:
    engine = make_engine(max_slots=16)
    long = generate(max_tokens=10_000, ignores_end=True)(engine)
    engine.step()
    alone = num_alive()
    short = generate(num_samples=4, num_alternatives=3, deadline=50.0)(engine)
    while not short.ended:
        engine.step()
    engine.step()
    del short
    assert not long.ended
    assert num_alive() == alone

"""Test searches in the tree of token sequences: alone they take several steps a turn, with the same distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.engine import Engine, EngineLimits, GenerateCall, Generation
from meari.runtime.engine.row_by_row import RowByRowRunner
from meari.runtime.engine.runner import Runner
from tests.runtime.engine.conftest import Clock
from tests.runtime.engine.test_faults import Panic, assert_failed, assert_works, make
from tests.runtime.engine.test_loop import A, B, generate, run
from tests.runtime.tiny_bundle import Z, write_tiny_bundle

NUM_STEPS = 6
Floats32 = npt.NDArray[np.float32]


class Ticking(Clock):
    """Clock on which a second passes at every look, more than a turn may take."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Wandering:
    """Search that goes on from old places and new ones, one to four at a time; it keeps what it is given."""

    def __init__(self, num_steps: int = NUM_STEPS, token: Callable[[int], int] = lambda number: A + number % 9) -> None:
        self.given: list[Floats32] = []
        self._num_steps = num_steps
        self._token = token
        self._num_places = 0

    def advance(self, logprobs: Floats32) -> Sequence[tuple[int, int]]:
        self.given.append(logprobs.copy())
        self._num_places += len(logprobs)
        if len(self.given) > self._num_steps:
            return ()
        count = 1 + len(self.given) % 4
        return [((7 * n + len(self.given)) % self._num_places, self._token(n)) for n in range(count)]


def search(engine: Engine, looking: Wandering, prompt: Sequence[int] = (A, B)) -> Generation:
    call = GenerateCall([*prompt], NUM_STEPS, 1e9, num_beams=4)
    return engine.search(call, looking, engine.reserve())


def engine_of(runner: Runner, clock: Clock | None = None) -> Engine:
    return Engine(runner, EngineLimits(8, 16, cache_bytes=10**6), clock or Clock())


def given_alone(bundle: Bundle) -> list[Floats32]:
    """Return the distributions of a search, each place read as a prompt of its own."""
    looking, paths = Wandering(), [[A, B]]
    places: Sequence[tuple[int, int]] = ((0, -1),)
    while places:
        found = []
        for parent, token in places:
            path = [*paths[parent], token] if token >= 0 else paths[parent]
            if token >= 0:
                paths.append(path)
            only = Wandering(num_steps=0)
            engine = engine_of(bundle.runner)
            run(engine, search(engine, only, path))
            found.append(only.given[0])
        places = looking.advance(np.concatenate(found))
    return looking.given


def same(ours: list[Floats32], theirs: list[Floats32]) -> bool:
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def test_search_gets_the_distributions_of_its_places_whatever_runs_beside_it(bundle: Bundle) -> None:
    expected = given_alone(bundle)
    assert len(expected) == NUM_STEPS + 1
    assert [len(each) for each in expected] == [1, 2, 3, 4, 1, 2, 3]
    runners = {"rows together": bundle.runner, "row by row": RowByRowRunner.replacing(bundle.runner)}
    for name, runner in runners.items():
        for clock in (Clock(), Ticking()):
            engine, looking = engine_of(runner, clock), Wandering()
            handle = search(engine, looking)
            run(engine, handle)
            handle.raise_for_failure()
            assert same(looking.given, expected), name
            assert_works(engine)
    engine, first, second = engine_of(bundle.runner), Wandering(), Wandering()
    written = generate(engine, [A], 40)
    run(engine, search(engine, first), written, search(engine, second))
    assert same(first.given, expected)
    assert same(second.given, expected)


def test_search_that_is_alone_takes_as_many_steps_as_fit_into_a_turn(bundle: Bundle) -> None:
    turns = {}
    for name, clock in {"at once": Clock(), "a step a turn": Ticking()}.items():
        engine = engine_of(bundle.runner, clock)
        handle = search(engine, Wandering())
        while not handle.ended:
            engine.step()
        turns[name] = engine.stats().steps
        assert engine.stats().tokens_sampled == 15
        assert engine.stats().rows == 3 + 15  # the boundary and the prompt before them
    assert turns == {"at once": 2, "a step a turn": 1 + NUM_STEPS}


@pytest.mark.parametrize("is_alone", [True, False])
def test_search_at_which_the_model_fails_fails_alone(tmp_path_factory: pytest.TempPathFactory, is_alone: bool) -> None:
    folder = write_tiny_bundle(tmp_path_factory.mktemp("faulty") / "tiny", peak=4.0, fault="state", fault_token=Z)
    engine = make(open_bundle(folder, max_slots=8))
    looking = Wandering(token=lambda number: Z if number == 2 else A)  # in the second step
    broken = search(engine, looking, [*range(A, Z - 3)])
    others = [] if is_alone else [generate(engine, [A], 8)]
    run(engine, broken, *others)
    for other in others:
        other.raise_for_failure()
    if any(np.isnan(each).any() for each in looking.given):
        pytest.fail("the search was given what is no distribution")
    assert_failed(broken)
    assert_works(engine)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("is_alone", [True, False])
def test_search_that_panics_fails_alone(bundle: Bundle, num_steps: int, is_alone: bool) -> None:
    class Panicking(Wandering):
        def advance(self, logprobs: Floats32) -> Sequence[tuple[int, int]]:
            if len(self.given) == num_steps:
                raise Panic
            return super().advance(logprobs)

    engine = make(bundle)
    broken = search(engine, Panicking())
    others = [] if is_alone else [generate(engine, [A], 8)]
    run(engine, broken, *others)
    assert_failed(broken)
    for other in others:
        other.raise_for_failure()
    assert_works(engine)

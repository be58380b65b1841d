"""Test the time between tokens under a clock that advances one second with each step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meari.runtime.engine import Engine, Generation
from tests.runtime.engine.conftest import Clock
from tests.runtime.engine.test_loop import A, generate

MakeEngine = Callable[..., Engine]


def finish(engine: Engine, clock: Clock, *generations: Generation) -> float:
    """Step until all requests have ended; return the sum of the seconds from their first to their last tokens."""
    while not all(generation.ended for generation in generations):
        clock.now += 1.0
        engine.step()
    return sum((g.ended_at or 0.0) - (g.first_token_at or 0.0) for g in generations)


def test_gaps_of_a_text_add_up_to_its_duration(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine()
    generation = generate(engine, [A] * 3, 9)
    seconds = finish(engine, clock, generation)
    gaps = engine.stats().token_gaps
    assert sum(gaps.counts) == len(generation.samples[0].token_ids) - 1 > 0
    assert gaps.total == pytest.approx(seconds)


def test_text_that_joins_others_has_its_own_gaps(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine()
    early = generate(engine, [A], 30)
    for _ in range(3):
        clock.now += 1.0
        engine.step()
    late = generate(engine, [A], 20)
    seconds = finish(engine, clock, early, late)
    gaps = engine.stats().token_gaps
    assert sum(gaps.counts) == sum(len(g.samples[0].token_ids) - 1 for g in (early, late))
    assert gaps.total == pytest.approx(
        seconds, rel=0.1
    )  # a text may end within a turn; the rest of the turn is not a gap


def test_idle_time_is_not_a_gap(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine()
    finish(engine, clock, generate(engine, [A], 4))
    clock.now += 3600.0
    before = engine.stats().token_gaps
    seconds = finish(engine, clock, generate(engine, [A], 4))
    assert engine.stats().token_gaps.since(before).total == pytest.approx(seconds)


def test_request_runs_from_its_first_slot_to_its_end(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine(max_slots=2)
    generations = [generate(engine, [A], 4, num_samples=2) for _ in range(2)]
    clock.now += 1.0
    engine.step()
    stats = engine.stats()
    assert (stats.requests_running, stats.waiting) == (1, 1)
    finish(engine, clock, *generations)
    stats = engine.stats()
    assert (stats.requests_running, stats.waiting) == (0, 0)
    written = sum(len(sample.token_ids) for g in generations for sample in g.samples)
    assert stats.tokens_written == written

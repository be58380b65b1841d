"""Test admission: fair turns for requests of every kind, and a single end even while a request is queued."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meari.errors import NotReady, Overloaded
from meari.runtime.bundle import Bundle
from meari.runtime.engine import (
    Backlog,
    Engine,
    EngineLimits,
    Event,
    Finish,
    GenerateCall,
    Generation,
    HandleGroup,
    Reservation,
    Sampling,
    ScoreCall,
)
from meari.runtime.engine.sequences import Request
from tests.runtime.engine.conftest import Clock

A = 2
ENDLESS = Sampling(logit_bias=((0, -100.0),))
MakeEngine = Callable[..., Engine]


def generate(engine: Engine, max_tokens: int, **more: object) -> Generation:
    call = GenerateCall([A], max_tokens, **{"deadline": 1e12, "sampling": ENDLESS, **more})  # type: ignore[arg-type]
    return engine.generate(call, engine.reserve())


def test_wide_request_is_admitted_despite_many_narrow_ones(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=4, max_waiting=64)
    narrow = [generate(engine, 5 + n) for n in range(8)]
    wide = generate(engine, 5, num_samples=3)
    for turn in range(200):
        narrow.append(generate(engine, 5 + turn % 7))
        engine.step()
        if wide.ended:
            break
    assert [sample.finish for sample in wide.samples] == [Finish.LENGTH] * 3
    assert sum(not one.ended for one in narrow) > 4


def test_sentence_is_admitted_while_generations_and_lists_wait(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=2, max_waiting=64)
    for _ in range(10):
        generate(engine, 10_000)
        engine.score(ScoreCall([], [[n % 20 + 3, A] * 100 for n in range(50)], 1e12), engine.reserve())
    engine.step()
    sentence = engine.score(ScoreCall([], [[A, A, A]], 1e12), engine.reserve())
    for _ in range(20):
        engine.step()
    assert sentence.ended


def test_burst_of_sentences_stays_in_the_queue(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=2, max_waiting=64)
    for n in range(30):
        engine.score(ScoreCall([], [[n % 20 + 3] * 200], 1e12), engine.reserve())
    engine.step()
    assert engine.stats().waiting == 28


@pytest.mark.parametrize("closes", [False, True])
def test_request_that_ends_while_it_is_queued_ends_once(
    bundle: Bundle, clock: Clock, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    engine = Engine(bundle.runner, EngineLimits(2, 4), clock)
    add = engine._queue.add

    def add_late(request: Request, reservation: Reservation) -> bool:
        clock.now = 10.0
        engine.step()  # the engine's thread may be faster
        if closes:
            engine.stop()
        return add(request, reservation)

    monkeypatch.setattr(engine._queue, "add", add_late)
    if closes:
        with pytest.raises(NotReady):
            generate(engine, 5, deadline=5.0)
    else:
        generation = generate(engine, 5, deadline=5.0)
        assert generation.samples[0].finish is Finish.TIMEOUT
    monkeypatch.undo()
    engine.step()
    assert engine.stats().waiting == 0
    assert not engine._live.everyone()


def test_long_text_does_not_take_the_whole_cache(bundle: Bundle, clock: Clock) -> None:
    engine = Engine(bundle.runner, EngineLimits(2, 4, cache_bytes=100_000), clock)
    for prompt in ([5, 6, 7, 8], [A] * 5000, [5, 6, 7, 8]):
        generation = engine.generate(GenerateCall(prompt, 1, 1e12), engine.reserve())
        while not generation.ended:
            engine.step()
    assert generation.cached_tokens == 4


def submit_list(
    engine: Engine, count: int, max_tokens: int = 3, **more: object
) -> tuple[HandleGroup, list[Generation]]:
    """Submit a list of prompts; return the generations that have a place in the queue."""
    event = Event()
    call = GenerateCall([A], max_tokens, **{"deadline": 1e12, "sampling": ENDLESS, "event": event, **more})  # type: ignore[arg-type]
    handles = [Generation(call) for _ in range(count)]
    backlog = Backlog(engine, [(call, handle) for handle in handles])
    together = HandleGroup(handles, event, engine.clock(), backlog)
    backlog.feed(engine.reserve())
    return together, handles


def test_lists_share_half_of_the_queue_and_all_progress(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=2, max_waiting=8)
    lists = [submit_list(engine, 30) for _ in range(3)]
    assert engine.stats().waiting == 6  # half of the queue, and at least one request of each list
    singles = []
    for _ in range(400):
        if engine.stats().waiting < 6:
            singles.append(generate(engine, 3))
        engine.step()
        for together, _ in lists:
            together.wait(0)
    assert all(together.ended for together, _ in lists)
    assert [sample.finish for _, handles in lists for one in handles for sample in one.samples] == [Finish.LENGTH] * 90
    assert sum(one.ended for one in singles) > 50


def test_list_progresses_while_other_lists_fill_their_half_of_the_queue(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=1, max_waiting=4)
    others = [generate(engine, 2) for _ in range(3)]
    together, handles = submit_list(engine, 3)
    for _ in range(100):
        engine.step()
        if sum(not one.ended for one in others) < 3:
            others.append(generate(engine, 2))
        together.wait(0)
    assert [one.ended for one in handles] == [True] * 3


@pytest.mark.parametrize("end", ["cancelled", "out of time"])
def test_unqueued_requests_end_with_their_list(make_engine: MakeEngine, clock: Clock, end: str) -> None:
    engine = make_engine(max_slots=2, max_waiting=8)
    together, handles = submit_list(engine, 30, 10_000, deadline=clock() + 5.0)
    for _ in range(3):
        engine.step()
        together.wait(0)
    assert sum(one.started_at is not None for one in handles) == 2
    if end == "cancelled":
        together.cancel()
    else:
        clock.now += 6.0
    engine.step()
    assert together.wait_end(0)
    finish = Finish.CANCELLED if end == "cancelled" else Finish.TIMEOUT
    assert {sample.finish for one in handles for sample in one.samples} == {finish}
    assert together.cancelled == (end == "cancelled")
    engine.step()
    assert (engine.stats().waiting, engine.stats().running, engine._live.everyone()) == (0, 0, [])


def test_call_cancelled_before_queueing_ends_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    handle = Generation(call := GenerateCall([A], 10_000, 1e12, ENDLESS))
    handle.cancel()
    engine.generate(call, engine.reserve(), handle)
    engine.step()
    assert handle.ended


def test_list_fails_when_the_engine_has_stopped(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=2, max_waiting=8)
    together, handles = submit_list(engine, 30)
    engine.stop()
    with pytest.raises(NotReady):
        together.wait_end(0)
    together.cancel()
    assert all(one.ended for one in handles[10:])


def test_callers_take_turns_and_each_is_served_in_order(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=1, max_waiting=8)
    order: list[str] = []

    def ask(share: str, number: int) -> Generation:
        call = GenerateCall([A], 2, deadline=1e12)
        handle = Generation(call)
        handle.on_end = lambda: order.append(f"{share}{number}")
        return engine.generate(call, engine.reserve(share), handle)

    handles = [ask("greedy", number) for number in range(4)]
    handles += [ask("modest", 0), ask("modest", 1), ask("other", 0)]
    while not all(handle.ended for handle in handles):
        engine.step()
    assert order == ["greedy0", "modest0", "other0", "greedy1", "modest1", "greedy2", "greedy3"]


def test_full_queue_still_has_a_place_for_a_caller_below_its_share(make_engine: MakeEngine) -> None:
    engine = make_engine(max_waiting=4)
    greedy = [engine.reserve("greedy") for _ in range(4)]
    with pytest.raises(Overloaded):
        engine.reserve("greedy")
    modest = [engine.reserve("modest") for _ in range(2)]
    with pytest.raises(Overloaded):
        engine.reserve("modest")
    assert engine.try_reserve("greedy", for_list=False) is None
    for place in greedy + modest:
        place.release()
    assert engine.stats().waiting == 0
    assert engine.reserve("greedy").share == "greedy"


def test_waiting_tokens_are_what_the_queue_may_need(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=1, max_waiting=64)
    generate(engine, 2)
    engine.step()
    assert engine.stats().waiting_tokens == 0
    reserved = engine.reserve()
    assert (engine.stats().waiting, engine.stats().waiting_tokens) == (1, 0)
    waiting = [
        generate(engine, 7),  # 1 + 7
        generate(engine, 5, num_samples=3),  # 1 + 3 × 5
        generate(engine, 4, num_samples=2, num_beams=6),  # 1 + 6 × 4
        engine.score(ScoreCall([A, A], [[A] * 3, [A] * 40], 1e12), engine.reserve()),  # 2 + 3 + 40
    ]
    assert engine.stats().waiting_tokens == 8 + 16 + 25 + 45
    waiting[1].cancel()
    reserved.release()
    engine.step()
    assert engine.stats().waiting_tokens == 8 + 25, "the texts are read at once, and the cancelled request is gone"
    while not all(one.ended for one in waiting):
        engine.step()
    assert engine.stats().waiting_tokens == 0

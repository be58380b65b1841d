"""Who is let in: in turn, whatever a request needs, and ended once even while it is being queued."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.bundle import Bundle
from service.engine import Engine, EngineLimits, Finish, GenerateCall, Generation, Sampling, ScoreCall
from service.engine.scheduler import Request, Reservation
from service.errors import NotReady
from tests.service.engine.conftest import Clock

A = 2
ENDLESS = Sampling(logit_bias=((0, -100.0),))
MakeEngine = Callable[..., Engine]


def generate(engine: Engine, max_tokens: int, **more: object) -> Generation:
    call = GenerateCall([A], max_tokens, **{"deadline": 1e12, "sampling": ENDLESS, **more})  # type: ignore[arg-type]
    return engine.generate(call, engine.reserve())


def test_wide_request_is_not_passed_for_ever_by_narrow_ones(make_engine: MakeEngine) -> None:
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


def test_sentence_gets_in_while_generations_and_lists_queue(make_engine: MakeEngine) -> None:
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
    add = engine._scheduler.add

    def add_late(request: Request, reservation: Reservation) -> bool:
        clock.now = 10.0
        engine.step()  # the engine's thread is faster
        if closes:
            engine.stop()
        return add(request, reservation)

    monkeypatch.setattr(engine._scheduler, "add", add_late)
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


def test_long_text_leaves_some_of_the_cache_to_others(bundle: Bundle, clock: Clock) -> None:
    engine = Engine(bundle.runner, EngineLimits(2, 4, cache_bytes=100_000), clock)
    for prompt in ([5, 6, 7, 8], [A] * 5000, [5, 6, 7, 8]):
        generation = engine.generate(GenerateCall(prompt, 1, 1e12), engine.reserve())
        while not generation.ended:
            engine.step()
    assert generation.cached_tokens == 4

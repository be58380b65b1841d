"""Test the engine step by step: results, ends, and that each request ends once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from meari.errors import EngineFailed, NotReady, Overloaded, ScoreTimeout
from meari.runtime.bundle import Bundle
from meari.runtime.engine import (
    Engine,
    EngineLimits,
    Finish,
    GenerateCall,
    Generation,
    Sampling,
    ScoreCall,
    Scoring,
)
from meari.runtime.engine.cache import CacheRoom
from tests.patience import PATIENCE
from tests.runtime.engine.conftest import Clock
from tests.runtime.tiny_bundle import expected_logprob, next_id

GREEDY = Sampling(temperature=0.0)
A, B, C, Z = 2, 3, 4, 27
MakeEngine = Callable[..., Engine]


def generate(engine: Engine, prompt: list[int], max_tokens: int = 5, **more: object) -> Generation:
    call = GenerateCall(prompt, max_tokens, **{"deadline": 1e12, "sampling": GREEDY, **more})  # type: ignore[arg-type]
    return engine.generate(call, engine.reserve())


def score(engine: Engine, texts: list[list[int]], context: list[int] | None = None, **more: object) -> Scoring:
    call = ScoreCall(context or [], texts, **{"deadline": 1e12, **more})  # type: ignore[arg-type]
    return engine.score(call, engine.reserve())


def run(engine: Engine, *handles: Generation | Scoring, most: int = 1000) -> None:
    for _ in range(most):
        if all(handle.ended for handle in handles):
            return
        engine.step()
    pytest.fail(f"not ended after {most} steps")


def test_greedy_continuation_follows_the_alphabet(make_engine: MakeEngine) -> None:
    engine = make_engine()
    generation = generate(engine, [A, B], 3)
    run(engine, generation)
    assert generation.samples[0].token_ids == [4, 5, 6]
    assert generation.samples[0].finish is Finish.LENGTH


def test_logprobs_match_values_worked_by_hand(make_engine: MakeEngine) -> None:
    engine = make_engine()
    generation = generate(engine, [A, B], 3)
    run(engine, generation)
    by_hand = [expected_logprob(4 + i, 3 + i, 3 + i, peak=4.0, decay=0.125) for i in range(3)]
    assert generation.samples[0].logprobs == pytest.approx(by_hand, abs=1e-6)


def test_end_token_ends_a_sample_and_is_reported(make_engine: MakeEngine) -> None:
    engine = make_engine()
    generation = generate(engine, [Z])
    run(engine, generation)
    assert generation.samples[0].token_ids == [0]
    assert generation.samples[0].finish is Finish.END


def test_stop_matcher_ends_a_sample_after_the_token_that_completes_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    generation = generate(engine, [A], 20, stop=lambda: lambda token: token == 6)
    run(engine, generation)
    assert generation.samples[0].token_ids == [3, 4, 5, 6]
    assert generation.samples[0].finish is Finish.STOP


def test_failing_stop_matcher_fails_only_its_own_request(make_engine: MakeEngine) -> None:
    engine = make_engine()
    broken = generate(engine, [A], 20, stop=lambda: lambda token: token < 1 // 0)
    sound = generate(engine, [A], 3)
    run(engine, broken, sound)
    assert sound.samples[0].token_ids == [3, 4, 5]
    with pytest.raises(EngineFailed):
        broken.raise_for_failure()


def test_first_token_and_end_token_are_scored(make_engine: MakeEngine) -> None:
    engine = make_engine()
    scoring = score(engine, [[A, B]])
    run(engine, scoring)
    by_hand = [expected_logprob(t, after, n + 1, 4.0, 0.125) for n, (after, t) in enumerate([(0, A), (A, B), (B, 0)])]
    assert scoring.results[0].logprobs == pytest.approx(by_hand, abs=1e-6)


def test_scoring_without_the_end_does_not_run_the_last_token(make_engine: MakeEngine) -> None:
    engine = make_engine()
    scoring = score(engine, [[A, B]], add_end=False)
    run(engine, scoring)
    assert len(scoring.results[0].logprobs) == 2
    assert scoring.computed_tokens == 2  # the boundary and a


def test_empty_text_without_end_has_no_token_and_needs_no_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    scoring = score(engine, [[]], add_end=False)
    assert scoring.ended
    assert scoring.results[0].logprobs.shape == (0,)
    assert engine.stats().waiting == 0


def test_score_equals_the_logprobs_of_generation_bit_for_bit(make_engine: MakeEngine) -> None:
    engine = make_engine()
    generation = generate(engine, [C], 30, sampling=Sampling(temperature=3.0, seed=5))
    run(engine, generation)
    sample = generation.samples[0]
    ended = sample.finish is Finish.END
    text = sample.token_ids[:-1] if ended else sample.token_ids
    scoring = score(engine, [text], context=[C], add_end=ended)
    run(engine, scoring)
    assert scoring.results[0].logprobs.tolist() == sample.logprobs
    assert float(scoring.results[0].logprobs.sum()) == sum(sample.logprobs) == sum(reversed(sample.logprobs))


def test_shared_prefixes_are_computed_once_without_changing_scores(make_engine: MakeEngine) -> None:
    texts = [[A, B, C], [A, B], [A, B, C], [], [Z], [A, B, C, 9], [A, 7, 7]]
    engine = make_engine(max_slots=2)
    together = score(engine, texts, context=[9, 9], num_alternatives=3, want_ranks=True)
    run(engine, together)
    prefixes = {tuple(text[:n]) for text in texts for n in range(len(text) + 1)}
    assert together.computed_tokens == 2 + len(
        prefixes
    )  # boundary and context without its last token; () is the empty context
    for text, result in zip(texts, together.results, strict=True):
        alone = score(engine, [text], context=[9, 9], num_alternatives=3, want_ranks=True)
        run(engine, alone)
        assert result.logprobs.tolist() == alone.results[0].logprobs.tolist()
        assert result.alternative_ids.tolist() == alone.results[0].alternative_ids.tolist()
        assert result.alternative_logprobs.tolist() == alone.results[0].alternative_logprobs.tolist()
        assert result.ranks is not None
        assert alone.results[0].ranks is not None
        assert result.ranks.tolist() == alone.results[0].ranks.tolist()


def test_texts_score_the_same_in_a_list_and_alone(make_engine: MakeEngine) -> None:
    random = np.random.default_rng(3)
    for add_end in (True, False):
        texts = [random.integers(2, 4, random.integers(0, 6)).tolist() for _ in range(40)]
        engine = make_engine(max_slots=3)
        together = score(engine, texts, add_end=add_end)
        run(engine, together)
        fed = {tuple(t[:n]) for t in texts for n in range(len(t) + add_end)}
        assert together.computed_tokens == len(fed)
        for text, result in zip(texts, together.results, strict=True):
            alone = score(engine, [text], add_end=add_end)
            run(engine, alone)
            assert result.logprobs.tolist() == alone.results[0].logprobs.tolist()


def test_ranks_and_alternatives_name_the_likeliest(make_engine: MakeEngine) -> None:
    engine = make_engine()
    scoring = score(engine, [[A, A]], num_alternatives=2, want_ranks=True)
    run(engine, scoring)
    result = scoring.results[0]
    assert result.ranks is not None
    assert result.ranks.tolist() == [1, 2, 2]  # "a" after "a" shares rank 2 with all tokens except "b"
    assert result.alternative_ids[:, 0].tolist() == [next_id(0), next_id(A), next_id(A)]
    assert result.alternative_logprobs[0, 0] == result.logprobs[0]


def test_more_alternatives_than_tokens_returns_all_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine()
    scoring = score(engine, [[A]], num_alternatives=100)
    run(engine, scoring)
    assert sorted(scoring.results[0].alternative_ids[0].tolist()) == list(range(28))


def test_samples_share_the_prompt_and_differ(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=8)
    prompt = [A] * 10
    generation = generate(engine, prompt, 8, num_samples=4, sampling=Sampling(temperature=8.0, seed=3))
    run(engine, generation)
    stats = engine.stats()
    assert stats.tokens_sampled == sum(len(s.token_ids) for s in generation.samples)
    assert stats.rows < 2 * 11 + stats.tokens_sampled  # the prompt is fed once
    assert len({tuple(s.token_ids) for s in generation.samples}) == 4


def test_first_sample_does_not_depend_on_the_number_of_samples(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=2)
    settings = Sampling(temperature=8.0, seed=11)
    one = generate(engine, [A], 12, sampling=settings)
    many = generate(engine, [A], 12, num_samples=5, sampling=settings)
    run(engine, one, many)
    assert many.samples[0].token_ids == one.samples[0].token_ids
    assert many.samples[0].logprobs == one.samples[0].logprobs


@pytest.mark.parametrize("late", [0, 1, 7])
def test_result_is_the_same_alone_in_a_batch_and_joined_late(make_engine: MakeEngine, late: int) -> None:
    settings = Sampling(temperature=5.0, top_k=20, top_p=0.95, repetition_penalty=1.2, seed=99)
    alone = make_engine(max_slots=8)
    expected = generate(alone, [A, B], 15, sampling=settings)
    run(alone, expected)
    busy = make_engine(max_slots=8, max_waiting=64)
    neighbours: list[Generation | Scoring] = [
        generate(busy, [5] * n, 30, sampling=Sampling(temperature=2.0, seed=n)) for n in range(4)
    ]
    neighbours.append(score(busy, [[7] * 9, [8] * 3, [9]]))
    for _ in range(late):
        busy.step()
    got = generate(busy, [A, B], 15, sampling=settings)
    run(busy, got, *neighbours)
    assert got.samples[0].token_ids == expected.samples[0].token_ids
    assert got.samples[0].logprobs == expected.samples[0].logprobs


def test_leaky_graph_is_detected_and_run_row_by_row(leaky_bundle: Bundle, clock: Clock) -> None:
    assert not leaky_bundle.self_test.rows_isolated
    results = []
    for neighbours in (0, 3):
        engine = Engine(leaky_bundle.runner, EngineLimits(8, 8), clock)
        others = [generate(engine, [5] * (n + 3), 30) for n in range(neighbours)]
        for _ in range(neighbours):
            engine.step()
        generation = generate(engine, [A], 6)
        run(engine, generation, *others)
        results.append(generation.samples[0].logprobs)
    assert results[0] == results[1]


def test_requests_past_the_queue_are_refused_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=1, max_waiting=2)
    held = [engine.reserve(), engine.reserve()]
    with pytest.raises(Overloaded, match="2 requests"):
        engine.reserve()
    held[0].release()
    held[0].release()  # a second release has no effect
    engine.reserve()
    with pytest.raises(Overloaded):
        engine.reserve()
    assert engine.stats().requests_refused == 2


def test_request_that_gets_a_slot_frees_its_place_in_the_queue(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=1, max_waiting=1)
    first = generate(engine, [A], 5)
    with pytest.raises(Overloaded):
        engine.reserve()
    engine.step()
    second = generate(engine, [B], 5)
    run(engine, first, second)
    assert engine.stats().waiting == 0


def test_unused_reservation_is_released(make_engine: MakeEngine) -> None:
    engine = make_engine(max_waiting=1)
    with pytest.raises(ZeroDivisionError), engine.reserve():
        _ = 1 // 0
    with engine.reserve() as reservation:
        generation = engine.generate(GenerateCall([A], 1, 1e12, GREEDY), reservation)
    run(engine, generation)
    assert engine.stats().waiting == 0


def test_single_sentence_takes_turns_with_a_long_list(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=2)
    texts = [[5 + n % 20, n % 20 + 3, A, A, A, A] for n in range(200)]
    long_list = score(engine, texts)
    for _ in range(5):
        engine.step()
    single = score(engine, [[A, B]])
    steps = 0
    while not single.ended:
        engine.step()
        steps += 1
    assert not long_list.ended
    assert steps <= 12  # waits for at most one text of the list
    run(engine, long_list, most=5000)


def test_turn_of_a_list_feeds_many_tokens_of_few_texts_on_any_machine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("meari.runtime.engine.reading.thread_time", lambda: next(ticks))  # every turn seems slow
    engine = Engine(bundle.runner, EngineLimits(64, 8))
    scoring = score(engine, [[5 + n % 20, 3 + n // 20, *[A] * 14] for n in range(80)])
    turns = rows = 0
    while not scoring.ended:
        engine.step()
        turns += 1
        rows = max(rows, engine.stats().running)
    assert rows == 16
    assert engine.stats().rows > 48 * turns


def test_turns_do_not_get_smaller_while_the_engine_waits_for_a_cpu(bundle: Bundle) -> None:
    ticks = itertools.count()
    engine = Engine(bundle.runner, EngineLimits(8, 8), lambda: float(next(ticks)))  # a turn seems to take seconds
    many = [generate(engine, [A], max_tokens=128, sampling=Sampling(seed=n), ignores_end=True) for n in range(8)]
    run(engine, *many)
    assert engine.stats().steps < 64  # 128 with one token a turn


def test_lists_of_an_offline_engine_run_together(bundle: Bundle, clock: Clock) -> None:
    lists = [[[5 + n, A, m] for n in range(6)] for m in (B, C)]
    steps, figures = [], []
    for offline in (False, True):
        engine = Engine(bundle.runner, EngineLimits(16, 8, offline=offline), clock)
        scorings = [score(engine, texts) for texts in lists]
        run(engine, *scorings)
        steps.append(engine.stats().steps)
        figures.append([text.logprobs.tolist() for scoring in scorings for text in scoring.results])
    assert figures[0] == figures[1]
    assert steps[1] < steps[0]


def test_timeout_returns_the_text_so_far_and_frees_the_slot(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine(max_slots=1)
    slow = generate(engine, [A], 1000, deadline=10.0, sampling=Sampling(logit_bias=((0, -100.0),), temperature=0.0))
    waiting = generate(engine, [B], 1, deadline=5.0)
    for _ in range(3):  # the prompt and the first token in one turn, then a token in each
        engine.step()
    clock.now = 10.0
    engine.step()
    assert slow.samples[0].finish is Finish.TIMEOUT
    assert slow.samples[0].token_ids == [3, 4, 5]
    assert waiting.samples[0].finish is Finish.TIMEOUT
    assert waiting.samples[0].token_ids == []
    assert engine.stats().running == 0
    assert engine.stats().waiting == 0


def test_score_past_its_deadline_fails_with_timeout(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine()
    scoring = score(engine, [[A] * 100], deadline=1.0)
    engine.step()
    clock.now = 1.5
    engine.step()
    assert scoring.ended
    with pytest.raises(ScoreTimeout):
        scoring.raise_for_failure()


def test_cancelled_request_frees_its_slots_within_a_step(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=4)
    running = generate(engine, [A], 1000, num_samples=3, sampling=Sampling(logit_bias=((0, -100.0),)))
    queued = generate(engine, [B], 1000)
    for _ in range(3):
        engine.step()
    running.cancel()
    queued.cancel()
    engine.step()
    assert running.ended
    assert queued.ended
    assert {sample.finish for sample in running.samples} == {Finish.CANCELLED}
    assert engine.stats().running == 0


def test_cancelling_an_ended_request_has_no_effect(make_engine: MakeEngine) -> None:
    engine = make_engine()
    generation = generate(engine, [A], 2)
    run(engine, generation)
    generation.cancel()
    engine.step()
    assert generation.samples[0].finish is Finish.LENGTH


def test_stopping_ends_all_requests(bundle: Bundle) -> None:
    engine = Engine(bundle.runner, EngineLimits(1, 8))
    engine.start()
    forever = Sampling(logit_bias=((0, -100.0),))
    handles = [generate(engine, [A], 10**9, sampling=forever) for _ in range(3)]
    engine.stop()
    assert all(handle.ended for handle in handles)
    with pytest.raises(NotReady):
        handles[0].raise_for_failure()
    with pytest.raises(NotReady):
        engine.reserve()


def test_stopped_engine_gives_up_its_room_in_the_cache(bundle: Bundle) -> None:
    room = CacheRoom(10**6)
    engines = [Engine(bundle.runner, EngineLimits(1, 8)) for _ in range(2)]
    for engine in engines:
        engine.share_cache(room)
        engine.start()
        assert generate(engine, [A, B, A], 2).wait_end(10)
    before = room.num_bytes
    assert engines[0].stop()
    assert (engines[0].stats().cache_bytes, room.num_bytes) == (0, before // 2)
    assert engines[1].stop()
    assert room.num_bytes == 0


def test_concurrent_threads_get_their_own_results(running_engine: Engine) -> None:
    expected = {}
    for seed in range(6):
        generation = generate(running_engine, [A], 20, sampling=Sampling(temperature=4.0, seed=seed))
        assert generation.wait_end(10)
        expected[seed] = generation.samples[0].token_ids
    failures: list[str] = []

    def ask(seed: int) -> None:
        for _ in range(5):
            generation = generate(running_engine, [A], 20, sampling=Sampling(temperature=4.0, seed=seed))
            if not generation.wait_end(20) or generation.samples[0].token_ids != expected[seed]:
                failures.append(f"seed {seed}: {generation.samples[0]}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures


def test_waiting_for_events_yields_every_token_in_order(running_engine: Engine) -> None:
    generation = generate(running_engine, [A], 20, deadline=time.monotonic() + 20)
    seen: list[int] = []
    while True:
        assert generation.wait(PATIENCE)
        ended = generation.ended
        seen += generation.samples[0].token_ids[len(seen) :]
        if ended:
            break
    assert seen == [3 + n for n in range(20)]


def test_ended_requests_are_not_live(make_engine: MakeEngine) -> None:
    engine = make_engine(max_waiting=300)
    handles = [generate(engine, [A], 1) for _ in range(300)]
    run(engine, *handles)
    assert not engine._live.everyone()
    later = generate(engine, [A], 1)
    run(engine, later)
    assert len(engine._live._deadlines) < 100

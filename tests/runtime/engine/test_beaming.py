"""Test beam search in the engine: rows fork and are released, and every result has its state."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from meari.errors import EngineFailed
from meari.runtime.bundle import Bundle
from meari.runtime.engine import Engine, Finish, GenerateCall, Generation, ScoreCall, Scoring
from tests.runtime.engine.conftest import Clock

A, B, C = 2, 3, 4
MakeEngine = Callable[..., Engine]


def search(engine: Engine, prompt: list[int], max_tokens: int, **more: object) -> Generation:
    call = GenerateCall(prompt, max_tokens, **{"deadline": 1e12, "num_beams": 4, **more})  # type: ignore[arg-type]
    return engine.generate(call, engine.reserve())


def run(engine: Engine, *handles: Generation | Scoring, most: int = 500) -> None:
    for _ in range(most):
        if all(handle.ended for handle in handles):
            return
        engine.step()
    pytest.fail(f"not ended after {most} steps")


def test_beam_search_finds_the_best_continuation(make_engine: MakeEngine, bundle: Bundle) -> None:
    engine = make_engine(max_slots=64)
    generation = search(engine, [A], 2, num_beams=28, num_samples=5)
    size = bundle.runner.vocabulary_size
    texts = [[first, second] for first, second in product(range(1, size), range(size))]
    scoring = engine.score(ScoreCall([A], [[0], *texts], 1e12, add_end=False), engine.reserve())
    run(engine, generation, scoring)
    sums = np.array([text.logprobs.sum() for text in scoring.results])
    best = np.argsort(-sums, kind="stable")[:5]
    assert [sum(sample.logprobs) for sample in generation.samples] == sums[best].tolist()
    assert generation.samples[0].token_ids == [B, C]


def test_scoring_a_result_gives_the_score_of_the_search(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=8)
    generation = search(engine, [A, B], 6, num_samples=4)
    run(engine, generation)
    texts = [sample.token_ids for sample in generation.samples]
    scoring = engine.score(ScoreCall([A, B], texts, 1e12, add_end=False), engine.reserve())
    run(engine, scoring)
    assert [text.logprobs.tolist() for text in scoring.results] == [sample.logprobs for sample in generation.samples]


def test_search_releases_its_rows(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=4)
    first, second = (search(engine, [A], 8, num_samples=4) for _ in range(2))
    while not second.ended:
        engine.step()
        assert engine.stats().running <= 4
    assert first.ended
    assert engine.stats().running == 0
    assert [sample.token_ids for sample in second.samples] == [sample.token_ids for sample in first.samples]


def test_failing_stop_matcher_ends_only_its_own_search(make_engine: MakeEngine) -> None:
    class Broken:
        def __call__(self, token: int, /) -> bool:
            raise ZeroDivisionError

        def fork(self) -> Broken:
            return self

    engine = make_engine(max_slots=16)
    broken, sound = search(engine, [A], 5, stop=Broken), search(engine, [A], 5)
    run(engine, broken, sound)
    assert [sample.finish for sample in broken.samples] == [Finish.FAILED]
    assert sound.samples[0].finish is Finish.LENGTH
    with pytest.raises(EngineFailed):
        broken.raise_for_failure()


def test_search_past_its_deadline_returns_live_hypotheses_with_states(make_engine: MakeEngine, clock: Clock) -> None:
    engine = make_engine(max_slots=8)
    generation = search(engine, [A], 1000, num_samples=4, deadline=5.0, want_state=True)
    for _ in range(3):
        engine.step()
    clock.now = 6.0
    engine.step()
    for sample in generation.samples:
        assert sample.state is not None
        assert sample.state.token == sample.token_ids[-1]
        assert sample.state.rows["count"].tolist() == [sample.state.position] == [1 + len(sample.token_ids)]
    live = [sample.token_ids for sample in generation.samples if sample.finish is Finish.TIMEOUT]
    assert live[0] == [B + n for n in range(len(live[0]))]


def test_states_are_kept_only_on_request(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=8)
    plain, wanted = search(engine, [A], 3), search(engine, [A], 3, want_state=True)
    run(engine, plain, wanted)
    assert plain.samples[0].state is None
    assert wanted.samples[0].state is not None

"""Test isolation on the released bundles, fp32 and int8, in the real engine.

A request's tokens and logprobs have the same bits alone, in a batch, and when it joins a batch late.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.engine import Engine, EngineLimits, GenerateCall, Generation, Sampling, ScoreCall, Scoring
from meari.runtime.engine.runner import NOTHING, Ids, ReadInputs, RunResult, States, WriteInputs
from meari.runtime.self_test import rows_are_isolated, run_output, run_step

BUNDLES = sorted(path.parent for path in (Path(__file__).parents[3] / "bundles").glob("*/manifest.json"))


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def released(request: pytest.FixtureRequest) -> Bundle:
    """Open each released bundle for 16 slots."""
    return open_bundle(request.param, max_slots=16)


def test_released_bundles_exist() -> None:
    assert BUNDLES


def run(engine: Engine, *handles: Generation | Scoring) -> None:
    while not all(handle.ended for handle in handles):
        engine.step()


def generate(engine: Engine, prompt: list[int], seed: int, max_tokens: int = 24) -> Generation:
    settings = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=seed)
    return engine.generate(GenerateCall(prompt, max_tokens, 1e12, settings), engine.reserve())


def test_rows_are_isolated_on_this_cpu(released: Bundle) -> None:
    assert released.self_test.rows_isolated


@pytest.mark.parametrize("kind", ["written", "read", "read in long runs"])
def test_rows_that_depend_on_the_batch_are_detected(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    runner = bundle.runner
    write, run = runner.write, runner.run

    def leaky_write(tokens: Ids, states: States, inputs: WriteInputs) -> RunResult:
        ran = write(tokens, states, inputs)
        return replace(ran, picked_logprobs=ran.picked_logprobs - np.float32(1e-6 * (len(tokens) > 7)))

    def leaky_run(tokens: Ids, states: States, inputs: ReadInputs = NOTHING, **more: Any) -> RunResult:
        ran = run(tokens, states, inputs, **more)
        most = 7 if kind == "read" else 8
        if len(inputs.places) <= most:
            return ran
        return replace(ran, picked_logprobs=ran.picked_logprobs - np.float32(1e-6))

    assert rows_are_isolated(runner, 8, (1, 2, 3, 7))
    if kind == "written":
        monkeypatch.setattr(runner, "write", leaky_write)
    else:
        monkeypatch.setattr(runner, "run", leaky_run)
    assert not rows_are_isolated(runner, 8, (1, 2, 3, 7))


def test_generation_is_the_same_alone_and_in_a_batch(released: Bundle) -> None:
    random = np.random.default_rng(0)
    prompt = random.integers(2, released.runner.vocabulary_size, 12).tolist()
    alone = Engine(released.runner, EngineLimits(16, 64))
    expected = generate(alone, prompt, seed=1)
    run(alone, expected)
    busy = Engine(released.runner, EngineLimits(16, 64))
    others = [generate(busy, random.integers(2, 40, n).tolist(), seed=n) for n in range(1, 12)]
    for _ in range(7):
        busy.step()
    late = generate(busy, prompt, seed=1)
    run(busy, late, *others)
    assert late.samples[0].token_ids == expected.samples[0].token_ids
    assert late.samples[0].logprobs == expected.samples[0].logprobs


IN_THE_GRAPH: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.3},
    {"min_p": 0.05},
    {"top_p": 0.9},
    {"temperature": 0.3, "top_p": 0.3},
    {"top_k": 5},
    {"temperature": 3.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"top_k": 10**6},
    {"top_k": 20, "top_p": 0.5, "min_tokens": 6},
    {"temperature": 0.0, "min_tokens": 12},
]
OUTSIDE: list[dict[str, Any]] = [
    {"temperature": 1e-3},
    {"repetition_penalty": 1.3},
    {"logit_bias": ((5, 2.0),)},
]


@pytest.mark.parametrize("ways", [IN_THE_GRAPH, IN_THE_GRAPH + OUTSIDE], ids=["in the graph", "outside, too"])
def test_sampling_settings_do_not_affect_other_rows(released: Bundle, ways: list[dict[str, Any]]) -> None:
    calls = [GenerateCall([5, 9, 7], 20, 1e12, Sampling(**way, seed=seed)) for way in ways for seed in range(3)]
    together = Engine(released.runner, EngineLimits(16, 64))
    got = [together.generate(call, together.reserve()) for call in calls]
    run(together, *got)
    for call, generation in zip(calls, got, strict=True):
        alone = Engine(released.runner, EngineLimits(16, 64))
        expected = alone.generate(call, alone.reserve())
        run(alone, expected)
        assert (generation.samples[0].token_ids, call.sampling) == (expected.samples[0].token_ids, call.sampling)
        assert generation.samples[0].logprobs == expected.samples[0].logprobs


def test_score_equals_the_logprobs_of_generation(released: Bundle) -> None:
    engine = Engine(released.runner, EngineLimits(16, 64))
    generation = generate(engine, [5, 9, 7], seed=4)
    run(engine, generation)
    sample = generation.samples[0]
    text = sample.token_ids
    texts = [text, text[:9], [*text[:5], 3], [8] * 30]
    scoring = engine.score(ScoreCall([5, 9, 7], texts, 1e12, add_end=False), engine.reserve())
    others = [generate(engine, [n], seed=n) for n in range(2, 9)]
    run(engine, scoring, *others)
    assert scoring.results[0].logprobs.tolist() == sample.logprobs
    assert scoring.results[1].logprobs.tolist() == sample.logprobs[:9]


def test_probabilities_sum_to_one_in_any_context(released: Bundle) -> None:
    runner = released.runner
    random = np.random.default_rng(2)
    states = runner.initial_states(16)
    tokens = np.full(16, runner.end_id, np.int64)
    for _ in range(40):
        hidden, states = run_step(runner, tokens, states)
        _, logprobs = run_output(runner, hidden)
        sums = np.exp(logprobs.astype(np.float64)).sum(axis=1)
        assert np.abs(sums - 1).max() < 1e-5
        tokens = random.integers(0, runner.vocabulary_size, 16)

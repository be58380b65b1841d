"""Test random mixes of requests: each result equals that on a fresh engine without a cache, bit for bit.

Requests arrive, are cancelled or time out at any turn, and continue states of one another.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meari.errors import EngineFailed, ScoreTimeout
from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.engine import Engine, EngineLimits, Finish, GenerateCall, Generation, ScoreCall, Scoring, StateValue
from meari.runtime.self_test import run_step
from tests.runtime.engine.workload import (
    TRUNKS,
    Job,
    SubmittedJob,
    Ticking,
    generations,
    jobs,
    limits,
    run_alone,
    run_together,
    ticks,
)

RELEASED = Path(__file__).parents[3] / "bundles" / "shakespeare-gru"
BUNDLES = ["tiny", "leaky", "released"]


def step_through(bundle: Bundle, ids: list[int]) -> dict[str, bytes]:
    """Return the hidden row and the state after these tokens, computed step by step."""
    hidden, states = np.empty(0, np.float32), bundle.runner.initial_states(1)
    for token in ids:
        hidden, states = run_step(bundle.runner, np.array([token]), states)
    return {"hidden": hidden.tobytes(), **{name: values.tobytes() for name, values in states.items()}}


def check_state(state: StateValue, bundle: Bundle, call: GenerateCall | ScoreCall, ids: list[int]) -> None:
    """Check that a state is that of the text without its last, pending token."""
    if call.start is not None:
        return
    text = [0, *(call.prompt if isinstance(call, GenerateCall) else call.context), *ids]
    assert (state.token, state.position) == (text[-1], len(text) - 1)
    assert state.seen == set(text[1:])
    assert state.generated == (Counter(ids) if isinstance(call, GenerateCall) else {})
    expected = step_through(bundle, text[:-1])
    if len(text) > 1:
        assert {name: values.tobytes() for name, values in state.rows.items()}.items() <= expected.items()


def same_state(got: StateValue | None, expected: StateValue | None) -> bool:
    if got is None or expected is None:
        return got is expected
    rows = {name: values.tobytes() for name, values in got.rows.items()}
    return rows == {name: values.tobytes() for name, values in expected.rows.items()} and all(
        getattr(got, name) == getattr(expected, name) for name in ("token", "position", "seed", "seen", "generated")
    )


def check_generation(ran: SubmittedJob, got: Generation, alone: Generation, bundle: Bundle) -> None:
    call = ran.call
    assert isinstance(call, GenerateCall)
    for sample, expected in zip(got.samples, alone.samples, strict=True):
        length = len(sample.token_ids)
        assert (sample.state is not None) == (call.want_state and length > 0)
        if sample.state is not None:
            check_state(sample.state, bundle, call, sample.token_ids)
        if call.num_beams > 1 and ran.job.is_cut:
            assert sample.finish is not None  # the best of the results finished by then
        elif sample.finish in {Finish.TIMEOUT, Finish.CANCELLED}:
            assert ran.job.is_cut
            assert (sample.token_ids, sample.logprobs) == (expected.token_ids[:length], expected.logprobs[:length])
        else:
            assert (sample.token_ids, sample.finish) == (expected.token_ids, expected.finish)
            assert (sample.logprobs, sample.alternatives) == (expected.logprobs, expected.alternatives)
            assert same_state(sample.state, expected.state)


def num_prefixes(call: ScoreCall) -> int:
    """Return the number of distinct prefixes needed for the figures and the requested states."""
    before = [call.start.token if call.start is not None else 0, *call.context]
    texts = [[*before, *text, *([0] if call.add_end else [])] for text in call.texts]
    run = [text for text in texts if len(text) > len(before) or call.want_state]
    return len({tuple(text[:n]) for text in run for n in range(1, len(text))})


def check_scoring(ran: SubmittedJob, got: Scoring, alone: Scoring, bundle: Bundle) -> None:
    call = ran.call
    assert isinstance(call, ScoreCall)
    if got.failure is not None:
        assert isinstance(got.failure, ScoreTimeout | EngineFailed)
        assert ran.job.is_cut
        assert not got.results
        return
    assert alone.computed_tokens == num_prefixes(call)
    assert got.cached_tokens + got.computed_tokens <= alone.computed_tokens
    for text, result, expected in zip(call.texts, got.results, alone.results, strict=True):
        for name in ("logprobs", "ranks", "alternative_ids", "alternative_logprobs"):
            assert np.array_equal(getattr(result, name), getattr(expected, name))
        assert same_state(result.state, expected.state)
        assert (result.state is not None) == call.want_state
        if result.state is not None:
            check_state(result.state, bundle, call, list(text))


def check_cache(engine: Engine, bundle: Bundle) -> None:
    """Check that the cache holds the states of a step-by-step computation."""
    if engine._cache is None:
        return
    assert engine._cache.num_bytes <= engine.limits.cache_bytes
    for trunk in TRUNKS:
        match = engine._cache.longest([0, *trunk])
        if match is not None:
            runner = bundle.runner  # the hidden vector may be part of the state, and is not stored separately then
            hidden = runner.hidden_in(match.states) if runner.hidden_states else match.hidden
            held = {name: values.tobytes() for name, values in {"hidden": hidden, **match.states}.items()}
            assert held == step_through(bundle, [0, *trunk][: match.length])


@cache
def released() -> Bundle:
    """Open a released bundle."""
    return open_bundle(RELEASED, max_slots=16)


@pytest.fixture
def chosen(request: pytest.FixtureRequest, bundle: Bundle, leaky_bundle: Bundle) -> Bundle:
    """Return a bundle whose rows show their state, one that is run row by row, or a released one."""
    return {"tiny": bundle, "leaky": leaky_bundle}.get(request.param) or released()


@pytest.mark.parametrize("chosen", BUNDLES, indirect=True)
def test_every_request_gets_the_result_that_it_gets_alone(chosen: Bundle) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(jobs, min_size=1, max_size=8), limits, ticks)
    def holds(jobs: list[Job], limits: EngineLimits, tick: float) -> None:
        clock = Ticking(tick)
        engine = Engine(chosen.runner, limits, clock)
        for ran in run_together(engine, clock, jobs):
            alone = run_alone(chosen, ran.call)
            if isinstance(ran.handle, Generation):
                assert isinstance(alone, Generation)
                check_generation(ran, ran.handle, alone, chosen)
            else:
                assert isinstance(alone, Scoring)
                check_scoring(ran, ran.handle, alone, chosen)
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert not engine._live.everyone()
        lanes = engine._lanes
        assert (lanes._num_writing_rows, lanes._num_short, len(lanes.writing)) == (0, 0, 0)
        assert (len(lanes._short), lanes._lists) == (0, {})
        check_cache(engine, chosen)

    holds()


@pytest.mark.parametrize("chosen", BUNDLES, indirect=True)
def test_text_generated_in_parts_equals_the_text_generated_at_once(chosen: Bundle) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        generations,
        st.lists(st.integers(1, 12), min_size=1, max_size=4),
        st.sampled_from([None, 0, 5, 20]),
        st.lists(jobs, max_size=3),
        limits,
        ticks,
    )
    def holds(
        call: GenerateCall, lengths: list[int], cut: int | None, others: list[Job], limits: EngineLimits, tick: float
    ) -> None:
        whole = run_alone(chosen, dataclasses.replace(call, max_tokens=sum(lengths), want_state=True))
        assert isinstance(whole, Generation)
        clock = Ticking(tick)
        engine = Engine(chosen.runner, limits, clock)
        first = dataclasses.replace(call, max_tokens=lengths[0], want_state=True)
        got = run_together(engine, clock, [Job(first, 0, lifetime=cut), *others])[0].handle
        assert isinstance(got, Generation)
        for first_part, expected in zip(got.samples, whole.samples, strict=True):
            sample, tokens, logprobs = first_part, list(first_part.token_ids), list(first_part.logprobs)
            for length in [*lengths[1:], lengths[0]]:  # once more if the first part was cut short
                num_left = min(length, sum(lengths) - len(tokens))
                state = sample.state
                if state is None or sample.finish in {Finish.END, Finish.STOP} or not num_left:
                    break
                num_before_end = max(0, call.sampling.min_tokens - len(tokens))
                sampling = dataclasses.replace(call.sampling, seed=state.seed, min_tokens=num_before_end)
                more = dataclasses.replace(
                    call,
                    prompt=[],
                    max_tokens=num_left,
                    sampling=sampling,
                    num_samples=1,
                    num_alternatives=None,
                    start=state,
                    want_state=True,
                )
                part = run_together(engine, clock, [Job(more, 0), *others])[0].handle
                assert isinstance(part, Generation)
                sample = part.samples[0]
                tokens += sample.token_ids
                logprobs += sample.logprobs
            assert tokens == expected.token_ids[: len(tokens)]
            assert logprobs == expected.logprobs[: len(tokens)]
            if cut is None:
                assert (len(tokens), sample.finish) == (len(expected.token_ids), expected.finish)
                assert same_state(sample.state, expected.state)

    holds()

"""Test that a fault of the model fails the requests that it concerns, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from meari.errors import EngineFailed, NotReady
from meari.runtime.bundle import Bundle, open_bundle
from meari.runtime.engine import Engine, EngineLimits, Finish, Handle, Sampling, StateValue
from meari.runtime.engine.row_by_row import RowByRowRunner
from meari.runtime.engine.runner import Runner, Sessions
from tests.patience import PATIENCE
from tests.runtime.engine.test_loop import A, B, generate, run, score
from tests.runtime.tiny_bundle import FAULT_AFTER, KINDS_OF_FAULTS, UNKNOWN, Fault, Z, write_tiny_bundle

READS_FAULT = [A] * FAULT_AFTER + [UNKNOWN]  # a prompt at whose last token the graph fails
WRITES_FAULT = [*range(A, Z)]  # a prompt that goes on with z, at which the graph fails
OpenFaulty = Callable[..., Bundle]


@pytest.fixture(scope="module")
def open_faulty(tmp_path_factory: pytest.TempPathFactory) -> OpenFaulty:
    opened: dict[tuple[str, int], Bundle] = {}

    def open_(fault: Fault, token: int = UNKNOWN) -> Bundle:
        if (fault, token) not in opened:
            folder = tmp_path_factory.mktemp("faulty") / "tiny"
            write_tiny_bundle(folder, peak=4.0, fault=fault, fault_token=token)
            opened[fault, token] = open_bundle(folder, max_slots=8)
        return opened[fault, token]

    return open_


def make(bundle: Bundle, *, cache_bytes: int = 10**6, runner: Runner | None = None) -> Engine:
    return Engine(runner or bundle.runner, EngineLimits(8, 16, cache_bytes))


def assert_failed(handle: Handle) -> None:
    assert handle.ended
    with pytest.raises(EngineFailed):
        handle.raise_for_failure()


def assert_works(engine: Engine) -> None:
    """Check that nothing is left behind, and that new requests are answered rightly."""
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.requests_running, engine.failure) == (0, 0, 0, None)
    written, scored = generate(engine, [A], 3), score(engine, [[A, B]])
    run(engine, written, scored)
    written.raise_for_failure()
    scored.raise_for_failure()
    assert written.samples[0].token_ids == [3, 4, 5]


@pytest.mark.parametrize("kind", ["hidden", "state"])
def test_bundle_whose_fault_lies_outside_its_self_test_is_opened_with_isolated_rows(
    open_faulty: OpenFaulty, kind: Fault
) -> None:
    assert open_faulty(kind).self_test.rows_isolated


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
@pytest.mark.parametrize("more", [{}, {"num_samples": 3}, {"num_beams": 3}, {"num_alternatives": 2}], ids=str)
def test_prompt_at_which_the_model_fails_fails_its_request(
    open_faulty: OpenFaulty, kind: Fault, more: dict[str, int]
) -> None:
    engine = make(open_faulty(kind))
    broken = generate(engine, READS_FAULT, 5, **more)
    run(engine, broken)
    assert_failed(broken)
    assert all(not sample.token_ids for sample in broken.samples)
    assert {sample.finish for sample in broken.samples} == {Finish.FAILED}
    assert_works(engine)


@pytest.mark.parametrize("kind", ["hidden", "state"])
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(seed=1), Sampling(top_k=3), Sampling(logit_bias=((0, -1.0),))]
)
def test_row_that_is_not_finite_fails_alone(open_faulty: OpenFaulty, kind: Fault, sampling: Sampling) -> None:
    bundle = open_faulty(kind, Z)
    alone = make(bundle)
    expected = generate(alone, [A, B], 12, sampling=sampling)
    run(alone, expected)
    engine = make(bundle)
    before = generate(engine, [A, B], 12, sampling=sampling)
    broken = [
        generate(engine, WRITES_FAULT, 12, **more)
        for more in ({}, {"num_samples": 2}, {"num_beams": 2}, {"num_alternatives": 1})
    ]
    after = generate(engine, [A, B], 12, sampling=sampling)
    run(engine, before, after, *broken)
    for handle in broken:
        assert_failed(handle)
        assert Finish.END not in {sample.finish for sample in handle.samples}
    for handle in (before, after):
        handle.raise_for_failure()
        assert handle.samples[0].token_ids == expected.samples[0].token_ids
        assert handle.samples[0].logprobs == expected.samples[0].logprobs
    assert_works(engine)


def test_tokens_before_the_fault_are_the_right_ones(open_faulty: OpenFaulty) -> None:
    engine = make(open_faulty("state", Z))
    broken = generate(engine, [*range(A, Z - 4)], 32)
    run(engine, broken)
    assert_failed(broken)
    assert broken.samples[0].token_ids == [23, 24, 25, 26, 27]
    assert np.isfinite(broken.samples[0].logprobs).all()


def test_sample_that_ended_before_the_fault_is_whole(open_faulty: OpenFaulty) -> None:
    """The graph goes on with a row to the end of its run: what it computes there belongs to nobody."""
    bundle = open_faulty("state", Z)
    engine = make(bundle)
    # Beside a longer one, a sample that ends with the token before z runs on past it.
    long = [generate(engine, [A], 10) for _ in range(7)]
    short = generate(engine, [*range(A, Z - 2)], 2)
    run(engine, short, *long)
    short.raise_for_failure()
    assert short.samples[0].token_ids == [Z - 2, Z - 1]
    assert_works(engine)


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
@pytest.mark.parametrize("more", [{}, {"want_ranks": True}, {"num_alternatives": 3}, {"want_state": True}], ids=str)
@pytest.mark.parametrize("num_texts", [1, 6])
def test_text_at_which_the_model_fails_fails_its_request(
    open_faulty: OpenFaulty, kind: Fault, more: dict[str, Any], num_texts: int
) -> None:
    engine = make(open_faulty(kind))
    broken = score(engine, [[A, B], *([*READS_FAULT, number] for number in range(A, A + num_texts))], **more)
    sound = score(engine, [[A, B]]) if kind != "throw" else None
    run(engine, broken, *([sound] if sound else []))
    assert_failed(broken)
    assert not any(np.isnan(result.logprobs).any() for result in (sound.results if sound else ()))
    assert_works(engine)


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
def test_no_state_that_is_not_finite_enters_the_cache(open_faulty: OpenFaulty, kind: Fault) -> None:
    bundle = open_faulty(kind)
    engine = make(bundle)
    for _ in range(2):
        run(engine, broken := generate(engine, [*READS_FAULT, A, B], 3))
        assert_failed(broken)
        run(engine, scoring := score(engine, [[A]], context=[*READS_FAULT, A, B]))
        assert_failed(scoring)
        assert broken.cached_tokens <= len(READS_FAULT) - 1
    sound = generate(engine, READS_FAULT[:-1], 3)
    run(engine, sound)
    sound.raise_for_failure()
    assert_works(engine)


def test_state_at_which_the_model_fails_is_not_returned(open_faulty: OpenFaulty) -> None:
    engine = make(open_faulty("state", Z))
    timed_out = generate(engine, WRITES_FAULT, 12, want_state=True)
    run(engine, timed_out)
    assert_failed(timed_out)
    assert timed_out.samples[0].state is None


def test_state_with_nan_that_comes_in_fails_the_request(bundle: Bundle) -> None:
    engine = make(bundle)
    start = StateValue({"count": np.array([np.nan], np.float32)}, A, 1)
    handles = generate(engine, [B], 3, start=start), score(engine, [[B]], start=start, want_state=True)
    run(engine, *handles)
    for handle in handles:
        assert_failed(handle)
    assert_works(engine)


@pytest.mark.parametrize("kind", ["hidden", "state"])
def test_rows_that_are_run_one_by_one_fail_alone_too(open_faulty: OpenFaulty, kind: Fault) -> None:
    bundle = open_faulty(kind)
    engine = make(bundle, runner=RowByRowRunner.replacing(bundle.runner))
    broken, sound = generate(engine, READS_FAULT, 5), generate(engine, [A], 3)
    run(engine, broken, sound)
    assert_failed(broken)
    assert sound.samples[0].token_ids == [3, 4, 5]
    assert_works(engine)


def test_operator_that_throws_fails_the_requests_of_its_turn(open_faulty: OpenFaulty) -> None:
    engine = make(open_faulty("throw"))
    engine.start()
    listed = score(engine, [[A, B, last] for last in range(A, A + 6)])  # in a lane of its own
    broken, beside = score(engine, [[*READS_FAULT, A]]), generate(engine, READS_FAULT, 3)
    for handle in (listed, broken, beside):
        assert handle.wait_end(PATIENCE)
    listed.raise_for_failure()
    assert_failed(broken)
    assert_failed(beside)
    after = generate(engine, [A], 3)
    assert after.wait_end(PATIENCE)
    assert after.samples[0].token_ids == [3, 4, 5]
    assert engine.stop()


def test_throwing_while_writing_fails_the_rows_that_write(open_faulty: OpenFaulty) -> None:
    engine = make(open_faulty("throw", Z))
    broken = generate(engine, WRITES_FAULT, 5)
    cached = generate(engine, [A], 1)
    run(engine, broken, cached)
    assert_failed(broken)
    assert_works(engine)


@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
def test_requests_that_fail_again_and_again_do_not_end_the_engine(open_faulty: OpenFaulty, kind: Fault) -> None:
    engine = make(open_faulty(kind))
    for _ in range(12):
        run(engine, broken := generate(engine, READS_FAULT, 3))
        assert_failed(broken)
    assert_works(engine)


def test_engine_whose_graphs_run_nothing_any_more_ends(bundle: Bundle) -> None:
    sound = bundle.runner
    swapped = Sessions(reader=sound.sessions.writer, writer=sound.sessions.reader)  # neither knows what it is fed
    runner = Runner(swapped, sound.state_tensors, sound.hidden_size, sound.vocabulary_size, sound.end_id)
    engine = make(bundle, runner=runner)
    failed: list[Handle] = [generate(engine, [A], 3), score(engine, [[A]])]
    engine.start()
    while engine.is_ready:
        with contextlib.suppress(NotReady):  # it may end between the two
            failed.append(generate(engine, [A], 3))
            assert failed[-1].wait_end(PATIENCE)
    for handle in failed:
        assert handle.wait_end(PATIENCE)
        assert_failed(handle)
    assert engine.failure is not None
    assert not engine.is_ready


class Panic(BaseException):
    """An error like those of tokenizers' Rust code, which are no `Exception`."""


@pytest.mark.parametrize("num_beams", [1, 2])
def test_matcher_that_panics_fails_its_request_alone(bundle: Bundle, num_beams: int) -> None:
    class Matcher:
        def __call__(self, token: int, /) -> bool:
            raise Panic

        def fork(self) -> Matcher:
            return self

    engine = make(bundle)
    broken, sound = generate(engine, [A], 3, stop=Matcher, num_beams=num_beams), generate(engine, [A], 3)
    run(engine, broken, sound)
    assert_failed(broken)
    sound.raise_for_failure()
    assert_works(engine)

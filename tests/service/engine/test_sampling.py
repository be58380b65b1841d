"""Sampling: what each setting leaves, how often tokens come, and that rows do not see one another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from service.engine.calls import Sampling
from service.engine.sampling import Sampler, likeliest, on_grid, pick_by_cumulative, sample_rows, truncated

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))


def logprobs_of(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    exact = logits.astype(np.float64)
    result: npt.NDArray[np.float32] = (exact - np.log(np.exp(exact).sum(-1, keepdims=True))).astype(np.float32)
    return result


def draw(settings: Sampling, logits: npt.NDArray[np.float32] = LOGITS, count: int = 4000) -> npt.NDArray[np.float64]:
    """Relative frequencies of the tokens over independent samplers' first tokens."""
    tokens = []
    for index in range(count):
        sampler = Sampler(settings, index, [])
        tokens += sample_rows([sampler], logits[None], logprobs_of(logits)[None])
    return np.bincount(tokens, minlength=len(logits)) / count


def kept(settings: Sampling, logits: npt.NDArray[np.float32] = LOGITS) -> set[int]:
    return set(np.flatnonzero(draw(settings, logits)).tolist())


def test_plain_sampling_follows_the_distribution() -> None:
    assert draw(Sampling(seed=1)) == pytest.approx(np.exp(LOGITS), abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    weights = np.exp(LOGITS.astype(np.float64) / 0.5)
    assert draw(Sampling(temperature=0.5)) == pytest.approx(weights / weights.sum(), abs=0.03)
    assert draw(Sampling(temperature=10.0)).min() > 0.1


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-300, 5e-324])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    assert kept(Sampling(temperature=temperature)) == {0}


@pytest.mark.parametrize(("top_k", "expected"), [(1, {0}), (2, {0, 1}), (5, {0, 1, 2, 3, 4}), (0, {0, 1, 2, 3, 4})])
def test_top_k_keeps_the_likeliest(top_k: int, expected: set[int]) -> None:
    assert kept(Sampling(top_k=top_k)) == expected


@pytest.mark.parametrize(("top_p", "expected"), [(0.01, {0}), (0.39, {0}), (0.41, {0, 1}), (0.91, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, expected: set[int]) -> None:
    assert kept(Sampling(top_p=top_p)) == expected


def test_top_p_is_taken_of_what_top_k_leaves() -> None:
    assert kept(Sampling(top_k=2, top_p=0.55)) == {0}  # 0.4 of 0.7 is 0.571
    assert kept(Sampling(top_k=2, top_p=0.58)) == {0, 1}


@pytest.mark.parametrize(
    ("min_p", "expected"), [(0.49, {0, 1, 2}), (0.74, {0, 1}), (0.99, {0}), (0.09, {0, 1, 2, 3, 4})]
)
def test_min_p_is_a_share_of_the_likeliest(min_p: float, expected: set[int]) -> None:
    assert kept(Sampling(min_p=min_p)) == expected


def test_ties_keep_the_lower_ids() -> None:
    assert truncated(np.zeros(6), 2, 1.0, 0.0).tolist() == [0, 1]  # type: ignore[union-attr]
    assert likeliest(np.zeros((1, 6), np.float32), 3).tolist() == [[0, 1, 2]]


def test_logit_bias_is_added_before_everything_else() -> None:
    assert kept(Sampling(logit_bias=((4, 100.0),))) == {4}
    assert kept(Sampling(logit_bias=((0, -100.0),), temperature=0.0)) == {1}
    assert kept(Sampling(logit_bias=((4, 20.0),), top_k=1)) == {4}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), 0, [0])
    assert sampler.pick(logits) == 1  # 2.0 / 2 < 1.5
    sampler.saw(1)
    assert sampler._reshaped(logits).tolist() == pytest.approx([1.0, 0.75, -1.0, -1.2])
    sampler.saw(2)
    assert sampler._reshaped(logits)[2] == pytest.approx(-2.0)


def test_penalty_below_one_favours_what_was_seen() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=0.5), 0, [1])
    assert sampler.pick(np.array([2.0, 1.5], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5e-324])
def test_tiniest_penalty_leaves_nothing_but_what_was_seen(temperature: float) -> None:
    logits = np.array([[3.0, 1.0, 2.0, -1.0]], np.float32)
    sampler = Sampler(Sampling(temperature=temperature, repetition_penalty=5e-324), 0, [1, 2])
    assert {sample_rows([sampler], logits, logprobs_of(logits))[0] for _ in range(50)} <= {1, 2}


def test_rows_do_not_see_one_another() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 1000)).astype(np.float32)
    logprobs = logprobs_of(logits)
    settings = [
        Sampling(seed=1),
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, seed=2),
        Sampling(repetition_penalty=1.3, logit_bias=((5, 2.0),), seed=3),
    ]
    together = sample_rows([Sampler(settings[r % 4], r, [5]) for r in range(64)], logits, logprobs)
    alone = [
        sample_rows([Sampler(settings[r % 4], r, [5])], logits[r : r + 1], logprobs[r : r + 1])[0] for r in range(64)
    ]
    assert together == alone


def test_choice_of_weight_zero_is_never_taken() -> None:
    weights = np.array([[0.0, 1.0, 0.0, 2.0, 0.0]])
    for uniform in (0.0, 0.3333333333333333, 0.34, 1 - 2**-53):
        assert pick_by_cumulative(weights, np.array([uniform]))[0] in {1, 3}


def test_seed_fixes_the_tokens_and_samples_of_a_seed_differ() -> None:
    def tokens(seed: int, index: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), index, [])
        return [sample_rows([sampler], LOGITS[None], LOGITS[None])[0] for _ in range(50)]

    assert tokens(7, 0) == tokens(7, 0)
    assert tokens(7, 0) != tokens(7, 1)
    assert tokens(7, 0) != tokens(8, 0)
    assert tokens(2**63 - 1, 0) == tokens(2**63 - 1, 0)


def test_grid_keeps_sums_exact_in_any_order() -> None:
    values = on_grid(-np.random.default_rng(1).exponential(3.0, 100_000).astype(np.float32))
    tiny = on_grid(-np.random.default_rng(2).exponential(1e-6, 100_000).astype(np.float32))
    everything = np.concatenate([values, tiny]).tolist()
    assert sum(everything) == sum(reversed(everything)) == sum(sorted(everything)) == float(np.sum(everything))
    assert np.abs(tiny).max() > 0

"""Test the sampler against vLLM's definition, reimplemented with NumPy: same support, same probabilities.

vLLM's order: min_tokens; logit bias; repetition, frequency and presence penalty; temperature; min_p; top_k with all
tokens equal to the k-th; top_p of the remaining tokens. Ties at the edge of a nucleus go to the lower id.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from meari.runtime.bundle import open_bundle
from meari.runtime.engine import Engine, EngineLimits, GenerateCall, Sampling
from meari.runtime.engine.sampling import Sampler
from tests.runtime.engine.test_sampling import sample_rows

Floats64 = npt.NDArray[np.float64]
NUM_DRAWS: Final = 1000
SIZES: Final = (3, 65, 700, 10_000)
TINY: Final = (0.0, 5e-324, 1e-300, sys.float_info.min, 1e-45, 1e-40, 1e-38)
NEARLY_ONE: Final = 1 - 2.0**-53
END: Final = 0
NOTHING: Final[list[int]] = []
RELEASED: Final = sorted(folder.parent for folder in (Path(__file__).parents[3] / "bundles").glob("*/manifest.json"))


class EvenSampler(Sampler):
    """Sampler that draws the numbers of a grid; frequencies equal probabilities up to the grid's resolution."""

    def __init__(self, settings: Sampling, number: int, prompt: list[int], generated: list[int]) -> None:
        super().__init__(settings, number, [*prompt, *generated], 0, END, Counter(generated))
        self._bits = (int((number + 0.5) / NUM_DRAWS * 2**53) << 11).to_bytes(8, "little")

    def take_bits(self, count: int) -> bytes:
        return self._bits * count


def vllm_probabilities(
    logits: Floats64, settings: Sampling, prompt: list[int] = NOTHING, generated: list[int] = NOTHING
) -> Floats64:
    """Return vLLM's probabilities; all arrays are float64 [vocabulary_size]."""
    scores = logits.copy()
    if len(generated) < settings.min_tokens:
        scores[END] = -np.inf
    for token, bias in settings.logit_bias:
        scores[token] += bias
    for token in {*prompt, *generated}:
        positive = scores[token] > 0
        scores[token] *= 1 / settings.repetition_penalty if positive else settings.repetition_penalty
    for token, count in Counter(generated).items():
        scores[token] -= settings.frequency_penalty * count
        scores[token] -= settings.presence_penalty
    if settings.temperature < 1e-5:
        greedy = np.zeros(len(scores))
        greedy[scores.argmax()] = 1.0
        return greedy
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / settings.temperature
    weights = np.exp(scores)
    weights[weights / weights.sum() < settings.min_p * (weights / weights.sum()).max()] = 0.0
    if settings.top_k:
        left = np.where(weights > 0, scores, -np.inf)
        weights[left < np.sort(left)[::-1][settings.top_k - 1]] = 0.0
    if settings.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        outside = before >= settings.top_p * weights.sum()
        outside[0] = False
        weights[order[outside]] = 0.0
    probabilities: Floats64 = weights / weights.sum()
    return probabilities


def frequencies(
    logits: npt.NDArray[np.float32],
    settings: Sampling,
    prompt: list[int] = NOTHING,
    generated: list[int] = NOTHING,
) -> Floats64:
    rows = [EvenSampler(settings, number, prompt, generated) for number in range(NUM_DRAWS)]
    tokens: list[int] = []
    for first in range(0, NUM_DRAWS, 500):
        some = rows[first : first + 500]
        tokens += sample_rows(some, np.tile(logits, (len(some), 1)))
    return np.bincount(tokens, minlength=len(logits)) / NUM_DRAWS


def logits_of(size: int, spread: float = 2.0) -> npt.NDArray[np.float32]:
    """Draw logits with few likely tokens, many of which are exactly tied."""
    random = np.random.default_rng(size)
    logits = np.full(size, -14.0, np.float32)
    likely = random.permutation(size)[:40]
    logits[likely] = np.round(random.normal(size=len(likely)) * spread * 2) / 2
    return logits


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "limits",
    [
        {"top_k": 2},
        {"top_k": 5},
        {"top_k": 1},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"min_p": 0.3, "top_p": 0.8},
        {"min_p": 0.2, "top_k": 3},
        {"top_k": 6, "top_p": 0.7},
        {"min_p": 0.15, "top_k": 9, "top_p": 0.85},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_support_and_probabilities_match_vllm(size: int, limits: dict[str, Any], temperature: float) -> None:
    logits = logits_of(size)
    settings = Sampling(**{**limits, "top_k": min(limits.get("top_k", 0), size)}, temperature=temperature)
    expected = vllm_probabilities(logits.astype(np.float64), settings)
    found = frequencies(logits, settings)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    assert set(np.flatnonzero(expected > 0.005)) <= set(np.flatnonzero(found))
    assert found == pytest.approx(expected, abs=0.03)


PENALTIES: Final[list[dict[str, Any]]] = [
    {"frequency_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -2.0, "presence_penalty": 2.0},
    {"frequency_penalty": 5e-324, "presence_penalty": -1e-300},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.5},
    {"min_tokens": 9},
    {"min_tokens": 8, "logit_bias": ((END, 100.0), (2, -1.0))},
    {"min_tokens": 9, "frequency_penalty": 1.0, "top_k": 2, "min_p": 0.05, "top_p": 0.9},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fields", PENALTIES, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.15, 1.0])
def test_penalties_and_lengths_match_vllm(size: int, fields: dict[str, Any], temperature: float) -> None:
    logits = logits_of(size)
    logits[:3] = (1.5, 1.0, -0.5)
    prompt, generated = [0, 1, 1], [1, 1, 1, 2, size - 1, size - 1, 1, 2]
    settings = Sampling(temperature=temperature, **fields)
    expected = vllm_probabilities(logits.astype(np.float64), settings, prompt, generated)
    left = dataclasses.replace(settings, min_tokens=max(0, settings.min_tokens - len(generated)))
    found = frequencies(logits, left, prompt, generated)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    assert found == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 0.2, 1.0, 10.0])
def test_remaining_tokens_are_sampled_correctly_without_a_certain_end(size: int, temperature: float) -> None:
    """Exclude an end token of probability 1, beside which all other weights are 0 in float32."""
    logits = np.full(size, -400.0, np.float32)
    logits[:3] = (600.0, -10.0, -11.0)
    logits[END], logits[size - 1] = 600.0, -10.5
    settings = Sampling(temperature=temperature, min_tokens=1)
    expected = vllm_probabilities(logits.astype(np.float64), settings)
    assert frequencies(logits, settings) == pytest.approx(expected, abs=0.003)


def test_tokens_tied_with_the_kth_are_kept() -> None:
    for size in SIZES:
        logits = np.full(size, -30.0, np.float32)
        logits[:3] = (2.0, 1.0, 1.0)
        found = frequencies(logits, Sampling(top_k=2))
        assert set(np.flatnonzero(found)) == {0, 1, 2}


def test_min_p_is_applied_before_top_p() -> None:
    """Sample from 0.4, 0.35 and 0.25: min_p 0.7 keeps two and top_p 0.52 then one; top_p first would keep both."""
    for size in SIZES:
        logits = np.full(size, -40.0, np.float32)
        logits[:3] = np.log([0.4, 0.35, 0.25])
        found = frequencies(logits, Sampling(min_p=0.7, top_p=0.52))
        assert set(np.flatnonzero(found)) == {0}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.2, 1.0, 10.0])
def test_likeliest_token_survives_every_limit(size: int, temperature: float) -> None:
    random = np.random.default_rng(size)
    logits = (random.normal(size=size) * 2).astype(np.float32)
    likeliest = {int(logits.argmax())}
    limits: list[dict[str, Any]] = [{"top_p": top_p} for top_p in TINY]
    limits += [{"top_p": top_p, "min_p": min_p} for top_p, min_p in itertools.product(TINY, (5e-324, NEARLY_ONE))]
    limits += [{"min_p": NEARLY_ONE}, {"top_k": 1}, {"top_k": 2, "top_p": 1e-300}, {"top_k": 2, "min_p": NEARLY_ONE}]
    rows = [
        Sampler(Sampling(temperature=temperature, seed=seed, **fields), 0, [], 0, END)
        for fields in limits
        for seed in range(5)
    ]
    assert set(sample_rows(rows, np.tile(logits, (len(rows), 1)))) == likeliest
    alone = {sample_rows([row], logits[None])[0] for row in rows[::5]}
    assert alone == likeliest


@pytest.mark.parametrize("size", SIZES)
def test_tiny_min_p_has_no_effect(size: int) -> None:
    logits = logits_of(size)
    for min_p, temperature in itertools.product((*TINY, 1e-30, 1e-20), (0.2, 1.0, 10.0)):
        settings = Sampling(min_p=min_p, temperature=temperature)
        expected = vllm_probabilities(logits.astype(np.float64), settings)
        assert frequencies(logits, settings) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-9, 9e-6, 0.0])
def test_tiny_temperature_takes_the_likeliest_token_with_ties_to_the_lowest_id(size: int, temperature: float) -> None:
    logits = logits_of(size)
    tied = np.zeros(size, np.float32)
    for fields in ({}, {"top_p": 1e-300}, {"min_p": NEARLY_ONE}, {"top_k": 2, "top_p": 5e-324}, {"min_p": 1e-40}):
        settings = [Sampling(temperature=temperature, seed=seed, **fields) for seed in range(8)]  # type: ignore[arg-type]
        for row, expected in ((logits, int(logits.argmax())), (tied, 0)):
            found = sample_rows([Sampler(one, 0, [], 0, END) for one in settings], np.tile(row, (8, 1)))
            assert set(found) == {expected}


def test_tiny_top_p_takes_the_lowest_id_of_tied_tokens() -> None:
    for size, top_p in itertools.product(SIZES, TINY):
        rows = [Sampler(Sampling(top_p=top_p, seed=seed), 0, [], 0, END) for seed in range(20)]
        assert set(sample_rows(rows, np.zeros((20, size), np.float32))) == {0}


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, sys.float_info.min, 1e-45, 1e-30])
def test_smallest_penalty_keeps_the_order_of_seen_tokens(penalty: float) -> None:
    logits = np.array([1.0, 3.0, 2.0, -1.0, -2.0], np.float32)
    for temperature in (0.0, 5e-324, 1e-3, 1.0, 10.0):
        settings = Sampling(repetition_penalty=penalty, temperature=temperature)
        rows = [Sampler(settings, index, [0, 1, 3, 4], 0, END) for index in range(30)]
        assert set(sample_rows(rows, np.tile(logits, (30, 1)))) == {1}


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 0.01, 0.2, 1.0])
def test_largest_bias_dominates_at_every_temperature(temperature: float) -> None:
    for size in SIZES:
        logits = logits_of(size)
        last = size - 1
        settings = Sampling(logit_bias=((0, -100.0), (last, 100.0)), temperature=temperature, top_p=1e-300)
        rows = [Sampler(settings, index, [], 0, END) for index in range(20)]
        assert set(sample_rows(rows, np.tile(logits, (20, 1)))) == {last}


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)
def test_extreme_settings_generate_the_greedy_text_in_any_batch(folder: Path) -> None:
    """Run extreme and plain sampling together in one engine, for reading and for writing."""
    engine = Engine(open_bundle(folder, max_slots=32).runner, EngineLimits())
    engine.start()
    fields: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"min_p": 1e-40}, {"min_p": 0.5, "top_p": 0.5}]
    fields += [{"top_p": top_p} for top_p in TINY]
    fields += [{"top_p": 1e-300, "min_p": NEARLY_ONE, "temperature": 10.0}, {"temperature": 1e-40}, {"top_k": 1}]
    fields += [{"min_p": NEARLY_ONE}, {"logit_bias": ((5, 1e-300),), "top_p": 5e-324, "temperature": 0.2}]
    try:
        together = [engine.generate(_call(settings), engine.reserve()) for settings in fields]
        alone = engine.generate(_call(fields[1]), engine.reserve())
        texts = [handle.samples[0].token_ids for handle in together if handle.wait_end(60)]
        assert alone.wait_end(60)
    finally:
        engine.stop()
    assert len(texts) == len(fields)
    assert alone.samples[0].token_ids == texts[1]
    assert texts[4:] == [texts[0]] * (len(fields) - 4)


def _call(fields: dict[str, Any]) -> GenerateCall:
    return GenerateCall([3, 5], 24, 1e12, Sampling(seed=1, **fields))

"""Test sampling: the tokens that each setting keeps, token frequencies, and isolation of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from meari.runtime.engine.batch import RowSamplers
from meari.runtime.engine.calls import Sampling, sample_seed
from meari.runtime.engine.runner import Floats, Runner, RunResult, Sessions, StateTensor
from meari.runtime.engine.sampling import Sampler, likeliest, on_grid, pick_by_cumulative, truncated, uniforms_of
from meari.runtime.graphs.bundle_graph import BundleGraph, Parts
from meari.runtime.graphs.engine_graphs import reader_graph, writer_graph
from meari.runtime.graphs.onnx_graph import Drawing, new_message

END = 0
LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))


@cache
def runner_of(size: int) -> Runner:
    """Open the engine's graph of a bundle whose hidden vectors are the logits."""
    cell, output = Drawing("cell"), Drawing("output")
    cell.input("token", "int64", ["batch"])
    cell.input("s", "float32", ["batch", size])
    for name in ("hidden", "next_s"):
        cell.output(cell.op("Identity", "s", outputs=[name]), "float32", ["batch", size])
    output.input("hidden", "float32", ["batch", size])
    output.output(output.op("Identity", "hidden", outputs=["logits"]), "float32", ["batch", size])
    output.output(output.op("LogSoftmax", "logits", outputs=["logprobs"]), "float32", ["batch", size])
    parts = Parts(_bundle_graph(cell), _bundle_graph(output), {"s": (size,)}, size)
    reader, writer = (ort.InferenceSession(graph) for graph in (reader_graph(parts), writer_graph(parts)))
    return Runner(Sessions(reader, writer), [StateTensor("s", (size,))], size, size, 0)


def _bundle_graph(drawing: Drawing) -> BundleGraph:
    model = new_message("Model")
    model.ir_version = 10
    model.opset_import.add(domain="", version=21)
    model.graph.CopyFrom(drawing.graph)
    return BundleGraph(model.SerializeToString())


def sample_rows(samplers: Sequence[Sampler], logits: Floats) -> list[int]:
    """Sample one token for each row, like a turn of the engine."""
    runner = runner_of(logits.shape[1])
    together = RowSamplers(samplers, runner.vocabulary_size)
    inputs = together.read_inputs(1 + np.arange(len(samplers)))
    run = runner.run(np.zeros((1, 1), np.int64), runner.initial_states(1), inputs, more_hidden=logits)
    return together.choose(run)[0]


def draw(settings: Sampling, logits: Floats = LOGITS, count: int = 4000) -> npt.NDArray[np.float64]:
    """Return the relative frequencies of the first tokens of independent samplers."""
    tokens = sample_rows([sampler(settings, index) for index in range(count)], np.tile(logits, (count, 1)))
    return np.bincount(tokens, minlength=len(logits)) / count


def sampler(settings: Sampling, index: int = 0, seen: Sequence[int] = ()) -> Sampler:
    return Sampler(settings, index, seen, 0, END)


def kept(settings: Sampling, logits: Floats = LOGITS) -> set[int]:
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


def test_top_p_applies_to_the_tokens_kept_by_top_k() -> None:
    assert kept(Sampling(top_k=2, top_p=0.55)) == {0}  # 0.4 / 0.7 = 0.571
    assert kept(Sampling(top_k=2, top_p=0.58)) == {0, 1}


@pytest.mark.parametrize(
    ("min_p", "expected"), [(0.49, {0, 1, 2}), (0.74, {0, 1}), (0.99, {0}), (0.09, {0, 1, 2, 3, 4})]
)
def test_min_p_is_relative_to_the_likeliest_token(min_p: float, expected: set[int]) -> None:
    assert kept(Sampling(min_p=min_p)) == expected


def test_ties_go_to_the_lower_ids() -> None:
    assert truncated(np.zeros(6), 0, 0.3, 0.0).tolist() == [0, 1]  # type: ignore[union-attr]
    assert likeliest(np.zeros((1, 6), np.float32), 3).tolist() == [[0, 1, 2]]


def test_logit_bias_is_added_before_everything_else() -> None:
    assert kept(Sampling(logit_bias=((4, 100.0),))) == {4}
    assert kept(Sampling(logit_bias=((0, -100.0),), temperature=0.0)) == {1}
    assert kept(Sampling(logit_bias=((4, 20.0),), top_k=1)) == {4}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    penalised = sampler(Sampling(temperature=0.0, repetition_penalty=2.0), 0, [0])
    assert penalised.pick(logits) == 1  # 2.0 / 2 < 1.5
    penalised.count(1)
    assert penalised._reshaped(logits).tolist() == pytest.approx([1.0, 0.75, -1.0, -1.2])
    penalised.count(2)
    assert penalised._reshaped(logits)[2] == pytest.approx(-2.0)


def test_penalty_below_one_favours_seen_tokens() -> None:
    favouring = sampler(Sampling(temperature=0.0, repetition_penalty=0.5), 0, [1])
    assert favouring.pick(np.array([2.0, 1.5], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5e-324])
def test_smallest_penalty_keeps_only_seen_tokens(temperature: float) -> None:
    logits = np.array([[3.0, 1.0, 2.0, -1.0]], np.float32)
    penalised = sampler(Sampling(temperature=temperature, repetition_penalty=5e-324), 0, [1, 2])
    assert {sample_rows([penalised], logits)[0] for _ in range(50)} <= {1, 2}


def test_rows_do_not_affect_one_another() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 1000)).astype(np.float32)
    settings = [
        Sampling(seed=1),
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, seed=2),
        Sampling(repetition_penalty=1.3, logit_bias=((5, 2.0),), seed=3),
        Sampling(temperature=0.6, top_p=0.5, min_p=0.1, seed=4),
        Sampling(temperature=2.0, top_k=7, seed=5),
        Sampling(temperature=0.1, top_p=0.9, seed=6),
    ]
    together = sample_rows([sampler(settings[r % 7], r, [5]) for r in range(64)], logits)
    alone = [sample_rows([sampler(settings[r % 7], r, [5])], logits[r : r + 1])[0] for r in range(64)]
    assert together == alone


@pytest.mark.parametrize("size", [2, 3, 7, 65, 101, 4099, 10_000])
def test_sampling_follows_the_distribution_for_every_vocabulary_size(size: int) -> None:
    logits = np.full(size, -20.0, np.float32)
    likely = [0, size // 2, size - 1]
    logits[likely] = np.log([0.2, 0.3, 0.5])
    logits[likely[1]] = np.log(0.3)
    frequencies = draw(Sampling(seed=3), logits, 2000)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    assert frequencies == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
@pytest.mark.parametrize("size", [30, 600], ids=["sorted", "by rejection"])
def test_nucleus_matches_that_of_sorted_tokens(size: int, spread: float, top_p: float, min_p: float) -> None:
    logits = np.full(size, -60.0, np.float32)
    logits[:30] = np.random.default_rng(4).normal(size=30).astype(np.float32) * np.float32(spread)
    exact = truncated((logits - logits.max()).astype(np.float64), 0, top_p, min_p)
    assert exact is not None
    weights = np.exp(logits[exact].astype(np.float64))
    expected = np.zeros(size)
    expected[exact] = weights / weights.sum()
    found = draw(Sampling(top_p=top_p, min_p=min_p, seed=9), logits, 6000)
    assert set(np.flatnonzero(found)) <= set(exact.tolist())
    assert found == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("size", [300, 700], ids=["in the graph", "outside"])
def test_top_k_of_many_rows_matches_that_of_a_sorted_row(size: int) -> None:
    random = np.random.default_rng(5)
    logits = np.round(random.normal(size=(40, size)) * 3).astype(np.float32)  # with many ties
    for row, top_k in enumerate(random.integers(1, size, 40).tolist()):
        settings = Sampling(top_k=top_k, top_p=0.8, min_p=0.001, seed=row)
        exact = truncated((logits[row] - logits[row].max()).astype(np.float64), top_k, 0.8, 0.001)
        assert exact is not None
        found = sample_rows([sampler(settings, index) for index in range(50)], np.tile(logits[row], (50, 1)))
        assert set(found) <= set(exact.tolist())


def test_uniform_number_depends_only_on_seed_and_position() -> None:
    settings = Sampling(seed=11)
    whole = Sampler(settings, 0, [], 3, END)
    numbers = [whole.uniform() for _ in range(40)]
    later = Sampler(settings, 0, [], 23, END)
    assert [later.uniform() for _ in range(20)] == numbers[20:]
    second = Sampler(settings, 2, [], 3, END)
    alone = Sampler(Sampling(seed=second.seed), 0, [], 3, END)
    resumed = Sampler(Sampling(seed=second.seed), 0, [], 5, END)
    drawn = [second.uniform() for _ in range(3)]
    assert drawn == [alone.uniform() for _ in range(3)]
    assert drawn[2] == resumed.uniform()
    at_once = Sampler(settings, 0, [], 3, END)
    assert [number for count in (3, 9, 1, 27) for number in uniforms_of(at_once.take_bits(count))] == numbers


def test_every_sample_has_its_own_seed() -> None:
    seeds = [0, 1, 2, 3, 4, 2**53, 2**63 - 2, 2**63 - 1]
    own = [sample_seed(seed, position, index) for seed in seeds for position in range(1, 9) for index in range(1, 16)]
    assert len({*own, *seeds}) == len(own) + len(seeds)
    assert 0 <= min(own) < max(own) < 2**53
    assert max(own) > 2**52
    assert [sample_seed(seed, 7, 0) for seed in seeds] == seeds
    of_samples = [sample_seed(seed, 7, 3) for seed in own[::3]]
    assert not {*of_samples} & {*own}  # seeds derived from a sample's seed also differ


def test_samples_of_neighbouring_seeds_are_independent() -> None:
    count, width = 2000, 32
    samplers = [[Sampler(Sampling(seed=seed), index, [], 4, END) for index in range(4)] for seed in range(count)]
    drawn = np.array([[uniforms_of(one.take_bits(8)) for one in row] for row in samplers]).reshape(count, width)
    within = np.corrcoef(drawn, rowvar=False) - np.eye(width)
    between = np.corrcoef(drawn[:-1], drawn[1:], rowvar=False)[:width, width:]
    assert np.abs([within, between]).max() < 6 / np.sqrt(count)
    assert np.abs(drawn.mean(0) - 0.5).max() < 6 / np.sqrt(12 * count)


def test_token_of_weight_zero_is_never_sampled() -> None:
    weights = np.array([[0.0, 1.0, 0.0, 2.0, 0.0]])
    for uniform in (0.0, 0.3333333333333333, 0.34, 1 - 2**-53):
        assert pick_by_cumulative(weights, np.array([uniform]))[0] in {1, 3}


def test_rows_that_search_choose_no_token_and_are_sound_where_one_has_no_probability() -> None:
    rows = RowSamplers([None, None], 3, whole=True)
    inputs = rows.read_inputs(np.arange(2))
    logprobs = np.array([[-np.inf, -0.5, -1.0], [-np.inf, 0.0, -np.inf]], np.float32)
    picked = logprobs[np.arange(2), inputs.targets[:, 0]]
    _, values = rows.choose(RunResult({}, picked=inputs.targets[:, 0], picked_logprobs=picked, logprobs=logprobs))
    assert inputs.choices is None
    assert values == [-0.5, 0.0]


def test_seed_determines_the_tokens_and_samples_of_a_seed_differ() -> None:
    def tokens(seed: int, index: int) -> list[int]:
        drawing = sampler(Sampling(seed=seed), index)
        return [sample_rows([drawing], LOGITS[None])[0] for _ in range(50)]

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

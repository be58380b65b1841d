"""Test that the engine's combined graphs give the same bits as single steps of a bundle's two graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from meari.runtime.bundle import open_bundle
from meari.runtime.engine.row_by_row import RowByRowRunner
from meari.runtime.engine.runner import Choices, ReadInputs, Runner, WriteInputs
from meari.runtime.graphs.bundle_graph import BundleGraph, Parts
from meari.runtime.graphs.engine_graphs import reader_graph
from meari.runtime.graphs.onnx_graph import Drawing, new_message
from meari.runtime.graphs.rows import SMALL
from meari.runtime.graphs.sampler import draw_likeliest
from meari.runtime.self_test import run_output

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
NAMES = sorted(folder.name for folder in BUNDLES.iterdir() if folder.is_dir())
STEPS, ROWS = 6, 5


class Plain:
    """Bundle's two graphs, run step by step."""

    def __init__(self, folder: Path) -> None:
        self._cell, self._output = (ort.InferenceSession(folder / f"{name}.onnx") for name in ("cell", "output"))

    def steps(
        self, runner: Runner, tokens: npt.NDArray[np.int64]
    ) -> tuple[list[dict[str, Any]], list[Any], list[Any], list[Any]]:
        """Return states, hidden rows, logits and logprobs after every step."""
        states: dict[str, Any] = runner.initial_states(tokens.shape[1])
        all_states: list[dict[str, Any]] = []
        hiddens: list[Any] = []
        logits: list[Any] = []
        logprobs: list[Any] = []
        for row in tokens:
            hidden, *new = self._cell.run(["hidden", *(f"next_{name}" for name in states)], {"token": row, **states})
            states = dict(zip(states, new, strict=True))
            found = self._output.run(["logits", "logprobs"], {"hidden": hidden})
            all_states.append(states)
            for values, value in zip((hiddens, logits, logprobs), (hidden, *found), strict=True):
                values.append(value)
        return all_states, hiddens, logits, logprobs


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest) -> tuple[Runner, Plain]:
    """Open the engine's graphs and the plain graphs of a released bundle."""
    folder = BUNDLES / request.param
    return open_bundle(folder, max_slots=8).runner, Plain(folder)


def tokens_of(runner: Runner) -> npt.NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, runner.vocabulary_size, (STEPS, ROWS))


def test_several_steps_in_one_run_equal_single_steps_bit_for_bit(both: tuple[Runner, Plain]) -> None:
    runner, plain = both
    tokens = tokens_of(runner)
    states, hiddens, logits, logprobs = plain.steps(runner, tokens)
    places = np.random.default_rng(4).permutation(STEPS * ROWS)[:11]
    inputs = ReadInputs.for_targets(places, np.arange(11), whole=True)
    ran = runner.run(tokens, runner.initial_states(ROWS), inputs, want_hidden=True)
    for step in range(STEPS):
        assert all(np.array_equal(ran.states[name][step], values) for name, values in states[step].items())
    assert np.array_equal(ran.hidden, np.stack(hiddens))
    assert np.array_equal(ran.logits, np.concatenate(logits)[places])
    assert np.array_equal(ran.logprobs, np.concatenate(logprobs)[places])
    assert np.array_equal(ran.picked_logprobs, np.concatenate(logprobs)[places, np.arange(11)])


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 129])
def test_rows_computed_in_slices_equal_the_plain_output_layer(both: tuple[Runner, Plain], count: int) -> None:
    runner, plain = both
    sliced = Runner(runner.sessions, runner.state_tensors, runner.hidden_size, runner.vocabulary_size, runner.end_id)
    sliced.max_slice = 64
    tokens = np.random.default_rng(7).integers(0, runner.vocabulary_size, (STEPS, 24))
    _, hiddens, _, logprobs = plain.steps(runner, tokens)
    random = np.random.default_rng(count)
    places, targets = random.permutation(tokens.size)[:count], random.integers(0, runner.vocabulary_size, count)
    inputs = ReadInputs.for_targets(places, targets, ranks=True, num_best=3)
    ran = sliced.run(tokens, runner.initial_states(24), inputs, want_hidden=True)
    assert np.array_equal(ran.hidden, np.stack(hiddens))
    assert ran.picked_logprobs.shape == ((count,) if count else (0, 0))
    assert not ran.logprobs.size, "distributions leave the graph only where they are wanted"
    if count:
        expected = np.concatenate(logprobs)[places]
        own = expected[np.arange(count), targets]
        assert np.array_equal(ran.picked_logprobs, own)
        assert np.array_equal(ran.ranks, 1 + (expected > own[:, None]).sum(axis=1))
        best = np.argsort(-expected, axis=1, kind="stable")[:, :3]
        assert np.array_equal(ran.best, best)
        assert np.array_equal(ran.best_logprobs, np.take_along_axis(expected, best, axis=1))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129])
def test_tokens_sampled_in_slices_equal_those_of_rows_alone(both: tuple[Runner, Plain], count: int) -> None:
    runner, _ = both
    sliced = Runner(runner.sessions, runner.state_tensors, runner.hidden_size, runner.vocabulary_size, runner.end_id)
    sliced.max_slice = 64
    random = np.random.default_rng(count)
    tokens = random.integers(0, runner.vocabulary_size, (STEPS, 24))
    uniforms = (random.random((count, 1)) * 0.999).astype(np.float32)
    kinds = np.array([(0.02, 1e9, 1e9), (0.0, 0.5, 1e9), (0.01, 0.9, 7), (0.0, 1e9, 1e9)], np.float32)
    numbers = np.arange(count)[:, None]
    choices = Choices(
        inverse_temperatures=np.where(numbers % 7, 1.25, 0.0).astype(np.float32),
        limits=kinds[numbers[:, 0] % 4],
        samples=True,
        likeliest=True,
        num_ranked=7,
        unranked=True,
        tempered=True,
        min_p=True,
        nucleus=True,
        bars=np.where(numbers % 3, -1, runner.end_id),
    )
    redraws = (random.random((count, 8)) * 0.999).astype(np.float32)
    places, targets = random.permutation(tokens.size)[:count], np.where(numbers % 5, -1, 1)
    inputs = ReadInputs(places, targets, uniforms, redraws, choices, logprobs=True, logits=True)
    together = sliced.run(tokens, runner.initial_states(24), inputs)
    alone = RowByRowRunner.replacing(runner).run(tokens, runner.initial_states(24), inputs)
    for name in ("picked", "picked_logprobs", "logits", "logprobs"):
        assert np.array_equal(getattr(together, name), getattr(alone, name)), name


def test_given_hidden_rows_give_the_same_distribution(both: tuple[Runner, Plain]) -> None:
    runner, plain = both
    _, hiddens, _, logprobs = plain.steps(runner, tokens_of(runner))
    assert np.array_equal(run_output(runner, hiddens[-1])[1], logprobs[-1])


@pytest.mark.parametrize("draws", [False, True], ids=["likeliest", "drawn"])
@pytest.mark.parametrize("barred", [False, True], ids=["all", "without a token"])
def test_generated_tokens_equal_those_of_single_steps(both: tuple[Runner, Plain], draws: bool, barred: bool) -> None:
    runner, plain = both
    random = np.random.default_rng(5)
    uniforms = (random.random((STEPS, ROWS, 1)) * 0.999).astype(np.float32)
    first = random.integers(0, runner.vocabulary_size, ROWS)
    choices = Choices(
        inverse_temperatures=np.full((ROWS, 1), 1.25, np.float32),
        limits=np.tile(np.array([[0.05, 1e9, 1e9]], np.float32), (ROWS, 1)),
        samples=draws,
        unranked=True,
        tempered=True,
        min_p=True,
    )
    bars = None
    if barred:  # for every other row, its first token
        plainly = runner.write(first, runner.initial_states(ROWS), WriteInputs(uniforms, uniforms, choices))
        bars = np.where(np.arange(ROWS) % 2, plainly.picked[0], -1)[:, None]
    inputs = WriteInputs(uniforms, uniforms, replace(choices, bars=bars))
    ran = runner.write(first, runner.initial_states(ROWS), inputs)
    fed = np.concatenate([first[None], ran.picked[:-1]])
    states, _, _, logprobs = plain.steps(runner, fed)
    for step in range(STEPS):
        assert np.array_equal(ran.picked_logprobs[step], logprobs[step][np.arange(ROWS), ran.picked[step]])
        assert all(np.array_equal(ran.states[name][step], values) for name, values in states[step].items())
        left = logprobs[step].copy()
        if bars is not None:
            left[bars[:, 0] >= 0, bars[bars[:, 0] >= 0, 0]] = -np.inf
        expected = _drawn(left, uniforms[step]) if draws else left.argmax(axis=1)
        assert ran.picked[step].tolist() == expected.tolist()


def _drawn(logprobs: npt.NDArray[np.float32], uniforms: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Sample by the definition in float64, which gives the same tokens as float32 here."""
    weights = np.exp(1.25 * logprobs.astype(np.float64))
    weights[weights < 0.05 * weights.max(axis=1, keepdims=True)] = 0.0
    running = weights.cumsum(axis=1)
    picked: npt.NDArray[np.int64] = (running <= running[:, -1:] * uniforms).sum(axis=1)
    return picked


@pytest.mark.parametrize("size", [3, SMALL, SMALL + 1, 521, 6000])
def test_likeliest_token_of_a_tie_has_the_lowest_id(size: int) -> None:
    drawing = Drawing("main")
    drawing.input("logprobs", "float32", ["rows", size])
    drawing.input("bars", "int64", ["rows", 1])
    drawing.input("want_bars", "bool", [])
    drawing.output(draw_likeliest(drawing, "logprobs", "bars", size), "int64", ["rows", 1])
    model = new_message("Model")
    model.ir_version = 10
    model.opset_import.add(domain="", version=21)
    model.graph.CopyFrom(drawing.graph)
    logprobs = (
        -np.random.default_rng(6).integers(1, 40, (50, size)).astype(np.float32)
    )  # the maximum occurs more than once
    logprobs[0], logprobs[1, -1] = -7.0, 0.0
    session = ort.InferenceSession(model.SerializeToString())
    bars = np.where(np.arange(50) % 3, logprobs.argmax(axis=1), -1)[:, None]
    for wanted in (False, True):
        (picked,) = session.run(None, {"logprobs": logprobs, "bars": bars, "want_bars": np.array(wanted)})
        left = logprobs.copy()
        if wanted:
            left[np.arange(50) % 3 > 0, bars[np.arange(50) % 3 > 0, 0]] = -np.inf
        assert picked[:, 0].tolist() == left.argmax(axis=1).tolist()


def test_malformed_graph_file_is_refused() -> None:
    for data in (b"", b"not a graph", b"\x08\x07"):
        with pytest.raises(ValueError, match="not an ONNX file"):
            BundleGraph(data)


def test_different_operator_sets_are_refused() -> None:
    graphs = []
    for version in (21, 17):
        drawing = Drawing("part")
        drawing.input("hidden", "float32", ["batch", 3])
        drawing.input("token", "int64", ["batch"])
        drawing.op("Identity", "token", outputs=["hidden"])
        model = new_message("Model")
        model.ir_version = 10
        model.opset_import.add(domain="", version=version)
        model.graph.CopyFrom(drawing.graph)
        graphs.append(BundleGraph(model.SerializeToString()))
    with pytest.raises(ValueError, match=r"operator sets: got \[17, 21\], expected one of at least 18"):
        reader_graph(Parts(graphs[0], graphs[1], {}, 3))

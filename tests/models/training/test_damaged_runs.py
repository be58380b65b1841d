"""Test that a snapshot that does not fit its run is refused by the name of its file, before anything is trained."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from meari.models.choices import Averaging, Optimizer, Readout
from meari.models.config import Config
from meari.models.errors import CheckpointError
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run
from meari.models.training.trainer import Ending
from tests.models.training.test_reservoir_training import config_of, interrupted_run
from tests.models.training.tiny_runs import Clock, StopAt, contents, run_training, tiny_config

WEIGHT = "optimizer/layers.0.kernel.weight_hh_l0"
Change = Callable[[Tensor], Tensor | None]
Runs = dict[str, tuple[Config, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return interrupted runs: of AdamW with a mean of the weights, of Muon, of both readouts of a reservoir."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {
        "adam": tiny_config(folder, averaging=Averaging.EMA),
        "muon": tiny_config(folder, optimizer=Optimizer.MUON, matrix_learning_rate=0.02),
        "readout": config_of(folder, Readout.SOFTMAX),
        "ridge": config_of(folder, steps=None, epochs=1.0),
    }
    for name, config in configs.items():
        if name == "ridge":
            with pytest.MonkeyPatch.context() as patch:
                ending = interrupted_run(config, folder / name, Start.FRESH, 2, patch)
        else:
            display = StopAt(2, lambda: os.kill(os.getpid(), signal.SIGINT))
            run = open_run(folder / name, config, Start.FRESH)
            ending = train(config, run, resume=False, display=display, clock=Clock()).ending
        assert ending is Ending.INTERRUPTED
    return {name: (config, folder / name) for name, config in configs.items()}


def refused(runs: Runs, name: str, folder: Path, file: str, change: Callable[[Path], None]) -> str:
    """Resume a copy of a run with a changed file; return what is said about it."""
    config, original = runs[name]
    shutil.copytree(original, folder / name)
    change(folder / name / file)
    before = contents(folder / name)
    with pytest.raises(CheckpointError) as caught:
        run_training(config, folder / name, Start.RESUME)
    assert str(folder / name / file) in str(caught.value)
    assert "start again with --overwrite" in str(caught.value)
    assert contents(folder / name) == before
    return str(caught.value)


def with_tensor(name: str, change: Change) -> Callable[[Path], None]:
    """Return a change of one tensor of a file; None removes it."""

    def apply(path: Path) -> None:
        tensors = load_file(path)
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else tensors | {name: changed.contiguous()}, path)

    return apply


@pytest.mark.parametrize(
    ("run", "name", "change", "message"),
    [
        ("adam", f"{WEIGHT}/exp_avg", lambda it: it[:-1], "got the shape [27, 7], expected the shape [28, 7]"),
        ("adam", f"{WEIGHT}/exp_avg_sq", lambda it: it.t(), "got the shape [7, 28], expected the shape [28, 7]"),
        ("adam", f"{WEIGHT}/exp_avg", lambda it: it.double(), "got torch.float64, expected torch.float32"),
        ("adam", f"{WEIGHT}/exp_avg", lambda _: None, "got none, expected the shape [28, 7]"),
        ("adam", f"{WEIGHT}/step", lambda it: it.repeat(2), "got the shape [2], expected the shape []"),
        ("adam", "average/output.weight", lambda it: it[:, :-1], "output.weight: got the shape"),
        ("adam", "average/count", lambda _: None, "average/count: got none"),
        ("adam", "state/h0", lambda it: it[:3], "state/h0: got the shape [3, 7], expected the shape [4, 7]"),
        ("adam", "state/c1", lambda _: None, "state/c1: got none"),
        ("adam", "state/c1", lambda it: it.double(), "state/c1: got torch.float64"),
        ("adam", "generator/cpu", lambda it: it[:-1], "generator/cpu: got the shape"),
        ("adam", "generator/cpu", torch.zeros_like, "no states of generators"),
        ("muon", f"{WEIGHT}/momentum_buffer", lambda it: it[:, 1:], "expected the shape [28, 7]"),
        ("muon", f"{WEIGHT}/momentum_buffer", lambda _: None, "momentum_buffer: got none"),
        ("readout", "optimizer/readout.weight/coordinates", lambda it: it[1:], "coordinates: got the shape"),
        ("readout", "optimizer/readout.weight/directions", lambda it: it[:-1], "directions: got the shape"),
        ("readout", "optimizer/readout.weight/gains", lambda it: it[:-1], "gains: got the shape"),
        ("readout", "optimizer/readout.weight/mean", lambda _: None, "mean: got none"),
    ],
)
def test_moments_means_or_states_that_do_not_fit_are_refused(
    runs: Runs, tmp_path: Path, run: str, name: str, change: Change, message: str
) -> None:
    assert message in refused(runs, run, tmp_path, "last/optimizer.safetensors", with_tensor(name, change))


def test_moments_of_unknown_weights_are_refused(runs: Runs, tmp_path: Path) -> None:
    def add(path: Path) -> None:
        save_file(load_file(path) | {"optimizer/other/exp_avg": torch.zeros(2)}, path)

    text = refused(runs, "adam", tmp_path, "last/optimizer.safetensors", add)
    assert "optimizer/other/exp_avg: got the shape [2], expected none" in text


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("squares", lambda it: it[:-1], "squares: got the shape [63, 64], expected the shape [64, 64]"),
        ("cross", lambda it: it.t(), "cross: got the shape [64, 5], expected the shape [5, 64]"),
        ("states", lambda it: it.float(), "states: got torch.float32, expected torch.float64"),
        ("targets", lambda _: None, "targets: got none, expected the shape [5]"),
        ("count", lambda it: it.repeat(5), "count: got the shape [5], expected the shape [1]"),
        ("s0", lambda it: it[:2], "s0: got the shape [2, 64], expected the shape [4, 64]"),
        ("s0", lambda _: None, "s0: got none"),
    ],
)
def test_sums_of_a_ridge_run_that_do_not_fit_are_refused(
    runs: Runs, tmp_path: Path, name: str, change: Change, message: str
) -> None:
    assert message in refused(runs, "ridge", tmp_path, "last/sums.safetensors", with_tensor(name, change))


def with_value(*keys: str, value: Any) -> Callable[[Path], None]:
    """Return a change of one value of a JSON file."""

    def apply(path: Path) -> None:
        described = table = json.loads(path.read_text())
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = value
        path.write_text(json.dumps(described))

    return apply


@pytest.mark.parametrize("run", ["adam", "ridge"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("[]"), "damaged"),
        (lambda path: path.write_text('{"step": 2}'), "fingerprint"),
        (lambda path: path.unlink(), "cannot be read"),
        (with_value("step", value="2"), "Expected `int`, got `str`"),
        (with_value("step", value=3), "got 3, but the weights are those of step 2"),
        (with_value("seconds", value=-1), "seconds"),
        (with_value("streams", value=None), "damaged"),
        (with_value("streams", "cursors", value=[0, 1, 2]), "expected 4 numbers"),
        (with_value("streams", "cursors", value=[0, 1, 2, 10**6]), "got 1000000, expected a whole number from 0 to"),
        (with_value("streams", "cursors", value=[0, 1, 2, 0.5]), "got 0.5, expected a whole number"),
        (with_value("streams", "is_new", value="no"), "expected true or false"),
        (with_value("streams", "generator", value={}), "damaged"),
        (with_value("streams", "generator", "state", "state", value=-1), "damaged"),
        (with_value("streams", "generator", "state", value=[]), "damaged"),
    ],
)
def test_progress_that_does_not_fit_is_refused(
    runs: Runs, tmp_path: Path, run: str, change: Callable[[Path], None], message: str
) -> None:
    assert message in refused(runs, run, tmp_path, "last/progress.json", change)


@pytest.mark.parametrize("line", ['{"step": 1}', "[]", "1", '{"step": "1", "validation": 1.0, "seconds": 0.0}'])
def test_damaged_history_is_refused(runs: Runs, tmp_path: Path, line: str) -> None:
    def write(path: Path) -> None:
        path.write_text(f"{line}\n")

    assert "damaged: line 1" in refused(runs, "adam", tmp_path, "history.jsonl", write)

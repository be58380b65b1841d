"""Test that two real processes train like one: losses, checkpoints, interruption and ridge sums."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

from meari.bundle_format.names import Family
from meari.models.choices import Averaging, Readout
from meari.models.config import RecurrentConfig, ReservoirConfig
from meari.models.errors import TrainingError
from meari.models.families import build_model
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run
from meari.models.training.workers import SINGLE_PROCESS, TorchrunWorkers, agree_on_round
from tests.models.training.tiny_runs import Clock, StopAt, masked_config, read_json, run_training, tiny_config
from tests.models.training.torchrun_runs import (
    assert_same_run,
    ended,
    interrupted,
    losses,
    started,
    trained,
)

# Every random part of the recipe: two processes must draw the same numbers as one.
REGULARISED = RecurrentConfig(
    Family.LSTM, 5, 7, 2, dropout=0.2, embedding_dropout=0.1, weight_drop=0.2, learned_initial_state=True
)


def test_two_processes_give_the_same_run_as_one(tmp_path: Path) -> None:
    settings = {"chunk_spread": 3.0, "averaging": Averaging.EMA, "activation_regularisation": 0.1}
    config = tiny_config(tmp_path, model=REGULARISED, **settings)
    run_training(config, tmp_path / "one", clock=Clock(1e-3))
    shown = trained(config, tmp_path / "two")
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert shown.count("Preparing the corpus") == 1  # only one process writes, prints and measures
    assert len(losses(tmp_path / "two")) == 12
    figures = json.loads((tmp_path / "two" / "figures.json").read_text())
    assert figures["machine"].startswith("2 processes, each: ")


def test_two_processes_with_different_numbers_of_masked_tokens_give_the_same_run_as_one(tmp_path: Path) -> None:
    config = masked_config(tiny_config(tmp_path, model=REGULARISED, chunk_length=3), tmp_path)
    run_training(config, tmp_path / "one", clock=Clock(1e-3))
    trained(config, tmp_path / "two")
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_process_resumes_an_interrupted_run_of_two(tmp_path: Path, number: signal.Signals) -> None:
    model = replace(REGULARISED, locked_dropout=False)
    config = tiny_config(tmp_path, model=model, steps=400, evaluate_every=40)
    shown = interrupted(config, tmp_path / "part", number)
    assert shown.count("Interrupted after step") == 1, shown
    step = read_json(tmp_path / "part" / "last" / "progress.json")["step"]
    assert isinstance(step, int)
    assert 40 <= step < 400
    assert f"Interrupted after step {step}." in shown
    assert len(losses(tmp_path / "part")) == step
    run_training(config, tmp_path / "part", Start.RESUME)
    run_training(config, tmp_path / "whole")
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_two_processes_resume_an_interrupted_run_of_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model=REGULARISED)
    run = open_run(tmp_path / "part", config, Start.FRESH)
    display = StopAt(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(config, run, resume=False, display=display, clock=Clock())
    trained(config, tmp_path / "part", "--resume")
    run_training(config, tmp_path / "whole")
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_ridge_readout_of_two_processes_matches_that_of_one(tmp_path: Path) -> None:
    model = ReservoirConfig(Family.ESN, units=64, block_size=16, ridge=1e-2, readout=Readout.RIDGE)
    config = replace(tiny_config(tmp_path, steps=None, epochs=1.0), model=model)
    run_training(config, tmp_path / "one")
    trained(config, tmp_path / "two")
    assert_same_run(tmp_path / "two", tmp_path / "one")
    one, two = (load_file(tmp_path / run / "best" / "model.safetensors") for run in ("one", "two"))
    torch.testing.assert_close(two["readout.weight"], one["readout.weight"], rtol=1e-3, atol=1e-3)


def test_error_of_the_first_process_ends_all_and_is_reported_once(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stray.txt").write_text("not a run")
    code, shown = ended(started(config, tmp_path / "run"))
    assert code == 1
    assert shown.count("exists and is not a run") == 1
    assert (
        "Traceback" not in shown.split("torch/distributed/elastic", maxsplit=1)[0]
    )  # torchrun prints its own traceback after this


def test_processes_that_are_started_again_agree_on_a_round_of_their_own() -> None:
    """The store still has what ended processes have written, among it an offer and a round."""
    store = HashStore()
    rounds = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            [name, *others] = pool.map(lambda rank: agree_on_round(store, rank, 3), range(3))
        assert others == [name, name]
        rounds.append(name)
    assert len(set(rounds)) == 3


def test_shares_of_a_batch_are_equal_and_in_order() -> None:
    workers = TorchrunWorkers.__new__(TorchrunWorkers)
    workers.size = 3
    shares = []
    for workers.rank in range(3):
        shares += list(range(12)[workers.rows(12)])
    assert shares == list(range(12))
    with pytest.raises(TrainingError, match=r"training\.batch_size: got 32, expected a multiple of .* \(3\)"):
        workers.rows(32)


def test_single_process_averages_and_splits_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2))
    loss = torch.tensor(1.0)
    assert SINGLE_PROCESS.average_gradients([weight], loss) is loss
    assert SINGLE_PROCESS.rows(7) == slice(0, 7)
    assert SINGLE_PROCESS.largest(3) == 3


@pytest.mark.parametrize("is_locked", [True, False])
def test_each_share_of_a_batch_gets_the_dropout_of_the_whole_batch(is_locked: bool) -> None:
    config = RecurrentConfig(
        Family.GRU, 6, 8, 2, dropout=0.4, locked_dropout=is_locked, embedding_dropout=0.3, weight_drop=0.3
    )
    model = build_model(config, 11, seed=1).train()
    tokens = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    whole, _ = model(tokens, model.initial_state(6))
    state_after = torch.get_rng_state()
    for index in range(3):
        model.take_share(index, 3)
        torch.manual_seed(3)
        part, _ = model(tokens[2 * index : 2 * index + 2], model.initial_state(2))
        torch.testing.assert_close(part, whole[2 * index : 2 * index + 2], rtol=1e-6, atol=1e-6)
        assert torch.equal(torch.get_rng_state(), state_after)

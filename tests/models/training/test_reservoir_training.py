"""Test whole trainings of reservoirs with both readouts: loss, resumption and report."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from meari.bundle_format.names import Family
from meari.models.cells.esn import EchoStateNetwork
from meari.models.checkpoint import load_checkpoint
from meari.models.choices import Averaging, Pattern, Readout, TrainingPrecision
from meari.models.config import Config, ReservoirConfig
from meari.models.errors import CheckpointError, RidgeError
from meari.models.readout.ridge import RidgeSums
from meari.models.text.tokens import prepare
from meari.models.training.ridge_trainer import split_ids
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run
from meari.models.training.trainer import Ending
from tests.models.training.tiny_runs import (
    Clock,
    StopAt,
    chain_entropy,
    contents,
    masked_config,
    read_json,
    run_training,
    tiny_config,
)

RESERVOIR = ReservoirConfig(
    family=Family.ESN, units=64, block_size=16, in_edges=5, spectral_radius=0.5, ridge=1e-2, readout=Readout.RIDGE
)
both_readouts = pytest.mark.parametrize("readout", [Readout.SOFTMAX, Readout.RIDGE])


def config_of(folder: Path, readout: Readout = Readout.RIDGE, **training: object) -> Config:
    config = tiny_config(folder)
    settings = replace(config.training, **training)  # type: ignore[arg-type]
    return replace(config, training=settings, model=replace(RESERVOIR, readout=readout))


def interrupted_run(config: Config, folder: Path, start: Start, step: int, patch: pytest.MonkeyPatch) -> Ending:
    """Train and send SIGINT to this process after `step` chunks have been added to the sums."""
    add, chunks = RidgeSums.add, []

    def add_and_send(self: RidgeSums, states: Tensor, targets: Tensor) -> None:
        chunks.append(len(states))
        add(self, states, targets)
        if len(chunks) == step:
            os.kill(os.getpid(), signal.SIGINT)

    with patch.context() as context:
        context.setattr(RidgeSums, "add", add_and_send)
        return run_training(config, folder, start)[0].ending


@both_readouts
@pytest.mark.parametrize("pattern", list(Pattern))
def test_cross_entropy_approaches_the_entropy_of_a_known_chain(
    tmp_path: Path, readout: Readout, pattern: Pattern
) -> None:
    config = config_of(tmp_path, readout, steps=300, batch_size=8, evaluate_every=300)
    assert isinstance(config.model, ReservoirConfig)
    outcome, _ = run_training(replace(config, model=replace(config.model, pattern=pattern)), tmp_path / "run")
    assert outcome.figures is not None
    assert chain_entropy() - 0.12 < outcome.figures["validation"]["nats_per_token"] < chain_entropy() + 0.12


@both_readouts
def test_masked_tokens_are_read_and_not_learnt(tmp_path: Path, readout: Readout) -> None:
    config = masked_config(config_of(tmp_path, readout, steps=300, batch_size=8, evaluate_every=300), tmp_path)
    run_training(config, tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    corpus = prepare(config, tmp_path / "run")
    row = torch.from_numpy(corpus.train.ids[:2001].astype("int64")).unsqueeze(0)
    with torch.inference_mode():
        hidden, _ = checkpoint.model(row[:, :-1], checkpoint.model.initial_state(1))
        logprobs = checkpoint.model.logits(hidden).log_softmax(-1)[0]
    x = checkpoint.tokenizer.encode("x")[0]
    learnt = row[0, 1:] != x
    assert 300 < int((~learnt).sum()) < 350
    assert logprobs[:, x].exp().mean() < 0.06  # a sixth of the text is x
    nats = -logprobs[learnt].gather(1, row[0, 1:][learnt].unsqueeze(1)).mean()
    assert nats < chain_entropy() + 0.15


@both_readouts
def test_figures_and_report_are_written(tmp_path: Path, readout: Readout) -> None:
    run_training(config_of(tmp_path, readout), tmp_path / "run")
    figures = read_json(tmp_path / "run" / "figures.json")
    assert {"validation", "test", "training_seconds", "steps", "epochs", "machine"} <= set(figures)
    assert figures["spectral_radius"] == pytest.approx(0.5, rel=1e-5)
    assert (tmp_path / "run" / "report.png").stat().st_size > 1000


@both_readouts
def test_checkpoint_gives_normalised_probabilities(tmp_path: Path, readout: Readout) -> None:
    run_training(config_of(tmp_path, readout), tmp_path / "run")
    model = load_checkpoint(tmp_path / "run").model
    assert isinstance(model, EchoStateNetwork)
    hidden, _ = model(torch.tensor([[0, 2, 3, 4, 2]]), model.initial_state(1))
    probabilities = model.logits(hidden).softmax(-1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 5))
    assert bool((probabilities > 0).all())


@pytest.mark.parametrize("steps", [(1,), (3, 5, 1)])
def test_resumed_ridge_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    config = config_of(tmp_path, steps=None, epochs=1.0)
    run_training(config, tmp_path / "whole")
    start = Start.FRESH
    for step in steps:
        assert interrupted_run(config, tmp_path / "part", start, step, monkeypatch) is Ending.INTERRUPTED
        start = Start.RESUME
    assert read_json(tmp_path / "part" / "last" / "progress.json")["step"] == sum(steps)
    assert not (tmp_path / "part" / "best").exists()
    assert run_training(config, tmp_path / "part", Start.RESUME)[0].ending is Ending.FINISHED
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_resumed_softmax_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, Readout.SOFTMAX)
    run_training(config, tmp_path / "whole")
    run = open_run(tmp_path / "part", config, Start.FRESH)
    display = StopAt(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(config, run, resume=False, display=display, clock=Clock()).ending is Ending.INTERRUPTED
    run_training(config, tmp_path / "part", Start.RESUME)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


GATED = replace(
    RESERVOIR,
    readout=Readout.SOFTMAX,
    readout_rank=16,
    readout_gated=True,
    readout_dropout=0.3,
    input_tokens=2,
    embedding_size=4,
)
GATED_TRAINING: dict[str, Any] = {"precision": TrainingPrecision.BFLOAT16, "averaging": Averaging.EMA}


def test_resumed_run_of_a_gated_readout_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path, Readout.SOFTMAX, **GATED_TRAINING), model=GATED)
    run_training(config, tmp_path / "whole")
    run = open_run(tmp_path / "part", config, Start.FRESH)
    display = StopAt(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(config, run, resume=False, display=display, clock=Clock()).ending is Ending.INTERRUPTED
    run_training(config, tmp_path / "part", Start.RESUME)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    model = load_checkpoint(tmp_path / "whole").model
    assert isinstance(model, EchoStateNetwork)
    assert model.gated is not None
    assert model.gated.mean.any()  # the whitening is a part of the checkpoint


def test_gated_readout_learns_a_conjunction_that_a_linear_one_of_the_same_states_cannot(tmp_path: Path) -> None:
    """Check on a text of triples whose third letter is the exclusive or of the first two, which are drawn."""
    draws = torch.randint(2, (4000,), generator=torch.Generator().manual_seed(3)).tolist()
    triples = ("ab"[one] + "cd"[other] + "ef"[one ^ other] for one, other in zip(draws[::2], draws[1::2], strict=True))
    (tmp_path / "chain.txt").write_text("".join(triples))
    config = config_of(tmp_path, Readout.SOFTMAX, steps=150, batch_size=16, evaluate_every=150)
    nearly_linear = replace(GATED, units=32, spectral_radius=0.05, bias_scale=0.0, input_scale=0.1, readout_dropout=0.0)
    losses: list[float] = []
    for model in (nearly_linear, replace(nearly_linear, readout_gated=False)):
        outcome, _ = run_training(replace(config, model=model), tmp_path / f"run {len(losses)}")
        assert outcome.figures is not None
        losses.append(outcome.figures["validation"]["nats_per_token"])
    assert losses[0] == pytest.approx(2 / 3 * math.log(2), abs=0.05)
    assert losses[1] == pytest.approx(math.log(2), abs=0.05)


def test_resuming_a_finished_ridge_run_changes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run_training(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert run_training(config, tmp_path / "run", Start.RESUME)[0].ending is Ending.FINISHED
    assert contents(tmp_path / "run") == before


def test_ridge_run_is_not_resumed_on_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, steps=None, epochs=1.0)
    interrupted_run(config, tmp_path / "run", Start.FRESH, 2, monkeypatch)
    (tmp_path / "chain.txt").write_text("cab" * 2000)
    with pytest.raises(CheckpointError, match="the corpus has changed"):
        run_training(config, tmp_path / "run", Start.RESUME)


def test_time_limit_of_a_ridge_run_solves_the_sums_so_far(tmp_path: Path) -> None:
    config = config_of(tmp_path, steps=None, epochs=1.0, max_minutes=1.0)
    outcome, _ = run_training(config, tmp_path / "run", clock=Clock(seconds_per_look=5.0))
    assert outcome.ending is Ending.TIME_LIMIT
    assert outcome.figures is not None


def test_small_ridge_penalty_fails_with_the_name_of_the_setting(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert isinstance(config.model, ReservoirConfig)
    silent = replace(config.model, ridge=1e-300, leak_min=1.0, bias_scale=0.0, spectral_radius=0.0)
    with pytest.raises(RidgeError, match=r"model\.ridge"):
        run_training(replace(config, model=silent), tmp_path / "run")


@pytest.mark.parametrize("length", [3, 100, 5000, 1_000_000])
def test_text_held_out_of_the_sums_is_the_last_part(length: int) -> None:
    ids = torch.arange(length).numpy()
    summed, held_out = split_ids(ids, 50)
    assert len(summed) >= 2
    assert len(held_out) >= 2
    assert summed[0] == 0
    assert held_out[0] == summed[-1]
    assert held_out[-1] == length - 1
    assert len(held_out) <= max(2001, 0.021 * length)

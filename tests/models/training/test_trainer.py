"""Test the training loop: loss near the entropy, bit-for-bit resumption, and every way to end."""

import datetime as dt
import json
import math
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from meari.bundle_format.names import Family
from meari.models.checkpoint import fill_checkpoint, load_checkpoint
from meari.models.choices import Averaging, Optimizer, Schedule, TrainingPrecision
from meari.models.config import RecurrentConfig
from meari.models.errors import CheckpointError, NotFinite
from meari.models.evaluation import evaluate
from meari.models.families import build_model
from meari.models.text.token_file import UNCOUNTED
from meari.models.text.tokens import prepare
from meari.models.training import trainer as trainer_module
from meari.models.training.history import EvaluationRecord, StepRecord, read_history
from meari.models.training.optimizer import learning_rate
from meari.models.training.run import train
from meari.models.training.run_folder import Start, open_run
from meari.models.training.streams import Chunk, Streams, open_streams
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

WHOLE_RECIPE = RecurrentConfig(
    Family.LSTM, 5, 7, 2, dropout=0.2, embedding_dropout=0.1, weight_drop=0.2, layer_norm=True,
    learned_initial_state=True, mogrifier_rounds=2, adaptive_cutoffs=(2,),
)  # fmt: skip
AVERAGED: dict[str, object] = {"averaging": Averaging.EMA, "activation_regularisation": 0.1}


def interrupt_at(step: int, folder: Path, config_folder: Path, number: signal.Signals = signal.SIGINT) -> Ending:
    config = tiny_config(config_folder)
    is_begun = (folder / "config.json").exists()
    run = open_run(folder, config, Start.RESUME if is_begun else Start.FRESH)
    display = StopAt(step, lambda: os.kill(os.getpid(), number))
    return train(config, run, resume=is_begun, display=display, clock=Clock()).ending


@pytest.mark.parametrize("family", ["rnn", "gru", "lstm"])
def test_cross_entropy_approaches_the_entropy_of_a_known_chain(tmp_path: Path, family: str) -> None:
    model = RecurrentConfig(Family(family), 8, 16)
    config = tiny_config(tmp_path, model=model, steps=250, batch_size=8, evaluate_every=250)
    figures = run_training(config, tmp_path / "run")[0].figures
    assert figures is not None
    corpus = prepare(config, tmp_path / "run")
    first = read_history(tmp_path / "run" / "history.jsonl")[0]
    measured = evaluate(load_checkpoint(tmp_path / "run").model, corpus.train).nats_per_token
    assert isinstance(first, StepRecord)
    assert first.loss > 1.0
    assert chain_entropy() - 0.03 < measured < chain_entropy() + 0.03  # 4,800 letters: the entropy of a sample varies
    assert figures["validation"]["nats_per_token"] < chain_entropy() + 0.12  # 600 letters


@pytest.mark.parametrize("cutoffs", [(), (2,)])
@pytest.mark.parametrize("family", ["rnn", "gru", "lstm"])
def test_masked_tokens_are_read_and_not_learnt(tmp_path: Path, family: str, cutoffs: tuple[int, ...]) -> None:
    model = RecurrentConfig(Family(family), 8, 16, adaptive_cutoffs=cutoffs)
    config = tiny_config(tmp_path, model=model, steps=250, batch_size=8, evaluate_every=250)
    run_training(masked_config(config, tmp_path), tmp_path / "run")
    corpus = prepare(masked_config(config, tmp_path), tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    x = checkpoint.tokenizer.encode("x")[0]
    row = torch.from_numpy(corpus.train.ids[:2001].astype("int64")).unsqueeze(0)
    with torch.inference_mode():
        hidden, _ = checkpoint.model(row[:, :-1], checkpoint.model.initial_state(1))
        logprobs = checkpoint.model.logits(hidden).log_softmax(-1)[0]
    following = row[0, 1:]
    masked = corpus.train.masked[corpus.train.masked < 2001] - 1
    assert (following[masked] == x).all()
    learnt = torch.ones(2000, dtype=torch.bool)
    learnt[masked] = False
    assert not (following[learnt] == x).any()
    assert logprobs[:, x].exp().max() < 0.02  # a fifth of what follows a letter
    # The letters behind an x depend on the letter before it, which the state remembers.
    nats = -logprobs[learnt].gather(1, following[learnt].unsqueeze(1)).mean()
    assert nats < chain_entropy() + 0.06


def test_loss_of_a_step_is_the_mean_over_the_targets_that_are_learnt(tmp_path: Path) -> None:
    config = masked_config(tiny_config(tmp_path, model=RecurrentConfig(Family.LSTM, 5, 7, 2), steps=1), tmp_path)
    run_training(config, tmp_path / "run")
    corpus = prepare(config, tmp_path / "run")
    torch.manual_seed(config.seed)
    model = build_model(config.model, corpus.tokenizer.vocabulary_size, config.seed)
    chunk = open_streams(config, corpus, np.random.default_rng(config.seed)).next_chunk()
    assert 0 < chunk.num_learnt < chunk.targets.size
    hidden, _ = model(torch.from_numpy(chunk.inputs), model.initial_state(len(chunk.inputs)))
    logits, targets = model.logits(hidden).flatten(0, 1), torch.from_numpy(chunk.targets).flatten()
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, ignore_index=UNCOUNTED)
    expected.backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    first = read_history(tmp_path / "run" / "history.jsonl")[0]
    assert isinstance(first, StepRecord)
    assert first.loss == pytest.approx(expected.item(), rel=1e-6)
    assert first.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("step", [1, 4, 5, 7, 11])
def test_run_resumed_at_any_step_equals_an_uninterrupted_one(tmp_path: Path, step: int) -> None:
    run_training(tiny_config(tmp_path), tmp_path / "whole")
    assert interrupt_at(step, tmp_path / "part", tmp_path) is Ending.INTERRUPTED
    assert read_json(tmp_path / "part" / "last" / "checkpoint.json")["step"] == step
    torch.manual_seed(1234)  # another process has another state of the generator
    outcome, _ = run_training(tiny_config(tmp_path), tmp_path / "part", Start.RESUME)
    assert outcome.ending is Ending.FINISHED
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_run_resumed_many_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    run_training(tiny_config(tmp_path), tmp_path / "whole")
    for step in (2, 3, 6, 10):
        interrupt_at(step, tmp_path / "part", tmp_path, signal.SIGTERM)
    run_training(tiny_config(tmp_path), tmp_path / "part", Start.RESUME)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_killed_run_resumes_from_its_last_evaluation(tmp_path: Path) -> None:
    run_training(tiny_config(tmp_path), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    config = tiny_config(tmp_path)
    run = open_run(tmp_path / "part", config, Start.FRESH)
    with pytest.raises(Killed):
        train(config, run, resume=False, display=StopAt(8, kill), clock=Clock())
    assert read_json(tmp_path / "part" / "last" / "checkpoint.json")["step"] == 5
    run_training(config, tmp_path / "part", Start.RESUME)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_crash_while_saving_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_training(tiny_config(tmp_path), tmp_path / "whole")
    config = tiny_config(tmp_path)
    run = open_run(tmp_path / "part", config, Start.FRESH)
    num_saved: list[Path] = []

    def crashing(folder: Path, *args: object, **kwargs: object) -> None:
        num_saved.append(folder)
        if len(num_saved) > 1:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError("no space left on device")
        fill_checkpoint(folder, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "fill_checkpoint", crashing)
        with pytest.raises(OSError, match="no space"):
            train(config, run, resume=False, display=StopAt(0, lambda: None), clock=Clock())
    assert load_checkpoint(tmp_path / "part").step == 5
    run_training(config, tmp_path / "part", Start.RESUME)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    monkeypatch.setattr(
        trainer_module,
        "learning_rate",
        lambda c, step, n, share: math.inf if step == 6 else learning_rate(c, step, n, share),
    )
    with pytest.raises(NotFinite, match=r"step 8: the .* training.learning_rate .* training.clip_norm"):
        run_training(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 5
    monkeypatch.undo()
    assert run_training(config, tmp_path / "run", Start.RESUME)[0].ending is Ending.FINISHED


def test_best_checkpoint_is_kept_if_later_ones_are_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([1.5, 1.2, 1.4, 1.3])
    monkeypatch.setattr(trainer_module, "quick_nats_per_token", lambda *_: next(figures))
    run_training(tiny_config(tmp_path, steps=20), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 10
    assert read_json(tmp_path / "run" / "last" / "progress.json")["best_step"] == 10


def test_training_stops_early_when_validation_no_longer_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([1.5, 1.2, 1.4, 1.3, 1.25])
    monkeypatch.setattr(trainer_module, "quick_nats_per_token", lambda *_: next(figures))
    config = tiny_config(tmp_path, steps=1000, patience=2)
    outcome, shown = run_training(config, tmp_path / "run")
    assert (outcome.ending, outcome.step) == (Ending.EARLY_STOPPED, 20)
    assert "step 10: validation 1.2000 nats/token  perplexity 3.32  best so far" in shown
    assert load_checkpoint(tmp_path / "run").step == 10


def test_time_limit_ends_a_run_with_checkpoint_figures_and_report(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=100_000, max_minutes=1.0)
    outcome, _ = run_training(config, tmp_path / "run", clock=Clock(seconds_per_look=1.0))
    assert outcome.ending is Ending.TIME_LIMIT
    assert 5 < outcome.step < 60
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    figures = read_json(tmp_path / "run" / "figures.json")
    assert figures["steps"] == outcome.step
    assert set(figures) >= {"validation", "test", "training_seconds", "epochs", "machine"}
    assert isinstance(figures["training_seconds"], float)
    assert figures["training_seconds"] >= 60
    assert dt.datetime.now(dt.UTC).date() - dt.date.fromisoformat(str(figures["training_ended"])) <= dt.timedelta(
        days=1
    )


def test_processor_time_of_all_parts_of_a_run_is_counted(tmp_path: Path) -> None:
    config, display = tiny_config(tmp_path), StopAt(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    for start, ending in ((Start.FRESH, Ending.INTERRUPTED), (Start.RESUME, Ending.FINISHED)):
        run, cpu_clock = open_run(tmp_path / "run", config, start), Clock(seconds_per_look=1.5)
        resume = start is Start.RESUME
        result = train(config, run, resume=resume, display=display, clock=Clock(), cpu_clock=cpu_clock)
        assert result.ending is ending
    # Each part looks at its start, after its evaluations (5; 10 and 12) and at its end.
    assert read_json(tmp_path / "run" / "figures.json")["training_cpu_seconds"] == 1.5 * (2 + 3)


def test_run_by_the_clock_finishes_on_time_with_its_smallest_rate(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=100_000, max_minutes=1.0, schedule=Schedule.CLOCK)
    outcome, _ = run_training(config, tmp_path / "run", clock=Clock(seconds_per_look=1.0))
    assert outcome.ending is Ending.FINISHED
    steps = [each for each in read_history(tmp_path / "run" / "history.jsonl") if isinstance(each, StepRecord)]
    assert 5 < len(steps) == outcome.step < 60
    assert steps[-1].learning_rate < 0.05 * config.training.learning_rate
    assert 60 <= steps[-1].seconds < 70


def test_run_by_the_clock_is_resumed_with_the_time_that_is_left(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=100_000, max_minutes=1.0, schedule=Schedule.CLOCK)
    run = open_run(tmp_path / "run", config, Start.FRESH)
    display = StopAt(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    first = train(config, run, resume=False, display=display, clock=Clock(seconds_per_look=1.0))
    assert first.ending is Ending.INTERRUPTED
    outcome, _ = run_training(config, tmp_path / "run", Start.RESUME, clock=Clock(seconds_per_look=1.0))
    assert outcome.ending is Ending.FINISHED
    records = read_history(tmp_path / "run" / "history.jsonl")
    assert 60 <= records[-1].seconds < 70
    again, _ = run_training(config, tmp_path / "run", Start.RESUME, clock=Clock(seconds_per_look=1.0))
    assert (again.ending, again.step) == (Ending.FINISHED, outcome.step)
    assert read_history(tmp_path / "run" / "history.jsonl") == records


def test_history_has_every_step_once(tmp_path: Path) -> None:
    run_training(tiny_config(tmp_path), tmp_path / "run")
    records = read_history(tmp_path / "run" / "history.jsonl")
    assert [record.step for record in records if isinstance(record, StepRecord)] == list(range(1, 13))
    assert [record.step for record in records if isinstance(record, EvaluationRecord)] == [5, 10, 12]


def test_run_is_not_resumed_on_a_changed_corpus(tmp_path: Path) -> None:
    interrupt_at(3, tmp_path / "run", tmp_path)
    text = tmp_path / "chain.txt"
    text.write_text(text.read_text()[::-1])
    with pytest.raises(CheckpointError, match="corpus has changed"):
        run_training(tiny_config(tmp_path), tmp_path / "run", Start.RESUME)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run_training(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert run_training(config, tmp_path / "run", Start.RESUME)[0].ending is Ending.FINISHED
    assert contents(tmp_path / "run") == before


def test_nothing_in_a_run_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check with every setting of the recipe that a run of JSON and safetensors files can be resumed."""
    config = tiny_config(tmp_path, model=WHOLE_RECIPE, **AVERAGED)
    run_training(config, tmp_path / "run")
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".png", ".safetensors", ".tokens"}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    tensors: dict[str, set[str]] = {}
    for folder in ("best", "last"):
        for path in (tmp_path / "run" / folder).iterdir():
            if path.suffix == ".safetensors":
                tensors[f"{folder}/{path.stem}"] = set(load_file(path))
            else:
                read_json(path)
    weights = tensors["best/model"]
    assert {"initial.h0", "initial.c1", "norms.0.weight", "layers.0.kernel.weight_hh_l0"} <= weights
    assert tensors["last/model"] == weights
    kept = tensors["last/optimizer"]
    learned = {name.removeprefix("average/") for name in kept if name.startswith("average/")} - {"count"}
    assert learned == {name for name in weights if name != "adaptive.rank"}
    assert {f"optimizer/{name}/exp_avg" for name in learned} <= kept
    assert {"average/count", "state/h0", "state/c0", "state/h1", "state/c1", "generator/cpu"} <= kept
    assert load_checkpoint(tmp_path / "run").step in (5, 10, 12)
    assert run_training(config, tmp_path / "run", Start.RESUME)[0].ending is Ending.FINISHED


RECIPES: dict[str, tuple[RecurrentConfig | None, dict[str, object]]] = {
    "ema": (None, {"averaging": Averaging.EMA}),
    "triggered": (None, {"averaging": Averaging.TRIGGERED, "trigger_patience": 1, "evaluate_every": 2}),
    "chunk_spread": (None, {"chunk_spread": 4.0}),
    "bfloat16": (None, {"precision": TrainingPrecision.BFLOAT16}),
    "muon": (None, {"optimizer": Optimizer.MUON, "matrix_learning_rate": 0.02}),
    "weight drop": (RecurrentConfig(Family.GRU, 5, 7, 2, weight_drop=0.3, embedding_dropout=0.2), {}),
    "dropout at each step": (RecurrentConfig(Family.RNN, 5, 7, 2, dropout=0.3, locked_dropout=False), {}),
    "learned initial state": (RecurrentConfig(Family.LSTM, 5, 7, 2, learned_initial_state=True), {}),
    "adaptive softmax": (RecurrentConfig(Family.LSTM, 5, 7, adaptive_cutoffs=(2,)), {}),
    "all": (
        WHOLE_RECIPE,
        AVERAGED | {"chunk_spread": 4.0, "precision": TrainingPrecision.BFLOAT16, "temporal_regularisation": 0.5},
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_and_repeated_runs_of_every_recipe_are_equal_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    model, training = RECIPES[recipe]
    config = tiny_config(tmp_path, model=model, **training)
    if config.training.averaging is Averaging.TRIGGERED:  # triggers at the second evaluation, before the interruption
        monkeypatch.setattr(trainer_module, "quick_nats_per_token", lambda *_: 1.0)
    run_training(config, tmp_path / "whole")
    part = open_run(tmp_path / "part", config, Start.FRESH)
    display = StopAt(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(config, part, resume=False, display=display, clock=Clock()).ending is Ending.INTERRUPTED
    has_mean = "average/count" in load_file(part.last / "optimizer.safetensors")
    assert has_mean == (config.training.averaging is not Averaging.NONE)
    torch.manual_seed(1234)
    run_training(config, tmp_path / "part", Start.RESUME)
    run_training(config, tmp_path / "again")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_epochs_count_the_tokens_of_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    next_chunk = Streams.next_chunk

    def counted(self: Streams) -> Chunk:
        chunk = next_chunk(self)
        lengths.append(chunk.inputs.size)
        return chunk

    monkeypatch.setattr(Streams, "next_chunk", counted)
    figures = run_training(tiny_config(tmp_path, chunk_spread=6.0), tmp_path / "run")[0].figures
    assert figures is not None
    assert len(set(lengths)) > 3
    num_targets = len(prepare(tiny_config(tmp_path), tmp_path / "run").train.ids) - 1
    assert figures["epochs"] == round(sum(lengths) / num_targets, 3)


def test_state_is_carried_from_chunk_to_chunk(tmp_path: Path) -> None:
    """Train with chunks of one token, in which only the state holds earlier letters."""
    model = RecurrentConfig(Family.LSTM, 4, 16)
    (tmp_path / "chain.txt").write_text("aabb" * 1500)
    config = tiny_config(tmp_path, model=model, steps=300, chunk_length=1, batch_size=8, evaluate_every=300)
    config = replace(config, training=replace(config.training, restart_share=0.0, learning_rate=3e-2))
    figures = run_training(config, tmp_path / "run")[0].figures
    assert figures is not None
    assert figures["validation"]["nats_per_token"] < 0.5  # without the state: ln 2


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"fingerprint": 1, "step": 2}', '{"fingerprint": "", "unknown": []}', "[" * 10**5]
)
def test_progress_that_lacks_what_a_run_needs_is_refused(tmp_path: Path, text: str) -> None:
    config = tiny_config(tmp_path)
    part = open_run(tmp_path / "run", config, Start.FRESH)
    display = StopAt(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(config, part, resume=False, display=display, clock=Clock()).ending is Ending.INTERRUPTED
    progress = part.last / "progress.json"
    found = json.loads(progress.read_text("utf-8"))
    lacking = [json.dumps({key: found[key] for key in found if key != left}) for left in ("fingerprint", "streams")]
    for each in (text, json.dumps(found | {"unknown": 1}), *lacking):
        progress.write_text(each)
        with pytest.raises(CheckpointError, match="start again with --overwrite"):
            run_training(config, tmp_path / "run", Start.RESUME)

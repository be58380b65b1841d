"""Test checkpoints: a saved model is loaded unchanged, and damaged files are reported by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from meari.bundle_format.names import Family
from meari.models.checkpoint import fill_checkpoint, load_checkpoint
from meari.models.config import Config, ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.errors import CheckpointError
from meari.models.families import build_model
from meari.models.language_model import LanguageModel
from meari.models.text.tokenizer import train_tokenizer
from tests.models.training.tiny_runs import tiny_config

MODELS: list[ModelConfig] = [
    RecurrentConfig(Family.RNN, 3, 5, 2),
    RecurrentConfig(Family.GRU, 3, 5, tied=True),
    RecurrentConfig(Family.LSTM, 4, 4, tied=True),
    ReservoirConfig(Family.ESN, units=16, block_size=4),
]

WIDE = RecurrentConfig(Family.RNN, 3, 16)


def save(folder: Path, model_config: ModelConfig) -> tuple[LanguageModel, Config]:
    config = replace(tiny_config(folder), model=model_config)
    tokenizer = train_tokenizer(["abc"], config.tokenizer)
    tokenizer.save(folder / "tokenizer.json")
    model = build_model(model_config, tokenizer.vocabulary_size, seed=9)
    best = folder / "run" / "best"
    best.mkdir(parents=True)
    fill_checkpoint(best, model, folder / "tokenizer.json", config, step=7, figures={"validation": {"perplexity": 2.0}})
    return model, config


@pytest.mark.parametrize("model_config", MODELS, ids=lambda config: str(config.family))
def test_saved_model_is_loaded_unchanged(tmp_path: Path, model_config: ModelConfig) -> None:
    model, config = save(tmp_path, model_config)
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        checkpoint = load_checkpoint(folder)
        assert checkpoint.config == config
        assert checkpoint.step == 7
        assert checkpoint.figures == {"validation": {"perplexity": 2.0}}
        assert checkpoint.tokenizer.encode("cab") == checkpoint.tokenizer.encode("cab")
        assert not checkpoint.model.training
        loaded = checkpoint.model.state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_figures_of_a_finished_run_replace_those_of_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, MODELS[0])
    (tmp_path / "run" / "figures.json").write_text('{"steps": 3}')
    assert load_checkpoint(tmp_path / "run").figures == {"steps": 3}


def test_checkpoint_of_an_interrupted_swap_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, MODELS[0])
    (tmp_path / "run" / "best").rename(tmp_path / "run" / "best.old")
    assert load_checkpoint(tmp_path / "run").step == 7


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nothing saved yet"):
        load_checkpoint(tmp_path)


def change_description(best: Path, **changes: object) -> None:
    path = best / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2, expected 1"),
        ({"family": "gru"}, "family 'gru', but its config is of rnn"),
        ({"vocabulary_size": 99}, r"the tokenizer has 5 tokens, the model 99; they are from different runs"),
        ({"vocabulary_size": -5}, r"the tokenizer has 5 tokens, the model -5;"),
        ({"vocabulary_size": 10**30}, r"the tokenizer has 5 tokens, the model 10{30};"),
        ({"figures": [1]}, r"figures: got \[1\], expected a table"),
        ({"vocabulary_size": "many"}, "the tokenizer has 5 tokens, the model 'many';"),
        ({"vocabulary_size": None}, "the tokenizer has 5 tokens, the model None;"),
        ({"config": {"name": "x"}}, "problem"),
        ({"step": float("inf")}, r"checkpoint\.json: damaged: cannot convert float infinity"),
    ],
)
def test_inconsistent_description_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save(tmp_path, MODELS[0])
    change_description(tmp_path / "run" / "best", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("hidden_size", "message"),
    [
        (7, r"the weights do not fit the model: \S+: got the shape"),
        (
            1000,
            r"checkpoint\.json: a model of these sizes has at least \d+ bytes of weights, model\.safetensors has \d+",
        ),
        (10**9, r"checkpoint\.json: a model of these sizes"),
        (10**19, r"checkpoint\.json: a model of these sizes"),
    ],
)
def test_config_of_another_size_is_refused(tmp_path: Path, hidden_size: int, message: str) -> None:
    save(tmp_path, MODELS[0])
    description = json.loads((tmp_path / "run" / "best" / "checkpoint.json").read_text("utf-8"))
    description["config"]["model"]["hidden_size"] = hidden_size
    change_description(tmp_path / "run" / "best", config=description["config"])
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (WIDE, {"adaptive_cutoffs": [5]}, "adaptive_cutoffs: got 5, expected numbers below 5, the size of the vocab"),
        (MODELS[2], {"mogrifier_rounds": 2**64}, "mogrifier_rounds: got 18446744073709551616, expected"),
        (MODELS[0], {"num_layers": 1000}, "a model of these sizes has at least"),  # was made first, for seconds
        (MODELS[3], {"units": 4096}, "a model of these sizes has at least"),
        (MODELS[0], {"num_layers": 10**9}, "num_layers: got 1000000000, expected"),
        (MODELS[3], {"layers": 10**9}, "layers: got 1000000000, expected"),
        (MODELS[3], {"reservoirs": 10**9}, "reservoirs: got 1000000000, expected"),
        (MODELS[3], {"block_size": 8}, r"the weights do not fit the model: \S+: got the shape"),
        (MODELS[0], {"family": "lstm"}, r"family 'rnn', but its config is of lstm"),
        (MODELS[0], {"learned_initial_state": True}, r"the weights do not fit the model: \S+: got none, expected the"),
        (MODELS[2], {"tied": False}, "the weights do not fit the model"),
        (MODELS[3], {"readout_rank": 2}, "the weights do not fit the model"),
    ],
)
def test_config_that_does_not_fit_what_is_beside_it_is_refused(
    tmp_path: Path, model: ModelConfig, changes: dict[str, object], message: str
) -> None:
    save(tmp_path, model)
    best = tmp_path / "run" / "best"
    description = json.loads((best / "checkpoint.json").read_text("utf-8"))
    description["config"]["model"] |= changes
    change_description(best, config=description["config"])
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "run")
    assert str(best) in str(caught.value)


@pytest.mark.parametrize(("kind", "message"), [(torch.complex64, "complex numbers"), (torch.int64, "integers")])
def test_weights_of_another_kind_of_numbers_are_refused(tmp_path: Path, kind: torch.dtype, message: str) -> None:
    save(tmp_path, MODELS[0])
    path = tmp_path / "run" / "best" / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(kind)}, path)
    with pytest.raises(CheckpointError, match=f"do not fit the model: {name}: got {message}, expected floats"):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json", "tokenizer.json"])
def test_damaged_file_is_reported_by_name(tmp_path: Path, name: str) -> None:
    save(tmp_path, MODELS[0])
    (tmp_path / "run" / "best" / name).write_bytes(b"{ half")
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path / "run")


def test_tokenizer_of_another_run_is_refused(tmp_path: Path) -> None:
    _, config = save(tmp_path, MODELS[0])
    train_tokenizer(["abcdefg"], config.tokenizer).save(tmp_path / "run" / "best" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="from different runs"):
        load_checkpoint(tmp_path / "run")

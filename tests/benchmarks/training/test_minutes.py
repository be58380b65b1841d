"""Test the held-out losses by minutes: a chosen and a written config are compared on the same text and time."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.training.minutes import chosen_config, main, page, written_config
from meari.models.config import load_config

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 sheep sleep; "
WRITTEN = """
name = "written"
[corpus]
name = "sheep"
train = ["{folder}/train.txt"]
validation = ["{folder}/validation.txt"]
test = ["{folder}/validation.txt"]
document = "line"
[tokenizer]
kind = "char"
[model]
family = "rnn"
embedding_size = 8
hidden_size = 16
[training]
steps = 100
batch_size = 4
chunk_length = 16
learning_rate = 1e-2
threads = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text(f"{TEXT}\n" * 100)
    (tmp_path / "validation.txt").write_text(f"{TEXT}\n" * 5)
    (tmp_path / "written.toml").write_text(WRITTEN.format(folder=tmp_path))
    return tmp_path / "written.toml"


def test_written_config_keeps_its_model_and_ends_by_the_clock(file: Path) -> None:
    base = load_config(file)
    config = written_config(base, 0.5)
    assert (config.model, config.training.batch_size) == (base.model, base.training.batch_size)
    assert (config.training.schedule, config.training.max_minutes, config.training.threads) == ("clock", 0.5, 1)
    assert not config.corpus.test


def test_written_config_can_be_tuned_by_hand(file: Path) -> None:
    base = load_config(file)
    config = written_config(base, 0.5, ["model.hidden_size=24", "training.warmup_steps=7"])
    assert config.model == dataclasses.replace(base.model, hidden_size=24)  # type: ignore[arg-type]
    assert (config.training.warmup_steps, config.training.batch_size) == (7, base.training.batch_size)


def test_chosen_config_has_the_text_and_the_held_out_text_of_the_written_one(file: Path) -> None:
    base = load_config(file)
    config = chosen_config(base, 1.0)
    assert (config.corpus.train, config.corpus.validation) == (base.corpus.train, base.corpus.validation)
    assert (config.corpus.document, config.training.threads) == (base.corpus.document, 1)
    assert config.model != base.model


def test_both_are_measured_and_stand_on_the_page(file: Path, tmp_path: Path) -> None:
    results = tmp_path / "minutes.json"
    for option in (["--chosen"], ["--written", "--set", "training.batch_size=2"]):
        main([str(file), "--minutes", "0.02", *option, "--results", str(results)])
    chosen, written = json.loads(results.read_text("utf-8"))
    assert chosen["settings"][:2] == ["chosen by `meari train`", "tokenizer.kind=char"]
    assert {"model.family=gru", "model.hidden_size=64"} <= set(chosen["settings"])
    assert written["settings"] == ["all of written.toml", "training.batch_size=2"]
    assert chosen["parameters"] != written["parameters"]
    for each in (chosen, written):
        assert each["ngrams"] > 0
        assert each["bits_per_char_of_bundle"] < 0.98 * each["bits_per_char"]
    written_page = results.with_suffix(".md").read_text("utf-8")
    assert "| all of written.toml, `training.batch_size=2` |" in written_page
    ratio = chosen["bits_per_char"] / written["bits_per_char"]
    assert f"| {chosen['bits_per_char']:.3f} | {written['bits_per_char']:.3f} | {ratio:.3f} |" in written_page


def test_page_has_a_part_for_each_machine_and_compares_within_it() -> None:
    row = {"corpus": "sheep", "share": 1.0, "minutes": 5.0, "parameters": 1, "steps": 2, "epochs": 0.5}
    found = page(
        [
            row | {"settings": ["all of a.toml"], "machine": "slow", "bits_per_char": 2.0},
            row | {"settings": ["chosen by `meari train`"], "machine": "slow", "bits_per_char": 2.1},
            row | {"settings": ["all of a.toml"], "machine": "fast", "bits_per_char": 1.0},
        ]
    )
    fast, slow = found.split("\n## ")[1:]
    assert "| sheep | 5 | 2.100 | 2.000 | 1.050 |" in slow
    assert "best by hand" not in fast

"""Test configs: all problems are reported together, no key is ignored, and JSON round trips are exact."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from meari.bundle_format.names import Family
from meari.models.config import Config, RecurrentConfig, ReservoirConfig, load_config, parse_config
from meari.models.errors import ConfigError, ModelsError

SMALL: dict[str, Any] = {
    "name": "small",
    "corpus": {"train": ["a.txt"], "document": "line", "validation_share": 0.1},
    "tokenizer": {"kind": "char"},
    "model": {"family": "lstm"},
    "training": {"steps": 3},
}


def changed(**changes: Any) -> dict[str, Any]:
    """Return SMALL with `section__key=value` set; None removes the key."""
    tables = deepcopy(SMALL)
    for path, value in changes.items():
        section, _, key = path.rpartition("__")
        table = tables[section] if section else tables
        if value is None:
            del table[key]
        else:
            table[key] = value
    return tables


def problems_of(tables: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(tables, "x.toml")
    assert isinstance(caught.value, ModelsError)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_missing_settings_take_their_defaults() -> None:
    config = parse_config(SMALL)
    assert isinstance(config.model, RecurrentConfig)
    assert (config.seed, config.corpus.train, config.training.epochs) == (1, ("a.txt",), None)


@pytest.mark.parametrize("changes", [{}, {"model__family": "esn"}, {"training__steps": None, "training__epochs": 2}])
def test_config_survives_a_round_trip_through_json(changes: dict[str, Any]) -> None:
    config = parse_config(changed(**changes))
    assert Config.from_json(config.to_json()) == config
    assert parse_config(config.to_tables()) == config


def test_layer_sizes_replace_hidden_size_and_num_layers() -> None:
    config = parse_config(changed(model__hidden_size=8, model__num_layers=3)).model
    assert isinstance(config, RecurrentConfig)
    assert config.sizes == (8, 8, 8)
    config = parse_config(changed(model__layer_sizes=[16, 4])).model
    assert isinstance(config, RecurrentConfig)
    assert config.sizes == (16, 4)


def test_family_determines_the_model_settings() -> None:
    config = parse_config(changed(model__family="esn", model__units=128))
    assert isinstance(config.model, ReservoirConfig)
    assert (config.model.family, config.model.units) == (Family.ESN, 128)
    assert problems_of(changed(model__units=128)) == (
        "model.units: got a setting of esn, expected settings of family lstm",
    )
    assert problems_of(changed(model__family="esn", model__hidden_size=8)) == (
        "model.hidden_size: got a setting of rnn, gru and lstm, expected settings of family esn",
    )


def test_all_problems_are_reported_together() -> None:
    tables = changed(
        name="a b", sed=1, corpus__train=[], corpus__document="page", tokenizer__kind="bpe", model__dropout=1,
        model__hiden_size=3, training__epochs=2, training__batch_size=True, training__learning_rate=float("nan"),
    )  # fmt: skip
    assert set(problems_of(tables)) == {
        "sed: got an unknown key, expected one of name, seed, corpus, tokenizer, model, training (did you mean seed?)",
        "name: got \"a b\", expected a name of letters, digits, '.', '_', '-', and not DEFAULT",
        'corpus.document: got "page", expected one of "line", "paragraph", "file"',
        "corpus.train: got an empty list, expected at least one file or folder",
        'tokenizer.vocabulary_size: got 0, expected at least 257 for kind "bpe"',
        (
            "model.hiden_size: got an unknown key, expected one of family, embedding_size, hidden_size, num_layers, "
            "dropout, tied, layer_sizes, input_dropout, output_dropout, locked_dropout, embedding_dropout, "
            "weight_drop, layer_norm, forget_bias, learned_initial_state, mogrifier_rounds, adaptive_cutoffs "
            "(did you mean hidden_size?)"
        ),
        "model.dropout: got 1, expected a number 0 ≤ share < 1",
        "training.batch_size: got true, expected a whole number ≥ 1",
        "training.learning_rate: got NaN, expected a number > 0",
        "training.epochs: got 2.0 beside steps 3, expected one of the two",
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training__steps": None}, "training.steps: got neither"),
        ({"training__steps": 1.0}, "training.steps: got 1.0, expected a whole number"),
        ({"training__steps": 0}, "training.steps: got 0, expected a whole number ≥ 1"),
        ({"training__min_learning_rate": 1.0}, "training.min_learning_rate: got 1.0, expected at most learning_rate"),
        ({"training__schedule": "clock"}, 'training.max_minutes: got 0 with schedule = "clock", expected more than 0'),
        ({"training__learning_rate": 10**400}, "training.learning_rate: got 1000"),
        ({"training__clip_norm": float("inf")}, "training.clip_norm: got Infinity"),
        ({"training__threads": 999999999}, "training.threads: got 999999999, expected a whole number 0 … 1024"),
        ({"training__device": "tpu"}, 'training.device: got "tpu"'),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**63}, "seed: got 9223372036854775808"),
        ({"name": "../up"}, 'name: got "../up"'),
        ({"corpus__train": "a.txt"}, 'corpus.train: got "a.txt", expected a list'),
        ({"corpus__train": [""]}, "corpus.train: got"),
        ({"corpus__validation_share": None}, "corpus.validation: got neither"),
        ({"corpus__validation": ["b"]}, "corpus.validation_share: got 0.1 beside validation files"),
        ({"corpus__validation_share": 1}, "corpus.validation_share: got 1, expected a number 0 ≤ share < 1"),
        ({"corpus__training_share": 0}, "corpus.training_share: got 0, expected a number 0 < share ≤ 1"),
        ({"corpus__test_share": 0.95}, "corpus.test_share: got 0.95 with validation_share 0.1"),
        ({"corpus__test_share": 0.1, "corpus__test": ["c"]}, "corpus.test_share: got 0.1 beside test files"),
        ({"tokenizer__vocabulary_size": 2}, "tokenizer.vocabulary_size: got 2, expected at least 3"),
        ({"tokenizer__min_count": 0}, "tokenizer.min_count: got 0"),
        ({"model__family": "transformer"}, 'model.family: got "transformer"'),
        ({"model__family": 3}, "model.family: got 3"),
        ({"model__tied": 1}, "model.tied: got 1, expected true or false"),
        ({"model__family": "esn", "model__units": 100}, "model.block_size: got 64, expected a divisor of units (100)"),
        ({"model__family": "esn", "model__leak_min": 0.9, "model__leak_max": 0.5}, "model.leak_min: got 0.9"),
        ({"model__family": "esn", "model__leak_min": 0}, "model.leak_min: got 0, expected a number 0 < leak ≤ 1"),
        ({"model__layer_sizes": [8, 0]}, "model.layer_sizes: got [8, 0], expected a list of whole numbers ≥ 1"),
        ({"model__mogrifier_rounds": -1}, "model.mogrifier_rounds: got -1"),
        (
            {"model__family": "gru", "model__mogrifier_rounds": 2},
            'model.mogrifier_rounds: got 2 for family "gru", expected 0',
        ),
        (
            {"model__adaptive_cutoffs": [9], "model__tied": True},
            "model.adaptive_cutoffs: got [9] beside tied = true, expected one of the two",
        ),
        ({"model__adaptive_cutoffs": [9, 9]}, "model.adaptive_cutoffs: got [9, 9], expected increasing numbers"),
        (
            {"model__adaptive_cutoffs": [5, 9], "model__layer_sizes": [64, 15]},
            "model.adaptive_cutoffs: got 2 clusters above 15 hidden units, expected at least 16",
        ),
        ({"model__input_dropout": 1.0}, "model.input_dropout: got 1.0, expected a number 0 ≤ share < 1"),
        ({"model__weight_drop": -0.1}, "model.weight_drop: got -0.1"),
        ({"model__forget_bias": 1e9}, "model.forget_bias: got 1000000000.0, expected a number below 100 in size"),
        ({"model__layer_norm": "yes"}, 'model.layer_norm: got "yes", expected true or false'),
        ({"training__averaging": "mean"}, 'training.averaging: got "mean"'),
        ({"training__averaging": "triggered"}, "training.trigger_patience: got 0"),
        ({"training__precision": "float16"}, 'training.precision: got "float16"'),
        ({"training__chunk_spread": -1}, "training.chunk_spread: got -1"),
        ({"model__family": "esn", "model__reservoirs": 3}, "model.reservoirs: got 3, expected a divisor of units"),
        (
            {"model__family": "esn", "model__units": 192, "model__reservoirs": 2},
            "model.block_size: got 64, expected a divisor of the units of each reservoir (96)",
        ),
        (
            {"model__family": "esn", "model__spectral_radius_min": 1.5},
            "model.spectral_radius_min: got 1.5, expected at most spectral_radius (0.9)",
        ),
        (
            {"model__family": "esn", "model__input_tokens": 3},
            "model.embedding_size: got 0 with input_tokens 3, expected at least 1",
        ),
        (
            {"model__family": "esn", "model__features": 100},
            "model.feature_block: got 64, expected a divisor of features (100)",
        ),
        (
            {"model__family": "esn", "model__units": 64, "model__features": 64, "model__feature_edges": 65},
            "model.feature_edges: got 65, expected at most the units of all layers (64)",
        ),
        (
            {"model__family": "esn", "model__readout_rank": 8, "model__readout": "ridge"},
            'model.readout_rank: got 8 with readout "ridge", expected 0',
        ),
        ({"model__family": "esn", "model__input_reach": "some"}, 'model.input_reach: got "some", expected one of'),
        ({"model": "lstm"}, 'model: got "lstm", expected a table'),
        ({"training": None}, "training.steps: got neither"),
    ],
)
def test_problem_names_the_key_the_value_and_the_expected_values(changes: dict[str, Any], problem: str) -> None:
    assert [found for found in problems_of(changed(**changes)) if found.startswith(problem)]


def test_random_reservoir_has_at_most_as_many_edges_as_units() -> None:
    tables = changed(model__family="esn", model__pattern="random", model__units=4)
    assert problems_of(tables) == ("model.in_edges: got 10, expected at most units (4)",)


def test_missing_or_invalid_toml_file_is_reported_by_name(tmp_path: Path) -> None:
    for name, content in {"none.toml": None, "bad.toml": b"name = [", "latin.toml": b'name = "\xe9"'}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            load_config(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_config_is_loaded_from_a_toml_file(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "small"\n[corpus]\ntrain = ["가.txt"]\ndocument = "file"\nvalidation_share = 0.1\n'
        '[tokenizer]\nkind = "word"\nmin_count = 2\n[model]\nfamily = "gru"\n[training]\nepochs = 1.5\n',
        encoding=encoding,
    )
    config = load_config(path)
    assert (config.corpus.train, config.tokenizer.min_count, config.training.epochs) == (("가.txt",), 2, 1.5)


@pytest.mark.parametrize("text", ["", "[]", "nul", '{"name": null}'])
def test_json_without_a_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_json(text)


@pytest.mark.parametrize(
    ("table", "key", "value", "hint"),
    [
        ("model", "family", "lstn", "did you mean lstm?"),
        ("tokenizer", "kind", "chars", "did you mean char?"),
        ("training", "precision", "bfloat", "did you mean bfloat16?"),
        ("training", "precision", "BFLOAT16", "did you mean bfloat16?"),
        ("model", "hiden_size", 3, "did you mean hidden_size?"),
    ],
)
def test_mistyped_name_gets_a_suggestion(table: str, key: str, value: object, hint: str) -> None:
    tables: dict[str, dict[str, object]] = {
        "corpus": {"train": ["a"], "document": "line", "validation_share": 0.1},
        "tokenizer": {"kind": "char"},
        "model": {"family": "gru"},
        "training": {"steps": 1},
    }
    tables[table][key] = value
    with pytest.raises(ConfigError) as caught:
        parse_config({"name": "a", **tables})
    assert hint in str(caught.value)


CHECKED = (
    'name = "a"\n[corpus]\ntrain = ["TEXT"]\nsource = "a shelf"\ndocument = "line"\nvalidation_share = 0.1\n'
    '[tokenizer]\nkind = "char"\n[model]\nfamily = "gru"\n[training]\nsteps = 1\n'
)


def check(folder: Path, *replaced: tuple[str, str]) -> tuple[int, str]:
    """Check a config without installed packages; return the exit code and what is said."""
    config = CHECKED
    for old, new in replaced:
        config = config.replace(old, new)
    (folder / "a.toml").write_text(config)
    command = [sys.executable, "-S", "-E", "-m", "meari.models.check", str(folder / "a.toml")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_missing_corpus_is_reported_with_its_source_without_installed_packages(tmp_path: Path) -> None:
    code, said = check(tmp_path, ("TEXT", "nowhere.txt"))
    assert code == 1
    assert said.startswith("make train: nowhere.txt: got no such file or folder")
    assert "a shelf" in said
    (tmp_path / "there.txt").write_text("text\n")
    assert check(tmp_path, ("TEXT", str(tmp_path / "there.txt"))) == (0, "")


def test_corpus_that_does_not_begin_as_text_is_reported_without_installed_packages(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    for content, problem in (
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "got byte 0x89"),
        ("ein Tor, \xfcber".encode("latin-1"), "got byte 0xfc"),
        ("Zwei".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04" + bytes(64), "zip"),
    ):
        text.write_bytes(content)
        code, said = check(tmp_path, ("TEXT", str(text)))
        assert (code, problem in said, str(text) in said) == (1, True, True), said
    text.write_bytes(b"one\n\xff\ntwo\n")
    assert check(tmp_path, ("TEXT", str(text)))[0] == 1
    allowed = 'document = "line"\nmax_bad = 1'
    assert check(tmp_path, ("TEXT", str(text)), ('document = "line"', allowed)) == (0, "")
    (tmp_path / "list.txt").write_text("(\n")
    text.write_bytes(b"one\n")
    for key in ("blocklist", "loss_mask"):
        listed = f'document = "line"\n{key} = "{tmp_path / "list.txt"}"'
        code, said = check(tmp_path, ("TEXT", str(text)), ('document = "line"', listed))
        assert (code, "list.txt" in said, "line 1" in said) == (1, True, True), said

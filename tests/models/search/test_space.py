"""Test the settings that a search may vary and the values drawn for them."""

from pathlib import Path

import numpy as np
import pytest

from meari.bundle_format.names import Family
from meari.models.config import Config, RecurrentConfig, ReservoirConfig
from meari.models.errors import ConfigError
from meari.models.search.options import default_ranges
from meari.models.search.space import Choices, Range, make_space, read_option
from tests.models.training.tiny_runs import tiny_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path, model=RecurrentConfig(Family.GRU, 5, 7))


def test_logarithmic_range_is_sampled_uniformly_in_its_logarithm(config: Config) -> None:
    space = make_space(config, {"training.learning_rate": {"log": [1e-4, 1e-2]}})
    drawn = [space.draw(np.random.default_rng(seed))[0]["training.learning_rate"] for seed in range(400)]
    assert all(isinstance(rate, float) and 1e-4 <= rate <= 1e-2 for rate in drawn)
    assert 150 < sum(float(rate) < 1e-3 for rate in drawn) < 250


def test_drawn_settings_are_put_into_the_config_with_their_types(config: Config) -> None:
    space = make_space(
        config, {"model.hidden_size": {"log": [4, 64]}, "model.dropout": [0.25], "model.tied": [True, False]}
    )
    settings, drawn = space.draw(np.random.default_rng(3))
    assert isinstance(drawn.model, RecurrentConfig)
    assert type(settings["model.hidden_size"]) is int
    assert (drawn.model.hidden_size, drawn.model.dropout) == (settings["model.hidden_size"], 0.25)
    assert drawn.model.tied is settings["model.tied"]
    assert drawn.corpus == config.corpus


def test_seed_determines_the_drawn_settings(config: Config) -> None:
    space = make_space(config, default_ranges(config))
    one, same, other = (space.draw(np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_inconsistent_settings_are_drawn_again(config: Config) -> None:
    space = make_space(
        config, {"training.learning_rate": {"log": [1e-4, 1e-2]}, "training.min_learning_rate": {"log": [1e-4, 1e-2]}}
    )
    for seed in range(20):
        _, drawn = space.draw(np.random.default_rng(seed))
        assert drawn.training.min_learning_rate <= drawn.training.learning_rate


def test_settings_that_are_always_inconsistent_are_refused(config: Config) -> None:
    space = make_space(config, {"training.learning_rate": [0.001], "training.min_learning_rate": [0.01]})
    with pytest.raises(ConfigError, match=r"200 draws in a row do not fit together(.|\n)*min_learning_rate: got 0.01"):
        space.draw(np.random.default_rng(1))


@pytest.mark.parametrize(
    ("name", "spec", "problem"),
    [
        ("corpus.train", [1], "corpus.train: got a name that cannot be varied, expected model.SETTING"),
        ("model", [1], "model: got a name that cannot be varied"),
        ("model.hiden_size", [8], "model.hiden_size: got an unknown key"),
        ("model.dropout", {"even": [0.0, 1.0]}, "model.dropout: got 1.0, expected a number 0 ≤ share < 1"),
        ("model.hidden_size", ["big"], 'model.hidden_size: got "big", expected a whole number'),
        ("model.dropout", {"log": [0.0, 0.5]}, "model.dropout: got [0.0, 0.5], expected two finite numbers, 0 < low"),
        ("model.dropout", {"even": [0.5, 0.1]}, "model.dropout: got [0.5, 0.1], expected two finite numbers, low <"),
        ("model.dropout", {"square": [0.1, 0.5]}, "model.dropout: got {"),
        ("model.hidden_size", [8, 16, 8], "model.hidden_size: got 8 twice, expected each choice once"),
        ("model.dropout", [], "model.dropout: got [], expected {log"),
        ("model.units", [64], "model.units: got a setting of esn"),
    ],
)
def test_problem_names_the_setting_the_value_and_the_expected_values(
    config: Config, name: str, spec: object, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(config, {name: spec})
    assert [found for found in caught.value.problems if found.startswith(problem)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.dropout=0.0~0.5", {"even": [0.0, 0.5]}),
        ("training.learning_rate=1e-3..3e-2", {"log": [1e-3, 3e-2]}),
        ("model.hidden_size=64,128", [64, 128]),
        ("model.pattern=block,random", ["block", "random"]),
        ("model.tied=true", [True]),
    ],
)
def test_vary_option_is_parsed_like_toml(text: str, expected: object) -> None:
    assert read_option(text) == (text.partition("=")[0], expected)


@pytest.mark.parametrize("text", ["model.dropout", "=1,2", "model.dropout=", "model.dropout=,"])
def test_incomplete_vary_option_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--vary: got .*, expected NAME=LOW"):
        read_option(text)


@pytest.mark.parametrize(
    "model",
    [
        RecurrentConfig(Family.LSTM, 5, 7),
        RecurrentConfig(Family.RNN, 5, 7),
        ReservoirConfig(Family.ESN, units=64),
        ReservoirConfig(Family.ESN, units=64, input_tokens=3, embedding_size=4, features=64, leak_max=0.1),
    ],
)
def test_default_ranges_of_every_family_give_valid_configs(tmp_path: Path, model: RecurrentConfig) -> None:
    config = tiny_config(tmp_path, model=model)
    space = make_space(config, default_ranges(config))
    assert len(space.varied) >= 4
    for seed in range(5):
        space.draw(np.random.default_rng(seed))


def test_ranges_and_choices_describe_themselves() -> None:
    assert Range(0.1, 1.0).described() == {"log": [0.1, 1.0]}
    assert Range(0.1, 1.0, is_log=False).described() == {"even": [0.1, 1.0]}
    assert Choices((1, 2)).described() == [1, 2]

"""Test `meari search` from the command line."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from meari.cli.search import command
from meari.models.config import load_config
from meari.models.errors import ConfigError
from meari.models.fields import to_toml
from tests.models.training.tiny_runs import tiny_config

SEARCH = """
[search]
trials = 2
[search.settings]
"model.hidden_size" = [4, 8]
"training.learning_rate" = {log = [1e-3, 1e-1]}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny_config(tmp_path).to_tables()) + SEARCH)
    return path


def test_config_survives_a_round_trip_through_toml(tmp_path: Path, config_file: Path) -> None:
    assert load_config(config_file) == tiny_config(tmp_path)


def test_search_table_of_the_config_sets_trials_and_settings(config_file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(config_file), "--run", str(tmp_path / "s")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "hidden_size" in result.stdout
    assert "learning_rate" in result.stdout
    assert "search.png" in result.stdout
    assert "trial 2: " in result.stderr


def test_options_override_the_config(config_file: Path, tmp_path: Path) -> None:
    words = ["--trials", "1", "--vary", "model.dropout=0.0~0.5", "--json", "--run", str(tmp_path / "s")]
    result = CliRunner().invoke(command, [str(config_file), *words], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert [list(trial["settings"]) for trial in found["trials"]] == [["model.dropout"]]
    assert found["best"]["loss"] == found["trials"][0]["loss"]
    assert found["explained"] == {"model.dropout": None}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[search]\ntrails = 3", r"search\.trails: got an unknown key.*did you mean trials"),
        ("[search]\ntrials = 0", r"search\.trials: got 0, expected a whole number ≥ 1"),
        ("[search]\nsettings = 3", r"search\.settings: got 3, expected a table"),
    ],
)
def test_invalid_search_table_is_refused(tmp_path: Path, table: str, problem: str) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny_config(tmp_path).to_tables()) + table)
    result = CliRunner().invoke(command, [str(path), "--run", str(tmp_path / "s")])
    assert isinstance(result.exception, ConfigError)
    assert re.search(problem, str(result.exception))

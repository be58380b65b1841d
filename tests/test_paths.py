"""Test that `~` is the home folder in every path that a user gives: options, configs, settings, Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import meari
from meari.bundle_format.places import parse_roots
from meari.cli.main import group
from meari.models.config import parse_config
from meari.models.errors import FileConflict
from meari.models.file_uses import Use, check_apart, config_uses
from meari.models.text.tokens import prepare
from meari.paths import expand_home
from meari.service.settings import SETTINGS, load_settings, with_settings_file
from tests.runtime.tiny_bundle import write_tiny_bundle

LINES = "".join(f"a line {number % 7}\n" for number in range(200))
SEVERAL = {"bundles"}  # options that take several folders: `parse_roots` expands each


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home folder with a bundle, a text, a blocklist and a loss mask."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    write_tiny_bundle(folder / "bundles" / "tiny", peak=3.0, decay=0.01)
    (folder / "a.txt").write_text(LINES)
    (folder / "blocked.txt").write_text("line 3\n")
    (folder / "masked.txt").write_text("line 5\n")
    return folder


@pytest.mark.parametrize("path", ["~name/a", "a/~/b", "./~", "~~", "s3://bucket/~/a", "", "~ /a"])
def test_other_paths_stay_as_they_are(home: Path, path: str) -> None:
    assert expand_home(path) == path
    assert expand_home("~") == str(home)
    assert expand_home(Path("~/a")) == f"{home}/a"


def path_parameters() -> Iterator[tuple[str, click.Parameter]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield from ((name, each) for each in command.params if isinstance(each.type, click.Path))


@pytest.mark.parametrize(("verb", "parameter"), [found for found in path_parameters() if found[1].name not in SEVERAL])
def test_every_option_that_is_a_path_is_expanded(home: Path, verb: str, parameter: click.Parameter) -> None:
    assert str(parameter.type.convert("~/x", parameter, None)) == f"{home}/x"


def test_options_find_files_in_the_home_folder(home: Path, tmp_path: Path) -> None:
    def output_of(*arguments: str) -> str:
        result = CliRunner().invoke(group, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    assert "tiny" in output_of("models", "--bundles=~/bundles")
    output_of("score", "--text=ab", "--model=~/bundles/tiny")
    output_of("score", "~/a.txt", "--bundles=~/bundles", "--output=~/scores.jsonl", "--summary=~/summary.json")
    assert len((home / "scores.jsonl").read_text().splitlines()) == 200
    assert (home / "summary.json").exists()
    output_of("bundles", "add", "~/bundles/tiny", "--name=other", "--bundles=~/own")
    assert (home / "own" / "other" / "manifest.json").exists()


def test_texts_of_a_config_are_found_there_and_stay_as_written(home: Path, tmp_path: Path) -> None:
    lists = {"blocklist": "~/blocked.txt", "loss_mask": "~/masked.txt"}
    corpus = {"train": ["~/a.txt"], "document": "line", "validation_share": 0.1, **lists}
    tables = {
        "name": "x",
        "corpus": corpus,
        "tokenizer": {"kind": "char"},
        "model": {"family": "gru"},
        "training": {"steps": 1},
    }
    config = parse_config(tables, "x.toml")
    assert config.corpus.train == ("~/a.txt",)
    prepared = prepare(config, tmp_path / "run")
    assert prepared.train.num_documents + prepared.validation.num_documents < 200
    assert prepared.train.num_masked
    for name in ("a.txt", "blocked.txt", "masked.txt"):
        with pytest.raises(FileConflict, match="read as well"):
            check_apart(config_uses(None, config), [Use("--run", home / name)])


def test_settings_name_files_in_the_home_folder(home: Path) -> None:
    (home / "settings.env").write_text("MEARI_KEYS_FILE=~/keys.json\nMEARI_BUNDLES=~/bundles:~/own\n")
    settings = load_settings(with_settings_file({"MEARI_SETTINGS_FILE": "~/settings.env"}))
    assert settings.keys_file == home / "keys.json"
    assert settings.bundles == (home / "bundles", home / "own")
    assert parse_roots("~/bundles") == home / "bundles"
    paths = [setting for setting in SETTINGS.values() if setting.kind.expected in ("a file", "a folder")]
    assert len(paths) >= 4
    assert all(setting.kind.parse("~/x") == home / "x" for setting in paths)


def test_signing_keys_are_read_from_the_home_folder(home: Path) -> None:
    assert CliRunner().invoke(group, ["sign", "--new-key=~/key.pem"]).exit_code == 0
    assert (home / "key.pem.pub").exists()
    assert len(load_settings({"MEARI_SIGNING_KEYS": "~/key.pem.pub"}).signing_keys) == 1


def test_python_takes_paths_in_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("~/bundles/tiny", Path("~/bundles/tiny"), "~/bundles"):
        with meari.load(source) as model:
            assert model.name == "tiny"
    with meari.load("~/bundles", model="tiny") as model:
        assert model.name == "tiny"
    monkeypatch.setenv("MEARI_BUNDLES", "~/bundles")
    with meari.load("tiny") as model:
        assert model.score("ab") < 0
    run = meari.train("~/a.txt", 0.03, folder="~/run", settings={"training.steps": 2}, family="gru", progress=False)
    assert run.folder == home / "run"
    assert run.name == "a"
    assert run.export("~/exported", progress=False) == home / "exported"
    with meari.load("~/exported") as model:
        assert model.score("a line") < 0

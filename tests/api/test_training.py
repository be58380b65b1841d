"""Test `meari.train`: from a text to a bundle, as the command does it."""

from __future__ import annotations

import builtins
import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

import meari
from examples.made_text import sentences
from meari.cli.main import group
from meari.models.config import load_config
from tests.cli.test_train import read_until
from tests.patience import PATIENCE
from tests.service.running import ROOT

MINUTES = 0.03


def write_text(folder: Path) -> Path:
    path = folder / "my-text.txt"
    path.write_text("".join(f"{line}\n" for line in sentences("english", 300, 1)))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(text: Path) -> meari.TrainingRun:
    return meari.train(
        text, MINUTES, folder=text.parent / "run", settings={"training.steps": 3}, family="gru", progress=False
    )


def test_run_has_config_figures_samples_and_folder(run: meari.TrainingRun, text: Path) -> None:
    assert (run.name, run.folder) == ("my-text", text.parent / "run")
    assert run.config["model"]["family"] == "gru"
    assert run.config["training"]["steps"] == 3
    assert run.held_out["perplexity"] > 1
    assert run.figures == json.loads((run.folder / "figures.json").read_text())
    assert len(run.samples) == 3
    assert load_config(run.folder / "config.toml").training.steps == 3
    assert repr(run).startswith("<meari.TrainingRun my-text: perplexity ")


def test_exported_bundle_is_loaded(
    run: meari.TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = run.export()
    assert bundle == Path("bundles/my-text")
    assert "Measuring held-out text" in capsys.readouterr().out
    with meari.load(bundle) as model:
        assert model.name == "my-text"
        assert model.score("the") < 0
    assert run.export(tmp_path / "other", progress=False) == tmp_path / "other"
    assert run.export(name="third", progress=False) == Path("bundles/third")
    with pytest.raises(meari.MeariError, match="this bundle exists"):
        run.export(progress=False)
    assert run.export(overwrite=True, progress=False) == bundle
    with pytest.raises(meari.InvalidRequest, match="name: got 'a', expected none beside a folder"):
        run.export("b", name="a")


def test_config_is_the_one_that_the_command_chooses(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {"training.steps": 2, "model.hidden_size": 32}
    run = meari.train(text, MINUTES, folder=tmp_path / "run", settings=settings, family="rnn", progress=False)
    monkeypatch.chdir(tmp_path)
    words = ["--minutes", str(MINUTES), "--family", "rnn", "--set", "training.steps=2", "--set", "model.hidden_size=32"]
    done = CliRunner().invoke(group, ["train", str(text), *words])
    assert done.exit_code == 0, done.output
    chosen = [tomllib.loads((folder / "config.toml").read_text()) for folder in (run.folder, Path("runs/my-text"))]
    for table, name in (("model", "family"), ("model", "hidden_size"), ("training", "steps")):
        assert chosen[0][table][name] == chosen[1][table][name]  # more depends on the speed, which is measured anew
    assert chosen[0]["corpus"] == chosen[1]["corpus"]
    assert chosen[0]["tokenizer"] == chosen[1]["tokenizer"]


@pytest.mark.parametrize("place", ["", "tokens", "deep/below"])
def test_text_in_a_folder_that_is_written_is_refused_and_stays(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "run"
    (folder / place).mkdir(parents=True, exist_ok=True)
    path = write_text(folder / place)
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    before = path.read_bytes()
    for text in (path, link, path.parent):
        for places in ({"folder": folder}, {"folder": tmp_path / "other", "tensorboard": folder}):
            with pytest.raises(meari.MeariError, match=r"got .*run, which (is|holds what is) read as well"):
                meari.train(text, MINUTES, settings={"training.steps": 1}, progress=False, **cast("Any", places))
    assert {each for each in tmp_path.rglob("*") if each.is_file()} == {link, path}
    assert path.read_bytes() == before
    with pytest.raises(meari.MeariError, match=r"tensorboard: got .*, which is written as well \(folder\)"):
        meari.train(link, MINUTES, folder=tmp_path / "a", tensorboard=tmp_path / "a", progress=False)


def test_bundle_takes_the_place_of_no_run(run: meari.TrainingRun) -> None:
    with pytest.raises(meari.MeariError, match=r"folder: got .*, which (is|holds what is) read as well \(the run"):
        run.export(run.folder, overwrite=True, progress=False)
    with pytest.raises(meari.MeariError, match=r"folder: got .*, which holds what is read as well"):
        run.export(run.folder.parent, overwrite=True, progress=False)
    assert (run.folder / "config.json").exists()


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda text: meari.train(text, 0), meari.InvalidRequest, "minutes: got 0, expected a number over 0"),
        (lambda text: meari.train(text, cast("Any", "5")), meari.InvalidRequest, "minutes: got '5'"),
        (lambda text: meari.train(text, float("nan")), meari.InvalidRequest, "minutes: got nan"),
        (lambda text: meari.train(text, family="gpt"), meari.InvalidRequest, "family: got 'gpt', expected one of rnn"),
        (lambda text: meari.train(cast("Any", 3)), meari.InvalidRequest, "texts: got 3"),
        (lambda text: meari.train([]), meari.InvalidRequest, "texts: got none"),
        (lambda text: meari.train([text, cast("Any", None)]), meari.InvalidRequest, r"texts\[1\]: got None"),
        (lambda text: meari.train(text, resume=True, overwrite=True), meari.InvalidRequest, "overwrite: got True"),
        (lambda text: meari.train("nowhere.txt", 0.01), meari.MeariError, "nowhere.txt"),
        (
            lambda text: meari.train(text, 0.01, settings={"training.stps": 3}),
            meari.MeariError,
            "settings: 1 .*\n.*stps",
        ),
        (lambda text: meari.train(text, 0.01, resume=True), meari.MeariError, "no run .*; leave out resume=True"),
        (
            lambda text: meari.train(text, folder=text.parent / "run"),
            meari.MeariError,
            "this run exists; continue it with resume=True, replace it with overwrite=True, .* folder with folder=…",
        ),
    ],
)
def test_wrong_argument_is_named(
    run: meari.TrainingRun,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Path], Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        ask(text)


def test_training_runs_in_a_thread_too(text: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            meari.train, text, MINUTES, folder=tmp_path / "run", settings={"training.steps": 1}, progress=False
        ).result()
    assert run.figures["steps"] == 1


def test_interrupted_training_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    settings = {"training.steps": 1000, "model.hidden_size": 16, "training.batch_size": 8}
    code = f"""
import meari
try:
    meari.train({str(text)!r}, 60, folder={str(tmp_path / "run")!r}, settings={settings!r}, family="rnn")
except KeyboardInterrupt as interrupt:
    print("ended:", interrupt)
"""
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        shown = read_until(process.stdout, "step 1, ")
        process.send_signal(signal.SIGINT)
        shown += process.stdout.read()
        assert process.wait(PATIENCE) == 0
    assert "characters are few: expect" in shown
    assert "ended: interrupted after step" in shown
    assert "resume=True" in shown
    run = meari.train(text, folder=tmp_path / "run", resume=True, progress=False)
    assert run.figures["steps"] == 1000


def test_notebook_shows_plain_lines(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)  # as in a notebook's kernel
    settings = {"training.steps": 2, "training.max_minutes": 5}  # both, however slow the machine is
    meari.train(text, MINUTES, folder=tmp_path / "run", settings=settings)
    shown = capsys.readouterr().out
    assert "step 2, 100%  loss" in shown
    assert "\x1b" not in shown


def test_load_imports_no_torch_and_training_says_what_is_missing(text: Path) -> None:
    code = f"""
import sys, meari
assert "torch" not in sys.modules and meari.train and "torch" not in sys.modules
sys.modules["torch"] = None
try:
    meari.train({str(text)!r})
except ImportError as error:
    assert "pip install 'meari[train]'" in str(error), error
else:
    raise SystemExit("trained without torch")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

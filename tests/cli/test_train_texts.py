"""Test `meari train TEXT`: from a text to a bundle, in seconds."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from examples.made_text import sentences
from meari.cli._options import program
from meari.cli.main import group
from meari.export.errors import BundleExists
from meari.models.config import load_config
from meari.models.errors import CheckpointError, ConfigError, EmptyCorpus, UnreadableFile
from tests.cli.test_train import read_until
from tests.patience import PATIENCE
from tests.service.running import Server, clean_environment, free_port

QUICK = ("--minutes", "0.03")  # two seconds, of which planning and export take the most


def meari(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write made sentences into an empty folder, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_text(tmp_path)


def write_text(folder: Path) -> str:
    (folder / "my-text.txt").write_text("".join(f"{line}\n" for line in sentences("english", 300, 1)))
    return "my-text.txt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train on the text for a few steps; return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("texts")
    write_text(folder)
    with contextlib.chdir(folder):
        result = meari("train", "my-text.txt", *QUICK, "--set", "training.steps=3")
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_text_becomes_a_bundle_with_figure_samples_and_the_command_that_serves_it(trained: tuple[Path, str]) -> None:
    folder, output = trained
    assert re.search(r"text: [\d,]+ characters .*lines that stand alone, so a document is a line", output)
    assert "characters are few: expect" in output
    assert re.search(r"^validation: [\d.]+ nats/token", output, re.MULTILINE)
    assert [number for number in "123" if f"--- sample {number}\n" in output] == ["1", "2", "3"]
    assert output.endswith("meari serve --bundles bundles --default-model my-text\n")
    assert json.loads((folder / "bundles/my-text/manifest.json").read_text())["name"] == "my-text"
    written = output.partition("# Chosen by `meari train my-text.txt`.\n")[2].partition("\nThis config is kept")[0]
    assert tomllib.loads(written) == tomllib.loads((folder / "runs/my-text/config.toml").read_text())


def test_chosen_config_trains_like_any_other(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained[0])
    config = load_config(Path("runs/my-text/config.toml"))
    assert (config.name, config.training.steps) == ("my-text", 3)
    refused = meari("train", "runs/my-text/config.toml")
    assert isinstance(refused.exception, CheckpointError)
    again = meari("train", "runs/my-text/config.toml", "--name", "again", "--set", "training.steps=2", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["step"] == 2
    over = meari("train", "runs/my-text/config.toml", "--overwrite", "--set", "training.steps=1")
    assert over.exit_code == 0, over.output
    assert load_config(Path("runs/my-text/config.toml")).training.steps == 1


def test_options_choose_name_family_and_settings(text: str) -> None:
    settings = (
        "--set",
        "model.hidden_size=16",
        "--set",
        "training.learning_rate=1e-2",
        "--set",
        "seed=5",
        "--set",
        "training.steps=2",
    )
    result = meari("train", text, *QUICK, "--family", "lstm", "--name", "mine", *settings, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["name"], told["run"], told["bundle"]) == ("mine", "runs/mine", "bundles/mine")
    assert len(told["samples"]) == 3
    assert told["figures"]["validation"]["num_tokens"] > 100
    assert told["serve"] == "meari serve --bundles bundles --default-model mine"
    config = load_config(Path("runs/mine/config.toml"))
    assert (config.model.family, config.seed, config.training.learning_rate) == ("lstm", 5, 1e-2)


def test_name_among_the_settings_is_that_of_run_and_bundle_too(text: str) -> None:
    done = meari("train", text, *QUICK, "--set", "name=other", "--set", "training.steps=1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["run"], told["bundle"]) == ("runs/other", "bundles/other")
    assert told["serve"].endswith(" --default-model other")
    assert Path("bundles/other/manifest.json").exists()
    Path("b.txt").write_text(Path(text).read_text())
    for verb in ("train", "demo"):
        refused = meari(verb, "b.txt", "--name", "other", "--resume", *(("--port", free_port()) * (verb == "demo")))
        assert isinstance(refused.exception, CheckpointError)
        assert "was started with my-text.txt, so it cannot be resumed with b.txt" in str(refused.exception)
    shutil.rmtree("bundles/other")
    again = meari("train", f"./{text}", "--run", "runs/other", "--resume", "--minutes", 9)
    assert again.exit_code == 0, again.output
    assert re.search(r"as it was planned: [\d.]+ minutes of training, whatever --minutes says", again.output)
    assert again.output.endswith("--default-model other\n")
    assert Path("bundles/other/manifest.json").exists()


@pytest.mark.parametrize("is_found", [True, False])
def test_printed_commands_begin_as_this_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_found: bool
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "meari").touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(folder / "meari"), "train"])
    monkeypatch.setenv("PATH", str(folder) if is_found else str(tmp_path))
    assert program() == ["meari" if is_found else str(folder / "meari")]
    monkeypatch.setattr(sys, "argv", ["/somewhere/meari/__main__.py", "train"])
    assert program() == [sys.executable, "-m", "meari"]


def test_settings_change_a_config_file_too(text: str) -> None:
    Path("tiny.toml").write_text(
        '[corpus]\ntrain = ["my-text.txt"]\ndocument = "line"\nvalidation_share = 0.1\n[tokenizer]\nkind = "char"\n'
        '[model]\nfamily = "gru"\nhidden_size = 8\n[training]\nepochs = 1.0\n'
    )
    settings = ("--set", "training.steps=2", "--set", "model.family=rnn")
    done = meari("train", "tiny.toml", "--name", "tiny", *settings, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 2
    assert json.loads(Path("runs/tiny/config.json").read_text())["model"]["family"] == "rnn"
    refused = meari("train", "tiny.toml", "--name", "other", "--set", "training.stepz=2")
    assert isinstance(refused.exception, ConfigError)
    assert "training.stepz: got an unknown key" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("a.toml", "--minutes", 3), "--minutes: got 3.0 for a config, expected texts"),
        (("a.toml", "--family", "gru"), "--family: got gru for a config, expected texts"),
        (("a.toml", "b.txt"), "got a config among 2 files"),
        (("b.txt", "--set", "steps"), "--set: got 'steps', expected NAME=VALUE"),
        (("b.txt", "--minutes", 0), "--minutes"),
        (("b.txt", "--name", ""), "Invalid value for --name: got '', expected 1 to 100 letters"),
        (("b.txt", "--name", "../b"), "Invalid value for --name: got '../b', expected 1 to 100 letters"),
        (("b.txt", "--name", "DEFAULT"), "Invalid value for --name: got 'DEFAULT'"),
        (("b.txt", "--resume", "--overwrite"), "exclude each other"),
        ((), "Missing argument"),
    ],
)
def test_contradictory_arguments_are_refused(arguments: tuple[object, ...], problem: str) -> None:
    refused = meari("train", *arguments)
    assert refused.exit_code == 2
    assert problem in refused.output


def test_texts_that_nothing_can_be_trained_on_are_refused(text: str) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("short.txt").write_text("Too short.\n" * 3)
    Path("binary.txt").write_bytes(bytes(range(4)) * 1000)
    for name, kind, message in (
        ("empty.txt", EmptyCorpus, "empty.txt: got no text"),
        ("short.txt", EmptyCorpus, "short.txt: got a text of 33 characters, expected at least 500"),
        ("binary.txt", UnreadableFile, "binary.txt: got a binary file"),
        ("missing.txt", UnreadableFile, "missing.txt: got no such file"),
    ):
        refused = meari("train", name, *QUICK)
        assert isinstance(refused.exception, kind)
        assert message in str(refused.exception)
    assert not Path("runs").exists()


def test_existing_bundle_is_refused_before_anything_is_trained(text: str) -> None:
    Path("bundles/my-text").mkdir(parents=True)
    Path("bundles/my-text/manifest.json").write_text("{}")
    refused = meari("train", text, *QUICK)
    assert isinstance(refused.exception, BundleExists)
    assert not Path("runs").exists()


def test_interrupted_run_is_resumed_by_the_command_that_is_printed(text: str, environment: dict[str, str]) -> None:
    command = ["meari", "train", text, "--minutes", "2", "--set", "training.evaluate_every=5"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 5:"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert not Path("bundles/my-text").exists()
    printed = rest.partition("Go on with:\n  ")[2].strip()
    assert printed == "meari train my-text.txt --set training.evaluate_every=5 --resume"
    ran = 60 * load_config(Path("runs/my-text/config.toml")).training.max_minutes
    assert ran > 10
    stored = json.loads(Path("runs/my-text/last/progress.json").read_text())
    stored["seconds"] = ran - 0.5  # so that the test need not wait for the clock
    Path("runs/my-text/last/progress.json").write_text(json.dumps(stored))
    resumed = meari(*printed.split()[1:])
    assert resumed.exit_code == 0, resumed.output
    assert "The run in runs/my-text goes on as it was planned" in resumed.output
    assert Path("bundles/my-text/manifest.json").exists()


def test_demo_serves_the_model_of_the_text_and_prints_the_link(text: str, environment: dict[str, str]) -> None:
    port = free_port()
    command = ["meari", "demo", text, *QUICK, "--port", str(port)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            printed = read_until(process.stdout, "serving my-text; default my-text")
            assert f"Serving it at http://127.0.0.1:{port}" in printed
            assert "--- sample 3" in printed
            answer = httpx.post(f"http://127.0.0.1:{port}/generate", json={"prompt": "The"}, timeout=PATIENCE)
            assert answer.json()["model"] == "my-text"
        finally:
            process.terminate()
    assert process.returncode == 0


def test_demo_needs_a_free_port_and_texts_before_it_trains(text: str, server: Server) -> None:
    busy = meari("demo", text, *QUICK, "--port", server.port)
    assert busy.exit_code == 1
    assert "the port is taken" in busy.output
    assert not Path("runs").exists()
    assert "expected texts" in meari("demo", "my.toml").output


SIGNAL_AT_EXPORT = """
import os, sys
from meari.cli.main import main

def send_once(event, arguments):
    if event == "import" and arguments[0] == "meari.export.bundle" and not sent:
        sent.append(os.kill(os.getpid(), {number}))

sent = []
sys.addaudithook(send_once)
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_after_the_training_is_told_with_the_command_that_makes_the_bundle(
    text: str, number: signal.Signals
) -> None:
    words = ["train", text, *QUICK, "--set", "training.steps=3"]
    command = [sys.executable, "-c", SIGNAL_AT_EXPORT.format(number=number), *words]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number, done.stderr
    _, _, rest = done.stdout.rpartition("bits/byte\n")
    assert rest.startswith("Interrupted after the training, before bundles/my-text was written. Go on with:")
    assert rest.rstrip().endswith(f"train {text} --set training.steps=3 --resume")
    assert list(Path().glob("bundles/*")) == []
    assert meari(*words[:2], "--set", "training.steps=3", "--resume").exit_code == 0
    assert Path("bundles/my-text/manifest.json").exists()

"""Test `meari train` and `meari evaluate` from the command line, in subprocesses if signals matter."""

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch
from click.testing import CliRunner, Result

from meari.cli.main import group
from meari.models.checkpoint import read_tensors, write_tensors
from meari.models.config import load_config
from meari.models.errors import BrokenText, CheckpointError, ConfigError, FolderInUse
from meari.models.files import locked
from meari.models.training.run_folder import Start, claimed_run
from tests.models.training.tiny_runs import chain_text
from tests.patience import PATIENCE

TOML = """
name = "tiny"

[corpus]
train = ["{folder}/chain.txt"]
document = "{document}"
validation_share = 0.1
test_share = 0.1

[tokenizer]
kind = "char"

[model]
family = "gru"
embedding_size = 5
hidden_size = 8

[training]
steps = {steps}
batch_size = 4
chunk_length = 16
learning_rate = {rate}
evaluate_every = 5
threads = 1
"""


def write_config(folder: Path, *, steps: int = 12, rate: str = "1e-2", document: str = "file") -> Path:
    (folder / "chain.txt").write_text(chain_text(4000).replace("ca", "c\na"))
    path = folder / "tiny.toml"
    path.write_text(TOML.format(folder=folder, steps=steps, rate=rate, document=document))
    return path


def meari(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    result = meari("train", write_config(tmp_path), "--run", tmp_path / "run")
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_train_writes_a_complete_run_folder(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        "best", "last", "tokens", "config.json", "tokenizer.json", "history.jsonl", "figures.json", "report.png",
    }  # fmt: skip
    figures = json.loads((run / "figures.json").read_text())
    assert set(figures["validation"]) == {
        "nats_per_token", "perplexity", "nats_per_char", "bits_per_char", "bits_per_char_with_ends",
        "bits_per_byte", "num_tokens", "num_characters", "num_bytes", "num_ends",
    }  # fmt: skip


def test_run_folder_has_the_name_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, steps=1)
    monkeypatch.chdir(tmp_path)
    assert meari("train", config).exit_code == 0
    assert (tmp_path / "runs" / "tiny" / "figures.json").exists()


def test_existing_run_requires_resume_or_overwrite(run: Path) -> None:
    config = run.parent / "tiny.toml"
    refused = meari("train", config, "--run", run)
    assert isinstance(refused.exception, CheckpointError)
    assert "--resume" in str(refused.exception)
    assert meari("train", config, "--run", run, "--resume").exit_code == 0
    assert meari("train", config, "--run", run, "--overwrite").exit_code == 0
    assert meari("train", config, "--run", run, "--resume", "--overwrite").exit_code == 2


def test_all_problems_of_a_config_are_reported_together(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.write_text(
        path.read_text().replace("batch_size = 4", 'batch_size = "four"').replace("steps = 12", "stepz = 12")
    )
    result = meari("train", path)
    assert isinstance(result.exception, ConfigError)
    assert "training.batch_size" in str(result.exception)
    assert "stepz" in str(result.exception)


def test_errors_are_printed_without_a_traceback(tmp_path: Path) -> None:
    for arguments, piece in (
        (["train", str(tmp_path / "nowhere.toml")], "nowhere.toml"),
        (["evaluate", str(tmp_path / "nowhere")], "no such folder"),
    ):
        command = [sys.executable, "-m", "meari.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 1
        assert piece in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("document", ["file", "line"])
def test_evaluate_reproduces_the_figures_of_the_run(tmp_path: Path, document: str) -> None:
    run = tmp_path / "run"
    assert meari("train", write_config(tmp_path, document=document), "--run", run).exit_code == 0
    figures = json.loads((run / "figures.json").read_text())
    for part in ("validation", "test"):
        for folder in (run, run / "best"):
            measured = json.loads(meari("evaluate", folder, "--part", part, "--json").output)
            assert measured["nats_per_char"] == pytest.approx(figures[part]["nats_per_char"], rel=1e-6)
            assert measured["num_tokens"] == figures[part]["num_tokens"]


def test_evaluate_measures_any_text(run: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("abcabc")
    second.write_text("abcz")
    measured = json.loads(meari("evaluate", run, "--text", first, second, "--json").output)
    assert (measured["num_characters"], measured["num_documents"], measured["num_unknown"]) == (10, 2, 1)
    assert measured == json.loads(meari("evaluate", run, "--text", first, "--text", second, "--json").output)
    shown = meari("evaluate", run, "--text", first).output
    for name in ("nats_per_token", "perplexity", "bits_per_char", "bits_per_byte"):
        assert name in shown


def test_evaluate_refuses_contradictory_arguments(run: Path) -> None:
    assert meari("evaluate", run, "stray.txt").exit_code == 2
    assert meari("evaluate", run, "--part", "test", "--text", run / "config.json").exit_code == 2
    assert meari("evaluate", run, "--part", "training").exit_code == 2


def read_until(stream: IO[str], piece: str) -> str:
    shown = ""
    for line in stream:
        shown += line
        if piece in line:
            return shown
    pytest.fail(f"{piece!r} did not appear in:\n{shown}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_training_with_a_resumable_run_and_prints_the_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    config = write_config(tmp_path, steps=1_000_000)
    command = [sys.executable, "-u", "-m", "meari.cli.main", "train", str(config), "--run", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        read_until(process.stdout, "step 10: validation")
        process.send_signal(number)
        rest, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert f"meari train {config} --run {tmp_path / 'run'} --resume" in rest
    assert "Traceback" not in rest
    described = json.loads((tmp_path / "run" / "last" / "checkpoint.json").read_text())
    assert f"after step {described['step']}" in rest
    assert described["step"] >= 10


@pytest.mark.parametrize("key", ["train", "validation", "blocklist", "loss_mask"])
def test_pipe_as_corpus_file_is_refused_before_the_run_folder_is_made(tmp_path: Path, key: str) -> None:
    config, pipe = write_config(tmp_path), tmp_path / "pipe"
    os.mkfifo(pipe)
    text = config.read_text()
    if key == "train":
        text = text.replace(f"{tmp_path}/chain.txt", str(pipe))
    elif key == "validation":
        text = text.replace("validation_share = 0.1", f'validation = ["{pipe}"]')
    else:
        text = text.replace("[corpus]", f'[corpus]\n{key} = "{pipe}"')
    config.write_text(text)
    for verb in ("train", "search"):
        refused = meari(verb, config, "--run", tmp_path / "run")
        assert f"{pipe}: got a pipe, expected a file: it is read several times" in str(refused.exception)
    assert not (tmp_path / "run").exists()


def test_config_and_evaluated_text_may_be_pipes(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, steps=1), tmp_path / "run"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    for verb, options in (("search", "--trials 1"), ("train", "")):
        command = f'"{sys.executable}" -m meari.cli.main {verb} <(cat "{config}") --run "{run}-{verb}" {options}'
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    evaluate = f'"{sys.executable}" -m meari.cli.main evaluate "{run}-train" --text /dev/stdin --json'
    command = f'cat "{tmp_path}/chain.txt" | {evaluate}'
    measured = json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout)
    assert measured == json.loads(
        meari("evaluate", f"{run}-train", "--text", tmp_path / "chain.txt", "--json").output
    ) | {"text": "/dev/stdin"}


def test_bad_corpus_lines_end_training_unless_they_are_allowed(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, steps=1), tmp_path / "run"
    with (tmp_path / "chain.txt").open("ab") as file:
        file.write(b"\n\xff\n\xfe\n")
    assert isinstance(meari("train", config, "--run", run).exception, BrokenText)
    assert isinstance(meari("train", config, "--run", run, "--max-bad", 1).exception, BrokenText)
    trained = meari("train", config, "--run", run, "--skip-bad")
    assert trained.exit_code == 0, trained.exception
    assert "; 2 lines that are not UTF-8 read as blank" in trained.output
    assert json.loads((run / "figures.json").read_text())["bad_lines"] == 2
    again = meari("train", config, "--run", run, "--max-bad", 2, "--overwrite")
    assert "; 2 lines that are not UTF-8 read as blank" in again.output


def test_run_has_one_writer_and_any_number_of_readers(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, steps=1_000_000), tmp_path / "run"
    command = [sys.executable, "-u", "-m", "meari.cli.main", "train", str(config), "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        read_until(process.stdout, "step 5: validation")
        for way in ([], ["--resume"], ["--overwrite"]):
            refused = meari("train", config, "--run", run, *way)
            assert isinstance(refused.exception, FolderInUse)
            assert "another run is writing to it" in str(refused.exception)
        assert meari("evaluate", run, "--text", tmp_path / "chain.txt").exit_code == 0
        exported = meari("export", run, tmp_path / "bundles" / "tiny")
        assert exported.exit_code == 0, exported.output
    finally:
        process.kill()
        process.communicate()
    with claimed_run(run, load_config(config), Start.RESUME):
        assert (run / "last" / "checkpoint.json").exists()


def test_tensorboard_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    config, events = write_config(tmp_path, steps=1), tmp_path / "events"
    with locked(events):
        refused = meari("train", config, "--run", tmp_path / "run", "--tensorboard", events)
    assert isinstance(refused.exception, FolderInUse)
    assert meari("train", config, "--run", tmp_path / "run", "--tensorboard", events).exit_code == 0


def test_model_too_large_for_memory_is_refused_before_the_run_folder_is_made(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, steps=1), tmp_path / "run"
    right = config.read_text()
    for verb in ("train", "search"):
        config.write_text(right.replace("hidden_size = 8", "hidden_size = 99999999999"))
        refused = meari(verb, config, "--run", run)
        assert str(refused.exception).startswith("model.hidden_size: got 99999999999, with which the training needs")
        assert not run.exists()
    config.write_text(right)
    assert meari("train", config, "--run", run).exit_code == 0


def test_diverged_training_is_reported_by_train_and_export(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, steps=20, rate="1e3"), tmp_path / "run"
    trained = meari("train", config, "--run", run)
    assert trained.exit_code == 0, trained.exception
    assert "Warning: held-out text takes" in trained.output
    assert "more than guessing evenly among" in trained.output
    assert max(map(len, trained.output.splitlines())) < 300
    assert "perplexity > 1e6" in trained.output
    assert f"{'> 1e6':>12}" in meari("evaluate", run).output
    for precision in ("fp32", "int8"):
        exported = meari("export", run, tmp_path / precision, "--precision", precision)
        shown = exported.output + str(exported.exception or "")
        assert "more than guessing evenly among" in shown
        assert "--precision fp32" not in shown


def test_weights_whose_products_overflow_float32_are_refused(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, steps=5), tmp_path / "run"
    assert meari("train", config, "--run", run).exit_code == 0
    weights = run / "best" / "model.safetensors"
    write_tensors(weights, {name: torch.full_like(each, 1e25) for name, each in read_tensors(weights).items()})
    for precision in ("fp32", "int8"):
        refused = meari("export", run, tmp_path / precision, "--precision", precision)
        assert "has numbers that float32 cannot hold" in str(refused.exception), refused.output
        assert not (tmp_path / precision).exists()


def test_exploding_training_suggests_a_remedy(tmp_path: Path) -> None:
    result = meari("train", write_config(tmp_path, rate="1e38"), "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "Lower training.learning_rate" in str(result.exception)


FORMS: dict[str, Callable[[str], bytes]] = {
    "NFC": lambda text: text.encode(),
    "NFD": lambda text: unicodedata.normalize("NFD", text).encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
}


@pytest.mark.parametrize("document", ["line", "file"])
def test_figures_do_not_depend_on_encoding_details_of_a_file(tmp_path: Path, document: str) -> None:
    """Compare the figures of train, evaluate, export and score."""
    lines = [f"{word} café {other}" for word in ("바다", "메아리", "산") for other in ("한글", "é", "x")] * 12
    text = "\n".join(lines) + "\n\n \n"  # both ignore blank lines
    trained, exported, evaluated, scored = [], [], [], []
    for form, encode in FORMS.items():
        folder = tmp_path / form
        folder.mkdir()
        config = write_config(folder, document=document)
        (folder / "chain.txt").write_bytes(encode(text))
        if form in ("NFC", "NFD"):
            assert meari("train", config, "--run", folder / "run").exit_code == 0
            figures = json.loads((folder / "run" / "figures.json").read_text())
            trained.append({part: figures[part] for part in ("validation", "test")})
            bundle = folder / "tiny"
            done = meari("export", folder / "run", bundle, "--json")
            assert done.exit_code == 0, done.output
            found = json.loads((bundle / "manifest.json").read_text())["figures"]
            exported.append({part: found[part] for part in ("validation", "test")})
        run, bundle = tmp_path / "NFC" / "run", tmp_path / "NFC" / "tiny"
        measured = json.loads(meari("evaluate", run, "--text", folder / "chain.txt", "--json").output)
        evaluated.append({name: value for name, value in measured.items() if name != "text"})
        summary = folder / "summary.json"
        arguments = ["score", folder / "chain.txt", "--bundles", bundle, "-j", 1, "-q", "--summary", summary]
        assert meari(*arguments, "-o", folder / "out").exit_code == 0
        kept = json.loads(summary.read_text())
        scored.append({name: value for name, value in kept.items() if "second" not in name})
    for same in (trained, exported, evaluated, scored):
        assert all(figures == same[0] for figures in same), same
    if document == "line":
        assert scored[0]["num_tokens"] == evaluated[0]["num_tokens"]
        for name in ("bits_per_char", "bits_per_char_with_ends", "bits_per_byte"):
            assert scored[0][name] == pytest.approx(evaluated[0][name], rel=1e-5)

"""Test the examples in the help of every verb: fast ones are run, the others only parsed."""

from __future__ import annotations

import gzip
import hashlib
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import click
import pytest
from click.testing import CliRunner

from meari.cli.main import group
from tests.models.training.tiny_runs import chain_text
from tests.patience import PATIENCE

VERBS = group.list_commands(click.Context(group))
PARSED = ("claims", "demo", "search", "serve")  # take minutes or do not end
CONFIG = """
name = "my-model"
[corpus]
train = ["my-text.txt"]
document = "line"
validation_share = 0.1
test_share = 0.1
[tokenizer]
kind = "char"
[model]
family = "gru"
embedding_size = 5
hidden_size = 8
[training]
steps = 6
batch_size = 4
chunk_length = 16
learning_rate = 1e-2
evaluate_every = 3
threads = 1
"""
ADDRESS = "http://localhost:8000"


def examples(verb: str) -> list[str]:
    """Return the examples in the help of a verb, without comments."""
    help_text = CliRunner().invoke(group, [verb, "--help"] if verb else ["--help"]).output
    lines = help_text.split("Examples:\n")[1].split("\n\n")[0].splitlines()
    return [re.sub(r"\s{2,}#.*", "", line).strip() for line in lines]


def parse(line: str) -> None:
    """Parse a command line; raises UsageError if it is invalid."""
    words = shlex.split(line.split(" > ", maxsplit=1)[0])
    assert words[0] == "meari"
    command = group.get_command(click.Context(group), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the files that the examples name and change to their folder."""
    (project / "my-text.txt").write_text(chain_text(4000).replace("ca", "c\na"))
    (project / "my-model.toml").write_text(CONFIG)
    (project / "corpus.txt").write_text("To be, or not to be\n\nHe said so.\n")
    for name in ("part-1.jsonl.gz", "part-2.jsonl.gz"):
        (project / name).write_bytes(gzip.compress(b'{"body": "To be, or not to be"}\n{"body": "He said so."}\n'))
    (project / "stimuli.txt").write_text("The horse raced past the barn fell.\n")
    (project / "nbest.jsonl").write_text('{"id": 1, "text": "a day", "context": "What "}\n')
    (project / "clean.txt").write_text("He said so.\nWhat a day!\nIt was late.\n")
    for name in ("corpus.jsonl", "other.jsonl", "pool.jsonl"):
        (project / name).write_text('{"text": "To be, or not to be"}\n{"text": "He said so."}\n')
    (project / "prompts.txt").write_text("ROMEO:\nJULIET:\n")
    (project / "prompts.jsonl").write_text('{"id": 1, "prompt": "ROMEO:"}\n')
    for name in ("chapter-1.txt", "chapter-2.txt"):
        (project / name).write_text("abcabcabc\n")
    for name in (".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions"):
        (project / name).mkdir(parents=True)
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of the config."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my-text.txt").write_text(chain_text(4000).replace("ca", "c\na"))
    (folder / "my-model.toml").write_text(CONFIG.replace("my-text.txt", str(folder / "my-text.txt")))
    run = folder / "runs" / "my-model"
    result = CliRunner().invoke(group, ["train", str(folder / "my-model.toml"), "--run", str(run)])
    assert result.exit_code == 0, result.output
    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples_that_parse(verb: str, folder: Path) -> None:
    found = [line for line in examples(verb) if not line.startswith("source")]
    assert len(found) >= 3
    for line in found:
        assert line.startswith(f"meari {verb}")
        parse(line)


def test_examples_of_the_main_help_parse() -> None:
    found = examples("")
    assert len(found) >= 5
    for line in found:
        parse(line)


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb not in (*PARSED, "bundles", "evaluate", "export", "import", "sign")]
)
def test_examples_run_in_order(verb: str, folder: Path, url: str, quick_environment: dict[str, str]) -> None:
    shorter = {"meari train my-text.txt": "meari train my-text.txt --minutes 0.05", " --minutes 2": ""}
    run_examples(verb, folder, url, quick_environment, shorter if verb == "train" else {})


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_examples_with_a_trained_run_succeed(
    verb: str, trained: Path, folder: Path, quick_environment: dict[str, str]
) -> None:
    shutil.copytree(trained, folder / "runs" / "my-model")
    run_examples(verb, folder, "", quick_environment)


def test_examples_of_signing_succeed(folder: Path, quick_environment: dict[str, str]) -> None:
    link = folder / "bundles" / "shakespeare-lstm"
    released = link.resolve()
    link.unlink()
    shutil.copytree(released, link)
    run_examples("sign", folder, "", quick_environment)
    assert (link / "signature.json").is_file()


def test_examples_of_bundles_succeed(folder: Path, quick_environment: dict[str, str]) -> None:
    shutil.copytree(folder / "bundles" / "shakespeare-rnn", folder / "packed" / "my-lstm")
    archive = Path(shutil.make_archive(str(folder / "my-lstm"), "zip", folder / "packed"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    own = {key: value for key, value in quick_environment.items() if key != "XDG_DATA_HOME"}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            run_examples("bundles", folder, "", own, {"https://example.org": address, "HASH": sha256})
        finally:
            server.shutdown()
            thread.join()
    [left] = (folder / ".local" / "share" / "meari" / "bundles").iterdir()
    assert left.name == "my-gru"


def run_examples(
    verb: str, folder: Path, url: str, environment: dict[str, str], also: Mapping[str, str] = MappingProxyType({})
) -> None:
    for line in examples(verb):
        run = line.replace(ADDRESS, url)
        for written, meant in also.items():
            run = run.replace(written, meant)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", run],
            cwd=folder,
            env=environment | {"HOME": str(folder)},
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr.decode())
        is_silent = any(part in line for part in (" > ", " -o ", "source", " revoke "))
        assert done.stdout or is_silent, line
        assert b"Traceback" not in done.stderr

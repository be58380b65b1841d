"""Test that files which cannot be used are refused before torch is imported, which takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import clean_environment

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from meari.cli.main import main; main()"
CONFIG = """
name = "echo"
[corpus]
train = ["mistyped.txt"]
validation_share = 0.1
document = "line"
[tokenizer]
kind = "char"
[model]
family = "rnn"
embedding_size = 4
hidden_size = 4
[training]
steps = 3
"""
REFUSED = {
    "train mistyped": ("train my-txet.txt", "my-txet.txt: got no such file or folder"),
    "a near name": ("train my-txet.txt", "did you mean my-text.txt?"),
    "train empty folder": ("train empty", "empty: got a folder without .txt"),
    "train binary": ("train binary.dat", "binary.dat, line 1: got byte 0xff"),
    "train control characters": ("train controls.txt", "controls.txt: got a binary file"),
    "train blank": ("train blank.txt", "blank.txt: got no text"),
    "train short": ("train my-text.txt", "my-text.txt: got a text of 8 characters"),
    "train setting": ("train long.txt --set training.stesp=3", "did you mean steps"),
    "train bundle there": ("train long.txt --name there", "bundles/there: exists and is not a bundle"),
    "train run there": ("train long.txt --run run", "run: this run exists; continue it with --resume"),
    "train run in a file": (
        "train long.txt --run blank.txt/run",
        "blank.txt/run: no folder can be made there: Not",
    ),
    "train run is a file": ("train long.txt --run blank.txt", "blank.txt: exists and is not a run; choose another"),
    "train run nowhere": ("train long.txt --run /proc/none/run", "/proc/none/run: no folder can be made there"),
    "export nowhere": ("export other /proc/none/bundle", "/proc/none/bundle: no bundle can be written there: No such"),
    "train resumes nothing": ("train own.toml --resume --run no/run", "no/run: no run to resume here"),
    "train config in a run": ("train own.toml --run run", "run: this run exists; continue it with --resume"),
    "train config": ("train config.toml", "mistyped.txt: got no such file or folder"),
    "train pipe": ("train pipe --minutes 1", "pipe: got a pipe, expected a file: it is read several times"),
    "train named pipe": ("train pipe.txt", "pipe.txt: got a pipe, expected a file"),
    "train device": ("train /dev/zero", "/dev/zero: got a device, expected a readable file"),
    "train large config": ("train large.toml", "got more than 1,048,576 bytes, expected TOML of at most"),
    "demo mistyped": ("demo my-txet.txt", "my-txet.txt: got no such file or folder"),
    "demo empty folder": ("demo empty", "empty: got a folder without .txt"),
    "search": ("search config.toml", "mistyped.txt: got no such file or folder"),
    "claims": ("claims --text my-txet.txt --output claims", "my-txet.txt: got no such file or folder"),
    "evaluate": ("evaluate other", "other: holds neither checkpoint.json nor best/"),
    "export": ("export runs/none bundles/none", "runs/none: no such folder"),
    "export target": ("export other bundles/there", "bundles/there: exists and is not a bundle"),
    "import weights": ("import none.pt --vocabulary words.json", "none.pt: got No such file or directory"),
    "import binary": ("import binary.dat --vocabulary words.json", "binary.dat: got a file of another kind"),
    "import empty": ("import blank.txt --vocabulary words.json", "blank.txt: got an empty file"),
    "import vocabulary": ("import weights.pt --vocabulary none.txt", "none.txt: got No such file or directory"),
    "import mapping": ("import weights.pt --vocabulary words.json --mapping none.toml", "none.toml: 1 problem"),
    "import text": ("import weights.pt --vocabulary words.json --text none.txt", "none.txt: got no such file"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("early")
    for name in ("empty", "other", "run", "bundles/there"):
        (place / name).mkdir(parents=True)
    for name in ("run/config.json", "run/history.jsonl", "other/kept.bin", "bundles/there/kept.bin", "blank.txt"):
        (place / name).touch()
    for name in ("pipe", "pipe.txt"):
        os.mkfifo(place / name)
    (place / "large.toml").write_bytes(b"#" * (2 << 20))
    (place / "binary.dat").write_bytes(b"\xff\x00\xfe" * 200)
    (place / "controls.txt").write_bytes(b"ab\x00\x01" * 200)
    (place / "my-text.txt").write_text("a text.\n")
    (place / "long.txt").write_text("a longer text, line by line\n" * 100)
    (place / "config.toml").write_text(CONFIG)
    (place / "own.toml").write_text(CONFIG.replace("mistyped", "long"))
    (place / "words.json").write_text(json.dumps(["<eos>", "<unk>", "a"]))
    (place / "weights.pt").write_bytes(b"PK\x03\x04")
    return place


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_without_torch(folder: Path, arguments: str, message: str) -> None:
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    environment = clean_environment(port=0)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert sorted(folder.rglob("*")) == before, "something was written"


def test_what_can_be_used_needs_torch(folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "train", "long.txt"]
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch is not installed" in done.stderr


def test_text_is_not_trained_on_where_no_bundle_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a longer text, line by line\n" * 100)
    (tmp_path / "bundles").symlink_to("/proc")
    command = [sys.executable, "-m", "meari.cli.main", "train", "long.txt"]
    own = clean_environment()
    refused = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("meari: bundles/long: no bundle can be written there: ")
    assert not (tmp_path / "runs").exists()

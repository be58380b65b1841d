"""Test that no verb writes a file that it also reads, or writes through another option, under any name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meari.cli._files import Use, check_apart
from meari.cli.main import group
from meari.models.file_uses import is_one_file
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle

TEXT = "ab\ncd\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a text file, links to it, and a bundle."""
    (tmp_path / "in.txt").write_text(TEXT)
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "in.txt")
    (tmp_path / "soft.txt").symlink_to("in.txt")
    (tmp_path / "linked").symlink_to(tmp_path)
    write_tiny_bundle(tmp_path / "bundle", peak=3.0, decay=0.01)
    return tmp_path


@pytest.fixture
def working_folder(folder: Path) -> Iterator[Path]:
    """Make `folder` the working folder."""
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


NAMES = ("in.txt", "./in.txt", "hard.txt", "soft.txt", "linked/in.txt", "bundle/../in.txt")
TOUCHING = [
    *((f"score in.txt -o {name}", "--output", "FILE in.txt") for name in NAMES),
    *((f"score {name} --summary in.txt -o out", "--summary", f"FILE {name}") for name in NAMES[2:5]),
    ("score - -o in.txt < in.txt", "--output", "FILE standard input"),
    ("score /dev/stdin -o in.txt < in.txt", "--output", "FILE /dev/stdin"),
    ("score /dev/fd/3 -o hard.txt 3< in.txt", "--output", "FILE /dev/fd/3"),
    ("score in.txt >> in.txt", "standard output", "got a file, which is read as well (FILE in.txt"),
    ("score in.txt --summary /dev/stdout > out", "--summary", "standard output"),
    ("score in.txt --summary out >> out", "--summary", "standard output"),
    ("score in.txt 2>> in.txt", "standard error", "got a file, which is read as well (FILE in.txt"),
    ("score - < in.txt > out 2>> hard.txt", "standard error", "read as well (FILE standard input"),
    ("score in.txt -o out 2>> out", "standard error", "which is written as well (--output)"),
    ("score . >> in.txt", "standard output", "which is read as well (FILE .)"),
    ("score in.txt -o out --summary out", "--summary", "--output"),
    ("score in.txt -o out --summary linked/out", "--summary", "--output"),
    ("score in.txt -o out --summary out.progress", "--summary", "the progress of --output"),
    ("score in.txt -o out --summary out.progress.tmp", "--summary", "the progress of --output"),
    ("score in.txt hard.txt -o soft.txt", "--output", "FILE"),
    ("score linked/bundle/manifest.json -o out --summary bundle/tokenizer.json", "--summary", "--model"),
    ("score in.txt -o bundle/manifest.json", "--output", "--model"),
    ("score --text a --format tsv -o bundle/manifest.json", "--output", "--model"),
    ("generate --prompts in.txt 2>> soft.txt", "standard error", "--prompts in.txt"),
    ("generate --prompts in.txt -o hard.txt", "--output", "--prompts in.txt"),
    ("generate --prompts in.txt -o out --summary soft.txt", "--summary", "--prompts in.txt"),
    ("generate --prompts - -o soft.txt < in.txt", "--output", "--prompts"),
    ("generate a -o bundle/manifest.json", "--output", "--model"),
]


@pytest.mark.parametrize(("line", "option", "other"), TOUCHING)
def test_input_is_never_an_output(
    folder: Path, quick_environment: dict[str, str], line: str, option: str, other: str
) -> None:
    verb, rest = line.split(" ", 1)
    before = contents(folder)
    done = subprocess.run(
        ["bash", "-c", f"meari {verb} --bundles bundle {rest}"],
        cwd=folder,
        env=quick_environment,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    after = contents(folder)
    appended = b"".join(
        data.removeprefix(before.get(name, b"")) for name, data in after.items() if data != before.get(name)
    )
    message = " ".join((done.stderr + appended).decode().split())
    assert done.returncode == 2, message
    assert f"Error: {option}: got" in message
    assert other in message
    if option == "standard error":  # receives the message itself
        return
    assert {**before, str(folder / "out"): b""} == {str(folder / "out"): b"", **contents(folder)}


def test_progress_that_would_replace_an_input_is_refused(working_folder: Path) -> None:
    (working_folder / "out.progress").write_text(TEXT)
    done = CliRunner().invoke(group, ["score", "out.progress", "-o", "out", "--bundles", "bundle"])
    assert done.exit_code == 2
    assert "the progress of --output: got out.progress, which is read as well" in done.output
    assert (working_folder / "out.progress").read_text() == TEXT


@pytest.mark.parametrize("name", ["out.progress", "out.progress.tmp"])
@pytest.mark.parametrize("words", [["score", "in.txt"], ["generate", "--prompts", "in.txt"]])
def test_progress_file_replaces_only_a_progress_file(working_folder: Path, name: str, words: list[str]) -> None:
    (working_folder / name).write_text(TEXT)
    before = contents(working_folder)
    done = CliRunner().invoke(group, [*words, "-o", "out", "--bundles", "bundle"])
    assert done.exit_code != 0
    assert f"{name}: got another file where the progress of the run is noted" in str(done.exception)
    assert contents(working_folder) == before
    resumed = CliRunner().invoke(group, [*words, "-o", "out", "--bundles", "bundle", "--resume"])
    assert resumed.exit_code != 0
    assert contents(working_folder) == before
    (working_folder / name).write_bytes(b"")
    assert CliRunner().invoke(group, [*words, "-o", "out", "--bundles", "bundle", "-q"]).exit_code == 0


def test_pipes_and_devices_may_be_shared() -> None:
    null, (reader, writer) = Path(os.devnull), os.pipe()
    check_apart([Use("FILE", null), Use("FILE", reader)], [Use("--output", null), Use("--summary", null)])
    check_apart([], [Use("standard output", writer), Use("--summary", Path(f"/dev/fd/{writer}"))])
    os.close(reader)
    os.close(writer)


IN_FOLDER = {
    "texts/new.txt": True,
    "texts/new.TEXT": True,
    "texts/new.gz": True,
    "texts/new.txt.xz": True,
    "texts/deeper/new.txt": True,
    "linked/texts/new.txt": True,
    "elsewhere/new.txt": True,
    "texts/bare.txt": True,
    "missing.jsonl": True,
    "texts/new.jsonl": False,
    "texts/new.txt.jsonl": False,
    "texts/.new.txt": False,
    "texts/.hidden/new.txt": False,
    "new.txt": False,
}


@pytest.mark.parametrize("option", ["-o", "--summary"])
@pytest.mark.parametrize(("name", "is_read"), IN_FOLDER.items())
def test_output_in_an_input_folder_is_refused_if_the_next_run_would_read_it(
    working_folder: Path, option: str, name: str, is_read: bool
) -> None:
    for folder in ("texts/deeper", "texts/.hidden", "elsewhere"):
        (working_folder / folder).mkdir(parents=True)
    (working_folder / "texts" / "a.txt").write_text(TEXT)
    (working_folder / "texts" / "behind").symlink_to(working_folder / "elsewhere")
    (working_folder / "texts" / "link.txt").symlink_to(working_folder / "missing.jsonl")
    (working_folder / "texts" / "bare.txt").symlink_to(working_folder / "nothing")
    before = contents(working_folder)
    more = [] if option == "-o" else ["-o", "out"]
    words = ["score", "texts", option, name, *more, "--bundles", "bundle", "-q"]
    done = CliRunner().invoke(group, words)
    if is_read:
        assert done.exit_code == 2
        message = " ".join(done.output.replace("\u2502", "").split())
        assert f"got {name}, which the next run would read as well (FILE texts)" in message
        assert contents(working_folder) == before
        return
    assert done.exit_code == 0, done.output
    (working_folder / name).unlink()
    assert CliRunner().invoke(group, [*words, "--overwrite"]).exit_code == 0


def test_names_that_differ_in_case_are_one_file_if_the_file_system_ignores_case(working_folder: Path) -> None:
    (working_folder / "OUT").symlink_to("out")
    assert is_one_file(working_folder / "out", working_folder / "OUT")
    (working_folder / "OUT").unlink()
    (working_folder / "probe").touch()
    are_one = (working_folder / "PROBE").exists()
    assert is_one_file(working_folder / "out", working_folder / "OUT") == are_one
    assert not (working_folder / "out").exists()
    words = ["score", "in.txt", "-o", "out", "--summary", "OUT", "--bundles", "bundle", "-q"]
    assert CliRunner().invoke(group, words).exit_code == (2 if are_one else 0)


CONFIG = """
name = "x"
[corpus]
train = ["run/text.txt"]
document = "line"
validation_share = 0.5
[tokenizer]
kind = "char"
[model]
family = "rnn"
[training]
epochs = 1
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "c.toml", "--run", "run", "--overwrite"], "--run: got run, which holds what is read as well"),
        (["train", "c.toml", "--run", ".", "--overwrite"], "--run: got ., which holds what is read as well (CONFIG"),
        (["train", "c.toml", "--run", "new", "--tensorboard", "new"], "--tensorboard: got new, which is written"),
        (["search", "c.toml", "--run", "linked/run", "--overwrite"], "(corpus.train run/text.txt)"),
        (["claims", "--text", "run/text.txt", "--output", "run"], "--output: got run, which holds what is read"),
        (["export", "run", "run", "--overwrite"], "bundles/NAME: got run, which is read as well (RUN run)"),
        (["export", "run/deeper", "linked/run", "--overwrite"], "which holds what is read as well (RUN run/deeper)"),
    ],
)  # fmt: skip
def test_replaced_folder_must_not_hold_an_input(working_folder: Path, words: list[str], message: str) -> None:
    (working_folder / "run" / "deeper").mkdir(parents=True)
    (working_folder / "run" / "text.txt").write_text(TEXT)
    (working_folder / "c.toml").write_text(CONFIG)
    before = contents(working_folder)
    with pytest.raises(click.UsageError) as caught:
        group(words, standalone_mode=False)
    assert message in caught.value.message
    assert contents(working_folder) == before

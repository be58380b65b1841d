"""No verb writes a file that it reads or writes by another option, by whatever name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meari.cli._files import Use, check_apart, is_one_file
from meari.cli.main import group
from tests.bulk.command import arguments
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, clean_environment

TEXT = "ab\ncd\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of text with links to it, and a bundle."""
    (tmp_path / "in.txt").write_text(TEXT)
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "in.txt")
    (tmp_path / "soft.txt").symlink_to("in.txt")
    (tmp_path / "linked").symlink_to(tmp_path)
    write_tiny_bundle(tmp_path / "bundle", peak=3.0, decay=0.01)
    return tmp_path


@pytest.fixture
def place(folder: Path) -> Iterator[Path]:
    """The folder as the current one."""
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
def test_what_is_read_is_not_written(folder: Path, line: str, option: str, other: str) -> None:
    verb, *rest = line.split(" ", 1)
    command = f'"$@" --bundles bundle {rest[0]}'
    before = contents(folder)
    done = subprocess.run(
        ["bash", "-c", command, "bash", *arguments(verb)],
        cwd=folder,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    after = contents(folder)
    told = b"".join(
        data.removeprefix(before.get(name, b"")) for name, data in after.items() if data != before.get(name)
    )
    message = " ".join((done.stderr + told).decode().split())
    assert done.returncode == 2, message
    assert f"Error: {option}: got" in message
    assert other in message
    if option == "standard error":  # which only the error itself went to
        return
    assert {**before, str(folder / "out"): b""} == {str(folder / "out"): b"", **contents(folder)}


def test_progress_that_would_replace_an_input_is_refused(place: Path) -> None:
    (place / "out.progress").write_text(TEXT)
    done = CliRunner().invoke(group, ["score", "out.progress", "-o", "out", "--bundles", "bundle"])
    assert done.exit_code == 2
    assert "the progress of --output: got out.progress, which is read as well" in done.output
    assert (place / "out.progress").read_text() == TEXT


@pytest.mark.parametrize("name", ["out.progress", "out.progress.tmp"])
@pytest.mark.parametrize("words", [["score", "in.txt"], ["generate", "--prompts", "in.txt"]])
def test_progress_replaces_nothing_but_progress(place: Path, name: str, words: list[str]) -> None:
    (place / name).write_text(TEXT)
    before = contents(place)
    done = CliRunner().invoke(group, [*words, "-o", "out", "--bundles", "bundle"])
    assert done.exit_code != 0
    assert f"{name}: got another file where the progress of the run is noted" in str(done.exception)
    assert contents(place) == before
    resumed = CliRunner().invoke(group, [*words, "-o", "out", "--bundles", "bundle", "--resume"])
    assert resumed.exit_code != 0
    assert contents(place) == before
    (place / name).write_bytes(b"")
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
def test_what_the_next_run_would_read_of_a_folder_is_not_written_there(
    place: Path, option: str, name: str, is_read: bool
) -> None:
    for folder in ("texts/deeper", "texts/.hidden", "elsewhere"):
        (place / folder).mkdir(parents=True)
    (place / "texts" / "a.txt").write_text(TEXT)
    (place / "texts" / "behind").symlink_to(place / "elsewhere")
    (place / "texts" / "link.txt").symlink_to(place / "missing.jsonl")
    (place / "texts" / "bare.txt").symlink_to(place / "nothing")
    before = contents(place)
    more = [] if option == "-o" else ["-o", "out"]
    words = ["score", "texts", option, name, *more, "--bundles", "bundle", "-q"]
    done = CliRunner().invoke(group, words)
    if is_read:
        assert done.exit_code == 2
        message = " ".join(done.output.replace("\u2502", "").split())
        assert f"got {name}, which the next run would read as well (FILE texts)" in message
        assert contents(place) == before
        return
    assert done.exit_code == 0, done.output
    (place / name).unlink()
    assert CliRunner().invoke(group, [*words, "--overwrite"]).exit_code == 0


def test_names_that_differ_in_case_are_one_file_where_the_file_system_says_so(place: Path) -> None:
    (place / "OUT").symlink_to("out")
    assert is_one_file(place / "out", place / "OUT")
    (place / "OUT").unlink()
    (place / "probe").touch()
    are_one = (place / "PROBE").exists()
    assert is_one_file(place / "out", place / "OUT") == are_one
    assert not (place / "out").exists()
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
def test_a_folder_that_is_replaced_holds_nothing_that_is_read(place: Path, words: list[str], message: str) -> None:
    (place / "run" / "deeper").mkdir(parents=True)
    (place / "run" / "text.txt").write_text(TEXT)
    (place / "c.toml").write_text(CONFIG)
    before = contents(place)
    with pytest.raises(click.UsageError) as caught:
        group(words, standalone_mode=False)
    assert message in caught.value.message
    assert contents(place) == before

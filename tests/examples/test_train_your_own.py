"""docs/train-your-own.md: the page's walk from a text to a service, in both languages."""

import re
import shlex
from pathlib import Path

import pytest

from examples import train_your_own
from meari.models.config import load_config
from tests.examples.pages import assert_alike, numbers_of, page, quoted, run_example

PAGE = page("train-your-own")
CONFIGS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\.venv/bin/(meari (?!serve).*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("language", train_your_own.WALKS)
def test_walk_ends_with_a_service_that_says_what_the_command_line_said(language: str, tmp_path: Path) -> None:
    arguments = [] if language == "english" else ["--language", language]
    printed = run_example("train_your_own.py", *arguments, "--folder", "walk", folder=tmp_path)
    assert "the server writes the same: True" in printed
    right, wrong = numbers_of(printed, "and scores:")
    assert right > wrong + 5
    walk = train_your_own.WALKS[language]
    on_the_command_line = [line for line in printed.splitlines() if line.strip().endswith((walk.right, walk.wrong))]
    assert [float(line.split()[0]) for line in on_the_command_line] == [right, wrong]
    assert (tmp_path / "walk" / "runs" / "my-model" / "report.png").is_file()
    command = " ".join([".venv/bin/python examples/train_your_own.py", *arguments])
    assert_same_walk(quoted("train-your-own", command), printed)


def assert_same_walk(page_text: str, printed: str) -> None:
    """Line by line: counts are equal, measured figures within a tenth, all others within a third.

    On one kind of CPU all is equal. Only words may differ: the machine's name, and the sentence that is written.
    """
    before = ""
    for mine, theirs in zip(page_text.splitlines(), printed.splitlines(), strict=True):
        label = mine.split()[0]
        if label == "machine":
            assert theirs.split()[0] == label
        elif before.startswith("$ meari generate"):
            assert theirs.startswith(mine.split()[0])
        elif label.startswith("num_"):
            assert mine.split() == theirs.split()
        elif label.startswith(("nats_", "bits_", "perplexity", "validation:")):
            assert_alike(mine, theirs, relative=0.1, absolute=0.02)
        else:
            assert_alike(*(line.replace("(+", "(").replace("(-", "(") for line in (mine, theirs)))
        before = mine


def test_config_of_the_page_is_that_of_the_script() -> None:
    first, tokenizer, _ = CONFIGS
    assert first == train_your_own.CONFIG
    assert tokenizer == train_your_own.PIECES


def test_every_config_of_the_page_is_one(tmp_path: Path) -> None:
    first, tokenizer, real = CONFIGS
    for text in (first, first.replace(train_your_own.CHARACTERS, tokenizer), real):
        path = tmp_path / "my-model.toml"
        path.write_text(text, "utf-8")
        assert load_config(path).name == "my-model"


def test_commands_of_the_page_are_those_that_the_script_runs() -> None:
    shown = quoted("train-your-own", ".venv/bin/python examples/train_your_own.py")
    ran = [set(shlex.split(line[2:])) for line in shown.splitlines() if line.startswith("$ meari")]
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        words = set(shlex.split(command))
        assert any(words <= {*others, "-o", "scores.jsonl"} for others in ran), command

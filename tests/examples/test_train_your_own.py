"""Test docs/train-your-own.md: the steps from a text to a service, in both languages."""

import re
import shlex
from pathlib import Path

import pytest

from examples import train_your_own
from meari.models.config import load_config
from tests.examples.pages import assert_alike, numbers_of, page, quoted, run_example

PAGE = page("train-your-own")
CONFIGS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^\.venv/bin/(meari (?!serve)(?!.*--minutes).*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("language", train_your_own.WALKTHROUGHS)
def test_service_and_command_line_give_the_same_results(language: str, tmp_path: Path) -> None:
    arguments = [] if language == "english" else ["--language", language]
    printed = run_example("train_your_own.py", *arguments, "--folder", "walk", folder=tmp_path)
    assert "the server writes the same: True" in printed
    right, wrong = numbers_of(printed, "and scores:")
    assert right > wrong + 5
    steps = train_your_own.WALKTHROUGHS[language]
    on_the_command_line = [line for line in printed.splitlines() if line.strip().endswith((steps.right, steps.wrong))]
    assert [float(line.split()[0]) for line in on_the_command_line] == [right, wrong]
    assert (tmp_path / "walk" / "runs" / "my-model" / "report.png").is_file()
    command = " ".join([".venv/bin/python examples/train_your_own.py", *arguments])
    assert_same_output(quoted("train-your-own", command), printed)


def assert_same_output(page_text: str, printed: str) -> None:
    """Compare line by line: equal counts, losses within a tenth, all other figures within a third.

    On the same kind of CPU all figures are equal. Only two texts may differ: the machine's name and the generated
    sentence.
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


def test_page_shows_the_config_of_the_script() -> None:
    first, tokenizer, _ = CONFIGS
    assert first == train_your_own.CONFIG
    assert tokenizer == train_your_own.PIECES


def test_every_config_of_the_page_is_valid(tmp_path: Path) -> None:
    first, tokenizer, real = CONFIGS
    for text in (first, first.replace(train_your_own.CHARACTERS, tokenizer), real):
        path = tmp_path / "my-model.toml"
        path.write_text(text, "utf-8")
        assert load_config(path).name == "my-model"


def test_script_runs_every_command_of_the_page() -> None:
    shown = quoted("train-your-own", ".venv/bin/python examples/train_your_own.py")
    ran = [set(shlex.split(line[2:])) for line in shown.splitlines() if line.startswith("$ meari")]
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        words = set(shlex.split(command))
        assert any(words <= {*others, "-o", "scores.jsonl"} for others in ran), command

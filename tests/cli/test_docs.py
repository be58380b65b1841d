"""Test that docs/cli.md documents exactly the existing verbs and options, with the examples of the help."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from meari.cli.main import group
from tests.cli.test_examples import examples

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
VERBS = group.list_commands(click.Context(group))
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def options_of(verb: str) -> dict[str, click.Option]:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    return {option.opts[-1]: option for option in options}


def help_of(option: click.Option) -> str:
    """Help of an option as the page has it: on one line, defaults without the word."""
    record = option.get_help_record(click.Context(group))
    return re.sub(r"\s+", " ", record[1]).replace("[default: ", "[").strip() if record else ""


def test_every_verb_has_a_section_and_a_table_row() -> None:
    assert [name for name in SECTIONS if name[0].islower()] == VERBS
    assert re.findall(r"^\| \[`(\w+)`\]\(#\1\)", PAGE, re.MULTILINE) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_documented_options_are_the_existing_ones(verb: str) -> None:
    rows = re.findall(r"^\| `((?:[^`|]|\\\|)+)` \| (.*) \|$", SECTIONS[verb], re.MULTILINE)
    documented = {re.findall(r"--[a-z0-9-]+", names)[0]: meaning for names, meaning in rows}
    helps = {name: help_of(option) for name, option in options_of(verb).items()}
    assert {name: meaning.replace(r"\|", "|").strip() for name, meaning in documented.items()} == helps


@pytest.mark.parametrize("verb", VERBS)
def test_mentioned_options_exist(verb: str) -> None:
    known = {
        name for each in VERBS for option in options_of(each).values() for name in option.opts + option.secondary_opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", SECTIONS[verb])) <= known


@pytest.mark.parametrize("verb", VERBS)
def test_examples_match_the_help(verb: str) -> None:
    [block] = re.findall(r"```sh\n(.*?)```", SECTIONS[verb], re.DOTALL)
    assert [re.sub(r"\s{2,}#.*", "", line) for line in block.splitlines()] == examples(verb)


def test_exit_codes_are_documented() -> None:
    assert re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE) == ["0", "1", "2", "130"]


def test_readme_lists_every_verb() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    [line] = re.findall(r"^ *cli/ +(meari .*)$", readme, re.MULTILINE)
    assert sorted(line.removeprefix("meari ").split(" · ")) == sorted(VERBS)
    assert "(docs/cli.md)" in readme

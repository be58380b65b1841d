import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from meari import cli
from meari.cli import main as entry
from tests import forked
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]


class OurError(Exception):
    """Root error class of a part of the project."""


@click.command("greet")
@click.option("--fail", type=click.Choice(["ours", "missing", "foreign", "hostile"]))
def greet(fail: str | None) -> None:
    """Say hello."""
    if fail == "ours":
        raise OurError("runs/x: got nothing, expected a checkpoint")
    if fail == "hostile":
        raise OurError("weights.pt: got \x1b]0;pwned\x07\x9b2J\udcff\r한글 é,\n  expected others")
    if fail == "missing":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if fail == "foreign":
        raise ValueError("a mistake in the program")
    click.echo("hello")


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a verb `greet` and an errors module to the command line."""
    (tmp_path / "greet.py").write_text("from tests_cli_greet import greet as command\n")
    module, errors = ModuleType("tests_cli_greet"), ModuleType("meari.models.errors")
    vars(module)["greet"] = greet
    vars(errors)["ModelsError"] = OurError
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, errors.__name__, errors)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "meari.cli.greet", raising=False)
    return "greet"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["meari", *arguments])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    return ended.value.code


INTERRUPTED_IMPORT = """
import atexit, os, runpy, signal, sys, weakref
module, way, *sys.argv[1:] = sys.argv[1:]
if module == "exit":
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
        if module == f"callback in {name}":
            held = {1}
            reference = weakref.ref(held, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del held
        if module == f"compiled module {name}":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None
sys.meta_path.insert(0, Interrupting())
if way == "module":
    runpy.run_module("meari", run_name="__main__")
else:
    place, name = way.split(":")
    sys.exit(getattr(__import__(place, fromlist=[name]), name)())
"""
SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["meari"]


@pytest.mark.parametrize("way", ["module", SCRIPT])
@pytest.mark.parametrize(
    "module",
    [
        *("meari.cli", "meari.cli.main", "click", "callback in click", "meari.cli.models", "msgspec"),
        *("compiled module click", "compiled module msgspec"),
    ],
)
def test_interrupt_in_any_import_ends_the_command_calmly(module: str, way: str) -> None:
    done = interrupted("default_int_handler", module, way, "models")  # the tests may run where it is ignored
    assert (done.returncode, done.stderr) == (130, "\nmeari: interrupted\n")


def test_interrupt_at_exit_changes_nothing() -> None:
    done = interrupted("default_int_handler", "exit", SCRIPT, "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupts_that_are_ignored_stay_so() -> None:
    done = interrupted("SIG_IGN", "click", SCRIPT, "--version")
    assert (done.returncode, done.stderr) == (0, "")


def interrupted(handler: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a handler of interrupts, and interrupt it in an import."""
    source = f"import signal\nsignal.signal(signal.SIGINT, signal.{handler})\n{INTERRUPTED_IMPORT}"
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_verb_is_imported_only_on_use(verb: str) -> None:
    assert verb in entry.group.list_commands(click.Context(entry.group))
    assert "meari.cli.greet" not in sys.modules
    assert CliRunner().invoke(entry.group, [verb]).output == "hello\n"
    assert "meari.cli.greet" in sys.modules
    del sys.modules["meari.cli.greet"]


def test_error_of_the_project_is_one_line_and_exit_code_1(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, verb, "--fail", "ours") == 1
    assert capsys.readouterr() == ("", "meari: runs/x: got nothing, expected a checkpoint\n")


def test_text_of_a_file_or_server_in_a_message_does_not_command_the_terminal(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, verb, "--fail", "hostile") == 1
    shown = "meari: weights.pt: got \\x1b]0;pwned\\x07\\x9b2J\\udcff\\r한글 é,\n  expected others\n"
    assert capsys.readouterr().err == shown


def test_missing_training_packages_are_explained(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, verb, "--fail", "missing") == 1
    assert capsys.readouterr().err.startswith("meari: torch is not installed here")


def test_unexpected_error_keeps_its_traceback(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["meari", verb, "--fail", "foreign"])
    with pytest.raises(ValueError, match="a mistake in the program"):
        entry.main()


def test_unknown_verb_is_a_usage_error() -> None:
    result = CliRunner().invoke(entry.group, ["sing"])
    assert result.exit_code == 2
    assert "sing" in result.output


def test_version_is_the_version_of_the_installed_distribution() -> None:
    result = CliRunner().invoke(entry.group, ["--version"])
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert entry.installed_version() in {expected, "not installed"}
    assert result.output == f"meari, version {entry.installed_version()}\n"


def test_help_shows_every_verb_in_a_group() -> None:
    shown = CliRunner().invoke(entry.group, ["--help"]).output
    groups = re.findall(r"^(Train|Look|Use):\n((?:  .+\n)+)", shown, re.MULTILINE)
    assert [name for name, _ in groups] == ["Train", "Look", "Use"]
    verbs = [line.split()[0] for _, lines in groups for line in lines.splitlines()]
    assert verbs == entry.group.list_commands(click.Context(entry.group))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("modles", "did you mean models?"),
        ("export a b --precision int9", "did you mean int8?"),
        ("export a b --precision int-8", "did you mean int8?"),
        ("export a b --precison int8", "Did you mean one of: '--json', '--precision'?"),
        ("score --text a --format jsnl", "did you mean jsonl?"),
        ("score --text a --words=unicod", "did you mean unicode?"),
        ("score a --input-format txt", "did you mean text?"),
        ("generate a --format tvs", "did you mean tsv?"),
        ("generate --prompts a --input-format jsonlines", "did you mean jsonl?"),
        ("evaluate a --part valid", "did you mean validation?"),
        ("completion bsh", "did you mean bash?"),
        ("inspect shakespear-gru", "did you mean shakespeare-gru?"),
        ("evaluate models/confgs", "did you mean configs?"),
        ("export models/confgs b", "did you mean configs?"),
        ("search models/configs/shakespear-lstm.toml", "did you mean shakespeare-lstm.toml?"),
        ("score --text a --model shakespear-lstm", "did you mean shakespeare-lstm?"),
        ("train models/configs/shakespear-lstm.toml", "did you mean shakespeare-lstm.toml?"),
    ],
)
def test_mistyped_name_gets_a_suggestion(words: str, hint: str) -> None:
    done = forked.run(words.split())
    assert done.returncode in {1, 2}
    assert hint in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_help_shows_examples() -> None:
    result = CliRunner().invoke(entry.group, ["--help"])
    assert result.exit_code == 0
    assert "meari train models/configs/" in result.output


@pytest.mark.parametrize(
    ("prompt", "reported"), [("안녕", "2 of the prompt's 2"), ("a 안", "1 of the prompt's 3"), ("ROMEO", "")]
)
def test_generate_reports_unknown_tokens_of_the_prompt(prompt: str, reported: str) -> None:
    words = ["generate", prompt, "--model", "shakespeare-lstm", "--max-tokens", "2"]
    done = forked.run(words)
    assert done.returncode == 0
    expected = f"meari: unknown to the model: {reported} tokens"
    assert (expected in done.stderr.decode()) if reported else (b"unknown" not in done.stderr)


def ranges_of(group: click.Group) -> list[click.FloatRange]:
    """Return the ranges of all options of all verbs."""
    context = click.Context(group)
    found: list[click.FloatRange] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += ranges_of(command)
        found += [option.type for option in command.params if isinstance(option.type, click.FloatRange)]
    return found


def test_no_range_takes_what_is_no_number() -> None:
    """A comparison with nan is false, so that click takes it for a number of every range."""
    ranges = ranges_of(entry.group)
    assert len(ranges) > 5
    for each in ranges:
        for text in ("nan", "inf", "-inf"):
            with pytest.raises(click.BadParameter, match="is not in the range"):
                each.convert(float(text), None, None)


@pytest.mark.parametrize("words", [("serve",), ("filter", str(ROOT / "LICENSE"), "-o", "out")])
def test_current_folder_that_was_removed_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "gone").mkdir()
    script = 'cd gone && rmdir ../gone && exec "$@"'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "meari", *words]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (1, "meari: the current folder: No such file or directory\n")

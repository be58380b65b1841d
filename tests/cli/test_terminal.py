"""Test tables on a terminal, in a pipe and with NO_COLOR; `--json` of every verb; exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from meari.cli._tables import Table, facts, show, shown
from meari.cli.main import group
from tests.patience import PATIENCE, until

ESCAPE = "\x1b["
VERBS = group.list_commands(click.Context(group))


def on_terminal(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a verb on a pseudo-terminal and return its output."""
    ours, theirs = pty.openpty()
    own = environment | {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(["meari", *words], cwd=folder, env=own, stdout=theirs) as process:
        os.close(theirs)
        written = b"".join(iter(lambda: _read(ours), b""))
        assert process.wait() == 0
    os.close(ours)
    return written.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def run(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["meari", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_terminal_gets_colours(project: Path, environment: dict[str, str]) -> None:
    written = on_terminal(["models"], project, environment)
    assert ESCAPE in written
    assert "shakespeare-gru" in written


def test_no_color_disables_colours(project: Path, environment: dict[str, str]) -> None:
    written = on_terminal(["models"], project, environment | {"NO_COLOR": "1"})
    assert ESCAPE not in written
    assert "shakespeare-gru" in written


def test_pipe_gets_plain_columns(project: Path, environment: dict[str, str]) -> None:
    done = run(["models"], project, environment | {"FORCE_COLOR": "1", "COLUMNS": "20"})
    head, *rows = done.stdout.splitlines()
    assert head.split() == [
        "name",
        "family",
        "precision",
        "parameters",
        "tokenizer",
        "perplexity",
        "bits/char",
        "part",
        "corpus",
    ]
    assert len(rows) == 6
    assert [row.index("int8" if "int8" in row else "fp32") for row in rows] == [head.index("precision")] * 6
    assert done.stdout.replace("\n", "").isprintable()


def test_plain_columns_count_wide_characters_twice(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        Table("", ("text", "n"), [("한글", "1"), ("ab", "20")], frozenset({"n"})),
        facts("more", [("a", 1), ("b", None)]),
    )
    assert capsys.readouterr().out == "text   n\n한글   1\nab    20\n\nmore\n  a  1\n"


def test_missing_figure_is_a_dash() -> None:
    assert (shown(None), shown(1234.5), shown(1e7)) == ("–", "1,234.5000", "10,000,000.0")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_json_option(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    assert any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize(
    "words",
    [
        ["models"],
        ["inspect", "shakespeare-rnn"],
        ["completion", "bash"],
        ["generate", "ROMEO:", "--max-tokens", "4", "--model", "shakespeare-rnn"],
        ["score", "--text", "To be", "--model", "shakespeare-rnn"],
    ],
)
def test_standard_output_is_one_json_object(words: list[str], project: Path, environment: dict[str, str]) -> None:
    done = run([*words, "--json"], project, environment)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_serve_describes_itself_in_json_and_exits_with_code_0(project: Path, environment: dict[str, str]) -> None:
    own = environment | {"MEARI_PORT": "0", "MEARI_WORKERS": "1"}
    serve = ["meari", "serve", "--json", "--default-model", "shakespeare-rnn"]
    with subprocess.Popen(serve, cwd=project, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        described = json.loads(process.stdout.readline())
        assert described["models"][-1] == "shakespeare-rnn"
        assert described["process"] == process.pid
        for line in process.stderr:
            if b"serving" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, rest) == (0, b"")


CODES = [
    (["sing"], 2, "No such command 'sing'"),
    (["inspect", "nowhere"], 1, "meari: model: got 'nowhere'"),
    (["inspect", "--top"], 2, "No such option"),
    (["generate", "a", "--top-p", "1.4"], 2, "--top-p: got 1.4"),
    (["generate", "a", "--resume"], 2, "--resume: got it without --prompts"),
    (["generate", "a", "--json", "--format", "tsv"], 2, "--json: got it with --format tsv"),
    (["score"], 2, "FILE and --text: got none"),
    (["score", "nowhere.txt"], 1, "meari: nowhere.txt: No such file"),
    (["score", "--text", "a", "--skip-bad"], 2, "--skip-bad: got it with --text"),
    (["serve", "--port", "many"], 2, "MEARI_PORT: got 'many'"),
    (["models", "--server", "localhost:8000"], 2, "--server': got 'localhost:8000', expected http://HOST:PORT"),
    (["models", "--server", "http://a", "--bundles", "b"], 2, "--bundles: got it with --server"),
    (["evaluate", "runs/a", "--server", "http://a"], 2, "--server: evaluate works with files of this machine"),
    (["models", "--server", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1: connection refused"),
    (["generate", "a", "--server", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1: connection refused"),
]


@pytest.mark.parametrize(("words", "code", "message"), CODES)
def test_error_has_an_exit_code_and_a_one_line_message(
    words: list[str], code: int, message: str, project: Path, environment: dict[str, str]
) -> None:
    done = run(words, project, environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["models", "--json"], ["completion", "bash"]])
def test_closed_pipe_ends_a_verb_silently(words: list[str], project: Path, environment: dict[str, str]) -> None:
    with unread_pipe() as writer:
        done = subprocess.run(
            ["meari", *words], cwd=project, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@contextmanager
def unread_pipe() -> Iterator[int]:
    """Open a pipe, close its reading end, and yield its writing end."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def test_interrupted_verb_exits_with_code_130(environment: dict[str, str]) -> None:
    code = """
import signal
from meari.cli import main
from tests.patience import PATIENCE, until
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may ignore it
main.group = lambda **_: signal.raise_signal(signal.SIGINT)
main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "meari: interrupted\n")


REFUSED = "meari: standard output: "
SCORE = "score texts.txt --model shakespeare-rnn"
STREAMS = [
    (f"{SCORE} >&-", 1, f"{REFUSED}Bad file descriptor\n"),
    (f"{SCORE} >/dev/full", 1, f"{REFUSED}No space left on device\n"),
    (f"{SCORE} -o scores.jsonl 2>&-", 0, ""),
    (f"{SCORE} -o scores.jsonl 2>/dev/full", 0, ""),
    (f"{SCORE} -o scores.jsonl <&- >&- 2>&-", 0, ""),
    (
        "score - --model shakespeare-rnn <&-",
        1,
        "meari: standard input: Bad file descriptor, expected a readable file\n",
    ),
    ("models >&-", 1, f"{REFUSED}Bad file descriptor\n"),
    ("models >/dev/full", 1, f"{REFUSED}No space left on device\n"),
    ("models >/dev/full 2>&1", 1, ""),
    ("inspect nowhere 2>/dev/full", 1, ""),
    ("inspect nowhere 2>&-", 1, ""),
    ("sing 2>/dev/full", 2, ""),
]
LATIN = [
    ["generate", "caf\udce9"],
    ["generate", "a", "--stop", "caf\udce9"],
    ["score", "--text", "caf\udce9"],
    ["score", "--text", "a", "--context", "caf\udce9"],
    ["score", "texts.txt", "--field", "caf\udce9"],
    ["models", "--server", "http://caf\udce9"],
    ["serve", "--host", "caf\udce9"],
]


@pytest.mark.parametrize("words", LATIN)
def test_text_in_another_encoding_is_refused(words: list[str], project: Path, environment: dict[str, str]) -> None:
    done = run(words, project, environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert r"got 'caf\udce9', expected text in utf-8" in done.stderr or "got 'http://caf" in done.stderr


def test_path_may_have_any_bytes(project: Path, environment: dict[str, str]) -> None:
    (project / "caf\udce9.txt").write_text("To be\n", "utf-8")
    (project / "caf\udce9").symlink_to(project / "bundles" / "shakespeare-rnn")
    done = run(["score", "caf\udce9.txt", "--model", "./caf\udce9", "-o", "caf\udce9.jsonl"], project, environment)
    assert done.returncode == 0, done.stderr
    assert (project / "caf\udce9.jsonl").is_file()


@pytest.mark.parametrize(("line", "code", "message"), STREAMS)
def test_closed_and_full_streams_lose_messages_only(
    line: str, code: int, message: str, project: Path, environment: dict[str, str]
) -> None:
    (project / "texts.txt").write_text("To be\n" * 3, "utf-8")
    done = subprocess.run(
        ["sh", "-c", f"exec meari {line}"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", message)
    if "-o" in line:
        assert (project / "scores.jsonl").read_text("utf-8").count("\n") == 3


def test_reader_of_messages_that_has_gone_changes_no_exit_code(project: Path, environment: dict[str, str]) -> None:
    with unread_pipe() as writer:
        done = subprocess.run(["meari", "inspect", "nowhere"], cwd=project, env=environment, stderr=writer, check=False)
    assert done.returncode == 1


def test_server_without_standard_streams_starts_and_ends(project: Path, environment: dict[str, str]) -> None:
    own = environment | {"MEARI_PORT": "0", "MEARI_WORKERS": "1", "MEARI_BUNDLES": "bundles/shakespeare-rnn"}
    with subprocess.Popen(["sh", "-c", "exec meari serve <&- >&- 2>&-"], cwd=project, env=own) as process:
        streams = [Path(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: process.poll() is not None or bool(children.read_text()))
        assert [str(stream.readlink()) for stream in streams] == ["/dev/null"] * 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0

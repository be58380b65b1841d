"""Test `meari completion` in real shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from meari.cli.main import group
from tests.patience import PATIENCE


def bash(line: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """Return the completions of the bash script at the end of a line."""
    words = line.split(" ")
    code = f"""
        source <(meari completion bash)
        COMP_WORDS=({" ".join(words[:-1])} '{words[-1]}') COMP_CWORD={len(words) - 1}
        compopt() {{ echo "compopt $*"; }}
        _meari_completion meari
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("meari in", ["inspect"]),
        ("meari inspect shakespeare-", [f"shakespeare-{family}" for family in ("esn", "gru", "lstm", "rnn")]),
        ("meari generate hi --model ns", ["nsmc-lstm"]),
        ("meari generate --bundles few --model ", ["mine"]),
        ("meari score --log-", ["--log-base"]),
        ("meari score --log-base ", ["e", "2", "10"]),
        ("meari train ", ["configs/deep.toml", "top.toml"]),
        ("meari train configs/", ["configs/deep.toml"]),
        ("meari evaluate ", ["runs/tiny"]),
        ("meari completion ", ["bash", "zsh", "fish"]),
        ("meari score corp", ["compopt", "-o", "default"]),
        ("meari inspect few/", ["compopt", "-o", "dirnames"]),
    ],
)
def test_bash_offers(line: str, offered: list[str], project: Path, environment: dict[str, str]) -> None:
    (project / "few" / "mine").mkdir(parents=True)
    (project / "few" / "mine" / "manifest.json").touch()
    (project / "configs").mkdir()
    (project / "configs" / "deep.toml").touch()
    (project / "top.toml").touch()
    (project / "runs" / "tiny").mkdir(parents=True)
    (project / "runs" / "tiny" / "config.json").touch()
    assert bash(line, project, environment) == offered


def test_tab_completes_a_bundle_in_an_interactive_bash(project: Path, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    shell = ["bash", "--norc", "--noprofile", "-i"]
    own = environment | {"PS1": "> ", "TERM": "dumb", "HISTFILE": ""}
    with subprocess.Popen(shell, cwd=project, env=own, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            os.close(theirs)
            os.write(ours, b"source <(meari completion bash); echo rea''dy\n")
            read_until(ours, "\nready")
            os.write(ours, b"echo meari\x08\x08\x08\x08\x08\x15meari inspect nsmc\t")
            read_until(ours, "meari inspect nsmc-lstm")
        finally:
            process.kill()
            os.close(ours)


def read_until(descriptor: int, text: str) -> None:
    found, until = "", time.monotonic() + PATIENCE
    while text not in found:
        assert select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0], found
        found += os.read(descriptor, 4096).decode().replace("\r", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_parses_the_script(shell: str, tmp_path: Path) -> None:
    script = CliRunner().invoke(group, ["completion", shell]).output
    assert f"_MEARI_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script)
    assert subprocess.run([shell, "-n", path], capture_output=True, check=True).stderr == b""


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_bundles(project: Path, environment: dict[str, str]) -> None:
    code = "meari completion fish | source; complete -C 'meari inspect nsmc'"
    own = environment | {"HOME": str(project)}
    done = subprocess.run(["fish", "-c", code], cwd=project, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nsmc-lstm"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_offers_bundles(project: Path, environment: dict[str, str]) -> None:
    code = """
        autoload -U compinit; compinit -u -d zcompdump
        source <(meari completion zsh)
        compadd() { print -l -- "${(@P)@[-1]}"; }; _describe() { print -l -- "${(@P)@[-1]}"; }
        words=(meari inspect nsmc) CURRENT=3
        _meari_completion
    """
    own = environment | {"HOME": str(project)}
    done = subprocess.run(["zsh", "-f", "-c", code], cwd=project, env=own, capture_output=True, text=True, check=False)
    assert "nsmc-lstm" in done.stdout, done.stderr

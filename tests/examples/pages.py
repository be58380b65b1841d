"""Examples run for real, and the pages of docs/ that quote what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("train-your-own", "http-api", "choosing", "nbest", "filtering", "surprisal", "anomalies")
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text("utf-8")


def run_example(script: str, *arguments: str, folder: Path) -> str:
    """What `python examples/SCRIPT` prints."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MEARI_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        cwd=folder,
        env=settings | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def quoted(name: str, command: str) -> str:
    """What a page says that a command prints: the rest of its block."""
    [found] = re.findall(rf"```console\n\$ {re.escape(command)}\n(.*?)```", page(name), re.DOTALL)
    return str(found)


def assert_alike(quoted_text: str, printed: str, *, relative: float = 0.3, absolute: float = 0.1) -> None:
    """The same words in the same places; numbers as near as two machines train two small models."""
    for mine, theirs in zip(quoted_text.splitlines(), printed.splitlines(), strict=True):
        assert NUMBER.sub("#", mine).split() == NUMBER.sub("#", theirs).split()
        for one, other in zip(numbers(mine), numbers(theirs), strict=True):
            assert abs(one - other) <= max(absolute, relative * max(abs(one), abs(other))), (mine, theirs)


def numbers(line: str) -> list[float]:
    """All numbers of a line."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(line)]


def numbers_of(printed: str, label: str) -> list[float]:
    """The numbers behind a label, of the one line that begins with it."""
    [line] = [line.strip() for line in printed.splitlines() if line.strip().startswith(label)]
    return numbers(line.removeprefix(label))

"""Run examples and read the pages of docs/ that quote their output."""

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
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text("utf-8")


def run_example(script: str, *arguments: str, folder: Path) -> str:
    """Return the output of `python examples/SCRIPT`."""
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
    """Return the output of a command as a page quotes it: the rest of the command's block."""
    [found] = re.findall(rf"```console\n\$ {re.escape(command)}\n(.*?)```", page(name), re.DOTALL)
    return str(found)


def assert_alike(quoted_text: str, printed: str, *, relative: float = 0.3, absolute: float = 0.1) -> None:
    """Assert that words are the same and numbers differ only by the given tolerances.

    The tolerances cover the differences between small models trained on two machines. Numbers like 1.1e-05 are errors
    of rounding, which differ by up to a factor of two.
    """
    for mine, theirs in zip(quoted_text.splitlines(), printed.splitlines(), strict=True):
        assert NUMBER.sub("#", mine).split() == NUMBER.sub("#", theirs).split()
        are_small = ["e-" in found for found in NUMBER.findall(mine)]
        for one, other, is_small in zip(numbers(mine), numbers(theirs), are_small, strict=True):
            largest = max(abs(one), abs(other))
            allowed = 0.5 * largest if is_small else max(absolute, relative * largest)
            assert abs(one - other) <= allowed, (mine, theirs)


def numbers(line: str) -> list[float]:
    """Return all numbers of a line."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(line)]


def numbers_of(printed: str, label: str) -> list[float]:
    """Return the numbers after a label, from the single line that begins with the label."""
    [line] = [line.strip() for line in printed.splitlines() if line.strip().startswith(label)]
    return numbers(line.removeprefix(label))

"""The form of a drill and its figures.

Input: the options of the command line and what a drill measures. Output: the drill's table in docs/reliability.md.
Must not know: what a drill does.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from benchmarks.serving.machine import describe

__all__ = ["PAGE", "Drill", "Figure", "table_of", "with_table"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
END: Final = "<!-- end of the figures -->"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Figure:
    """One row of a drill's table: what was measured, and the bar that it must hold ("" if it has none)."""

    name: str
    measured: object
    bar: object


def describe_machine() -> str:
    """Return CPU, memory, kernel, load and time as one phrase."""
    about = describe()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    hardware = f"{about['cpu']}, {about['num_cpus']} CPUs, {about['memory_gb']} GiB"
    software = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{hardware}, {software}; load averages {load} at the start; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@dataclass
class Drill:
    """One drill while it runs.

    name           the test, as `test_file.py::test_name`
    is_long        whether this is the long form, whose figures go to the page
    soak_minutes   length of drills that run for a given time, in the long form
    seed           seed of the drill's random choices
    share          of the long form's sizes, for a machine that is busy; the page names it
    """

    name: str
    is_long: bool
    soak_minutes: float
    seed: int
    share: float = 1.0
    figures: list[Figure] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    machine: str = field(default_factory=describe_machine)

    def pick(self, short: Value, long: Value) -> Value:
        """Return the value for the form that runs."""
        return long if self.is_long else short

    def size(self, short: int, long: int) -> int:
        """Return how many cases, kills or requests there are: the long form's number is multiplied by `share`."""
        return self.pick(short, max(short, round(long * self.share)))

    def record(self, name: str, measured: object, bar: object = "") -> None:
        """Note a figure for the page. Assert the bar after this, so that a missed one is on the page too."""
        self.figures.append(Figure(name, measured, bar))
        print(f"{name}: {_text(measured)}" + (f" (bar: {_text(bar)})" if bar != "" else ""))  # noqa: T201

    def write(self, page: Path, *, failure: str = "") -> None:
        """Write the figures to the page. failure: why the drill failed, "" if it passed."""
        if not self.figures and not failure:
            return
        part = "" if self.share == 1 else f" at {100 * self.share:g}% of the full size"
        took = f"Measured{part} in {time.monotonic() - self.started:,.0f} s on {self.machine}."
        text = page.read_text("utf-8")
        page.write_text(with_table(text, self.name, table_of(self.figures, took, failure)), "utf-8")


def table_of(figures: Sequence[Figure], took: str, failure: str) -> str:
    """Return the Markdown of one drill: how it was measured, and a row for each figure."""
    rows = [f"| {row.name} | {_text(row.measured)} | {_text(row.bar)} |" for row in figures]
    failed = [f"**Failed**: {failure}", ""] if failure else []
    table = ["| | measured | bar |", "|---|---|---|", *rows] if rows else []
    return "\n".join([*failed, took, "", *table]).strip()


def with_table(page: str, name: str, table: str) -> str:
    """Return the page with the drill's table between its marks, at the end with a heading if it has none yet."""
    begin = f"<!-- figures of {name} -->"
    block = f"{begin}\n\n{table}\n\n{END}"
    marked = re.compile(re.escape(begin) + r".*?" + re.escape(END), re.DOTALL)
    if marked.search(page):
        return marked.sub(lambda _match: block, page)
    return f"{page.rstrip()}\n\n## {_sentence(name)}\n\n{block}\n"


def _sentence(name: str) -> str:
    words = name.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    return words[:1].upper() + words[1:]


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

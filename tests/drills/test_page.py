"""Test the page of figures: it names drills that exist, and one drill changes only its own table."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.drills.drill import PAGE, Drill, with_table
from tests.service.running import ROOT

DRILLS = Path(__file__).parent
CORPORA = ROOT / "docs" / "large-corpora.md"
TEXT = "# Reliability\n\nBefore.\n\n<!-- figures of a.py::test_a -->\nold\n<!-- end of the figures -->\n\nAfter.\n"


def test_every_table_of_the_page_belongs_to_a_drill() -> None:
    for file, test in re.findall(r"<!-- figures of (\S+)::(\w+)\S* -->", PAGE.read_text("utf-8")):
        assert f"def {test}(" in (DRILLS / file).read_text("utf-8")


def test_arithmetic_of_large_corpora_is_no_better_than_the_drill() -> None:
    text, drilled = CORPORA.read_text("utf-8"), PAGE.read_text("utf-8").partition("figures of test_ray.py")[2]
    [(rate, share)] = re.findall(r"With `r` = ([\d,]+) and `e` = ([\d.]+):", text)
    [price] = re.findall(r"\| at ([\d.]+) \$ a CPU-hour \|", text)
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \$ \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        num_cpus, hours, cpu_hours, cost = (number(cell) for cell in row)
        exact = 1e12 / (number(rate) * number(share) * 3600)
        assert cpu_hours == pytest.approx(exact, rel=0.02)
        assert hours == pytest.approx(exact / num_cpus, rel=0.02)
        assert cost == pytest.approx(exact * number(price), rel=0.02)
    [found_rate] = re.findall(r"tokens a CPU-second .*without Ray.* \| ([\d.e+]+) \|", drilled.partition("## ")[0])[-1:]
    [found_share] = re.findall(r"the same on Ray, share \| ([\d.]+) \|", drilled)
    assert number(rate) <= number(found_rate)
    assert number(share) <= number(found_share)


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def test_table_replaces_only_the_table_of_its_drill() -> None:
    first = with_table(TEXT, "a.py::test_a", "new")
    assert first == TEXT.replace("old", "\nnew\n")
    second = with_table(first, "b.py::test_b_holds", "other")
    assert second.startswith(first)
    assert "## B holds\n\n<!-- figures of b.py::test_b_holds -->\n\nother\n" in second
    assert with_table(second, "a.py::test_a", "newer") == second.replace("\nnew\n", "\nnewer\n")


@pytest.mark.parametrize("failure", ["", "AssertionError: 3 of 4"])
def test_table_has_figures_bars_and_machine_of_a_drill(tmp_path: Path, failure: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(TEXT, "utf-8")
    drill = Drill("a.py::test_a", is_long=True, soak_minutes=1, seed=1)
    drill.record("requests", 1_234_567)
    drill.record("slowest, ms", 12.345678, "≤ 1,000")
    drill.write(page, failure=failure)
    text = page.read_text("utf-8")
    assert "| requests | 1,234,567 |  |\n| slowest, ms | 12.35 | ≤ 1,000 |" in text
    assert re.search(r"Measured in \d+ s on .+ CPUs, .+ GiB, .+; load averages .+ at the start; 20.+ UTC\.", text)
    assert ("**Failed**: AssertionError: 3 of 4" in text) is bool(failure)


def test_short_form_takes_small_values_and_a_fixed_seed(drill: Drill) -> None:
    assert drill.is_long or (drill.pick("short", "long") == "short" and drill.seed == 1)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [("", "tests/drills"), ("-k soak", "tests/drills -k soak"), ("tests/drills/test_page.py -x",) * 2],
)
def test_make_drills_runs_all_long_forms_or_the_named_ones(arguments: str, asked: str) -> None:
    command = ["make", "--dry-run", "drills", f"ARGS={arguments}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"pytest --long {asked}" in " ".join(said.split())

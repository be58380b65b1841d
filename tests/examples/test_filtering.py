"""Test docs/filtering.md: damaged lines are removed, and lines of one kind are selected."""

import random
from pathlib import Path

import pytest

from examples import filtering
from tests.examples.pages import assert_alike, numbers_of, quoted, run_example


def test_filters_reach_the_figures_of_the_page(tmp_path: Path) -> None:
    printed = run_example("filtering.py", folder=tmp_path)
    precision, recall = numbers_of(printed, "clean lines:")
    assert precision > 0.9
    assert recall > 0.9
    alone, _ = numbers_of(printed, "harbour, by its model alone:")
    difference, _ = numbers_of(printed, "harbour, by the difference of two:")
    assert difference > alone + 0.05
    assert_alike(quoted("filtering", ".venv/bin/python examples/filtering.py"), printed, absolute=0.15)


@pytest.mark.parametrize("damage", filtering.DAMAGES)
def test_damage_changes_the_line(damage: str) -> None:
    generator = random.Random(5)
    orders = [filtering.order("harbour", generator) for _ in range(40)]
    damaged = [filtering.DAMAGES[damage](text, generator) for text in orders]
    assert sum(one == other for one, other in zip(orders, damaged, strict=True)) <= 1


def test_precision_and_recall_count_the_kept_lines() -> None:
    lines = [{"good": True}, {"good": True}, {"good": False}, {"good": False}]
    assert filtering.precision_recall(lines[1:3], lambda line: bool(line["good"]), lines) == (0.5, 0.5)
    assert filtering.precision_recall(lines[:2], lambda line: bool(line["good"]), lines) == (1.0, 1.0)


def test_quantile_is_not_exceeded_by_its_share_of_the_values() -> None:
    assert filtering.quantile([5.0, 1.0, 4.0, 2.0, 3.0], 0.5) == 3.0
    assert filtering.quantile([1.0, 2.0], 1.0) == 2.0

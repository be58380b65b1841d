"""Test docs/anomalies.md: scoring a stream with its state finds anomalies that single lines do not show."""

from pathlib import Path
from random import Random

import pytest

from examples import anomalies
from tests.examples.pages import assert_alike, numbers_of, quoted, run_example


def test_planted_lines_score_as_the_page_states(tmp_path: Path) -> None:
    printed = run_example("anomalies.py", folder=tmp_path)
    for label in ("state, whole line", "state, worst token"):
        message, value, order, every = numbers_of(printed, label)
        assert min(message, value, order, every) > 0.9
    assert numbers_of(printed, "each line alone")[2] < 0.75  # a single line cannot show a wrong order
    normal, planted = (line for line in printed.splitlines() if line.startswith("above"))
    assert numbers_of(normal, "above")[1] < 0.05
    assert numbers_of(planted, "above")[1] > 0.8
    assert_alike(quoted("anomalies", ".venv/bin/python examples/anomalies.py"), printed, absolute=0.2, relative=0.6)


def test_auc_counts_pairs_and_halves_ties() -> None:
    assert anomalies.roc_auc([1.0, 2.0], [3.0]) == 1.0
    assert anomalies.roc_auc([1.0, 2.0], [2.0]) == 0.75
    assert anomalies.roc_auc([1.0, 2.0], [0.0]) == 0.0


@pytest.mark.parametrize("kind", anomalies.KINDS)
def test_session_has_one_planted_line(kind: str) -> None:
    assert [found for _, found in anomalies.session(Random(3), kind) if found] == [kind]

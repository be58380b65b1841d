"""Test docs/nbest.md: a language model corrects a noisy recogniser."""

from pathlib import Path

import pytest

from examples import nbest
from tests.examples.pages import assert_alike, numbers_of, quoted, run_example


def test_rescoring_lowers_the_word_error_rate_as_the_page_states(tmp_path: Path) -> None:
    printed = run_example("nbest.py", folder=tmp_path)
    for language in ("english", "korean"):
        first, rescored, at_best, weight, _ = numbers_of(printed, language)
        assert at_best <= rescored < 0.8 * first
        assert weight > 0
    assert numbers_of(printed, "tokens run:")[0] < 0.6
    page, own = (text.splitlines() for text in (quoted_table(), printed))
    assert len(page) == len(own) == 4
    assert_alike(page[0], own[0])
    assert_alike(page[3], own[3], absolute=0.05, relative=0.1)
    # The weight may differ because several weights can be equally good.
    mine, theirs = ([line.split()[:4] for line in text.splitlines()[1:3]] for text in (quoted_table(), printed))
    assert_alike("\n".join(map(" ".join, mine)), "\n".join(map(" ".join, theirs)))


def quoted_table() -> str:
    return quoted("nbest", ".venv/bin/python examples/nbest.py")


@pytest.mark.parametrize(
    ("reading", "truth", "errors"),
    [("a b c", "a b c", 0), ("a x c", "a b c", 1), ("ab c", "a b c", 2), ("", "a b", 2), ("a b c d", "b c d", 1)],
)
def test_word_errors_count_the_fewest_edits(reading: str, truth: str, errors: int) -> None:
    assert nbest.word_errors(reading, truth) == errors


def test_weight_and_bonus_decide_between_readings() -> None:
    channel, language = nbest.Reading("a b", -1.0, -9.0), nbest.Reading("ab", -2.0, -3.0)
    assert nbest.best_of([channel, language], 0.0, 0.0) == "a b"
    assert nbest.best_of([channel, language], 1.0, 0.0) == "ab"
    assert nbest.best_of([channel, language], 1.0, 6.0) == "a b"

"""Test docs/surprisal.md: the peak of the garden path, surprisal with word endings, and the table for R."""

import csv
import math
from pathlib import Path

import pytest

from examples import surprisal
from tests.examples.pages import assert_alike, numbers_of, quoted, run_example


def test_surprisal_peaks_where_the_garden_path_ends(tmp_path: Path) -> None:
    printed = run_example("surprisal.py", "-o", "surprisal.tsv", folder=tmp_path)
    for language in surprisal.LANGUAGES:
        path, control = numbers_of(printed, f"critical word, {language}:")
        assert path > control + 2
    night, day = (numbers_of(printed, f'"Ann slept." after "{time}": slept')[0] for time in surprisal.TIMES)
    assert night < day
    with (tmp_path / "surprisal.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["region"] for row in rows} == {"before", "critical", "after"}
    for item in range(1, 5):
        for language in surprisal.LANGUAGES:
            words = [row for row in rows if row["item"] == str(item) and row["language"] == language]
            by_condition = {row["condition"]: float(row["surprisal"]) for row in words if row["region"] == "critical"}
            assert by_condition["garden path"] > by_condition["control"]
    ann = next(row for row in rows if row["word"] == "Ann" and row["condition"] == "garden path")
    assert float(ann["surprisal"]) > float(ann["with_space"]) + 0.5  # includes that the word is not Anna
    shown = quoted("surprisal", ".venv/bin/python examples/surprisal.py -o surprisal.tsv")
    assert_alike(shown, printed, absolute=1.0, relative=0.4)


def test_every_bit_of_a_text_belongs_to_one_word() -> None:
    tokens = [
        {"text": text, "start": start, "end": start + len(text), "logprob": -bits}
        for text, start, bits in (("A", 0, 1.0), ("b", 1, 2.0), (" ", 2, 4.0), ("c", 3, 8.0), ("", 4, 16.0))
    ]
    words = [
        {"text": "Ab", "start": 0, "end": 2, "logprob": -3.0},
        {"text": "c", "start": 3, "end": 4, "logprob": -12.0},
    ]
    scored = {"item": 1, "language": "x", "condition": "y", "critical": 2, "context": "", "text": "Ab c"}
    found = list(surprisal.words_of(scored | {"tokens": tokens, "words": words}, {"": 0.5, "Ab ": 0.25}))
    assert [word.surprisal for word in found] == [7.0, 24.0]  # a space counts towards the word before it
    assert [word.with_space for word in found] == [3.0, 12.0]
    assert [word.region for word in found] == ["before", "critical"]
    assert [word.entropy for word in found] == [0.5, 0.25]


@pytest.mark.parametrize("mass", [1.0, 0.25])
def test_entropy_is_normalised_over_the_lexicon(mass: float) -> None:
    logprobs = [math.log2(mass * share) for share in (0.5, 0.25, 0.25)]
    assert surprisal.entropy(logprobs) == pytest.approx(1.5)

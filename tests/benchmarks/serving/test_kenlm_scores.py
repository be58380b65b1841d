"""Test the ARPA file that kenlm reads against a hand-written evaluation of the format's rules."""

import math
from pathlib import Path

from benchmarks.serving.inside.kenlm_scores import BEGIN, END, UNKNOWN, write_arpa

WORDS = ["a", "b", "c", "d"]
SENTENCES = [["a", "b", "a"], ["a", "b", "c"], ["b", "a", "b", "a"], ["c"]]


def read_arpa(path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    found = {}
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) >= 2:
            found[tuple(fields[1].split())] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0)
    return found


def log10_probability(model: dict[tuple[str, ...], tuple[float, float]], context: tuple[str, ...], word: str) -> float:
    """Return the probability as the format defines it: the longest known n-gram, else a backoff."""
    if (*context, word) in model:
        return model[*context, word][0]
    return model.get(context, (0.0, 0.0))[1] + log10_probability(model, context[1:], word)


def test_probabilities_of_every_context_sum_to_one(tmp_path: Path) -> None:
    write_arpa(tmp_path / "model.arpa", SENTENCES, WORDS)
    model = read_arpa(tmp_path / "model.arpa")
    outcomes = [*WORDS, END, UNKNOWN]
    contexts: list[tuple[str, ...]] = [(), (BEGIN,), ("a",), ("a", "b"), (BEGIN, "a"), ("d",), (BEGIN, "a", "b", "a")]
    for context in contexts:
        total = sum(10 ** log10_probability(model, context, word) for word in outcomes)
        assert math.isclose(total, 1, abs_tol=1e-4), context


def test_seen_words_get_the_witten_bell_share_of_their_context(tmp_path: Path) -> None:
    write_arpa(tmp_path / "model.arpa", SENTENCES, WORDS)
    model = read_arpa(tmp_path / "model.arpa")
    # The empty context has 15 tokens (ends included) of 4 kinds, "a" 5 times; the rest is uniform over 6 outcomes.
    assert math.isclose(10 ** model["a",][0], (5 + 4 / 6) / (15 + 4), rel_tol=1e-3)


def test_header_counts_the_ngrams(tmp_path: Path) -> None:
    write_arpa(tmp_path / "model.arpa", SENTENCES, WORDS)
    lines = (tmp_path / "model.arpa").read_text().splitlines()
    assert lines[0] == "\\data\\"
    assert lines[1] == f"ngram 1={len(WORDS) + 3}"
    assert lines[-1] == "\\end\\"

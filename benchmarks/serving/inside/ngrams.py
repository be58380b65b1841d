"""An n-gram model with Witten-Bell smoothing, written as an ARPA file that kenlm reads.

Enters: sentences as lists of words. Leaves: the file. Witten and Bell, "The zero-frequency problem", 1991: a context
that was seen n times before t distinct words keeps n / (n + t) for them in proportion and gives t / (n + t) to the
shorter context; the shortest one is even over all words.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ORDER = 5
Gram = tuple[str, ...]


def write_arpa(path: Path, sentences: Iterable[Sequence[str]], vocabulary: Sequence[str]) -> None:
    """Count and write. Words of the vocabulary that no sentence has get their share too."""
    counts = count_ngrams(sentences)
    words = [UNKNOWN, END, *vocabulary]
    probabilities: list[dict[Gram, float]] = [{(): 1 / len(words)}]
    backoffs: dict[Gram, float] = {}
    for order in range(1, ORDER + 1):
        probabilities.append(_smoothed(counts[order - 1], probabilities[order - 1], backoffs, words, order))
    probabilities[1].setdefault((BEGIN,), 1e-99)
    with path.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(probabilities[n])}\n" for n in range(1, ORDER + 1)))
        for order in range(1, ORDER + 1):
            file.write(f"\n\\{order}-grams:\n")
            for gram, probability in sorted(probabilities[order].items()):
                backoff = f"\t{math.log10(backoffs.get(gram, 1.0)):.6f}" if order < ORDER else ""
                file.write(f"{math.log10(probability):.6f}\t{' '.join(gram)}{backoff}\n")
        file.write("\n\\end\\\n")


def count_ngrams(sentences: Iterable[Sequence[str]]) -> list[Counter[Gram]]:
    """Of every order, the begin of a sentence as context alone."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(ORDER)]
    for sentence in sentences:
        padded = [BEGIN, *sentence, END]
        for end in range(1, len(padded)):
            for order in range(1, min(ORDER, end + 1) + 1):
                counts[order - 1][tuple(padded[end - order + 1 : end + 1])] += 1
    return counts


def _smoothed(
    counts: Counter[Gram], shorter: dict[Gram, float], backoffs: dict[Gram, float], words: Sequence[str], order: int
) -> dict[Gram, float]:
    """P(last | context) of every n-gram seen (of every word for order 1); adds each context's backoff weight."""
    totals: defaultdict[Gram, int] = defaultdict(int)
    kinds: defaultdict[Gram, int] = defaultdict(int)
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    grams: Iterable[Gram] = counts if order > 1 else [(word,) for word in words]
    found = {}
    for gram in grams:
        context = gram[:-1]
        total, kind = totals[context], kinds[context]
        below = shorter[gram[1:]] if order > 1 else shorter[()]
        found[gram] = (counts[gram] + kind * below) / (total + kind)
    for context, total in totals.items():
        if context:
            backoffs[context] = kinds[context] / (total + kinds[context])
    return found

"""Rescore n-best lists of a simulated recogniser with a language model: `python examples/nbest.py`, for docs/nbest.md.

The recogniser reads sentences through noise: it confuses similar letters and loses spaces. It returns its best
readings with scores, as recognisers of speech, print and handwriting do. The language model scores each reading as
a sentence. A weight tuned on one half of the lists combines the two scores.
"""

import heapq
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from examples.made_text import LANGUAGES, sentences
from examples.server import post, served
from examples.tiny_model import Recipe, tiny_model

LOOK_ALIKE = ("aeoc", "il", "nrhu", "tf", "gqy", "bdp", "vwu", "mn", "sz")
INITIALS = (
    (0, 15),
    (2, 16),
    (6, 7),
    (9, 12),
    (3, 5),
)  # ㄱㅋ, ㄴㅌ, ㅁㅂ, ㅅㅈ, ㄷㄹ: indices of initial consonants
VOWELS = ((0, 4, 20), (8, 13), (1, 5), (2, 6))  # ㅏㅓㅣ, ㅗㅜ, ㅐㅔ, ㅑㅕ
SIGNAL, NOISE = 4.0, 1.75  # advantage of the right letter and standard deviation of each score, in nats
LOST_SPACE = 1.5  # additional advantage of a space over its loss, in nats
LIST_LENGTH = 20
WEIGHTS = (1.0, 0.75, 1.5, 0.5, 2.0, 0.25, 3.0, 0.0)  # ties go to the first; 1 is the plain product
WORD_BONUSES = (0.0, 2.0, -2.0, 4.0)


@dataclass(frozen=True)
class Reading:
    """Hypothesis with ln P(picture | text), and ln P(text) after rescoring."""

    text: str
    channel: float
    language: float = 0.0


@dataclass(frozen=True)
class Lists:
    """True sentences with the readings of each, best first."""

    truths: list[str]
    readings: list[list[Reading]]


def candidates(letter: str) -> list[str]:
    """Return the letters that a letter can be read as, itself first."""
    if letter == " ":
        return [" ", ""]
    if "가" <= letter <= "힣":
        first, rest = divmod(ord(letter) - ord("가"), 588)
        vowel, last = divmod(rest, 28)
        found = [(other, vowel) for pair in INITIALS if first in pair for other in pair]
        found += [(first, other) for like in VOWELS if vowel in like for other in like]
        others = [chr(ord("가") + 588 * one + 28 * two + last) for one, two in found]
    else:
        others = [other for like in LOOK_ALIKE if letter in like for other in like]
    return [letter, *dict.fromkeys(other for other in others if other != letter)]


def read(sentence: str, generator: random.Random) -> list[Reading]:
    """Return the best readings of a noisy sentence; letters are scored independently of one another."""
    best = [("", 0.0)]
    for letter in sentence:
        options = candidates(letter)
        scores = [generator.gauss(0.0, NOISE) for _ in options]
        scores[0] += SIGNAL if letter != " " else SIGNAL + LOST_SPACE
        total = math.log(sum(map(math.exp, scores)))
        steps = [(option, score - total) for option, score in zip(options, scores, strict=True)]
        joined = ((text + option, sum_ + score) for text, sum_ in best for option, score in steps)
        best = heapq.nlargest(LIST_LENGTH, joined, key=lambda reading: reading[1])
    return [Reading(text, score) for text, score in best]


def word_errors(reading: str, truth: str) -> int:
    """Return the Levenshtein distance in words between a reading and the true sentence."""
    truths, row = truth.split(), list(range(len(truth.split()) + 1))
    for number, word in enumerate(reading.split(), 1):
        diagonal, row[0] = row[0], number
        for place, expected in enumerate(truths, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (word != expected))
    return row[-1]


def word_error_rate(chosen: Sequence[str], truths: Sequence[str]) -> float:
    """Return the word errors of all texts divided by the number of words in all true sentences."""
    errors = sum(word_errors(text, truth) for text, truth in zip(chosen, truths, strict=True))
    return errors / sum(len(truth.split()) for truth in truths)


def best_of(readings: list[Reading], weight: float, word_bonus: float) -> str:
    """Return the reading with the highest ln P_channel + weight × ln P_language + bonus × words."""
    return max(
        readings,
        key=lambda reading: (
            reading.channel + weight * reading.language + word_bonus * len(reading.text.split()),
            reading.channel,
        ),
    ).text


def rescored(address: str, lists: Lists, usage: dict[str, int]) -> Lists:
    """Add ln P to every reading; one request for each list computes shared prefixes only once."""
    readings = []
    for hypotheses in lists.readings:
        answer = post(address, "/score", model="sentences", texts=[reading.text for reading in hypotheses])
        results = zip(hypotheses, answer["results"], strict=True)
        readings.append([Reading(one.text, one.channel, result["logprob"]) for one, result in results])
        for name in usage:
            usage[name] += answer["usage"][name]
    return Lists(lists.truths, readings)


def tuned(lists: Lists) -> tuple[float, float]:
    """Return the weight and word bonus with the lowest word error rate; ties go to the first."""

    def rate(pair: tuple[float, float]) -> float:
        return word_error_rate([best_of(readings, *pair) for readings in lists.readings], lists.truths)

    return min(product(WEIGHTS, WORD_BONUSES), key=rate)


def made_lists(language: str, number: int, seed: int) -> Lists:
    """Return lists for sentences drawn with a seed other than that of the training text."""
    generator = random.Random(seed)
    truths = sentences(language, number, seed)
    return Lists(truths, [read(truth, generator) for truth in truths])


def main(num_lists: int = 60) -> None:
    """Train, recognise, tune on one half of the lists, and print the word error rates of the other half."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = [line for language in LANGUAGES for line in sentences(language, 2500, seed=1)]
        random.Random(1).shuffle(text)
        tiny_model(folder, "sentences", text, Recipe(steps=250))
        usage = {"scored_tokens": 0, "computed_tokens": 0}
        print(f"{'word error rate':<16}{'first':>8}{'rescored':>10}{'at best':>9}{'weight':>8}{'bonus':>7}")
        with served(folder / "bundles") as address:
            for language in LANGUAGES:
                development = rescored(address, made_lists(language, num_lists, seed=2), usage)
                test = rescored(address, made_lists(language, num_lists, seed=3), usage)
                weight, word_bonus = tuned(development)
                print(row(language, test, weight, word_bonus))
        print(
            f"tokens run: {usage['computed_tokens'] / usage['scored_tokens']:.2f} of those scored; the rest is shared"
        )


def row(language: str, test: Lists, weight: float, word_bonus: float) -> str:
    """Return a table row: the error rates of the recogniser, of rescoring, and of the best reading in each list."""
    chosen = [best_of(readings, weight, word_bonus) for readings in test.readings]
    pairs = list(zip(test.readings, test.truths, strict=True))
    nearest = [min(readings, key=lambda one: word_errors(one.text, truth)).text for readings, truth in pairs]
    rates = [word_error_rate(texts, test.truths) for texts in ([one[0].text for one in test.readings], chosen, nearest)]
    return f"{language:<16}{rates[0]:>8.3f}{rates[1]:>10.3f}{rates[2]:>9.3f}{weight:>8g}{word_bonus:>7g}"


if __name__ == "__main__":
    main()

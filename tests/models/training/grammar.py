"""Small probabilistic grammars with a known entropy.

A grammar is right-linear: each state draws a letter, and the letter determines the next state. Every text has one
derivation, so its probability is a product. On enough text, the cross-entropy of a model is at least the entropy rate.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

Rules = dict[str, dict[str, tuple[float, str]]]  # state → letter → (probability, next state)


@dataclass(frozen=True)
class Grammar:
    """Rules by state; texts begin in the first state."""

    rules: Rules

    @property
    def start(self) -> str:
        return next(iter(self.rules))

    def text(self, num_letters: int, seed: int) -> str:
        generator = np.random.default_rng(seed)
        state, letters = self.start, []
        for draw in generator.random(num_letters):
            choices = self.rules[state]
            ends = np.cumsum([probability for probability, _ in choices.values()])
            letters.append(list(choices)[min(int(np.searchsorted(ends, draw)), len(choices) - 1)])
            state = choices[letters[-1]][1]
        return "".join(letters)

    def nats(self, text: str) -> float:
        """Return -ln P(text) from the first state; infinite for a text that the grammar cannot generate."""
        state, nats = self.start, 0.0
        for letter in text:
            if letter not in self.rules[state]:
                return math.inf
            probability, state = self.rules[state][letter]
            nats -= math.log(probability)
        return nats

    def entropy_rate(self) -> float:
        """Return nats per letter: the mean entropy of the states under their stationary distribution."""
        names = list(self.rules)
        moves = np.zeros((len(names), len(names)))
        for state, choices in self.rules.items():
            for probability, following in choices.values():
                moves[names.index(state), names.index(following)] += probability
        values, vectors = np.linalg.eig(moves.T)
        settled = np.real(vectors[:, np.argmax(np.real(values))])
        settled /= settled.sum()
        entropies = [-sum(p * math.log(p) for p, _ in self.rules[name].values()) for name in names]
        return float(settled @ entropies)


def bigram_nats(train: str, text: str) -> float:
    """Return -ln P of a text without its first letter, under add-one smoothed bigram frequencies of `train`."""
    alphabet = sorted(set(train))
    pairs, firsts = Counter(itertools.pairwise(train)), Counter(train[:-1])
    return -sum(
        math.log((pairs[before, letter] + 1) / (firsts[before] + len(alphabet)))
        for before, letter in itertools.pairwise(text)
    )


# The letter after an "a" depends on the letter before the "a".
LETTERS = Grammar(
    {
        "S": {"a": (0.5, "A"), "b": (0.5, "B")},
        "A": {"a": (0.7, "B"), "c": (0.3, "S")},
        "B": {"b": (0.2, "A"), "c": (0.5, "S"), "d": (0.3, "S")},
    }
)

# The closing bracket depends on the opening one, which may be many letters earlier.
BRACKETS = Grammar(
    {
        "outside": {"(": (0.5, "round"), "[": (0.5, "square")},
        "round": {"x": (0.4, "round"), "y": (0.4, "round"), ")": (0.2, "outside")},
        "square": {"x": (0.4, "square"), "y": (0.4, "square"), "]": (0.2, "outside")},
    }
)

"""The words of the random models, and texts made of them. Pure Python, the same on every machine.

A word is two or three syllables, so that a text of n words is n tokens of the word tokenizer.
"""

import random
from collections.abc import Sequence

NUM_WORDS = 9_998  # and the two tokens that are no words: the end and the unknown one
CONSONANTS = "bdfghjklmnprstvwz"
VOWELS = "aeiou"
SEED = 20


def make_words(count: int = NUM_WORDS) -> list[str]:
    """Distinct words, always the same ones in the same order."""
    generator = random.Random(SEED)  # noqa: S311 (no secret)
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = [
            generator.choice(CONSONANTS) + generator.choice(VOWELS) for _ in range(2 + (generator.random() < 0.75))
        ]
        words.setdefault("".join(syllables))
    return list(words)


def make_text(words: Sequence[str], num_words: int, generator: random.Random) -> str:
    """Words drawn evenly, one space in between."""
    return " ".join(generator.choices(words, k=num_words))

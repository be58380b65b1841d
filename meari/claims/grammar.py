"""A text made here: scenes of speakers, from a small probabilistic grammar, for whoever has no corpus at hand.

In: a length and a seed. Out: text. Knows nothing of tokens.

What a network can learn from it lies at several distances: letters of a word; words of a sentence; the number of the
subject, which the verb takes up again behind a relative clause; the bracket that closes an aside; and the speaker's
own animal, named in the head of each speech and again at its end.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Entry = TypeVar("Entry")

SPEAKERS = {"Ada": "owl", "Ben": "fox", "Cleo": "heron", "Dov": "mole", "Edda": "hare", "Finn": "stork"}
NOUNS = ("baker", "sailor", "teacher", "miller", "gardener", "painter", "doctor", "farmer", "singer", "weaver")
PLACES = ("by the river", "in the hall", "near the old mill", "under the bridge", "at the market", "on the hill")
ADJECTIVES = ("old", "young", "quiet", "proud", "clever", "tired", "merry", "lonely")
VERBS = (("sees", "see"), ("knows", "know"), ("greets", "greet"), ("follows", "follow"), ("helps", "help"))
ENDS = (("sleeps", "sleep"), ("waits", "wait"), ("sings", "sing"), ("works", "work"), ("is silent", "are silent"))

CLAUSE_SHARE = 0.45
ADJECTIVE_SHARE = 0.4
PLURAL_SHARE = 0.5
ASIDE_SHARE = 0.2
OBJECT_SHARE = 0.5
ZIPF = 0.7  # earlier entries of a list are likelier: weights (rank + 1) ** -ZIPF


def made_text(num_characters: int, seed: int) -> str:
    """At least so many characters of speeches; the same seed gives the same text."""
    generator = np.random.default_rng(seed)
    speeches: list[str] = []
    length = 0
    while length < num_characters:
        speech = _speech(generator)
        speeches.append(speech)
        length += len(speech)
    return "".join(speeches)


def _speech(generator: np.random.Generator) -> str:
    speaker = _pick(generator, tuple(SPEAKERS))
    animal = SPEAKERS[speaker]
    lines = [_sentence(generator) for _ in range(generator.integers(1, 5))]
    return f"{speaker}, the {animal}:\n" + "\n".join(lines) + f"\nSo says the {animal}.\n\n"


def _sentence(generator: np.random.Generator) -> str:
    subject, is_plural = _noun_phrase(generator, depth=0)
    if generator.random() < OBJECT_SHARE:
        predicate = f"{_pick(generator, VERBS)[is_plural]} {_noun_phrase(generator, depth=1)[0]}"
    else:
        predicate = f"{_pick(generator, ENDS)[is_plural]} {_pick(generator, PLACES)}"
    aside = f" ({_noun_phrase(generator, depth=1)[0]} too)" if generator.random() < ASIDE_SHARE else ""
    text = f"{subject} {predicate}{aside}."
    return text[0].upper() + text[1:]


def _noun_phrase(generator: np.random.Generator, depth: int) -> tuple[str, int]:
    """A noun phrase, and 1 where it is a plural; at depth 0 it may have a relative clause with a verb of its own."""
    is_plural = int(generator.random() < PLURAL_SHARE)
    adjective = _pick(generator, ADJECTIVES) + " " if generator.random() < ADJECTIVE_SHARE else ""
    phrase = "the " + adjective + _pick(generator, NOUNS) + "s" * is_plural
    if depth == 0 and generator.random() < CLAUSE_SHARE:
        inner, inner_is_plural = _noun_phrase(generator, depth=1)
        phrase += f" whom {inner} {_pick(generator, VERBS)[inner_is_plural]}"
    return phrase, is_plural


def _pick(generator: np.random.Generator, entries: Sequence[Entry]) -> Entry:
    weights = (np.arange(len(entries)) + 1.0) ** -ZIPF
    return entries[int(generator.choice(len(entries), p=weights / weights.sum()))]

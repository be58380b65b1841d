"""Requests of each load: endless, seeded, no two prompts alike; Poisson arrivals, log-normal lengths, made words.

Input: a server, a bundle's name, a load. Output: requests, times. Must not know: answers.

A word is two or three syllables, so that a text of n words is n tokens of the word tokenizer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from benchmarks.serving.driver import LoadRequest
from benchmarks.serving.measured_servers import Server
from benchmarks.serving.plan import Load, LoadKind

SHORTEST, LONGEST = 8, 256  # tokens
MEDIAN = math.sqrt(SHORTEST * LONGEST)
SIGMA = math.log(LONGEST / SHORTEST) / 4  # both ends two standard deviations away from the middle
NUM_WORDS = 9_998  # without the two tokens that are not words: the end and the unknown one
CONSONANTS = "bdfghjklmnprstvwz"
VOWELS = "aeiou"
WORDS_SEED = 20
PROMPT_WORDS, NEW_TOKENS = 4, 64
SENTENCE_WORDS = 20
LIST_TEXTS = 100
SEED = 3


def draw_length(generator: random.Random) -> int:
    """Draw a log-normal length between 8 and 256 tokens."""
    while True:
        length = round(generator.lognormvariate(math.log(MEDIAN), SIGMA))
        if SHORTEST <= length <= LONGEST:
            return length


def poisson_times(rate: float, seconds: float, generator: random.Random) -> Iterator[float]:
    """Yield times in [0, seconds) of a Poisson process with so many events a second."""
    time = generator.expovariate(rate)
    while time < seconds:
        yield time
        time += generator.expovariate(rate)


def make_words(count: int = NUM_WORDS) -> list[str]:
    """Make distinct words, always the same ones in the same order."""
    generator = random.Random(WORDS_SEED)  # noqa: S311 (no secret)
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = [
            generator.choice(CONSONANTS) + generator.choice(VOWELS) for _ in range(2 + (generator.random() < 0.75))
        ]
        words.setdefault("".join(syllables))
    return list(words)


def make_text(words: Sequence[str], num_words: int, generator: random.Random) -> str:
    """Draw words evenly, one space in between."""
    return " ".join(generator.choices(words, k=num_words))


class Requests:
    """Requests to a server about one bundle. Every server gets the same sequence."""

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model
        self._words = make_words()

    def closed(self, load: Load) -> Iterator[LoadRequest]:
        """Yield the requests that the clients of a closed load take in turn."""
        generator = random.Random(f"{SEED} {load.name}")  # noqa: S311 (no secret)
        while True:
            yield self._ask(load.kind, generator)

    def open(self, load: Load, rate: float, seconds: float) -> list[tuple[float, LoadRequest]]:
        """Return the arrivals of an open load, `rate` a second."""
        generator = random.Random(f"{SEED} {load.name}")  # noqa: S311 (no secret)
        times = list(poisson_times(rate, seconds, generator))
        return [(time, self._ask(load.kind, generator)) for time in times]

    def _ask(self, kind: LoadKind, generator: random.Random) -> LoadRequest:
        if kind is LoadKind.SCORE_ONE:
            return self._server.score([self._text(SENTENCE_WORDS, generator)], model=self._model)
        if kind is LoadKind.SCORE_LIST:
            texts = [self._text(SENTENCE_WORDS, generator) for _ in range(LIST_TEXTS)]
            return self._server.score(texts, model=self._model)
        if kind is LoadKind.SCORE_NBEST:
            return self._server.score(self._nbest(generator), model=self._model)
        if kind in (LoadKind.MIXED, LoadKind.GOODPUT):
            prompt = self._text(draw_length(generator), generator)
            stream = self._server.streams
            return self._server.generate(prompt, draw_length(generator), stream=stream, model=self._model)
        prompt = self._text(PROMPT_WORDS, generator)
        return self._server.generate(prompt, NEW_TOKENS, stream=kind is LoadKind.STREAM, model=self._model)

    def _text(self, num_words: int, generator: random.Random) -> str:
        return make_text(self._words, num_words, generator)

    def _nbest(self, generator: random.Random) -> list[str]:
        """Return a hundred sentences, each equal to another one up to some word: the shape of a recogniser's n-best
        list.
        """
        found = [generator.choices(self._words, k=SENTENCE_WORDS)]
        while len(found) < LIST_TEXTS:
            words = list(generator.choice(found))
            place = generator.randrange(SENTENCE_WORDS // 2, SENTENCE_WORDS)
            words[place:] = generator.choices(self._words, k=SENTENCE_WORDS - place)
            found.append(words)
        return [" ".join(words) for words in found]

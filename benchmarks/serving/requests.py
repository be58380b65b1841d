"""The requests of each load: endless, seeded, no two prompts alike."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.serving.arrivals import draw_length, poisson_times
from benchmarks.serving.driver import Ask
from benchmarks.serving.measured_servers import Server
from benchmarks.serving.plan import Kind, Load
from benchmarks.serving.words import make_text, make_words

PROMPT_WORDS, NEW_TOKENS = 4, 64
SENTENCE_WORDS = 20
LIST_TEXTS = 100
SEED = 3


class Requests:
    """What a server is asked for about one bundle. Every server gets the same sequence."""

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model
        self._words = make_words()

    def closed(self, load: Load) -> Iterator[Ask]:
        """The requests that the clients of a closed load take in turn."""
        generator = random.Random(f"{SEED} {load.name}")  # noqa: S311 (no secret)
        while True:
            yield self._ask(load.kind, generator)

    def open(self, load: Load, rate: float, seconds: float) -> list[tuple[float, Ask]]:
        """Arrivals of an open load, `rate` a second."""
        generator = random.Random(f"{SEED} {load.name}")  # noqa: S311
        times = list(poisson_times(rate, seconds, generator))
        return [(time, self._ask(load.kind, generator)) for time in times]

    def _ask(self, kind: Kind, generator: random.Random) -> Ask:
        if kind is Kind.SCORE_ONE:
            return self._server.score([self._text(SENTENCE_WORDS, generator)], model=self._model)
        if kind is Kind.SCORE_LIST:
            texts = [self._text(SENTENCE_WORDS, generator) for _ in range(LIST_TEXTS)]
            return self._server.score(texts, model=self._model)
        if kind is Kind.SCORE_NBEST:
            return self._server.score(self._nbest(generator), model=self._model)
        if kind is Kind.MIXED:
            prompt = self._text(draw_length(generator), generator)
            stream = self._server.streams
            return self._server.generate(prompt, draw_length(generator), stream=stream, model=self._model)
        prompt = self._text(PROMPT_WORDS, generator)
        return self._server.generate(prompt, NEW_TOKENS, stream=kind is Kind.STREAM, model=self._model)

    def _text(self, num_words: int, generator: random.Random) -> str:
        return make_text(self._words, num_words, generator)

    def _nbest(self, generator: random.Random) -> list[str]:
        """A hundred sentences, each another one up to some word: what a recogniser's n-best list looks like."""
        found = [generator.choices(self._words, k=SENTENCE_WORDS)]
        while len(found) < LIST_TEXTS:
            words = list(generator.choice(found))
            place = generator.randrange(SENTENCE_WORDS // 2, SENTENCE_WORDS)
            words[place:] = generator.choices(self._words, k=SENTENCE_WORDS - place)
            found.append(words)
        return [" ".join(words) for words in found]

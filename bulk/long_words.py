"""The words of a text that comes in pieces; a piece may end inside a word, or inside the white space between two.

The rule is that of `service.answers.figures`: a token belongs to the word in which it begins, white space to the word
that follows it, and at the end of a text to the last word. Sums are kept in nats, where they are exact.
"""

from __future__ import annotations

import math
from dataclasses import replace

from service.answers.bodies import ScoredWord
from service.answers.figures import ScoredText
from service.answers.sums import in_base
from service.requests.schema import LogBase

__all__ = ["LongWords"]


class LongWords:
    """Add the pieces in order, take the words that are complete."""

    def __init__(self, log_base: LogBase) -> None:
        self._log_base = log_base
        self._num_chars = 0
        self._open: ScoredWord | None = None  # the last word so far, which may go on
        self._space = 0.0  # log-probability of the white space behind it
        self._ends_in_word = False

    def add(self, scored: ScoredText) -> list[ScoredWord]:
        """The next piece."""
        text, own = scored.encoded.text, scored.scores.logprobs[: len(scored.encoded.ids)]
        words = replace(scored, log_base="e").words()
        if not words:
            self._space += math.fsum(own)
        else:
            space = math.fsum(own[scored.encoded.starts >= words[-1].end])
            words[-1].logprob -= space
            words = self._joined(self._shifted(words), goes_on=self._ends_in_word and not text[0].isspace())
            self._space = space
        self._ends_in_word = not text[-1].isspace() if text else self._ends_in_word
        self._num_chars += len(text)
        return [self._finished(word) for word in words]

    def end(self) -> list[ScoredWord]:
        """The last word, if there is any."""
        if self._open is None:
            return []
        self._open.logprob += self._space
        return [self._finished(self._open)]

    def _shifted(self, words: list[ScoredWord]) -> list[ScoredWord]:
        for word in words:
            word.start += self._num_chars
            word.end += self._num_chars
        return words

    def _joined(self, words: list[ScoredWord], *, goes_on: bool) -> list[ScoredWord]:
        """With what was open; the last word is open then."""
        before, first = self._open, words[0]
        if before is not None and goes_on:
            words[0] = ScoredWord(before.text + first.text, before.logprob + first.logprob, before.start, first.end)
        else:
            first.logprob += self._space
            words = words if before is None else [before, *words]
        self._open = words.pop()
        return words

    def _finished(self, word: ScoredWord) -> ScoredWord:
        word.logprob = in_base(word.logprob, self._log_base)
        return word

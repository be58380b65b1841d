"""Scored texts → the JSON of /score, in pieces.

A text of 100,000 tokens is never a tree of 100,000 objects: tokens and words are encoded a few hundred at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from meari.runtime.answers import ScoredToken, ScoredWord
from meari.runtime.requests import LogBase
from meari.runtime.scores import ScoredText, TextSums
from meari.runtime.state_tokens import StateTokens

__all__ = ["SLICE", "ScoreAnswer", "array", "open_result", "parts_of"]

SLICE: Final = 256
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, eq=False)
class ScoreAnswer:
    """Everything that an answer of /score says."""

    model: str
    log_base: LogBase
    texts: list[ScoredText]
    with_tokens: bool
    with_words: bool
    computed_tokens: int
    cached_tokens: int
    unknown_tokens: int  # of context and texts
    state_tokens: StateTokens | None  # None where no states are wanted

    def pieces(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        yield b'{"model":%b,"log_base":%b,"results":[' % (_encode(self.model), _encode(self.log_base))
        for number, text in enumerate(self.texts):
            if number:
                yield b","
            yield from self._result(text)
        usage = {
            "scored_tokens": self.scored_tokens,
            "computed_tokens": self.computed_tokens,
            "cached_tokens": self.cached_tokens,
        } | ({"unknown_tokens": self.unknown_tokens} if self.unknown_tokens else {})
        yield b'],"usage":%b}' % _encode(usage)

    @property
    def scored_tokens(self) -> int:
        """Number of log-probabilities in all results."""
        return sum(len(text.scores.logprobs) for text in self.texts)

    @property
    def is_long(self) -> bool:
        """True where the body should be sent as it is made."""
        if self.state_tokens is not None and len(self.texts) > SLICE:
            return True
        return (self.with_tokens or self.with_words) and self.scored_tokens > SLICE

    def _result(self, text: ScoredText) -> Iterator[bytes]:
        yield from open_result(text, text.sums(), self.with_tokens, self.with_words)
        if self.state_tokens is not None:
            yield b',"state":%b' % _encode(None if text.state is None else self.state_tokens.encode(text.state))
        yield b"}"


def open_result(text: ScoredText, sums: TextSums, with_tokens: bool, with_words: bool) -> Iterator[bytes]:
    """The object of one text, piece by piece, without its closing brace. sums: those of the text."""
    yield _encode(sums.figures(text.log_base))[:-1]
    for name, slices in parts_of(text, sums, with_tokens, with_words):
        yield from array(name.encode(), slices)


def parts_of(
    text: ScoredText, sums: TextSums, with_tokens: bool, with_words: bool
) -> Iterator[tuple[str, Iterator[Sequence[ScoredToken | ScoredWord]]]]:
    """The names of what a text is made of, each with its items a slice at a time."""
    if with_tokens:
        count = sums.num_tokens
        yield "tokens", (text.tokens(at, min(at + SLICE, count)) for at in range(0, count, SLICE))
    if with_words:
        words = text.words()
        yield "words", (words[at : at + SLICE] for at in range(0, len(words), SLICE))


def array(name: bytes, slices: Iterable[Sequence[object]]) -> Iterator[bytes]:
    """A further member of an object, its items a slice at a time."""
    yield b',"%b":[' % name
    for number, items in enumerate(slices):
        yield (b"," if number else b"") + _encode(items)[1:-1]
    yield b"]"

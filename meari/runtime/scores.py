"""Log-probabilities of a text's tokens → the figures of /score.

Input: a text with its tokens and the engine's natural log-probabilities. Output: sums, perplexity, bits, figures by
token and by word, and the JSON of POST /score in pieces. Must not know: HTTP.

The log-probabilities lie on a grid on which sums are exact, so `logprob` is their exact sum, in whatever order.

Words are stretches without white space, or segments of them (`meari.runtime.text.words`). A token belongs to the word
in which it begins; white space belongs to the word that follows it, and at the end of a text to the last word. White
space that has no word beside it is a row of its own, and so is the end of the text where it is counted. So `logprob`
is the sum over the rows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from meari.bundle_format.text_borders import nfc
from meari.runtime.answers import ScoredToken, ScoredWord, TextFigures, alternatives
from meari.runtime.engine import TextScore
from meari.runtime.engine.calls import GRID
from meari.runtime.requests import LogBase
from meari.runtime.state_tokens import StateTokens, TextState
from meari.runtime.text.tokenizer import Encoded, Vocabulary
from meari.runtime.text.words import Words, word_spans

__all__ = [
    "LN_OF",
    "SLICE",
    "ScoreAnswer",
    "Scored",
    "ScoredText",
    "TextSums",
    "array",
    "in_base",
    "parts_of",
]

SLICE: Final = 256  # tokens or words that are encoded at a time
_encode: Final = msgspec.json.Encoder().encode
LN2: Final = math.log(2.0)
LN_OF: Final[dict[LogBase, float]] = {"e": 1.0, "2": LN2, "10": math.log(10.0)}


@dataclass(frozen=True, slots=True)
class TextSums:
    """Log-probabilities in units of 1 / GRID nats: of all tokens, and without the unknown ones."""

    logprob_units: int
    known_logprob_units: int
    num_tokens: int
    num_chars: int
    num_bytes: int
    num_unknown: int

    @property
    def logprob(self) -> float:
        """Log-probability in nats."""
        return self.logprob_units / GRID

    @property
    def known_logprob(self) -> float:
        """Log-probability in nats."""
        return self.known_logprob_units / GRID

    def plus(self, other: TextSums) -> TextSums:
        """Return the sums of both as one text."""
        return TextSums(
            self.logprob_units + other.logprob_units,
            self.known_logprob_units + other.known_logprob_units,
            self.num_tokens + other.num_tokens,
            self.num_chars + other.num_chars,
            self.num_bytes + other.num_bytes,
            self.num_unknown + other.num_unknown,
        )

    def figures(self, log_base: LogBase) -> TextFigures:
        """Return the figures; logarithms in that base, bits always in base 2."""
        total = self.logprob
        return TextFigures(
            logprob=in_base(total, log_base),
            probability=math.exp(min(total, 0.0)),
            perplexity=_exp(-total / self.num_tokens) if self.num_tokens else None,
            bits_per_char=_per(-total / LN2, self.num_chars),
            bits_per_byte=_per(-total / LN2, self.num_bytes),
            num_tokens=self.num_tokens,
            num_chars=self.num_chars,
            num_bytes=self.num_bytes,
            num_unknown=self.num_unknown,
            logprob_without_unknown=in_base(self.known_logprob, log_base),
        )


def in_base(logprob: float, log_base: LogBase) -> float:
    """Return nats in another base; never -0.0."""
    return logprob / LN_OF[log_base] + 0.0


def _exp(nats: float) -> float:
    """Return exp, or the largest float instead of infinity, which JSON does not have."""
    return math.exp(nats) if nats < 709.0 else sys.float_info.max


def _per(bits: float, count: int) -> float | None:
    return bits / count + 0.0 if count else None


class Scored(Protocol):
    """A scored text, computed here or by a service."""

    def sums(self) -> TextSums:
        """Return the sums over the whole text."""

    def tokens(self, first: int, last: int) -> list[ScoredToken]:
        """Return the figures of tokens number `first` to `last` (exclusive)."""

    def words(self) -> list[ScoredWord]:
        """Return the rows of the table of words."""


@dataclass(frozen=True, eq=False)
class ScoredText:
    """One scored text; `scores` has one row a token of `encoded`, and one more where the end was asked for.

    `state` is the text's end, where it was asked for.
    """

    encoded: Encoded
    scores: TextScore
    vocabulary: Vocabulary
    log_base: LogBase
    state: TextState | None = None
    split: Words = True  # what a word is

    def figures(self) -> TextFigures:
        """Return the figures of the whole text."""
        return self.sums().figures(self.log_base)

    def sums(self) -> TextSums:
        """Return the sums over the whole text."""
        logprobs = self.scores.logprobs
        text = nfc(self.encoded.text)
        num_chars = len(text)
        num_bytes = num_chars if text.isascii() else len(text.encode("utf-8"))
        units = _units(logprobs)
        num_unknown = self.vocabulary.num_unknown(self.encoded.ids)
        known_units = units - _units(logprobs[: len(self.encoded.ids)][self._unknown()]) if num_unknown else units
        return TextSums(units, known_units, len(logprobs), num_chars, num_bytes, num_unknown)

    def tokens(self, first: int, last: int) -> list[ScoredToken]:
        """Return the figures of tokens number `first` to `last` (exclusive)."""
        scores, texts = self.scores, self.vocabulary.texts
        assert scores.ranks is not None, "ranks are asked for together with tokens"
        logprobs = self._all_in_base(scores.logprobs[first:last])
        ranks = scores.ranks[first:last].tolist()
        tops = zip(
            scores.alternative_ids[first:last].tolist(),
            map(self._all_in_base, scores.alternative_logprobs[first:last]),
            strict=True,
        )
        return [
            ScoredToken(
                token,
                texts[token],
                logprob,
                rank,
                start,
                end,
                alternatives(self.vocabulary, ids, values),
                token == self.vocabulary.unknown_id,
                self.vocabulary.parts.get(token, UNSET),
            )
            for (token, start, end), logprob, rank, (ids, values) in zip(
                self._places(first, last), logprobs, ranks, tops, strict=True
            )
        ]

    def words(self) -> list[ScoredWord]:
        """Return the rows of the table of words, in order: words, or all of a text without any, then the end."""
        words, rest = self.word_parts()
        if words:
            words[-1].logprob += rest.logprob
            words[-1].unknown |= rest.unknown
        elif self.encoded.ids:
            words = [rest]
        words += self.end_row()
        for word in words:
            word.logprob = in_base(word.logprob, self.log_base)
        return words

    def word_parts(self) -> tuple[list[ScoredWord], ScoredWord]:
        """Return the words, each with the white space before it, then the rest behind the last one; all in nats."""
        text = self.encoded.text
        words = word_spans(text, self.split)
        ends = [end for _, end in words]
        owners = np.searchsorted(np.array(ends, np.int64), self.encoded.starts, side="right")
        own = self.scores.logprobs[: len(self.encoded.ids)]
        sums = np.bincount(owners, weights=own, minlength=len(words) + 1).tolist()
        unknown = np.bincount(owners[self._unknown()], minlength=len(words) + 1).astype(bool).tolist()
        rest = ends[-1] if ends else 0
        spans = [*words, (rest, len(text))]
        *rows, left = (
            ScoredWord(text[start:end], logprob, start, end, is_unknown)
            for (start, end), logprob, is_unknown in zip(spans, sums, unknown, strict=True)
        )
        return rows, left

    def end_row(self) -> list[ScoredWord]:
        """Return the end of the text in nats, as a list: empty if it is not counted."""
        place = len(self.encoded.text)
        logprobs: list[float] = self.scores.logprobs[len(self.encoded.ids) :].tolist()
        return [
            ScoredWord(self.vocabulary.texts[self.vocabulary.end_id], logprob, place, place) for logprob in logprobs
        ]

    def with_before(self, before: ScoredText) -> ScoredText:
        """Return two neighbouring pieces as one, for `word_parts`."""
        first, second = before.encoded, self.encoded
        shift = len(first.text)
        starts = np.concatenate([first.starts, second.starts + shift])
        ends = np.concatenate([first.ends, second.ends + shift])
        encoded = Encoded(first.text + second.text, first.ids + second.ids, starts, ends)
        logprobs = np.concatenate([before.scores.logprobs, self.scores.logprobs])
        return replace(self, encoded=encoded, scores=replace(self.scores, logprobs=logprobs))

    def parted(self, place: int) -> tuple[ScoredText, ScoredText]:
        """Return the tokens that begin before a position, and the others, for `word_parts`."""
        whole = self.encoded
        text, ids, starts, ends = whole.text, whole.ids, whole.starts, whole.ends
        count = int(np.searchsorted(starts, place))
        first = Encoded(text[:place], ids[:count], starts[:count], ends[:count])
        second = Encoded(text[place:], ids[count:], starts[count:] - place, ends[count:] - place)
        logprobs = self.scores.logprobs
        return (
            replace(self, encoded=first, scores=replace(self.scores, logprobs=logprobs[:count])),
            replace(self, encoded=second, scores=replace(self.scores, logprobs=logprobs[count:])),
        )

    def _places(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield id, start and end of some tokens; the end token stands after the last character."""
        encoded = self.encoded
        yield from zip(
            encoded.ids[first:last],
            encoded.starts[first:last].tolist(),
            encoded.ends[first:last].tolist(),
            strict=True,
        )
        if last > len(encoded.ids) and first <= len(encoded.ids):
            yield self.vocabulary.end_id, len(encoded.text), len(encoded.text)

    def _unknown(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the text's own tokens that stand for unknown characters or words."""
        ids = np.array(self.encoded.ids, np.int64)
        return np.zeros(len(ids), bool) if self.vocabulary.unknown_id is None else ids == self.vocabulary.unknown_id

    def _all_in_base(self, logprobs: npt.NDArray[np.float64]) -> list[float]:
        values: list[float] = (logprobs / LN_OF[self.log_base] + 0.0).tolist()
        return values


def _units(logprobs: npt.NDArray[np.float64]) -> int:
    """Return the sum in units of the grid, on which each log-probability lies."""
    return round(math.fsum(logprobs.tolist()) * GRID)


@dataclass(frozen=True, eq=False)
class ScoreAnswer:
    """An answer of POST /score.

    A text of 100,000 tokens is never a tree of 100,000 objects: tokens and words are encoded a few hundred at a time.
    """

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
        """Yield the body, piece by piece."""
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
        """True if the body should be sent as it is made."""
        if self.state_tokens is not None and len(self.texts) > SLICE:
            return True
        return (self.with_tokens or self.with_words) and self.scored_tokens > SLICE

    def _result(self, text: ScoredText) -> Iterator[bytes]:
        yield from open_result(text, text.sums(), with_tokens=self.with_tokens, with_words=self.with_words)
        if self.state_tokens is not None:
            yield b',"state":%b' % _encode(None if text.state is None else self.state_tokens.encode(text.state))
        yield b"}"


def open_result(text: ScoredText, sums: TextSums, *, with_tokens: bool, with_words: bool) -> Iterator[bytes]:
    """Yield the object of one text, piece by piece, without its closing brace. sums: those of the text."""
    yield _encode(sums.figures(text.log_base))[:-1]
    for name, slices in parts_of(text, sums, with_tokens=with_tokens, with_words=with_words):
        yield from array(name.encode(), slices)


def parts_of(
    text: Scored, sums: TextSums, *, with_tokens: bool, with_words: bool
) -> Iterator[tuple[str, Iterator[Sequence[ScoredToken | ScoredWord]]]]:
    """Yield the names of the parts of a text, each with its items a slice at a time."""
    if with_tokens:
        count = sums.num_tokens
        yield "tokens", (text.tokens(at, min(at + SLICE, count)) for at in range(0, count, SLICE))
    if with_words:
        words = text.words()
        yield "words", (words[at : at + SLICE] for at in range(0, len(words), SLICE))


def array(name: bytes, slices: Iterable[Sequence[object]]) -> Iterator[bytes]:
    """Yield a further member of an object, its items a slice at a time."""
    yield b',"%b":[' % name
    for number, items in enumerate(slices):
        yield (b"," if number else b"") + _encode(items)[1:-1]
    yield b"]"

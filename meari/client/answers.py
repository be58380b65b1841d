"""Answers of a service as frozen values, with the fields of the HTTP contract.

Input: decoded JSON. Output: dataclasses. Must not know: any other module of the project.

A field that an answer lacks has its default (None, an empty tuple); one that a later service adds is ignored.
Log-probabilities are in nats unless the request named another base; positions are code points of the text as sent.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints, overload

__all__ = [
    "Alternative",
    "Choice",
    "CompleteUsage",
    "Completions",
    "GeneratedToken",
    "Generation",
    "ScoreAnswer",
    "ScoreResult",
    "ScoreUsage",
    "ScoredToken",
    "ScoredWord",
    "TextCompletion",
    "Token",
    "Usage",
    "read_answer",
]


@dataclass(frozen=True, slots=True)
class Token:
    """Token of a text.

    id       number in the vocabulary
    text     as it is shown alone; a part of a character appears as U+FFFD
    bytes    its UTF-8 bytes, if it is no whole characters; else None
    unknown  true if it stands for what the model does not know
    """

    id: int
    text: str
    bytes: tuple[int, ...] | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """Likely token at a place.

    id       number in the vocabulary
    text     as it is shown alone
    logprob  log-probability at this place, in nats or in the base of the request
    bytes    its UTF-8 bytes, if it is no whole characters; else None
    """

    id: int
    text: str
    logprob: float
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """Token that was generated.

    id       number in the vocabulary
    text     as it is shown alone
    logprob  the model's own log-probability in nats: before temperature, penalties and truncation
    top      likeliest tokens at its place, as many as `logprobs` asked for
    bytes    its UTF-8 bytes, if it is no whole characters; else None
    """

    id: int
    text: str
    logprob: float
    top: tuple[Alternative, ...] = ()
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation; in a stream its text since the last choice of the same index. `str(choice)` is its text.

    index          place of the sample among `n`, from 0
    text           new text alone, or the part of it since the last choice
    finish_reason  end, stop, length or timeout; None in a stream until the choice ends
    seed           gives the same text in a request for one sample
    tokens         if `logprobs` was asked for
    state          after the last token, if `return_state` was asked for
    logprob        of all tokens together in nats, of a beam search only
    """

    index: int
    text: str
    finish_reason: str | None = None
    seed: int | None = None
    tokens: tuple[GeneratedToken, ...] = ()
    state: str | None = field(default=None, repr=False)
    logprob: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request.

    prompt_tokens     of the prompt, the boundary token left out
    cached_tokens     of those, in the cache of prefixes
    generated_tokens  in all samples together
    unknown_tokens    of the prompt, that stand for what the model does not know
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    unknown_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """Continuations of one prompt. `str(generation)` is the text of the first.

    model    name of the model
    seed     repeats all of them
    choices  `n` of them, in order; of a beam search the likeliest first
    usage    tokens that were read and written
    """

    model: str
    seed: int
    choices: tuple[Choice, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def texts(self) -> list[str]:
        """Texts of all choices."""
        return [choice.text for choice in self.choices]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """Token of a scored text.

    id          number in the vocabulary
    text        as it is shown alone
    logprob     log-probability given all tokens before it, in the base of the request
    rank        place among all tokens there; 1 is the likeliest
    start, end  code points of the text as sent; the end of the text is a token of no length
    top         likeliest tokens at its place, as many as `top` asked for
    unknown     true if it stands for what the model does not know
    bytes       its UTF-8 bytes, if it is no whole characters; else None
    """

    id: int
    text: str
    logprob: float
    rank: int
    start: int
    end: int
    top: tuple[Alternative, ...] = ()
    unknown: bool = False
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoredWord:
    """Word of a scored text.

    text        as it stands in the text
    logprob     sum over the tokens that belong to it, in the base of the request
    start, end  code points of the text as sent
    unknown     true if a token of it stands for what the model does not know
    """

    text: str
    logprob: float
    start: int
    end: int
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Figures of a scored text; logarithms in the base of the request, bits always in base 2.

    logprob        sum over the tokens, the first and, where it counts, the end included
    probability    of the whole text; 0.0 where it is too small for a float
    perplexity     for each token; None for a text without tokens
    bits_per_char  for each code point, and `bits_per_byte` for each byte of UTF-8; None for a text without any
    num_tokens     the end included where it counts; `num_chars` and `num_bytes` are those of the text in NFC
    num_unknown    tokens that stand for what the model does not know; `logprob_without_unknown` leaves them out
    tokens, words  if they were asked for
    state          after the text, if `return_state` was asked for
    """

    logprob: float
    probability: float
    perplexity: float | None
    bits_per_char: float | None
    bits_per_byte: float | None
    num_tokens: int
    num_chars: int
    num_bytes: int
    num_unknown: int
    logprob_without_unknown: float
    tokens: tuple[ScoredToken, ...] = ()
    words: tuple[ScoredWord, ...] = ()
    state: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ScoreUsage:
    """Tokens of a request.

    scored_tokens    log-probabilities that were reported
    computed_tokens  that were really run: a prefix that texts share is run once
    cached_tokens    whose state the cache of prefixes had
    unknown_tokens   that stand for what the model does not know
    """

    scored_tokens: int
    computed_tokens: int
    cached_tokens: int = 0
    unknown_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """Figures of several texts.

    model     name of the model
    log_base  of all log-probabilities: "e", "2" or "10"
    results   of each text, in the order in which they were sent
    usage     tokens of the request
    """

    model: str
    log_base: str
    results: tuple[ScoreResult, ...]
    usage: ScoreUsage


@dataclass(frozen=True, slots=True)
class TextCompletion:
    """A way to go on from a text to the end of a word. `str(completion)` is its text.

    text         that follows; with `composing`, that stands in place of the text's last `replaces` characters
    logprob      log-probability of the string, given the text, in nats
    probability  the same as a probability, 0 … 1: exact, or too low by `Completions.error` at most
    replaces     characters at the end of the text, of `composing` only; else None
    """

    text: str
    logprob: float
    probability: float
    replaces: int | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class CompleteUsage:
    """Tokens of a request.

    prompt_tokens    of the text, the boundary token left out
    cached_tokens    of those, in the cache of prefixes
    searched_tokens  that the search ran, at most 128
    unknown_tokens   of the text, that stand for what the model does not know
    """

    prompt_tokens: int
    cached_tokens: int
    searched_tokens: int
    unknown_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completions(Sequence[TextCompletion]):
    """Likeliest ways to go on from a text, best first: a sequence of `TextCompletion`.

    model        name of the model
    completions  the same as a tuple, at most `n`
    error        largest amount by which any of the probabilities may be too low
    proven       true if no token sequence that was left aside is likelier than the last completion
    usage        tokens of the text and of the search
    """

    model: str
    completions: tuple[TextCompletion, ...]
    error: float
    proven: bool
    usage: CompleteUsage

    def __len__(self) -> int:
        return len(self.completions)

    @overload
    def __getitem__(self, place: int) -> TextCompletion: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[TextCompletion, ...]: ...
    def __getitem__(self, place: int | slice) -> TextCompletion | tuple[TextCompletion, ...]:
        return self.completions[place]


Answer = TypeVar("Answer")


def read_answer(kind: type[Answer], value: Mapping[str, Any]) -> Answer:
    """Return decoded JSON as a dataclass of this module. Raises LookupError, TypeError or ValueError if it is none."""
    return cast("Answer", _reader(cast("Hashable", kind))(value))


@functools.cache
def _reader(kind: Hashable) -> Callable[[Any], Any]:
    """Return the function that reads values of a type."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return functools.partial(_read_fields, kind)
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        item = _reader(arguments[0])
        return lambda values: tuple(map(item, _checked(list, values)))
    if get_origin(kind) is Mapping:
        item = _reader(arguments[1])
        return lambda values: {name: item(value) for name, value in _checked(dict, values).items()}
    if get_origin(kind) is types.UnionType:
        inner = _reader(arguments[0])
        return lambda value: None if value is None else inner(value)
    if kind is Any:
        return lambda value: value
    return functools.partial(_checked, kind)


def _checked(kind: Any, value: Any) -> Any:
    """Return a value of JSON. Raises TypeError for another type, ValueError or OverflowError for no finite number."""
    if not isinstance(value, (int, float) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"got {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError("got no finite number")
    return value


@functools.cache
def _fields(kind: Any) -> dict[str, Callable[[Any], Any]]:
    hints = get_type_hints(kind)
    return {each.name: _reader(hints[each.name]) for each in dataclasses.fields(kind)}


def _read_fields(kind: Any, value: Mapping[str, Any]) -> Any:
    readers = _fields(kind)
    return kind(**{name: readers[name](item) for name, item in value.items() if name in readers})

"""Answers as values, with the fields of the HTTP contract.

Input: figures, token ids. Output: structs that encode to the JSON of the contract. Must not know: HTTP, the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from meari.runtime.text.tokenizer import Vocabulary

__all__ = [
    "Alternative",
    "Choice",
    "CompleteAnswer",
    "CompleteUsage",
    "GenerateAnswer",
    "GenerateUsage",
    "ScoredToken",
    "ScoredWord",
    "StateTensorValues",
    "StatesAnswer",
    "StatesUsage",
    "TextCompletion",
    "TextFigures",
    "TokenText",
    "TokenWithLogprob",
    "alternatives",
    "token_texts",
]


class TokenText(msgspec.Struct, gc=False):
    """A token of /tokenize. `bytes`, here and below: those of a token that is no whole characters.

    `unknown` is true for a token that stands for what the model does not know, and left out for all others.
    """

    id: int
    text: str
    bytes: list[int] | UnsetType = UNSET
    unknown: bool | UnsetType = UNSET


class Alternative(msgspec.Struct, gc=False):
    """Likely token at a place, with its figures."""

    id: int
    text: str
    logprob: float
    bytes: list[int] | UnsetType = UNSET


class TokenWithLogprob(msgspec.Struct, gc=False):
    """A generated token with the model's own log-probability."""

    id: int
    text: str
    logprob: float
    top: list[Alternative]
    bytes: list[int] | UnsetType = UNSET


class Choice(msgspec.Struct):
    """A sample, or in a stream its text since its last event.

    With `finish_reason` come `seed`, with which the same request for one sample gives the same text (of a beam search
    it is the request's); `state`, null where the time was up before the prompt had been read; and, of a beam search,
    `logprob`: that of all the tokens together.
    """

    index: int
    text: str
    finish_reason: str | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    tokens: list[TokenWithLogprob] | UnsetType = UNSET
    state: str | UnsetType | None = UNSET
    logprob: float | UnsetType = UNSET


class GenerateUsage(msgspec.Struct):
    """`prompt_tokens` counts the prompt alone, without the boundary token or what a state stands for; `cached_tokens`
    those whose state was known from an earlier request; `generated_tokens` all samples together; `unknown_tokens`
    those of the prompt that stand for what the model does not know, left out where there are none."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    unknown_tokens: int | UnsetType = UNSET


class GenerateAnswer(msgspec.Struct):
    """The whole answer of /generate, and with no choices the last event of a stream."""

    model: str
    seed: int
    choices: list[Choice]
    usage: GenerateUsage


class TextCompletion(msgspec.Struct):
    """A way to go on from a text to the end of a word; `probability` is that of the string, given the text.

    `replaces`, where `composing` was sent: the characters at the end of the text in whose place `text` stands.
    """

    text: str
    logprob: float
    probability: float
    replaces: int | UnsetType = UNSET


class CompleteUsage(msgspec.Struct):
    """Tokens of the text, those of them whose state was known, those that the search ran, and unknown ones."""

    prompt_tokens: int
    cached_tokens: int
    searched_tokens: int
    unknown_tokens: int | UnsetType = UNSET


class CompleteAnswer(msgspec.Struct):
    """Answer of /complete, likeliest first. Each probability is exact or too low, by `error` at most.

    `proven`: no token sequence that was left aside is likelier than the last completion.
    """

    model: str
    completions: list[TextCompletion]
    error: float
    proven: bool
    usage: CompleteUsage


class ScoredToken(msgspec.Struct, gc=False):
    """A token of a scored text; `start` and `end` are code points of the text as sent."""

    id: int
    text: str
    logprob: float
    rank: int
    start: int
    end: int
    top: list[Alternative]
    unknown: bool = False
    bytes: list[int] | UnsetType = UNSET


class ScoredWord(msgspec.Struct, gc=False):
    """A row of the table of words, with the summed log-probabilities of the tokens that belong to it.

    A stretch without white space, white space that has no word beside it, or the end of the text, where `start` is
    `end`. The rows of a text add up to it.
    """

    text: str
    logprob: float
    start: int
    end: int
    unknown: bool = False


class TextFigures(msgspec.Struct):
    """The figures of a scored text; logarithms in the base asked for, bits always in base 2."""

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


class StateTensorValues(msgspec.Struct):
    """Tensor of the recurrent state over time, or a gate.

    `size` counts its numbers, `units` are those that are told, and `values[i][j]` is unit `units[j]` after token i.
    """

    name: str
    size: int
    units: list[int]
    values: list[list[float]]


class StatesUsage(msgspec.Struct):
    """Tokens that were run."""

    computed_tokens: int


class StatesAnswer(msgspec.Struct, omit_defaults=True):
    """Answer of POST /states; `tokens` are those of the text, without the boundary token before them.

    `gates` are there if they were asked for: of a GRU r, z and the candidate n, of an LSTM i, f, o and the candidate g,
    each with the number of its layer; none of other families.
    """

    model: str
    tokens: list[TokenText]
    tensors: list[StateTensorValues]
    usage: StatesUsage
    gates: list[StateTensorValues] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Work:
    """The work that was done for a request that is over.

    prompt_tokens     of all prompts, contexts and texts, boundary tokens left out
    cached_tokens     those of them whose state was known already
    generated_tokens  sampled, over all samples
    scored_tokens     log-probabilities that were reported
    finish_reasons    of each sample, as the engine names them; none where it has not ended
    prompts, answers  the texts themselves, and as much of what was written as was kept
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


def alternatives(vocabulary: Vocabulary, ids: Sequence[int], logprobs: Sequence[float]) -> list[Alternative]:
    """Return some of the likeliest tokens with their log-probabilities."""
    texts, parts = vocabulary.texts, vocabulary.parts
    return [
        Alternative(id_, texts[id_], value, parts.get(id_, UNSET)) for id_, value in zip(ids, logprobs, strict=True)
    ]


def token_texts(vocabulary: Vocabulary, ids: Sequence[int]) -> list[TokenText]:
    """Return tokens as POST /tokenize does."""
    texts, parts, unknown_id = vocabulary.texts, vocabulary.parts, vocabulary.unknown_id
    return [TokenText(id_, texts[id_], parts.get(id_, UNSET), id_ == unknown_id or UNSET) for id_ in ids]

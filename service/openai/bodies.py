"""Answers of /v1 with the fields that OpenAI names.

Input: values. Output: structs that encode to JSON. Must not know: Flask, the runtime.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "CompletionAnswer",
    "CompletionChoice",
    "CompletionUsage",
    "Logprobs",
    "ModelCard",
    "ModelList",
    "PromptTokensDetails",
]


class Logprobs(msgspec.Struct):
    """Figures of the tokens of a choice, one entry a token in each list, natural logarithms.

    `top_logprobs` holds as many of the likeliest tokens as were asked for, and the token itself. A boundary token that
    a prompt of token ids begins with has null. `text_offset` counts code points from the beginning of the prompt,
    echoed or not; a prompt of token ids counts as the text that it is. A token that is only a part of a character is
    called `bytes:` and its bytes.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """A continuation of a prompt, or in a stream its text since its last event.

    `seed` is that with which the same request for one choice gives the same text.
    """

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None
    seed: int


class PromptTokensDetails(msgspec.Struct):
    """`cached_tokens`: those whose state was known from an earlier request."""

    cached_tokens: int


class CompletionUsage(msgspec.Struct):
    """Tokens of all prompts, without boundary tokens in front, and of all samples.

    `unknown_tokens`, which OpenAI does not have: those of the prompts that stand for what the model does not know, left
    out where there are none.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    unknown_tokens: int | UnsetType = UNSET


class CompletionAnswer(msgspec.Struct):
    """A whole answer, or an event of a stream; there `usage` is null but in the last one, where it is wanted."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class ModelCard(msgspec.Struct):
    """A model that is served."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "meari"


class ModelList(msgspec.Struct):
    """All that are served."""

    data: list[ModelCard]
    object: Literal["list"] = "list"

"""The request of POST /v1/completions: OpenAI's fields, and those of vLLM's that have a meaning here.

Input: a body's fields. Output: a request that can be fulfilled, also as requests of POST /generate. Must not know:
Flask.

A field may be null wherever OpenAI allows it, and then counts as absent. A field without a meaning here is rejected by
name if it asks for something (`suffix`, obfuscation). `user` is accepted without an effect: it asks for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta

from meari.errors import InvalidRequest, Problem
from meari.runtime.requests import Biases, GenerateRequest, Seed, Stop, stop_problems
from meari.validation.sizes import MAX_TEXTS

__all__ = [
    "CHOICES",
    "CompletionsRequest",
    "StreamOptions",
    "checked_completions",
    "prompt_type",
    "prompts_of",
]

DEFAULT_MAX_TOKENS: Final = 16  # OpenAI's
CHOICES: Final = "x-choices"  # in a JSON schema: what stands for `anyOf` in the document
MAX_ID: Final = 2**31 - 1
SHARED_FIELDS: Final = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "min_tokens",
    "logit_bias",
    "logprobs",
    "stop",
)  # with POST /generate, each with the meaning and the default that it has there
TokenId = Annotated[int, Meta(ge=0, le=MAX_ID)]
PromptItem = str | TokenId | list[TokenId]
Prompt = str | list[int]  # text or token ids


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's
    include_obfuscation: bool | None = None  # nothing here to be hidden: true is refused


class CompletionsRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /v1/completions."""

    model: str | None = None
    prompt: str | Annotated[list[PromptItem], Meta(min_length=1)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    echo: bool | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Biases | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0)] | None = None  # of OpenAI's chats, sent by load generators
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    min_p: Annotated[float, Meta(ge=0, lt=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None

    @property
    def num_choices(self) -> int:
        """Choices of each prompt in the answer."""
        return self.n or 1

    @property
    def num_samples(self) -> int:
        """Samples of each prompt, of which the best become choices."""
        return max(self.best_of or 1, self.num_choices)

    @property
    def generate_request(self) -> GenerateRequest:
        """The request of POST /generate that continues one of the prompts; its prompt is left out."""
        given = {name: getattr(self, name) for name in SHARED_FIELDS if getattr(self, name) is not None}
        seed = UNSET if self.seed in (None, -1) else self.seed
        max_tokens = self.num_tokens
        return GenerateRequest(**given | {"max_tokens": max_tokens, "n": self.num_samples, "seed": seed})

    @property
    def num_tokens(self) -> int:
        """New tokens of a sample at most."""
        if self.max_tokens is not None:
            return self.max_tokens
        return DEFAULT_MAX_TOKENS if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def asks_engine(self) -> bool:
        """False where nothing is written or scored."""
        return self.wants_echo_logprobs or self.num_tokens > 0

    @property
    def wants_echo_logprobs(self) -> bool:
        """True where the prompt's own tokens are scored."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def wants_usage(self) -> bool:
        """True where a stream ends with the usage; as in vLLM `continuous_usage_stats` alone asks for it, too."""
        options = self.stream_options
        if options is None:
            return False
        return bool(options.continuous_usage_stats if options.include_usage is None else options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """True where every event of a stream has the usage of its choice."""
        options = self.stream_options
        return self.wants_usage and options is not None and bool(options.continuous_usage_stats)


def prompt_type(max_prompts: int) -> object:
    """Return the type of `prompt`; `CHOICES` in its JSON schema tell a list of prompts from the ids of one."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_ID}, "minItems": 1}
    lists = {"type": "array", "minItems": 1, "maxItems": max_prompts}
    texts, lists_of_ids = lists | {"items": {"type": "string"}}, lists | {"items": ids | {"minItems": 0}}
    choices = [{"type": "string"}, texts, ids, lists_of_ids, {"type": "null"}]
    return Annotated[
        str | Annotated[list[PromptItem], Meta(min_length=1)] | None,
        Meta(extra_json_schema={CHOICES: choices}, extra={MAX_TEXTS: (max_prompts, "prompts")}),
    ]


def prompts_of(request: CompletionsRequest) -> list[Prompt]:
    """Return the prompts one by one; none is the empty text. Raises InvalidRequest for a mixture of both kinds."""
    prompt = request.prompt
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    kind = type(prompt[0])
    for place, item in enumerate(prompt):
        if type(item) is not kind:
            reason = "a prompt is a text, a list of texts, a list of token ids, or a list of such lists"
            got = f"{_NAMES[type(item)]} after {_NAMES[kind]}"
            raise InvalidRequest(Problem(f"prompt[{place}]", got, _NAMES[kind], reason))
    return [prompt] if kind is int else prompt  # type: ignore[list-item, return-value]


def checked_completions(request: CompletionsRequest, max_prompts: int, max_tokens: int) -> CompletionsRequest:
    """Return the same request if its fields agree; max_tokens: the server's limit. Raises InvalidRequest."""
    problems = [*_meaningless(request), *_contradictions(request), *stop_problems(request.stop)]
    if problems:
        raise InvalidRequest(*problems)
    if (count := len(prompts_of(request))) > max_prompts:
        raise InvalidRequest(Problem("prompt", f"a list of {count} prompts", f"at most {max_prompts}"))
    return msgspec.structs.replace(request, max_tokens=min(request.num_tokens, max_tokens))


def _meaningless(request: CompletionsRequest) -> Iterator[Problem]:
    """Yield the problems of fields that a recurrent model cannot fulfil."""
    if request.suffix:
        yield Problem("suffix", "a text", "none", "it is not supported, a text is only continued at its end")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        yield Problem("stream_options.include_obfuscation", "true", "false", "it is not supported")


def _contradictions(request: CompletionsRequest) -> Iterator[Problem]:
    n, best_of = request.num_choices, request.best_of
    if best_of is not None and best_of < n:
        yield Problem("best_of", str(best_of), f"at least n, which is {n}")
    if best_of is not None and best_of > n and request.stream:
        reason = "the best is known at the end only"
        yield Problem("best_of", f"{best_of} with stream true", f"n, which is {n}", reason)
    if None is not request.max_completion_tokens != request.num_tokens:
        got = f"{request.max_completion_tokens} with max_tokens {request.max_tokens}"
        yield Problem("max_completion_tokens", got, "one of the two, or the same")
    if (request.min_tokens or 0) > request.num_tokens:
        yield Problem("min_tokens", str(request.min_tokens), f"at most max_tokens, which is {request.num_tokens}")
    if request.num_tokens == 0 and not request.echo:
        yield Problem("max_tokens", "0 with echo false", "max_tokens >= 1, or echo true")
    if request.stream_options is not None and not request.stream:
        yield Problem("stream_options", "an object with stream false", "null, or stream true")


_NAMES: Final[dict[type, str]] = {str: "a text", int: "a token id", list: "a list of token ids"}

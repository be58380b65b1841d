"""Operations: every path with its request, its answer, its errors, and an example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from meari.errors import (
    BundleRefused,
    EngineFailed,
    Forbidden,
    InvalidRequest,
    MeariError,
    NotReady,
    Overloaded,
    RateLimited,
    ScoreTimeout,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnsupportedMediaType,
)
from meari.runtime.answers import CompleteAnswer, GenerateAnswer, StatesAnswer
from meari.service.openai.bodies import CompletionAnswer, ModelCard, ModelList
from meari.service.openapi import shapes

__all__ = ["OPERATIONS", "Operation"]

Errors = tuple[type[MeariError], ...]
ASKED: Final[Errors] = (Unauthorized, RateLimited, NotReady, EngineFailed)
POSTED: Final[Errors] = (*ASKED, InvalidRequest, UnknownModel, TooLarge, UnsupportedMediaType, Overloaded)
CHANGED: Final[Errors] = (*ASKED, Forbidden, InvalidRequest, BundleRefused, UnknownModel)


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    request   name of the request's type among the service's schemas, None where there is no body
    answer    type of the body of a 200; with `media_type` another one than JSON, there is none
    streams   types of the events that a streamed answer has
    links     name → operation that goes on from an answer, and what it is given
    """

    method: str
    path: str
    name: str
    summary: str
    description: str = ""
    request: str | None = None
    answer: type | None = None
    media_type: str = "application/json"
    streams: tuple[type, ...] = ()
    may_take_longer: bool = False  # then 202, with the same body
    errors: Errors = ASKED
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def is_openai(self) -> bool:
        """True if errors have OpenAI's shape."""
        return self.path.startswith("/v1/")


OPERATIONS: Final = (
    Operation(
        "post",
        "/generate",
        "generate",
        "Continue a prompt",
        "Log-probabilities are the model's own: before temperature, penalties and truncation. With `stream`, each "
        "event is `data: ` and a StreamEvent, then one with a GenerateAnswer without choices, then `data: [DONE]`.",
        request="generate",
        answer=GenerateAnswer,
        streams=(shapes.StreamEvent, GenerateAnswer, shapes.ErrorBody),
        errors=POSTED,
        examples={
            "seeded": {"prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7},
            "streamed": {"prompt": "To be", "stream": True},
            "with a state": {"prompt": "To be", "max_tokens": 2, "return_state": True},
        },
        links={
            "go on": {"operationId": "generate", "requestBody": {"state": "$response.body#/choices/0/state"}},
            "score what follows": {
                "operationId": "score",
                "requestBody": {"state": "$response.body#/choices/0/state", "text": "a"},
            },
        },
    ),
    Operation(
        "post",
        "/score",
        "score",
        "Score texts",
        "One of `text` and `texts` is required. The first token counts, and with `add_end` the end; by default the end "
        "counts if the model's training text had ends.",
        request="score",
        answer=shapes.ScoreBody,
        errors=(*POSTED, ScoreTimeout),
        examples={
            "two texts": {"texts": ["To be, or not to be", "To be, or not too bee"]},
            "surprisal in bits": {"text": "To be", "log_base": "2", "tokens": True, "top": 3},
            "with a state": {"text": "To be", "return_state": True},
        },
        links={
            "go on": {"operationId": "generate", "requestBody": {"state": "$response.body#/results/0/state"}},
        },
    ),
    Operation(
        "post",
        "/complete",
        "complete",
        "Complete a text that somebody is typing",
        "The likeliest ways to go on from exactly this text to the end of a word, best first. `probability` is that of "
        "the string: of all token sequences that spell the text, the share that goes on with the completion and then "
        "ends the word or the text. A word is a run of letters, digits, marks and underscores, with single apostrophes "
        "and hyphens inside; a completion writes something of `max_words` words, or less where the text ends. Each "
        "probability is exact or too low, by `error` at most.",
        request="complete",
        answer=CompleteAnswer,
        errors=(*POSTED, ScoreTimeout),
        examples={
            "a word": {"text": "To be, or not to b"},
            "two words": {"text": "To be, ", "n": 3, "max_words": 2},
        },
    ),
    Operation(
        "post",
        "/tokenize",
        "tokenize",
        "Split a text into tokens",
        request="tokenize",
        answer=shapes.TokenizeBody,
        errors=POSTED,
        examples={"a text": {"text": "To be"}},
        links={
            "and back": {
                "operationId": "detokenize",
                "requestBody": {"tokens": "$response.body#/tokens", "model": "$response.body#/model"},
            }
        },
    ),
    Operation(
        "post",
        "/detokenize",
        "detokenize",
        "Join tokens to a text",
        request="detokenize",
        answer=shapes.DetokenizeBody,
        errors=POSTED,
        examples={"ids": {"tokens": [2, 3]}},
    ),
    Operation(
        "post",
        "/states",
        "states",
        "Return the recurrent state after each token of a short text",
        request="states",
        answer=StatesAnswer,
        errors=(*POSTED, ScoreTimeout),
        examples={"a text": {"text": "To be", "units": 8}},
    ),
    Operation(
        "get",
        "/models",
        "models",
        "List the served models",
        answer=shapes.ModelsBody,
        links={"one of them": {"operationId": "model", "parameters": {"name": "$response.body#/models/0/name"}}},
    ),
    Operation(
        "get",
        "/models/{name}",
        "model",
        "Describe one model",
        answer=shapes.ModelDescription,
        errors=(*ASKED, UnknownModel),
    ),
    Operation(
        "post",
        "/models/{name}/load",
        "load_model",
        "Load a bundle from the folder, or take over its changes now; for admins",
        answer=shapes.ModelChange,
        may_take_longer=True,
        errors=CHANGED,
    ),
    Operation(
        "post",
        "/models/{name}/unload",
        "unload_model",
        "Keep a model away until it is loaded or the service starts again; for admins",
        answer=shapes.ModelChange,
        may_take_longer=True,
        errors=CHANGED,
    ),
    Operation(
        "post",
        "/v1/completions",
        "completions",
        "Continue prompts, in OpenAI's shape",
        "`max_tokens` 0 with `echo` and `logprobs` scores prompts. A first token has its log-probability, the boundary "
        "token before it has none. `temperature` may be up to 10. With `stream`, each event is `data: ` and a "
        "CompletionAnswer, then `data: [DONE]`.",
        request="completions",
        answer=CompletionAnswer,
        streams=(CompletionAnswer, shapes.OpenAIErrorBody),
        errors=(*POSTED, ScoreTimeout),
        examples={
            "seeded": {"prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7},
            "scoring": {"prompt": ["To be", "or not"], "echo": True, "logprobs": 1, "max_tokens": 0},
        },
    ),
    Operation(
        "get",
        "/v1/models",
        "openai_models",
        "List the served models, in OpenAI's shape",
        answer=ModelList,
        links={"one of them": {"operationId": "openai_model", "parameters": {"name": "$response.body#/data/0/id"}}},
    ),
    Operation(
        "get",
        "/v1/models/{name}",
        "openai_model",
        "Describe one model, in OpenAI's shape",
        answer=ModelCard,
        errors=(*ASKED, UnknownModel),
    ),
    Operation(
        "get", "/healthz", "healthz", "Tell whether the process is alive", answer=shapes.Health, errors=(EngineFailed,)
    ),
    Operation(
        "get",
        "/readyz",
        "readyz",
        "Tell whether the service takes requests",
        answer=shapes.ReadyBody,
        errors=(EngineFailed, NotReady),
    ),
    Operation(
        "get",
        "/metrics",
        "metrics",
        "Metrics for Prometheus",
        media_type="text/plain",
        errors=(Unauthorized, RateLimited, EngineFailed),
    ),
)

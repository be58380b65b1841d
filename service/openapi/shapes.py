"""Types of answers that are written piece by piece or as plain dicts, for the document and for tests. Structs only."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from meari.bundle_format.manifest import Boundary, StateEntry
from meari.runtime.answers import Choice, ScoredToken, ScoredWord, TextFigures, TokenText
from meari.runtime.requests import LogBase
from meari.runtime.self_test import SelfTest

__all__ = [
    "DetokenizeBody",
    "ErrorBody",
    "Health",
    "ModelDescription",
    "ModelsBody",
    "NotReadyBody",
    "OpenAIErrorBody",
    "ReadyBody",
    "ScoreBody",
    "StreamEvent",
    "TokenizeBody",
]


class ErrorDetail(msgspec.Struct):
    """An error: a word for programs, a sentence for people, and the id to find it in the log."""

    code: str
    message: str
    request_id: str


class ErrorBody(msgspec.Struct):
    """The body of every error outside /v1."""

    error: ErrorDetail


class OpenAIErrorDetail(msgspec.Struct):
    """The same as OpenAI says it."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIErrorBody(msgspec.Struct):
    """The body of every error under /v1."""

    error: OpenAIErrorDetail


class StreamEvent(msgspec.Struct):
    """An event of a streamed /generate; the last one is a GenerateAnswer without choices."""

    choices: list[Choice]


class ScoreResult(TextFigures):
    """The figures of one text."""

    tokens: list[ScoredToken] | UnsetType = UNSET
    words: list[ScoredWord] | UnsetType = UNSET
    state: str | UnsetType | None = UNSET


class ScoreUsage(msgspec.Struct):
    """Tokens reported, tokens really run, tokens of the context that were known from before, unknown ones."""

    scored_tokens: int
    computed_tokens: int
    cached_tokens: int
    unknown_tokens: int | UnsetType = UNSET


class ScoreBody(msgspec.Struct):
    """Answer of /score, in the order of the texts."""

    model: str
    log_base: LogBase
    results: list[ScoreResult]
    usage: ScoreUsage


class TokenizeBody(msgspec.Struct):
    """Answer of /tokenize."""

    model: str
    tokens: list[TokenText]


class DetokenizeBody(msgspec.Struct):
    """Answer of /detokenize; `bytes` where they are no whole characters."""

    model: str
    text: str
    bytes: list[int] | UnsetType = UNSET


class TokenizerDescription(msgspec.Struct):
    """A model's tokenizer."""

    kind: Literal["char", "bpe", "word"]
    normalization: str
    unknown_id: int | None
    vocabulary_size: int
    boundary: Boundary


class Hashes(msgspec.Struct):
    """SHA-256 of the bundle and of each of its files."""

    bundle: str
    files: dict[str, str]


class Limits(msgspec.Struct):
    """Limits of a request to the model."""

    max_tokens: int
    max_texts: int
    max_prompts: int
    max_text_chars: int
    max_body_bytes: int
    max_timeout_seconds: float
    max_state_chars: int
    max_top_k: int
    max_slots: int
    max_waiting: int
    cache_bytes: int


class ModelDescription(msgspec.Struct):
    """Properties, figures and limits of a model."""

    name: str
    family: Literal["rnn", "gru", "lstm", "esn"]
    precision: Literal["fp32", "int8"]
    sizes: dict[str, int]
    state: list[StateEntry]
    tokenizer: TokenizerDescription
    graphs: dict[str, Any]
    corpus: dict[str, Any]
    figures: dict[str, Any]
    hashes: Hashes
    limits: Limits
    self_test: SelfTest


class ModelsBody(msgspec.Struct):
    """All models that are served."""

    models: list[ModelDescription]
    default: str


class ChangeWorkers(msgspec.Struct):
    """Process ids of the host's workers."""

    done: list[int]
    waiting: list[int]


class ModelChange(msgspec.Struct):
    """A model was loaded or unloaded; with 202 some workers still have to do it."""

    name: str
    status: Literal["loaded", "unloaded"]
    hash: str | None
    workers: ChangeWorkers


class Health(msgspec.Struct):
    """The process lives."""

    status: Literal["ok"]


class WorkerCounts(msgspec.Struct):
    """The workers of the host, by their state."""

    expected: int
    ready: int
    loading: int
    failed: int
    draining: int


class ReadyBody(msgspec.Struct):
    """Readiness of the host; `failed` maps the bundles that could not be loaded to the reason."""

    status: Literal["ready", "not_ready"]
    reason: str | None
    models: list[str]
    failed: dict[str, str]
    workers: WorkerCounts


class NotReadyBody(ReadyBody):
    """The same with 503, as an error."""

    error: ErrorDetail

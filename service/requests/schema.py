"""What a request may say: one Struct an endpoint, every limit in its field's annotation.

Enters: the bytes of a body. Leaves: a request whose every field is in range, or InvalidRequest naming the field, what
came and what was expected. Limits that are settings (`max_tokens`, `texts`, `timeout_seconds`) are put into the
annotations by `Schemas`; those that a bundle sets (`top_k`, `logit_bias`) are checked in `model_limits.py`, and a
state token by `state_tokens.py`. No Flask here.

Null is as if a field had not come, wherever that may be (`lenient.py`); UNSET stands for a field that did not.
"""

from __future__ import annotations

import functools
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meari.runtime.requests import (
    GenerateRequest,
    ScoreRequest,
    checked_generate,
    checked_score,
)
from meari.service.requests.completions import CompletionsRequest, checked_completions, prompt_type
from meari.service.settings import Settings
from meari.validation.parsing import Parser

__all__ = [
    "DetokenizeRequest",
    "Schemas",
    "StatesRequest",
    "TokenizeRequest",
]


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /tokenize."""

    text: str
    model: str | UnsetType = UNSET


class TokenReference(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """A token as /tokenize gives it; nothing but its id is looked at."""

    id: Annotated[int, Meta(ge=0)]
    text: str | UnsetType = UNSET
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | UnsetType = UNSET
    unknown: bool | UnsetType = UNSET


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /detokenize: tokens as /tokenize gives them, or their ids alone."""

    tokens: list[Annotated[int, Meta(ge=0)] | TokenReference]
    model: str | UnsetType = UNSET

    @property
    def ids(self) -> list[int]:
        """The ids alone."""
        return [token if isinstance(token, int) else token.id for token in self.tokens]


class StatesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /states: a short text, and how many numbers of each state tensor to tell."""

    text: str
    model: str | UnsetType = UNSET
    units: Annotated[int, Meta(ge=1, le=128)] = 64


Request = TypeVar("Request", bound=msgspec.Struct)


class Schemas:
    """The parsers of one service, with its settings' limits in the annotations."""

    def __init__(self, settings: Settings) -> None:
        self._generate = Parser(
            _limited(
                GenerateRequest,
                ("max_tokens", Annotated[int, Meta(ge=1, le=settings.max_tokens)], min(64, settings.max_tokens)),
                (
                    "timeout_seconds",
                    Annotated[float, Meta(gt=0, le=settings.max_timeout_seconds)] | UnsetType,
                    UNSET,
                ),
            )
        )
        texts = Annotated[list[str], Meta(min_length=1, max_length=settings.max_texts)] | UnsetType
        self._score = Parser(_limited(ScoreRequest, ("texts", texts, UNSET)))
        self._tokenize = Parser(TokenizeRequest)
        self._detokenize = Parser(DetokenizeRequest)
        new_tokens = Annotated[int, Meta(ge=0, le=settings.max_tokens)] | None
        self._completions = Parser(
            _limited(
                CompletionsRequest,
                ("prompt", prompt_type(settings.max_texts), None),
                ("max_tokens", new_tokens, None),
                ("max_completion_tokens", new_tokens, None),
            )
        )
        self._max_tokens = settings.max_tokens
        self._max_prompts = settings.max_texts
        self._states = Parser(StatesRequest)

    @property
    def types(self) -> dict[str, type[msgspec.Struct]]:
        """The type of each request, with the limits of the settings."""
        return {
            "generate": self._generate.struct,
            "score": self._score.struct,
            "tokenize": self._tokenize.struct,
            "detokenize": self._detokenize.struct,
            "states": self._states.struct,
            "completions": self._completions.struct,
        }

    @functools.cached_property
    def field_names(self) -> frozenset[str]:
        """Of all requests."""
        return frozenset(name for struct in self.types.values() for name in struct.__struct_fields__)

    def generate(self, body: bytes) -> GenerateRequest:
        """Raises InvalidRequest."""
        return checked_generate(self._generate.parse(body))

    def score(self, body: bytes) -> ScoreRequest:
        """Raises InvalidRequest."""
        return checked_score(self._score.parse(body))

    def completions(self, body: bytes) -> CompletionsRequest:
        """Raises InvalidRequest."""
        return checked_completions(self._completions.parse(body), self._max_prompts, self._max_tokens)

    def tokenize(self, body: bytes) -> TokenizeRequest:
        """Raises InvalidRequest."""
        return self._tokenize.parse(body)

    def detokenize(self, body: bytes) -> DetokenizeRequest:
        """Raises InvalidRequest."""
        return self._detokenize.parse(body)

    def states(self, body: bytes) -> StatesRequest:
        """Raises InvalidRequest."""
        return self._states.parse(body)


def _limited(struct: type[Request], *fields: tuple[str, object, object]) -> type[Request]:
    """The same request with the annotations of some fields replaced."""
    return msgspec.defstruct(  # type: ignore[return-value]
        struct.__name__, list(fields), bases=(struct,), kw_only=True, forbid_unknown_fields=True, frozen=True
    )

"""Request bodies: one Struct an endpoint, every limit in its field's annotation.

Input: the bytes of a body. Output: a request whose every field is in range, or InvalidRequest naming the field, what
came and what was expected. Must not know: Flask, and what a bundle limits (`top_k`, `logit_bias`, a state token).

The structs of /generate, /score and /complete are the runtime's. Limits that are settings (`max_tokens`, `texts`,
`timeout_seconds`) are put into the annotations by `Schemas`. Null means that a field was not sent, wherever that may
be (`meari/validation/lenient.py`); UNSET stands for a field that was not sent.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meari.runtime.requests import (
    CompleteRequest,
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
    """Body of POST /states: a short text, how many numbers of each state tensor to tell, and whether of gates too."""

    text: str
    model: str | UnsetType = UNSET
    units: Annotated[int, Meta(ge=1, le=128)] = 64
    gates: bool = False


Request = TypeVar("Request", bound=msgspec.Struct)


class Schemas:
    """The parsers of one service, with the limits of its settings in the annotations.

    Each takes the bytes of a body and raises InvalidRequest.
    """

    def __init__(self, settings: Settings) -> None:
        timeout = Annotated[float, Meta(gt=0, le=settings.max_timeout_seconds)] | UnsetType
        generate = _limited(
            GenerateRequest,
            ("max_tokens", Annotated[int, Meta(ge=1, le=settings.max_tokens)], min(64, settings.max_tokens)),
            ("timeout_seconds", timeout, UNSET),
        )
        texts = Annotated[list[str], Meta(min_length=1, max_length=settings.max_texts)] | UnsetType
        score = _limited(ScoreRequest, ("texts", texts, UNSET))
        tokens = Annotated[list[Annotated[int, Meta(ge=0)] | TokenReference], Meta(max_length=settings.max_text_chars)]
        detokenize = _limited(DetokenizeRequest, ("tokens", tokens, msgspec.NODEFAULT))
        new_tokens = Annotated[int, Meta(ge=0, le=settings.max_tokens)] | None
        completions = _limited(
            CompletionsRequest,
            ("prompt", prompt_type(settings.max_texts), None),
            ("max_tokens", new_tokens, None),
            ("max_completion_tokens", new_tokens, None),
        )

        def check_completions(request: CompletionsRequest) -> CompletionsRequest:
            return checked_completions(request, settings.max_texts, settings.max_tokens)

        self.generate = Parser(generate, checked_generate).parse
        self.score = Parser(score, checked_score).parse
        self.completions = Parser(completions, check_completions).parse
        self.complete = Parser(CompleteRequest).parse
        self.tokenize = Parser(TokenizeRequest).parse
        self.detokenize = Parser(detokenize).parse
        self.states = Parser(StatesRequest).parse
        self.types: dict[str, type[msgspec.Struct]] = {  # of requests, by the names of operations
            "generate": generate,
            "score": score,
            "complete": CompleteRequest,
            "tokenize": TokenizeRequest,
            "detokenize": detokenize,
            "states": StatesRequest,
            "completions": completions,
        }
        self.field_names = frozenset(name for struct in self.types.values() for name in struct.__struct_fields__)


def _limited(struct: type[Request], *fields: tuple[str, object, object]) -> type[Request]:
    """Return the same request with the annotations of some fields replaced."""
    return msgspec.defstruct(  # type: ignore[return-value]
        struct.__name__, list(fields), bases=(struct,), kw_only=True, forbid_unknown_fields=True, frozen=True
    )

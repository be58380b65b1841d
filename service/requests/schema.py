"""What a request may say: one Struct an endpoint, every limit in its field's annotation.

Enters: the bytes of a body. Leaves: a request whose every field is in range, or InvalidRequest naming the field, what
came and what was expected. Limits that are settings (`max_tokens`, `texts`, `timeout_seconds`) are put into the
annotations by `Schemas`; those that a bundle sets (`top_k`, `logit_bias`) are checked in `model_limits.py`, and a
state token by `state_tokens.py`. No Flask here.

Null is as if a field had not come, wherever that may be (`lenient.py`); UNSET stands for a field that did not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meari.errors import InvalidRequest
from meari.explain import shown
from meari.runtime.engine.sampling import LEAST_TEMPERATURE
from meari.runtime.text.words import Words
from meari.service.requests.completions import (
    CompletionsRequest,
    Seed,
    Stop,
    checked_completions,
    prompt_type,
    stop_problems,
    stop_strings,
)
from meari.service.requests.parsing import Parser
from meari.service.settings import Settings

__all__ = [
    "DetokenizeRequest",
    "GenerateRequest",
    "LogBase",
    "Schemas",
    "ScoreRequest",
    "StatesRequest",
    "TokenizeRequest",
]

LogBase = Literal["e", "2", "10"]


class GenerateRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /generate."""

    model: str | UnsetType = UNSET
    prompt: str = ""
    state: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] = 64
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Seed | UnsetType = UNSET
    stop: Stop | None = None
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    num_beams: Annotated[int, Meta(ge=1, le=16)] = 1
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    return_state: bool = False
    stream: bool = False
    timeout_seconds: Annotated[float, Meta(gt=0)] | UnsetType = UNSET

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, each once."""
        return stop_strings(self.stop)


class ScoreRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /score."""

    model: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    texts: Annotated[list[str], Meta(min_length=1)] | UnsetType = UNSET
    context: str = ""
    state: str | None = None
    add_end: bool | UnsetType = UNSET
    log_base: LogBase = "e"
    tokens: bool = False
    words: Words = False
    top: Annotated[int, Meta(ge=0, le=20)] = 0
    return_state: bool = False

    @property
    def all_texts(self) -> list[str]:
        """What to score, in the order asked for."""
        if self.texts is not UNSET:
            return self.texts
        return [] if self.text is UNSET else [self.text]


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


_SAMPLING_DEFAULTS: Final[dict[str, object]] = {
    field.name: field.default
    for field in msgspec.structs.fields(GenerateRequest)
    if field.name in ("top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")
}
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
        request = _without_minus_one(self._generate.parse(body))
        if request.min_tokens > request.max_tokens:
            raise InvalidRequest(
                f"min_tokens: got {request.min_tokens}, expected at most max_tokens, which is {request.max_tokens}"
            )
        problems = [*stop_problems(request.stop), *(_beam_problems(request) if request.num_beams > 1 else ())]
        if problems:
            raise InvalidRequest("; ".join(problems))
        return request

    def score(self, body: bytes) -> ScoreRequest:
        """Raises InvalidRequest."""
        request = self._score.parse(body)
        if request.text is UNSET and request.texts is UNSET:
            raise InvalidRequest("text: missing, expected text or texts")
        if request.text is not UNSET and request.texts is not UNSET:
            raise InvalidRequest("texts: got both text and texts, expected one of the two")
        if request.state is not None and request.context:
            raise InvalidRequest("context: got both context and state, expected one of the two")
        if request.top and not request.tokens:
            raise InvalidRequest(f"top: got {request.top} with tokens false, expected 0, or tokens true")
        return request

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


def _without_minus_one(request: GenerateRequest) -> GenerateRequest:
    """vLLM's -1 is as if the field had not come: no limit, and a seed that is drawn."""
    if request.top_k == -1:
        request = msgspec.structs.replace(request, top_k=0)
    return msgspec.structs.replace(request, seed=UNSET) if request.seed == -1 else request


def _beam_problems(request: GenerateRequest) -> Iterator[str]:
    """What a beam search cannot do: more samples than beams, or anything that changes what is sampled.

    `top_k` is left to `model_limits.py`: a limit over the vocabulary changes nothing.
    """
    beams = request.num_beams
    if request.n > beams:
        yield f"n: got {request.n}, expected at most num_beams, which is {beams}"
    if request.temperature != 1.0 and request.temperature >= LEAST_TEMPERATURE:
        yield f"temperature: got {request.temperature:g} with num_beams {beams}, expected 0 or 1: nothing is sampled"
    for name, default in _SAMPLING_DEFAULTS.items():
        value = getattr(request, name)
        if value not in (default, {}):
            came, expected = shown(msgspec.json.encode(value)), msgspec.json.encode(default).decode()
            yield f"{name}: got {came} with num_beams {beams}, expected {expected}: nothing is sampled"

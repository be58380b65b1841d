"""Requests to generate, to score and to complete, as values: one struct each, every range in its field's annotation.

Input: the fields of a JSON body or a command line. Output: a request whose fields agree with one another, or
InvalidRequest, which names the field, what came and what was expected. Must not know: HTTP, and a server's own limits
(tokens, texts, time).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from meari.errors import InvalidRequest, Problem, TooLarge
from meari.runtime.engine.sampling import MIN_TEMPERATURE
from meari.runtime.text.words import Words
from meari.validation.explain import shown

__all__ = [
    "Biases",
    "CompleteRequest",
    "GenerateRequest",
    "LogBase",
    "ScoreRequest",
    "Seed",
    "Stop",
    "check_num_chars",
    "checked_generate",
    "checked_ids",
    "checked_logit_bias",
    "checked_score",
    "effective_top_k",
    "stop_problems",
    "stop_strings",
]

Seed = Annotated[int, Meta(ge=-1, le=2**63 - 1)]  # -1 is vLLM's for a random one
MAX_STOPS: Final = 8
NOT_SAMPLED: Final = "nothing is sampled"  # by a beam search
_FEW_STOPS: Final = {"contains": {"minLength": 1}, "minContains": 0, "maxContains": MAX_STOPS}
Stop = str | Annotated[list[str], Meta(extra_json_schema=_FEW_STOPS)]  # empty ones stop nothing and do not count
MAX_BIASES: Final = 200_000  # more than any vocabulary has tokens
Biases = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_BIASES)]
_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,17}")
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
    logit_bias: Biases | None = None
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
        """The texts to score, in the order asked for."""
        if self.texts is not UNSET:
            return self.texts
        return [] if self.text is UNSET else [self.text]


class CompleteRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Body of POST /complete."""

    model: str | UnsetType = UNSET
    text: str
    n: Annotated[int, Meta(ge=1, le=20)] = 5
    max_words: Annotated[int, Meta(ge=1, le=8)] = 1
    composing: bool = False


_SAMPLING_DEFAULTS: Final[dict[str, object]] = {
    field.name: field.default
    for field in msgspec.structs.fields(GenerateRequest)
    if field.name in ("top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")
}


def checked_generate(request: GenerateRequest) -> GenerateRequest:
    """Return the same request if its fields agree. Raises InvalidRequest."""
    request = _without_minus_one(request)
    if request.min_tokens > request.max_tokens:
        expected = f"at most max_tokens, which is {request.max_tokens}"
        raise InvalidRequest(Problem("min_tokens", str(request.min_tokens), expected))
    problems = [*stop_problems(request.stop), *(_beam_problems(request) if request.num_beams > 1 else ())]
    if problems:
        raise InvalidRequest(*problems)
    return request


def checked_score(request: ScoreRequest) -> ScoreRequest:
    """Return the same request if its fields agree. Raises InvalidRequest."""
    if request.text is UNSET and request.texts is UNSET:
        raise InvalidRequest(Problem("text", None, "text or texts"))
    if request.text is not UNSET and request.texts is not UNSET:
        raise InvalidRequest(Problem("texts", "both text and texts", "one of the two"))
    if request.state is not None and request.context:
        raise InvalidRequest(Problem("context", "both context and state", "one of the two"))
    if request.top and not request.tokens:
        raise InvalidRequest(Problem("top", f"{request.top} with tokens false", "0, or tokens true"))
    return request


def stop_strings(stop: Stop | None) -> tuple[str, ...]:
    """Return the strings that stop something, each once."""
    strings = [stop or ""] if stop is None or isinstance(stop, str) else stop
    return tuple(dict.fromkeys(filter(None, strings)))


def stop_problems(stop: Stop | None) -> Iterator[Problem]:
    """Yield the problem of too many stop strings."""
    count = len([text for text in stop if text]) if isinstance(stop, list) else 0
    if count > MAX_STOPS:
        yield Problem("stop", f"{count} items", f"a list of at most {MAX_STOPS} strings that are not empty")


def effective_top_k(top_k: int, vocabulary_size: int, num_beams: int = 1) -> int:
    """Return the limit, 0 (off) if it keeps every token. Raises InvalidRequest for any other one of a beam search."""
    if not 0 < top_k < vocabulary_size:
        return 0
    if num_beams > 1:
        raise InvalidRequest(Problem("top_k", f"{top_k} with num_beams {num_beams}", "0", NOT_SAMPLED))
    return top_k


def checked_logit_bias(bias: dict[str, float] | None, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    """Return ascending token ids as numbers. Raises InvalidRequest, naming the first key that is no token id."""
    for key in bias or ():
        if not _TOKEN_ID.fullmatch(key) or int(key) >= vocabulary_size:
            got = f"the key {shown(key.encode())!r}"
            raise InvalidRequest(Problem("logit_bias", got, f"a token id, 0 <= id < {vocabulary_size}"))
    return tuple(sorted((int(key), value) for key, value in (bias or {}).items()))


def checked_ids(ids: list[int], vocabulary_size: int, path: str = "tokens") -> list[int]:
    """Return the same ids. Raises InvalidRequest, naming the position in `path`."""
    for place, token in enumerate(ids):
        if not 0 <= token < vocabulary_size:
            raise InvalidRequest(Problem(f"{path}[{place}]", str(token), f"a token id, 0 <= id < {vocabulary_size}"))
    return ids


def check_num_chars(field: str, texts: Iterable[str | list[int]], max_chars: int) -> None:
    """Raise TooLarge if the texts have too many characters together; a token id counts as one."""
    count = sum(map(len, texts))
    if count > max_chars:
        raise TooLarge(Problem(field, f"{count} characters", f"at most {max_chars}; send less at once"))


def _without_minus_one(request: GenerateRequest) -> GenerateRequest:
    """Return the request without vLLM's -1, which stands for a field that did not come."""
    if request.top_k == -1:
        request = msgspec.structs.replace(request, top_k=0)
    return msgspec.structs.replace(request, seed=UNSET) if request.seed == -1 else request


def _beam_problems(request: GenerateRequest) -> Iterator[Problem]:
    """Yield requests that a beam search cannot fulfil: more samples than beams, or any change of the sampling.

    `top_k` is left to `model_limits.py`: a limit over the vocabulary changes nothing.
    """
    beams = request.num_beams
    if request.n > beams:
        yield Problem("n", str(request.n), f"at most num_beams, which is {beams}")
    if request.temperature != 1.0 and request.temperature >= MIN_TEMPERATURE:
        yield Problem("temperature", f"{request.temperature:g} with num_beams {beams}", "0 or 1", NOT_SAMPLED)
    for name, default in _SAMPLING_DEFAULTS.items():
        value = getattr(request, name)
        if value not in (default, {}):
            came, expected = shown(msgspec.json.encode(value)), msgspec.json.encode(default).decode()
            yield Problem(name, f"{came} with num_beams {beams}", expected, NOT_SAMPLED)

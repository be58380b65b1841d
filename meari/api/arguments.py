"""Arguments of Python calls → checked requests, with the messages of the HTTP contract.

Input: texts and keyword arguments. Output: requests of the runtime. Must not know: where the model runs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np

from meari.bulk.options import ScoreOptions, checked_request
from meari.client.answers import Token
from meari.client.fields import GenerateFields, State, body_of
from meari.errors import InvalidRequest, Problem
from meari.runtime.requests import CompleteRequest, GenerateRequest, ScoreRequest, checked_score
from meari.validation.parsing import Parser

__all__ = [
    "LogBase",
    "StateLike",
    "checked_ids",
    "checked_state",
    "checked_text",
    "checked_texts",
    "complete_request",
    "generate_request",
    "score_options",
    "shown_value",
]

LogBase = Literal["e", "2", "10", 2, 10]
StateLike = State | str | bytes | None
MAX_SHOWN: Final = 60
MAX_DEPTH: Final = 1  # of lists and objects in a field
_score_requests: Final = Parser(ScoreRequest, checked_score)
_complete_requests: Final = Parser(CompleteRequest)
_CHOSEN: Final = {"model": "`meari.load` chooses it", "stream": "`stream` and `generate` are methods of their own"}
_BASES: Final = {2: "2", 10: "10", math.e: "e"}  # numbers that stand for the names


def checked_text(text: object, field: str = "text") -> str:
    """Return a text that can be encoded. Raises InvalidRequest, naming the field."""
    if not isinstance(text, str):
        raise InvalidRequest(Problem(field, shown_value(text), "a text (str)"))
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            got = f"{text[error.start]!r} at character {error.start}"
            raise InvalidRequest(
                Problem(field, got, "characters", "half of a surrogate pair stands for none")
            ) from None
    return text if type(text) is str else str.__str__(text)  # such as numpy.str_, which JSON has no form for


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Return texts as a list. Raises InvalidRequest, naming the first that is no text."""
    if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable):
        raise InvalidRequest(Problem("texts", shown_value(texts), "a text, or several"))
    if getattr(texts, "ndim", 1) != 1:  # a data frame would give the names of its columns
        raise InvalidRequest(Problem("texts", f"{type(texts).__name__}", "a text, or several: one column of them"))
    return [checked_text(text, f"texts[{place}]") for place, text in enumerate(texts)]


def checked_ids(tokens: Iterable[Token | int]) -> list[int]:
    """Return the ids of tokens. Raises InvalidRequest, naming the first that is no token of any model."""
    if isinstance(tokens, str | bytes | Mapping) or not isinstance(tokens, Iterable):
        raise InvalidRequest(Problem("tokens", shown_value(tokens), "tokens, or their ids"))
    return [_checked_id(token, f"tokens[{place}]") for place, token in enumerate(_items(tokens, "tokens"))]


def _checked_id(token: Token | int, field: str) -> int:
    found = token.id if isinstance(token, Token) else token
    try:
        number = operator.index(found)
    except TypeError:
        number = -1
    if number < 0 or isinstance(found, bool):
        raise InvalidRequest(Problem(field, shown_value(found), "a token, or its id, 0 or more"))
    return number


def checked_state(state: StateLike) -> str | None:
    """Return the token of a state. Raises InvalidRequest for what is none by its kind."""
    if state is None:
        return None
    if not isinstance(state, State | str | bytes):
        raise InvalidRequest(Problem("state", shown_value(state), "a state (State, str or bytes)"))
    token = state.decode("latin-1") if isinstance(state, bytes) else str(state)
    if not token.isascii():
        raise InvalidRequest(Problem("state", shown_value(state), "a state: ASCII characters"))
    return token


def generate_request(prompt: str, fields: Mapping[str, Any]) -> GenerateRequest:
    """Return a request to generate. Raises InvalidRequest for an unknown field, and for a value out of its range."""
    for name, reason in _CHOSEN.items():
        if name in fields:
            raise InvalidRequest(Problem(name, shown_value(fields[name]), "no such argument", reason))
    fields = {**fields, "state": checked_state(fields.get("state"))}
    unknown = {name: value for name, value in fields.items() if name not in GenerateFields.__annotations__}
    return checked_request(_encoded({"prompt": checked_text(prompt, "prompt"), **body_of(fields), **unknown}))


def complete_request(text: str, fields: Mapping[str, Any]) -> CompleteRequest:
    """Return a request to complete. Raises InvalidRequest for a value out of its range."""
    return _complete_requests.parse(_encoded({"text": checked_text(text), **fields}))


def score_options(
    *,
    context: str | None = None,
    state: StateLike = None,
    end: bool | None,
    has_ends: bool,
    log_base: float | str | None = None,
    tokens: bool = False,
    words: bool | str = False,
    top: int | None = None,
) -> ScoreOptions:
    """Return options of scoring. Raises InvalidRequest for a value out of its range.

    has_ends  the end of a text counts if `end` is None
    """
    if not isinstance(end, bool | np.bool_ | None):
        raise InvalidRequest(Problem("end", shown_value(end), "True, False or None"))
    base = _BASES.get(log_base, log_base) if isinstance(log_base, int | float) else log_base
    fields = {
        "context": context,
        "state": checked_state(state),
        "log_base": base,
        "tokens": tokens,
        "words": words,
        "top": top,
    }
    if context is not None:
        checked_text(context, "context")
    request = _score_requests.parse(_encoded({"texts": [""], **body_of(fields)}))
    return ScoreOptions(
        bundle="",
        input_format="text",
        format="jsonl",
        context=request.context,
        state=request.state,
        add_end=has_ends if end is None else bool(end),
        log_base=request.log_base,
        tokens=request.tokens,
        words=request.words,
        top=request.top,
    )


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON. Raises InvalidRequest, naming the field, for a value that JSON has no form for."""
    return msgspec.json.encode({name: _plain(value, name, depth=0) for name, value in body.items()})


def _plain(value: Any, path: str, *, depth: int) -> object:
    """Return a value as Python's own; any series of values as a list, so far as fields have such (`MAX_DEPTH`)."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        value = value.item()  # a number or a text of NumPy or another library
    if isinstance(value, str):
        return checked_text(value, path)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequest(Problem(path, str(value), "a finite number"))
        return value
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {str(key): _plain(each, f"{path}[{key!r}]", depth=depth + 1) for key, each in value.items()}
    if depth < MAX_DEPTH and isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(each, f"{path}[{place}]", depth=depth + 1) for place, each in enumerate(_items(value, path))]
    raise InvalidRequest(
        Problem(path, shown_value(value), "a value that JSON has a form for, such as a text or a number")
    )


def _items(values: Iterable[Any], field: str) -> Iterable[Any]:
    """Return the same values if there is a series of them. Raises InvalidRequest for an array without dimensions."""
    if getattr(values, "ndim", 1) != 1:
        raise InvalidRequest(Problem(field, type(values).__name__, "a series of values, of one dimension"))
    return values


def shown_value(value: object) -> str:
    """Return a value and its type as messages have them, cut where it is long."""
    words = f"{value!r}"
    kind = type(value).__name__
    return f"{words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + '…'} ({kind})"

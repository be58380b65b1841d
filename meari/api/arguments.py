"""Arguments of Python calls → checked requests, with the messages of the HTTP contract.

Input: texts and keyword arguments. Output: requests of the runtime. Must not know: where the model runs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from meari.bulk.options import ScoreOptions, checked_request
from meari.client.answers import Token
from meari.client.fields import State, body_of
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
]

LogBase = Literal["e", "2", "10", 2, 10]
StateLike = State | str | bytes | None
MAX_SHOWN: Final = 60
_score_requests: Final = Parser(ScoreRequest, checked_score)
_complete_requests: Final = Parser(CompleteRequest)
_CHOSEN: Final = {"model": "`meari.load` chooses it", "stream": "`stream` and `generate` are methods of their own"}
_BASES: Final = {2: "2", 10: "10", math.e: "e"}  # numbers that stand for the names


def checked_text(text: object, field: str = "text") -> str:
    """Return a text that can be encoded. Raises InvalidRequest, naming the field."""
    if not isinstance(text, str):
        raise InvalidRequest(Problem(field, _shown(text), "a text (str)"))
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
        raise InvalidRequest(Problem("texts", _shown(texts), "a text, or several"))
    if getattr(texts, "ndim", 1) != 1:  # a data frame would give the names of its columns
        raise InvalidRequest(Problem("texts", f"{type(texts).__name__}", "a text, or several: one column of them"))
    return [checked_text(text, f"texts[{place}]") for place, text in enumerate(texts)]


def checked_ids(tokens: Iterable[Token | int]) -> list[int]:
    """Return the ids of tokens. Raises InvalidRequest, naming the first that is no token of any model."""
    if isinstance(tokens, str | bytes | Mapping) or not isinstance(tokens, Iterable):
        raise InvalidRequest(Problem("tokens", _shown(tokens), "tokens, or their ids"))
    return [_checked_id(token, f"tokens[{place}]") for place, token in enumerate(tokens)]


def _checked_id(token: Token | int, field: str) -> int:
    found = token.id if isinstance(token, Token) else token
    try:
        number = operator.index(found)
    except TypeError:
        number = -1
    if number < 0 or isinstance(found, bool):
        raise InvalidRequest(Problem(field, _shown(found), "a token, or its id, 0 or more"))
    return number


def checked_state(state: StateLike) -> str | None:
    """Return the token of a state. Raises InvalidRequest for what is none by its kind."""
    if state is None:
        return None
    if not isinstance(state, State | str | bytes):
        raise InvalidRequest(Problem("state", _shown(state), "a state (State, str or bytes)"))
    try:
        return State(state).token
    except UnicodeDecodeError:
        raise InvalidRequest(Problem("state", _shown(state), "a state: ASCII characters")) from None


def generate_request(prompt: str, fields: Mapping[str, Any]) -> GenerateRequest:
    """Return a request to generate. Raises InvalidRequest for an unknown field, and for a value out of its range."""
    for name, reason in _CHOSEN.items():
        if name in fields:
            raise InvalidRequest(Problem(name, _shown(fields[name]), "no such argument", reason))
    fields = {**fields, "state": checked_state(fields.get("state"))}
    return checked_request(_encoded({"prompt": checked_text(prompt, "prompt"), **body_of(fields)}))


def complete_request(text: str, fields: Mapping[str, Any]) -> CompleteRequest:
    """Return a request to complete. Raises InvalidRequest for a value out of its range."""
    return _complete_requests.parse(_encoded({"text": checked_text(text), **fields}))


def score_options(
    *,
    context: str | None = None,
    state: StateLike = None,
    add_end: bool,
    log_base: float | str | None = None,
    tokens: bool = False,
    words: bool | str = False,
    top: int | None = None,
) -> ScoreOptions:
    """Return options of scoring. Raises InvalidRequest for a value out of its range."""
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
    request = _score_requests.parse(_encoded({"texts": [""], "add_end": add_end, **body_of(fields)}))
    return ScoreOptions(
        bundle="",
        input_format="text",
        format="jsonl",
        context=request.context,
        state=request.state,
        add_end=add_end,
        log_base=request.log_base,
        tokens=request.tokens,
        words=request.words,
        top=request.top,
    )


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON. Raises InvalidRequest for a value that JSON has no form for."""
    for name, value in body.items():
        if isinstance(value, str):
            checked_text(value, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(Problem(name, str(value), "a finite number"))
    try:
        return msgspec.json.encode(body, enc_hook=_plain)
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise InvalidRequest(Problem("arguments", reason=str(error))) from None


def _plain(value: object) -> object:
    """Return a number of NumPy or another library as Python's own, and any sequence as a list."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", 0) == 0:
        return item()
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"got {_shown(value)}, which JSON has no form for")


def _shown(value: object) -> str:
    words = f"{value!r}"
    kind = type(value).__name__
    return f"{words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + '…'} ({kind})"

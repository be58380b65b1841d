"""Calls of a service: each with its path, its body and the type of its answer, for both kinds of client.

Input: keyword arguments. Output: requests; typed answers of the bytes that come. Must not know: how they are sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from meari.client.answers import Choice, Completions, Generation, ScoreAnswer, Token, Usage, read_answer
from meari.client.errors import OTHER_FIELDS, BadAnswer
from meari.client.fields import body_of

__all__ = ["Call", "complete", "detokenize", "generate", "model", "models", "read_event", "score", "tokenize"]

Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request: GET if `fields` is None. `read` turns the decoded answer into its type."""

    path: str
    fields: Mapping[str, Any] | None
    read: Callable[[Any], Answer]

    @property
    def body(self) -> bytes | None:
        """JSON of the fields. Raises ValueError for a value that JSON has no form for."""
        if self.fields is None:
            return None
        return json.dumps(body_of(self.fields), allow_nan=False, default=_plain).encode("utf-8")

    def answer(self, url: str, data: bytes) -> Answer:
        """Return the typed answer. Raises BadAnswer."""
        return _read(self.read, url, data)


def generate(prompt: str, model: str | None, fields: Mapping[str, Any]) -> Call[Generation]:
    """Continue a prompt."""
    return Call("/generate", {"prompt": prompt, "model": model, **fields}, lambda value: read_answer(Generation, value))


def complete(text: str, model: str | None, fields: Mapping[str, Any]) -> Call[Completions]:
    """Complete the word that a text ends in."""
    return Call("/complete", {"text": text, "model": model, **fields}, lambda value: read_answer(Completions, value))


def score(texts: str | Iterable[str], model: str | None, fields: Mapping[str, Any]) -> Call[ScoreAnswer]:
    """Score a text, or several."""
    several = [texts] if isinstance(texts, str) else list(texts)
    return Call("/score", {"texts": several, "model": model, **fields}, lambda value: read_answer(ScoreAnswer, value))


def tokenize(text: str, model: str | None) -> Call[list[Token]]:
    """Split a text into tokens."""
    fields = {"text": text, "model": model}
    return Call("/tokenize", fields, lambda value: [read_answer(Token, token) for token in value["tokens"]])


def detokenize(ids: Iterable[int], model: str | None) -> Call[str]:
    """Join tokens to a text."""
    return Call("/detokenize", {"tokens": list(ids), "model": model}, lambda value: str(value["text"]))


def models() -> Call[dict[str, Any]]:
    """List the models, and the default one."""
    return Call("/models", None, _with("models"))


def model(name: str) -> Call[dict[str, Any]]:
    """Describe one model."""
    return Call(f"/models/{quote(name, safe='')}", None, _with("hashes"))


def read_event(url: str, data: bytes) -> tuple[list[Choice], Generation | None]:
    """Return what an event of a stream says: choices, or at the end the rest of the answer. Raises BadAnswer."""
    return _read(_event, url, data)


def _event(value: Any) -> tuple[list[Choice], Generation | None]:
    if "usage" in value:
        return [], Generation(value["model"], value["seed"], (), read_answer(Usage, value["usage"]))
    return [read_answer(Choice, choice) for choice in value["choices"]], None


def _read(read: Callable[[Any], Result], url: str, data: bytes) -> Result:
    try:
        return read(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise BadAnswer(url, OTHER_FIELDS) from None


def _with(field: str) -> Callable[[Any], dict[str, Any]]:
    """Return a reader of objects that have a field."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError("no object")
        value[field]
        return value

    return read


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's own."""
    return value.item() if hasattr(value, "item") else list(value)

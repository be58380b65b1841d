"""Clients of a running service with typed answers.

Input: a URL; texts and keyword arguments. Output: dataclasses, or RemoteError. Must not know: any other module of the
project; whether a value is in its range is for the service to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from meari.client import calls
from meari.client.answers import Completions, Generation, ScoreAnswer, Token
from meari.client.fields import CompleteFields, GenerateFields, ScoreFields
from meari.client.service import ANSWER_SECONDS, PATIENCE_SECONDS, RemoteService, check_options, checked_url
from meari.client.streams import Pieces, Stream

__all__ = ["Client"]

Answer = TypeVar("Answer")


class Client:
    """A running service; safe from several threads.

    Connections are kept open between requests. A request that the service refuses for the moment (429, and 503 while
    bundles are loaded) is sent again after the seconds of `Retry-After`.

    >>> with Client(url) as client:  # such as http://127.0.0.1:8000
    ...     client.score(["abc"]).results[0].num_tokens
    3

    `model` is the name of a model, None the service's default. Log-probabilities are in nats unless a field names
    another base. All methods raise `RemoteError`: `Refused` with the service's code and message, `Unreachable`,
    `BadAnswer`.
    """

    def __init__(
        self, url: str, *, key: str = "", timeout: float = ANSWER_SECONDS, patience: float = PATIENCE_SECONDS
    ) -> None:
        """Connect with the first request.

        url       http://HOST:PORT or https://HOST
        key       API key, for a service that asks for one
        timeout   seconds of silence after which an answer is given up
        patience  seconds to wait at most after refusals, all of one request together, an hour past a limit of the
                  key; 0: not at all

        Raises ValueError for what is no such URL, key or time.
        """
        check_options(key, timeout, patience)
        self.service = RemoteService(checked_url(url), key, patience, answer_seconds=timeout)

    def generate(self, prompt: str = "", *, model: str | None = None, **fields: Unpack[GenerateFields]) -> Generation:
        """Return continuations of a prompt; `fields` are those of `GenerateFields`."""
        return self._ask(calls.generate(prompt, model, {**fields}))

    def stream(self, prompt: str = "", *, model: str | None = None, **fields: Unpack[GenerateFields]) -> Stream:
        """Return continuations of a prompt piece by piece: an iterator of `Choice`.

        `fields` are those of `GenerateFields`.
        """
        call = calls.generate(prompt, model, {**fields, "stream": True})
        events = self.service.stream(call.path, call.body or b"")
        pieces = _pieces(self.service.url, events)
        return Stream(pieces, events.close)

    def complete(self, text: str, *, model: str | None = None, **fields: Unpack[CompleteFields]) -> Completions:
        """Return the likeliest ways to go on from exactly this text; `fields` are those of `CompleteFields`."""
        return self._ask(calls.complete(text, model, {**fields}))

    def score(self, texts: Iterable[str], *, model: str | None = None, **fields: Unpack[ScoreFields]) -> ScoreAnswer:
        """Return figures of texts, in their order; `fields` are those of `ScoreFields`.

        texts  in one request, at most as many as the service takes, 1,024 by default
        """
        return self._ask(calls.score(texts, model, {**fields}))

    def tokenize(self, text: str, *, model: str | None = None) -> list[Token]:
        """Return the tokens of a text."""
        return self._ask(calls.tokenize(text, model))

    def detokenize(self, ids: Iterable[int], *, model: str | None = None) -> str:
        """Return the text of tokens, given by their ids."""
        return self._ask(calls.detokenize([*ids], model))

    def models(self) -> dict[str, Any]:
        """Return the answer of GET /models: `models`, a list, and the name of the `default`."""
        return self._ask(calls.models())

    def model(self, name: str) -> dict[str, Any]:
        """Return the description of the model with that name, as GET /models/NAME gives it."""
        return self._ask(calls.model(name))

    def close(self) -> None:
        """Close the connections; a further request would open new ones."""
        self.service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: calls.Call[Answer]) -> Answer:
        body = call.body
        data = self.service.get(call.path) if body is None else self.service.post(call.path, body)
        return call.answer(self.service.url, data)


def _pieces(url: str, events: Iterator[bytes]) -> Pieces:
    """Yield the choices of a stream; return the rest of its answer."""
    answer = None
    for event in events:
        choices, last = calls.read_event(url, event)
        yield from choices
        answer = last or answer
    return answer

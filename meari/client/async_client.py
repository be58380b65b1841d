"""The client of a running service for asyncio.

Input: a URL; texts and keyword arguments. Output: dataclasses, or RemoteError. Must not know: any other module of the
project; whether a value is in its range is for the service to say.

Requests and answers are made and read by the functions that `Client` uses; only the waiting differs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from meari.client import calls
from meari.client.answers import Choice, Completions, Generation, ScoreAnswer, Token
from meari.client.async_connections import AsyncAnswer, AsyncConnections
from meari.client.errors import BadAnswer
from meari.client.fields import CompleteFields, GenerateFields, ScoreFields
from meari.client.service import (
    ANSWER_SECONDS,
    CUT_STREAM,
    FIRST_REFUSAL,
    LAST_EVENT,
    PATIENCE_SECONDS,
    check_options,
    checked_url,
    event_data,
    refusal,
    request_headers,
    retry_seconds,
    translated,
)
from meari.client.streams import StreamEnd

__all__ = ["AsyncClient", "AsyncStream"]

Result = TypeVar("Result")


class AsyncStream(StreamEnd):
    """Continuation of a prompt as it is written: an asynchronous iterator of `Choice`; see `meari.Stream`.

    The request is sent by `await`, by `async with`, or by the first step of `async for`. A stream that is left early
    should be closed, or used in `async with`: the service then stops within a few tokens.

    Iterating raises `meari.RemoteError`, also if the stream is cut off.
    """

    def __init__(self, url: str, open_answer: Callable[[], Awaitable[AsyncAnswer]]) -> None:
        self._url = url
        self._open_answer = open_answer
        self._answer: AsyncAnswer | None = None
        self._lines: AsyncIterator[bytes] | None = None
        self._ready: deque[Choice] = deque()
        self._is_over = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Choice:
        try:
            while not self._ready and not self._is_over:
                await self._read_event()
        except BaseException:
            await self.aclose()
            raise
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Stop writing."""
        self._is_over = True
        self._ready.clear()
        if self._answer is not None:
            self._answer.close()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _opened(self) -> Self:
        if self._answer is None and not self._is_over:
            self._answer = await self._open_answer()
            self._lines = self._answer.lines()
        return self

    async def _read_event(self) -> None:
        """Take the next event: choices, the end of the answer, or the end of the stream."""
        await self._opened()
        assert self._answer is not None, "the stream is not over"
        assert self._lines is not None, "the answer was opened"
        with translated(self._url):
            line = await anext(self._lines, None)
            data = LAST_EVENT if line is None else event_data(self._url, line)
            if data == LAST_EVENT:
                await self._finish(is_whole=line is not None)
            elif data:
                choices, end = calls.read_event(self._url, data)
                self._ready.extend(choices)
                self.end = end or self.end

    async def _finish(self, *, is_whole: bool) -> None:
        if not is_whole:
            raise BadAnswer(self._url, CUT_STREAM)
        assert self._lines is not None, "the answer was opened"
        async for _ in self._lines:
            pass  # the end of the body, so that the connection is kept
        self._is_over = True


class AsyncClient:
    """A running service, for asyncio: the methods of `meari.Client`, awaited.

    Connections are kept open between requests. A request that the service refuses for the moment (429, and 503 while
    bundles are loaded) is sent again after the seconds of `Retry-After`; other tasks run meanwhile. A task that is
    cancelled closes its connection, and the service ends the work.

    >>> async def main() -> None:
    ...     async with meari.AsyncClient(url) as client:  # such as http://127.0.0.1:8000
    ...         print((await client.generate("To be", max_tokens=8, seed=7)).usage.generated_tokens)
    ...         async for piece in client.stream("To be", max_tokens=8, seed=7):
    ...             assert isinstance(piece.text, str)
    >>> asyncio.run(main())
    8

    `model` is the name of a model, None the service's default. Log-probabilities are in nats unless a field names
    another base. All methods raise `meari.RemoteError`: `Refused` with the service's code and message, `Unreachable`,
    `BadAnswer`.
    """

    def __init__(
        self, url: str, *, key: str = "", timeout: float = ANSWER_SECONDS, patience: float = PATIENCE_SECONDS
    ) -> None:
        """Connect with the first request; `url`, `key`, `timeout` and `patience` are those of `Client`."""
        check_options(key, timeout, patience)
        self.url = checked_url(url)
        self._key = key
        self._patience = patience
        self._connections = AsyncConnections(self.url, timeout)

    async def generate(
        self, prompt: str = "", *, model: str | None = None, **fields: Unpack[GenerateFields]
    ) -> Generation:
        """Return continuations of a prompt; `fields` are those of `meari.GenerateFields`."""
        return await self._ask(calls.generate(prompt, model, {**fields}))

    def stream(self, prompt: str = "", *, model: str | None = None, **fields: Unpack[GenerateFields]) -> AsyncStream:
        """Return continuations of a prompt piece by piece, for `async for` or `async with`.

        `fields` are those of `meari.GenerateFields`.
        """
        call = calls.generate(prompt, model, {**fields, "stream": True})
        path, body = call.path, call.body
        return AsyncStream(self.url, lambda: self._open(path, body))

    async def complete(self, text: str, *, model: str | None = None, **fields: Unpack[CompleteFields]) -> Completions:
        """Return the likeliest ways to go on from exactly this text; `fields` are those of `meari.CompleteFields`."""
        return await self._ask(calls.complete(text, model, {**fields}))

    async def score(
        self, texts: Iterable[str], *, model: str | None = None, **fields: Unpack[ScoreFields]
    ) -> ScoreAnswer:
        """Return figures of texts, in their order; `fields` are those of `meari.ScoreFields`.

        texts  in one request, at most as many as the service takes, 1,024 by default
        """
        return await self._ask(calls.score(texts, model, {**fields}))

    async def tokenize(self, text: str, *, model: str | None = None) -> list[Token]:
        """Return the tokens of a text."""
        return await self._ask(calls.tokenize(text, model))

    async def detokenize(self, ids: Iterable[int], *, model: str | None = None) -> str:
        """Return the text of tokens, given by their ids."""
        return await self._ask(calls.detokenize([*ids], model))

    async def models(self) -> dict[str, Any]:
        """Return the answer of GET /models: `models`, a list, and the name of the `default`."""
        return await self._ask(calls.models())

    async def model(self, name: str) -> dict[str, Any]:
        """Return the description of the model with that name, as GET /models/NAME gives it."""
        return await self._ask(calls.model(name))

    async def close(self) -> None:
        """Close the idle connections; a further request would open new ones."""
        self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: calls.Call[Result]) -> Result:
        answer = await self._open(call.path, call.body)
        return call.answer(self.url, await self._whole(answer))

    async def _open(self, path: str, body: bytes | None) -> AsyncAnswer:
        """Send a request until it is not refused for the moment."""
        method, headers = "GET" if body is None else "POST", request_headers(self._key, body)
        waited = 0.0
        while True:
            with translated(self.url):
                answer = await self._connections.request(method, path, body, headers)
            if answer.status < FIRST_REFUSAL:
                return answer
            refused = refusal(self.url, answer.status, await self._whole(answer), answer.reason)
            wait = retry_seconds(refused, answer.headers.get("Retry-After"), waited, self._patience)
            if wait is None:
                raise refused
            waited += wait
            await asyncio.sleep(wait)

    async def _whole(self, answer: AsyncAnswer) -> bytes:
        try:
            with translated(self.url):
                return await answer.read()
        finally:
            answer.close()

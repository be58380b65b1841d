"""A model of a running service.

Input: a service and the name of a model; checked requests. Output: figures, texts and states. Must not know: arguments
of Python calls.

The service's refusals become the errors that a model of this process raises, with the service's own words.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec

from meari.bulk.options import ScoreOptions
from meari.bulk.remote import RemoteBackend, open_remote
from meari.client.answers import Completions, Generation, Token
from meari.client.client import Client
from meari.client.errors import OTHER_FIELDS, BadAnswer, Refused
from meari.client.service import find_model
from meari.client.streams import Pieces, Stream
from meari.errors import MeariError, NotReady
from meari.runtime.requests import CompleteRequest, GenerateRequest
from meari.runtime.scores import Scored

__all__ = ["RemoteModel"]

NUM_REQUESTS: Final = 8  # of a list, at a time
Result = TypeVar("Result")


class RemoteModel:
    """A model of a running service; safe from several threads. See `meari.api.language_model.Model`."""

    def __init__(self, client: Client, model: str | None) -> None:
        self._client = client
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._lists: RemoteBackend | None = None
        with _translated():
            self._description = find_model(client.service, model)
        self.name: str = self._description["name"]
        self.where = client.service.url
        self.has_ends: bool = self._description["corpus"].get("has_ends", True)

    def describe(self) -> dict[str, Any]:
        """Return the answer of GET /models/NAME."""
        return self._description

    @property
    def _backend(self) -> RemoteBackend:
        with self._lock:
            self._lists = self._lists or open_remote(self._client.service, self.name, NUM_REQUESTS)
        return self._lists

    def score(self, texts: Sequence[str], options: ScoreOptions, take: Callable[[Scored], Result]) -> list[Result]:
        """Score texts, a long list in several requests at a time."""
        with self._asking():
            return [take(scored) for scored in self._backend.score(options.context, texts, options)()]

    def state_after(self, text: str, state: str | None) -> str:
        """Return the state after a text."""
        with self._asking():
            answer = self._client.score([text], model=self.name, state=state, add_end=False, return_state=True)
        found = [result.state for result in answer.results]
        if len(found) != 1 or found[0] is None:
            raise BadAnswer(self.where, OTHER_FIELDS)
        return found[0]

    def generate(self, request: GenerateRequest) -> Generation:
        """Continue a prompt."""
        with self._asking():
            return self._client.generate(**self._fields(request))

    def stream(self, request: GenerateRequest) -> Stream:
        """Continue a prompt, piece by piece."""
        with self._asking():
            stream = self._client.stream(**self._fields(request))
        return Stream(self._pieces(stream), stream.close)

    def complete(self, request: CompleteRequest) -> Completions:
        """Complete the word that a text ends in."""
        with self._asking():
            return self._client.complete(**self._fields(request))

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text."""
        with self._asking():
            return self._client.tokenize(text, model=self.name)

    def detokenize(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        with self._asking():
            return self._client.detokenize(ids, model=self.name)

    def close(self) -> None:
        """Close the connections."""
        self._closed.set()
        if self._lists is not None:
            self._lists.close()
        self._client.close()

    def after_fork(self) -> None:
        """Leave the threads of lists to the parent process; of connections each process makes its own in any case."""
        self._lock = threading.Lock()
        self._lists = None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Translate refusals. Raises NotReady once the model was closed, also in the midst of a list."""
        closed = NotReady(f"the model {self.name} was closed")
        if self._closed.is_set():
            raise closed
        try:
            with _translated():
                yield
        except RuntimeError as error:
            raise closed if self._closed.is_set() else error from error

    def _pieces(self, stream: Stream) -> Pieces:
        """Yield what comes until the model is closed; return the answer's other fields."""
        with self._asking(), stream:
            for choice in stream:
                yield choice
                if self._closed.is_set():
                    raise RuntimeError("closed between two pieces")
        return stream.end

    def _fields(self, request: CompleteRequest | GenerateRequest) -> dict[str, Any]:
        """Return what was asked for; what was not is for the service to choose."""
        defaults = {field.name: field.default for field in msgspec.structs.fields(request)}
        given = {name: getattr(request, name) for name in defaults if getattr(request, name) != defaults[name]}
        return {**given, "model": self.name}


@contextmanager
def _translated() -> Iterator[None]:
    """Raise a refusal of the service as the error that a model of this process would raise."""
    try:
        yield
    except Refused as refused:
        kind = _kinds().get(refused.code)
        if kind is None:
            raise
        raise kind(refused.message) from refused


@functools.cache
def _kinds() -> dict[str, type[MeariError]]:
    """Return the nearest class of each code; of several with one code the most general."""
    found: dict[str, type[MeariError]] = {}
    below = [MeariError]
    while below:
        kind = below.pop(0)
        found.setdefault(kind.code, kind)
        below += kind.__subclasses__()
    return found

"""A model in engines of this process.

Input: a bundle's folder; checked requests. Output: figures, texts and states. Must not know: arguments of Python calls.

One engine answers single requests, with a cache of prefixes. A long list, or several shorter ones, open further
engines, one for each CPU, that do nothing but lists, so a stream goes on beside a list. All engines give the same bits.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from meari.bulk.backends import NEVER_SECONDS, LocalBackend, Unbounded, batches, open_local
from meari.bulk.options import ScoreOptions
from meari.bundle_format.signatures import PublicKey
from meari.client.answers import Choice, Completions, Generation, Token, read_answer
from meari.client.streams import Pieces, Stream
from meari.errors import NotReady
from meari.runtime.answers import token_texts
from meari.runtime.completion import Completion
from meari.runtime.engine import EngineLimits, Handle
from meari.runtime.inspection import describe_bundle
from meari.runtime.requests import CompleteRequest, GenerateRequest, checked_ids
from meari.runtime.scores import Scored
from meari.runtime.text.detokenizer import detokenize
from meari.runtime.word_completion import begin_word_completion

__all__ = ["LocalModel"]

LIMITS: Final = EngineLimits(max_slots=64, max_waiting=10_000, cache_bytes=1 << 26)
LIST_CHARS: Final = 1 << 14  # of lists so far: from then on the engines for lists earn the time that they take to open
SHORT_LIST_CHARS: Final = 1 << 11  # of texts together: up to so many are no faster there
CHUNK_CHARS: Final = 1 << 16  # at most, and so many that each engine has two chunks
MIN_CHUNK_CHARS: Final = 1 << 13
CHUNK_TEXTS: Final = 1024
NUM_BEGUN: Final = 2  # chunks that an engine has, so that it need not wait for the next
Result = TypeVar("Result")


class LocalModel:
    """A bundle that is open in this process; safe from several threads. See `meari.api.language_model.Model`."""

    def __init__(
        self, folder: Path, signing_keys: Sequence[PublicKey], state_keys: tuple[str, ...], num_engines: int
    ) -> None:
        self._arguments = (folder, signing_keys, state_keys)
        self._backend: LocalBackend | None = open_local(*self._arguments, LIMITS)
        self._num_engines = num_engines
        self._for_lists: list[LocalBackend] = []
        self._list_chars = 0
        self._lock = threading.Lock()
        self._is_open = True
        self._bundle = self._backend.model.bundle
        self.name = self._backend.name
        self.where = str(folder)
        self.has_ends: bool = self._bundle.manifest.has_ends

    def describe(self) -> dict[str, Any]:
        """Return the description in the manifest."""
        described = msgspec.json.encode(describe_bundle(self.name, self._bundle.manifest, self._bundle.hash))
        found: dict[str, Any] = msgspec.json.decode(described)
        return found

    def score(self, texts: Sequence[str], options: ScoreOptions, take: Callable[[Scored], Result]) -> list[Result]:
        """Score texts, a long list on all engines; `take` is called from any thread."""
        with self._asking() as backend:
            backend.check(options)
            if self._is_for_lists(texts):
                return self._score_list(texts, options, take)
            return [take(scored) for scored in backend.score(options.context, texts, options)()]

    def _score_list(
        self, texts: Sequence[str], options: ScoreOptions, take: Callable[[Scored], Result]
    ) -> list[Result]:
        chunks = _Chunks(texts, self._num_engines)
        with ThreadPoolExecutor(self._num_engines, "lists") as pool:
            parts = [pool.submit(_score_chunks, engine, chunks, options, take) for engine in self._engines(len(chunks))]
            try:
                found = dict(entry for part in parts for entry in part.result())
            finally:
                chunks.stop()
        return [result for place in range(len(found)) for result in found[place]]

    def state_after(self, text: str, state: str | None) -> str:
        """Return the state after a text."""
        with self._asking() as backend:
            return backend.state_after(text, state)

    def generate(self, request: GenerateRequest) -> Generation:
        """Continue a prompt."""
        with self._asking() as backend:
            completion = backend.begin(request)
            _wait_end(completion.generation)
            return _converted(Generation, completion.answer())

    def stream(self, request: GenerateRequest) -> Stream:
        """Continue a prompt, piece by piece."""
        with self._asking() as backend:
            completion = backend.begin(request)
        return Stream(self._pieces(completion), completion.generation.cancel)

    def complete(self, request: CompleteRequest) -> Completions:
        """Complete the word that a text ends in."""
        with self._asking() as backend:
            model = backend.model
            completion = begin_word_completion(request, model, Unbounded(), model.engine.clock() + NEVER_SECONDS)
            _wait_end(completion.handle)
            return _converted(Completions, completion.answer())

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text."""
        tokenizer = self._opened().model.tokenizer
        found = token_texts(tokenizer.vocabulary, tokenizer.encode(text))
        return [_converted(Token, token) for token in found]

    def detokenize(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        vocabulary = self._opened().model.tokenizer.vocabulary
        return detokenize(vocabulary, checked_ids(ids, vocabulary.size))

    def close(self) -> None:
        """Stop the engines."""
        with self._lock:
            self._is_open = False
            backends = [self._backend, *self._for_lists]
            self._for_lists = []
        for backend in filter(None, backends):
            backend.close()

    def after_fork(self) -> None:
        """Leave the engines to the parent process, which has their threads: this one opens its own at the next call."""
        self._lock = threading.Lock()
        self._backend = None
        self._for_lists = []

    def _opened(self) -> LocalBackend:
        """Return the first engine. Raises NotReady once the model was closed."""
        with self._lock:
            self._check_open()
            self._backend = self._backend or open_local(*self._arguments, LIMITS)
            return self._backend

    def _check_open(self) -> None:
        if not self._is_open:
            raise NotReady(f"the model {self.name} was closed")

    @contextmanager
    def _asking(self) -> Iterator[LocalBackend]:
        """Give the first engine. Raises NotReady once the model was closed, also while it answers."""
        backend = self._opened()
        try:
            yield backend
        except NotReady:
            self._check_open()
            raise

    def _pieces(self, completion: Completion) -> Pieces:
        """Yield the text of each choice as it comes; return the answer's other fields."""
        process = os.getpid()
        try:
            with self._asking():
                while not completion.done:
                    completion.generation.wait()
                    completion.generation.raise_for_failure()
                    for choice in completion.new_choices():
                        yield _converted(Choice, choice)
        finally:
            if os.getpid() == process:  # a forked one lacks the threads that take it
                completion.generation.cancel()
        return _converted(Generation, completion.answer())

    def _is_for_lists(self, texts: Sequence[str]) -> bool:
        """Return whether texts go to the engines for lists."""
        num_chars = sum(map(len, texts))
        if len(texts) == 1 or num_chars <= SHORT_LIST_CHARS:
            return False
        with self._lock:
            self._list_chars += num_chars
            return self._list_chars > LIST_CHARS

    def _engines(self, num_chunks: int) -> list[LocalBackend]:
        """Return the engines for a list of so many chunks; those that are missing are opened."""
        count = min(self._num_engines, num_chunks)
        with self._lock:
            self._check_open()
            for _ in range(count - len(self._for_lists)):
                self._for_lists.append(open_local(*self._arguments))
            return self._for_lists[:count]


class _Chunks:
    """Numbered chunks of a list, given out to several threads."""

    def __init__(self, texts: Sequence[str], num_engines: int) -> None:
        share = sum(map(len, texts)) // (2 * num_engines)
        num_chars = min(CHUNK_CHARS, max(MIN_CHUNK_CHARS, share))
        self._chunks = deque(enumerate(batches(texts, num_chars, CHUNK_TEXTS)))

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                yield self._chunks.popleft()
            except IndexError:
                return

    def stop(self) -> None:
        """Give out no more."""
        self._chunks.clear()


def _score_chunks(
    backend: LocalBackend, chunks: _Chunks, options: ScoreOptions, take: Callable[[Scored], Result]
) -> list[tuple[int, list[Result]]]:
    """Score chunks until none is left; return them with their numbers."""
    found: list[tuple[int, list[Result]]] = []
    begun: deque[tuple[int, Callable[[], Iterable[Scored]]]] = deque()

    def finish_oldest() -> None:
        number, await_scores = begun.popleft()
        found.append((number, [take(scored) for scored in await_scores()]))

    try:
        for number, texts in chunks:
            begun.append((number, backend.score(options.context, texts, options)))
            if len(begun) > NUM_BEGUN:
                finish_oldest()
        while begun:
            finish_oldest()
    finally:
        chunks.stop()  # after an error no other engine goes on
    return found


def _wait_end(handle: Handle) -> None:
    """Wait until a request has ended; an interruption cancels it. Raises MeariError if it failed."""
    try:
        handle.wait_end()
    except BaseException:
        handle.cancel()
        raise
    handle.raise_for_failure()


def _converted(kind: type[Result], answer: object) -> Result:
    """Return an answer of the runtime as the client's type."""
    return read_answer(kind, msgspec.to_builtins(answer))

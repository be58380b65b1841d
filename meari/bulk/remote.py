"""Bulk work by a running service, over HTTP; see `meari.bulk.backends.Backend`.

Input: a service and the name of a model. Output: a backend. Must not know: lines, files, formats of the output.

The figures in JSON lie on the engine's grid, so both backends give the same figures, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET

from meari.bulk.backends import Generated, batches
from meari.bulk.errors import BulkError
from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.client.errors import OTHER_FIELDS, BadAnswer, Refused
from meari.client.service import RemoteService, find_model
from meari.errors import EngineFailed
from meari.runtime.answers import Choice, GenerateAnswer, GenerateUsage, ScoredToken, ScoredWord, TextFigures
from meari.runtime.engine.calls import GRID
from meari.runtime.requests import GenerateRequest, LogBase, checked_logit_bias
from meari.runtime.scores import LN_OF, Scored, TextSums

__all__ = ["RemoteBackend", "open_remote"]

OUT_OF_TIME: Final = "timeout"
TOO_LARGE: Final = 413
FAILED: Final = 500
MAX_LOGPROB: Final = 1e100  # sums of units of the grid stay finite
Answer = TypeVar("Answer")
_encode: Final = msgspec.json.Encoder().encode


class RemoteScored(TextFigures):
    """A result of POST /score; see `Scored`."""

    token_rows: list[ScoredToken] = msgspec.field(default_factory=list, name="tokens")
    word_rows: list[ScoredWord] = msgspec.field(default_factory=list, name="words")
    log_base: LogBase = "e"  # not in the result itself

    def __post_init__(self) -> None:
        if max(abs(self.logprob), abs(self.logprob_without_unknown)) > MAX_LOGPROB:
            raise ValueError("no log-probability")

    def sums(self) -> TextSums:
        """Return the engine's own sums: they lie on its grid, so rounding finds them again."""
        units = GRID * LN_OF[self.log_base]
        return TextSums(
            round(self.logprob * units),
            round(self.logprob_without_unknown * units),
            self.num_tokens,
            self.num_chars,
            self.num_bytes,
            self.num_unknown,
        )

    def tokens(self, first: int, last: int) -> list[ScoredToken]:
        """Return the figures of tokens number `first` to `last` (exclusive)."""
        return self.token_rows[first:last]

    def words(self) -> list[ScoredWord]:
        """Return the rows of words."""
        return self.word_rows


class ScoreResults(msgspec.Struct):
    """The part of an answer of POST /score that is read."""

    results: list[RemoteScored]


class Event(msgspec.Struct):
    """The part of an event of a stream that is read; the last one has `usage` and no choices."""

    choices: list[Choice]
    usage: GenerateUsage | None = None


_decode_scores: Final = msgspec.json.Decoder(ScoreResults).decode
_decode_answer: Final = msgspec.json.Decoder(GenerateAnswer).decode
_decode_event: Final = msgspec.json.Decoder(Event).decode


def open_remote(service: RemoteService, model: str, num_requests: int) -> RemoteBackend:
    """Ask a service for one of its models. Raises RemoteError."""
    found = find_model(service, model)
    limits = found["limits"]
    return RemoteBackend(
        service,
        found["name"],
        num_requests,
        found["sizes"]["vocabulary"],
        max_texts=limits["max_texts"],
        max_text_chars=limits["max_text_chars"],
    )


class RemoteBackend:
    """A model of a running service, asked for several things at a time; see `Backend`.

    Raises RemoteError, EngineFailed.

    model         None is the service's default
    num_requests  at a time; 0: each is sent when its answer is waited for
    max_texts     of one request
    """

    def __init__(
        self,
        service: RemoteService,
        model: str | None,
        num_requests: int = 0,
        vocabulary_size: int = 0,
        *,
        max_texts: int = 1,
        max_text_chars: int = 0,
    ) -> None:
        self.name = model or ""
        self.source = service.url
        self.max_text_chars, self._max_texts = max_text_chars, max_texts
        self._service = service
        self._model = UNSET if model is None else model
        self._vocabulary_size = vocabulary_size
        self._pool = ThreadPoolExecutor(num_requests, "requests") if num_requests else None

    def check(self, options: ScoreOptions | GenerateOptions) -> None:
        """Raise InvalidRequest for a bias of no token."""
        if isinstance(options, GenerateOptions):
            checked_logit_bias(options.request.logit_bias, self._vocabulary_size)

    def score(self, context: str, texts: Sequence[str], options: ScoreOptions) -> Callable[[], Iterable[Scored]]:
        """Ask for texts, as many in one request as the service takes."""
        answers = [
            (self._begin(partial(self._scores, context, some, options)), len(some))
            for some in batches(texts, self.max_text_chars - len(context), self._max_texts)
        ]
        return partial(_await_scores, self.source, answers, options.log_base)

    def _scores(self, context: str, texts: list[str], options: ScoreOptions) -> list[bytes]:
        """Return the answers for texts, sent in halves where they are too many, as for the limits of a key."""
        try:
            return [self._post("/score", self._score_body(context, texts, options))]
        except Refused as error:
            if error.status != TOO_LARGE or len(texts) == 1:
                raise
        half = len(texts) // 2
        return self._scores(context, texts[:half], options) + self._scores(context, texts[half:], options)

    def piece_scorer(self, options: ScoreOptions) -> None:
        """Return None: texts are sent whole."""

    def generate(self, request: GenerateRequest, *, wants_counts: bool, label: str) -> Callable[[], Generated]:
        """Ask for the continuations of a prompt."""
        logprobs = 0 if wants_counts and request.logprobs is None else request.logprobs
        body = msgspec.structs.replace(request, model=self._model, logprobs=logprobs)
        answer = self._begin(partial(self._post, "/generate", body))
        return partial(_await_answer, self.source, answer, with_tokens=request.logprobs is not None, label=label)

    def stream(self, request: GenerateRequest, note_usage: Callable[[GenerateUsage], None]) -> Iterator[str]:
        """Yield the text of one sample as it comes, then a line end. Raises BulkError if the service's time was up."""
        reason, usage = "", None
        body = _encode(msgspec.structs.replace(request, model=self._model, stream=True))
        for data in self._service.stream("/generate", body):
            with _as_answers(self.source):
                event = _decode_event(data)

            for choice in event.choices:
                if choice.text:
                    yield choice.text
                reason = choice.finish_reason or reason
            usage = event.usage or usage
        yield "\n"
        if usage is not None:
            note_usage(usage)
        _check_time("the prompt", reason)

    def close(self) -> None:
        """Begin no more requests."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _post(self, path: str, body: object) -> bytes:
        """Return the answer. Raises RemoteError, or EngineFailed where the model fails at a text, as it does here."""
        try:
            return self._service.post(path, _encode(body))
        except Refused as error:
            if error.status == FAILED:
                raise EngineFailed(str(error)) from error
            raise

    def _begin(self, ask: Callable[[], Answer]) -> Callable[[], Answer]:
        """Ask when its turn comes; call the result to wait for the answer. Raises RemoteError, EngineFailed there."""
        return ask if self._pool is None else self._pool.submit(ask).result

    def _score_body(self, context: str, texts: list[str], options: ScoreOptions) -> dict[str, object]:
        named = {name: getattr(options, name) for name in ("add_end", "log_base", "tokens", "words", "top")}
        named |= {} if options.state is None else {"state": options.state}
        return {"model": self._model, "texts": texts, "context": context, **named}


@contextmanager
def _as_answers(url: str) -> Iterator[None]:
    """Raise BadAnswer for bytes that are no answer of meari."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        raise BadAnswer(url, OTHER_FIELDS) from None


def _await_scores(
    url: str, answers: Iterable[tuple[Callable[[], list[bytes]], int]], log_base: LogBase
) -> Iterator[Scored]:
    for answer, count in answers:
        several = answer()
        with _as_answers(url):
            results = [result for data in several for result in _decode_scores(data).results]
        if len(results) != count:
            raise BadAnswer(url, f"got the figures of {len(results)} texts, expected those of {count}")
        for result in results:
            result.log_base = log_base
            yield result


def _await_answer(url: str, answer: Callable[[], bytes], *, with_tokens: bool, label: str) -> Generated:
    """Wait for an answer. Its tokens stay in the choices only if the user asked for them."""
    data = answer()
    with _as_answers(url):
        found = _decode_answer(data)
        logprobs = [math.fsum(token.logprob for token in choice.tokens or []) for choice in found.choices]
    if not found.choices:
        raise BadAnswer(url, "got no text, expected one at least")
    tokens = [[] if choice.tokens is UNSET else choice.tokens for choice in found.choices]
    num_tokens = [len(some) for some in tokens]
    if not any(num_tokens):  # only the sum over the samples is known
        num_tokens = [found.usage.generated_tokens, *[0] * (len(found.choices) - 1)]
    for choice in found.choices:
        _check_time(label, choice.finish_reason)
        choice.tokens = choice.tokens if with_tokens else UNSET
    return Generated(found.seed, found.choices, found.usage, num_tokens, logprobs)


def _check_time(label: str, reason: object) -> None:
    if reason == OUT_OF_TIME:
        raise BulkError(f"{label}: the service's time for a request was up before the text was complete")

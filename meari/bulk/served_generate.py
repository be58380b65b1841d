"""Prompts → continuations by POST /generate of a running service: a chunk of lines at a time in a worker, or one.

A line's seed is the one that `generate.py` would take, so its text is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Final

import msgspec
from msgspec import UNSET

from meari.bulk.errors import BulkError
from meari.bulk.generate import Ending, GeneratedChunk, LongPrompt, line_request
from meari.bulk.generate_rows import Continued, GenerateRows, generate_rows
from meari.bulk.names import new_names, text_name
from meari.bulk.one_prompt import SEPARATOR, rows_of_one
from meari.bulk.options import GenerateOptions, OutputFormat
from meari.bulk.records import Problem, Reader, Record, up_to_bad
from meari.bulk.served import Served
from meari.client.service import RemoteService
from meari.runtime.answers import Choice, GenerateAnswer, GenerateUsage
from meari.runtime.requests import GenerateRequest, checked_logit_bias

__all__ = ["ServedGenerateWork", "continue_served_prompt"]

PATH: Final = "/generate"
OUT_OF_TIME: Final = "timeout"


class Event(msgspec.Struct):
    """What is read of an event of a stream; the last one has `usage` and no choices."""

    choices: list[Choice]
    seed: int | None = None
    usage: GenerateUsage | None = None


_encode: Final = msgspec.json.Encoder().encode
_decode_answer: Final = msgspec.json.Decoder(GenerateAnswer).decode
_decode_event: Final = msgspec.json.Decoder(Event).decode


class ServedGenerateWork:
    """What `meari generate --server` does with every chunk. Raises InvalidRequest where the settings do not fit."""

    def __init__(self, served: Served, options: GenerateOptions) -> None:
        checked_logit_bias(options.request.logit_bias, served.vocabulary_size)
        self._served = served
        self._options = options
        self._reader = Reader(options.input_format, text_name(options), with_context=False, taken=new_names(options))
        self.rows: GenerateRows = generate_rows(options)

    @property
    def head(self) -> bytes:
        """What stands before the first record of the output."""
        return self.rows.head()

    def begin(self, data: bytes, first_line: int, file: str = "") -> GeneratedChunk:
        """Ask for a chunk of whole lines."""
        lines = up_to_bad(self._reader.read(data, first_line, file), skips_bad=self._options.skip_bad)
        return GeneratedChunk(self, [(line, self._begun(line)) for line in lines])

    def begin_long(self, line: int, file: str = "") -> LongPrompt:
        """A prompt that is too long."""
        return LongPrompt(self, line, file)

    def _begun(self, line: Record | Problem) -> Ending | None:
        if isinstance(line, Problem):
            return None
        body = _body(line_request(self._options, line), self._served.model, self._options.format)
        where = f"line {line.line}"
        return partial(_continued, self._served.ask(PATH, body), self._options.request.logprobs is not None, where)


def continue_served_prompt(
    service: RemoteService,
    model: str | None,
    request: GenerateRequest,
    output_format: OutputFormat,
    note_usage: Callable[[GenerateUsage], None],
) -> Generator[bytes]:
    """What is to be written, as soon as it is known; then `note_usage` is told of the tokens.

    Raises RemoteError, BulkError where the service's time was up.
    """
    if output_format == "text" and request.n == 1:
        yield from _streamed(service, _body(request, model, output_format, stream=True), note_usage)
        return
    with_tokens = request.logprobs is not None
    body = _body(request, model, output_format)
    continued = _continued(partial(service.post, PATH, body), with_tokens, "the prompt")
    if output_format == "text":
        yield SEPARATOR.join(f"{choice.text}\n" for choice in continued.choices).encode("utf-8")
    else:
        yield rows_of_one(request, output_format, continued)
    note_usage(continued.usage)


def _streamed(service: RemoteService, body: bytes, note_usage: Callable[[GenerateUsage], None]) -> Iterator[bytes]:
    """The one sample, as it comes, and a line end."""
    reason, usage = "", None
    for event in map(_decode_event, service.stream(PATH, body)):
        for choice in event.choices:
            if choice.text:
                yield choice.text.encode("utf-8")
            reason = choice.finish_reason or reason
        usage = event.usage or usage
    yield b"\n"
    if usage is not None:
        note_usage(usage)
    _check_time("the prompt", reason)


def _body(request: GenerateRequest, model: str | None, output_format: OutputFormat, *, stream: bool = False) -> bytes:
    """The request in JSON; rows need the log-probabilities of all tokens."""
    logprobs = 0 if output_format == "tsv" and request.logprobs is None else request.logprobs
    model_name = UNSET if model is None else model
    return _encode(msgspec.structs.replace(request, model=model_name, logprobs=logprobs, stream=stream))


def _continued(answer: Callable[[], bytes], with_tokens: bool, where: str) -> Continued:
    """Wait for an answer. Its tokens stay in the choices where they were asked for."""
    found = _decode_answer(answer())
    tokens = [[] if choice.tokens is UNSET else choice.tokens for choice in found.choices]
    num_tokens = [len(some) for some in tokens]
    if not any(num_tokens):  # of the samples together it is known how many there are
        num_tokens = [found.usage.generated_tokens, *[0] * (len(found.choices) - 1)]
    for choice in found.choices:
        _check_time(where, choice.finish_reason)
        choice.tokens = choice.tokens if with_tokens else UNSET
    logprobs = [math.fsum(token.logprob for token in some) for some in tokens]
    return Continued(found.seed, found.choices, found.usage, num_tokens, logprobs)


def _check_time(where: str, reason: object) -> None:
    if reason == OUT_OF_TIME:
        raise BulkError(f"{where}: the service's time for a request was up before the text was complete")

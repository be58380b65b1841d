"""What a run is told to do, as it goes to the workers. Leaves nothing; knows no command line."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from meari.runtime.requests import GenerateRequest, LogBase, checked_generate
from meari.runtime.text.words import Words
from meari.validation.parsing import Parser

__all__ = ["GenerateOptions", "InputFormat", "OutputFormat", "ScoreOptions", "WorkOptions", "checked_request"]

InputFormat = Literal["text", "jsonl"]
OutputFormat = Literal["jsonl", "tsv", "text"]


class WorkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Of every kind of work.

    bundle    path of the bundle's folder; with `server` the name of one of its models
    server    URL of the service that does the work, "" for engines of our own
    columns   fields of the input that are columns of a TSV output
    skip_bad  a bad line becomes an error record instead of the end
    with_text whether the input's text is repeated in the output
    with_file whether records say which file they are of
    field     of JSONL the text, "" is `text` of `meari score` and `prompt` of `meari generate`
    prefix    of the names of all figures in the output
    """

    bundle: str
    input_format: InputFormat
    format: OutputFormat
    columns: tuple[str, ...] = ()
    skip_bad: bool = False
    with_text: bool = True
    with_file: bool = False
    field: str = ""
    prefix: str = ""
    server: str = ""


class ScoreOptions(WorkOptions, frozen=True, kw_only=True, tag="score"):
    """Of `meari score`; fields as in POST /score, `add_end` with what the bundle says where nobody did."""

    context: str = ""
    add_end: bool = True
    log_base: LogBase = "e"
    tokens: bool = False
    words: Words = False
    top: int = 0


class GenerateOptions(WorkOptions, frozen=True, kw_only=True, tag="generate"):
    """Of `meari generate`. The request's prompt and seed are set anew for every line, the seed from `seed`."""

    request: GenerateRequest
    seed: int


class _Request(GenerateRequest, kw_only=True, forbid_unknown_fields=True, frozen=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 64


_requests: Final = Parser(_Request)


def checked_request(body: bytes) -> GenerateRequest:
    """A request in JSON, held to the ranges of POST /generate but for the server's limits. Raises InvalidRequest."""
    return checked_generate(_requests.parse(body))

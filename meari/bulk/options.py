"""Options of a run, as they go to the workers, and the names that they give to the fields and columns of the output.

Input: fields of options. Output: frozen structs, and names. Must not know: the command line, values of figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from meari.runtime.answers import TextFigures
from meari.runtime.requests import GenerateRequest, LogBase, checked_generate
from meari.runtime.text.words import Words
from meari.validation.parsing import Parser

__all__ = [
    "ERROR",
    "FILE",
    "TEXT_FIGURES",
    "GenerateOptions",
    "InputFormat",
    "OutputFormat",
    "ScoreOptions",
    "Share",
    "WorkOptions",
    "checked_request",
    "figure_names",
    "figure_types",
    "new_names",
    "share_of",
    "text_name",
]

InputFormat = Literal["text", "jsonl"]
OutputFormat = Literal["jsonl", "tsv", "text"]
TEXT_FIGURES: Final[tuple[str, ...]] = TextFigures.__struct_fields__
TOKEN_FIGURES: Final = ("token_number", "token", "token_id", "logprob", "surprisal", "rank", "start", "end", "unknown")
WORD_FIGURES: Final = ("word_number", "word", "logprob", "surprisal", "start", "end", "unknown")
ANSWER_FIELDS: Final = ("seed", "choices", "usage")
SAMPLE_FIGURES: Final = ("seed", "index", "finish_reason", "generated_tokens", "logprob", "unknown_tokens", "text")
FILE: Final = "file"
ERROR: Final = "error"


class WorkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that both verbs share.

    bundle    path of the bundle's folder; with `server` the name of one of its models
    server    URL of the service that does the work, "" for engines of our own
    columns   fields of the input that are columns of a TSV output
    skip_bad  a bad line becomes an error record instead of the end
    with_text repeat the input's text in the output
    with_file name the file in every record
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
    """Options of `meari score`; fields as in POST /score, `add_end` as the bundle says unless the user said it.

    state  a state token to score from, in place of a context
    """

    context: str = ""
    state: str | None = None
    add_end: bool = True
    log_base: LogBase = "e"
    tokens: bool = False
    words: Words = False
    top: int = 0


class GenerateOptions(WorkOptions, frozen=True, kw_only=True, tag="generate"):
    """Options of `meari generate`. Each line sets the request's prompt and seed anew, the seed from `seed`."""

    request: GenerateRequest
    seed: int


@dataclass(frozen=True, slots=True)
class Share:
    """Bounds of a chunk, and of the work that one engine holds at a time."""

    lines: int
    min_bytes: int
    max_bytes: int
    lines_held: int
    bytes_held: int


SCORE_SHARE: Final = Share(lines=512, min_bytes=2048, max_bytes=1 << 16, lines_held=1024, bytes_held=1 << 20)
GENERATE_SHARE: Final = Share(lines=32, min_bytes=256, max_bytes=1 << 15, lines_held=384, bytes_held=1 << 20)


def share_of(options: WorkOptions) -> Share:
    """Return the bounds for a verb."""
    return SCORE_SHARE if isinstance(options, ScoreOptions) else GENERATE_SHARE


class _Request(GenerateRequest, kw_only=True, forbid_unknown_fields=True, frozen=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 64


_requests: Final = Parser(_Request)


def checked_request(body: bytes) -> GenerateRequest:
    """Parse a JSON request within the ranges of POST /generate, without a server's limits. Raises InvalidRequest."""
    return checked_generate(_requests.parse(body))


def text_name(options: WorkOptions) -> str:
    """Return the field of JSONL that is the text to work on."""
    return options.field or ("text" if isinstance(options, ScoreOptions) else "prompt")


def figure_names(options: WorkOptions) -> tuple[str, ...]:
    """Return the names of the output's figures, in its order."""
    return tuple(options.prefix + name for name in _figure_names(options))


def figure_types(options: WorkOptions) -> dict[str, type]:
    """Return the types of what the output adds to every record of JSONL, as far as they are plain."""
    plain: dict[str, type] = {"seed": int}
    if isinstance(options, ScoreOptions):
        plain = {field.name: int if field.type is int else float for field in msgspec.structs.fields(TextFigures)}
    types = {options.prefix + name: kind for name, kind in plain.items()}
    file = {options.prefix + FILE: str} if options.with_file else {}
    error = {options.prefix + ERROR: str} if options.skip_bad else {}
    return {**file, **types, **error}


def new_names(options: WorkOptions) -> tuple[str, ...]:
    """Return all names that the output adds, which no field of the input may have."""
    file = [options.prefix + FILE] if options.with_file else []
    error = [options.prefix + ERROR] if options.skip_bad else []
    return (*file, *figure_names(options), *error)


def _figure_names(options: WorkOptions) -> tuple[str, ...]:
    if not isinstance(options, ScoreOptions):
        return SAMPLE_FIGURES if options.format == "tsv" else ANSWER_FIELDS
    if options.format == "jsonl":
        parts = (name for name, is_there in (("tokens", options.tokens), ("words", options.words)) if is_there)
        return (*TEXT_FIGURES, *parts)
    if options.tokens:
        return (*TOKEN_FIGURES, "top") if options.top else TOKEN_FIGURES
    return WORD_FIGURES if options.words else TEXT_FIGURES

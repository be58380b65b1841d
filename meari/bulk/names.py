"""Names of fields and columns: of the text in the input, of the figures in the output. Knows no values."""

from __future__ import annotations

from typing import Final

from meari.bulk.options import ScoreOptions, WorkOptions
from meari.runtime.answers import TextFigures

__all__ = ["ERROR", "FILE", "TEXT_FIGURES", "figure_names", "new_names", "text_name"]

TEXT_FIGURES: Final[tuple[str, ...]] = TextFigures.__struct_fields__
TOKEN_FIGURES: Final = ("token_number", "token", "token_id", "logprob", "surprisal", "rank", "start", "end", "unknown")
WORD_FIGURES: Final = ("word_number", "word", "logprob", "surprisal", "start", "end", "unknown")
ANSWER_FIELDS: Final = ("seed", "choices", "usage")
SAMPLE_FIGURES: Final = ("seed", "index", "finish_reason", "generated_tokens", "logprob", "unknown_tokens", "text")
FILE: Final = "file"
ERROR: Final = "error"


def text_name(options: WorkOptions) -> str:
    """The field of JSONL that is the text to work on."""
    return options.field or ("text" if isinstance(options, ScoreOptions) else "prompt")


def figure_names(options: WorkOptions) -> tuple[str, ...]:
    """The figures of the output, in its order."""
    return tuple(options.prefix + name for name in _figure_names(options))


def new_names(options: WorkOptions) -> tuple[str, ...]:
    """All names that the output adds, by which no field of the input may be called."""
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

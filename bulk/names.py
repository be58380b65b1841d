"""Names of fields and columns: of the text in the input, of the figures in the output. Knows no values."""

from __future__ import annotations

from typing import Final

from bulk.options import ScoreOptions, WorkOptions
from service.answers.bodies import TextFigures

__all__ = ["TEXT_FIGURES", "figure_names", "text_name"]

TEXT_FIGURES: Final[tuple[str, ...]] = TextFigures.__struct_fields__
TOKEN_FIGURES: Final = ("token_number", "token", "token_id", "logprob", "surprisal", "rank", "start", "end", "unknown")
WORD_FIGURES: Final = ("word_number", "word", "logprob", "surprisal", "start", "end", "unknown")
ANSWER_FIELDS: Final = ("seed", "choices", "usage", "error")
SAMPLE_FIGURES: Final = ("seed", "index", "finish_reason", "generated_tokens", "logprob", "text")


def text_name(options: WorkOptions) -> str:
    """The field of JSONL that is the text to work on."""
    return "text" if isinstance(options, ScoreOptions) else "prompt"


def figure_names(options: WorkOptions) -> tuple[str, ...]:
    """What the output adds, in its order: a field of the input that is called so gives way."""
    if not isinstance(options, ScoreOptions):
        return SAMPLE_FIGURES if options.format == "tsv" else ANSWER_FIELDS
    if options.format == "jsonl":
        return (*TEXT_FIGURES, "tokens", "words", "error")
    if options.tokens:
        return (*TOKEN_FIGURES, "top") if options.top else TOKEN_FIGURES
    return WORD_FIGURES if options.words else TEXT_FIGURES

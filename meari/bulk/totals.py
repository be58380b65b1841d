"""Sums over a whole run, and the figures that they give.

Input: the sums of texts. Output: a summary. Must not know: lines, processes.

Log-probabilities are summed as integers of the engine's grid, so a sum is exact and does not depend on the order, on
how many processes ran or on whether a run was interrupted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import msgspec

from meari.runtime.requests import LogBase
from meari.runtime.scores import TextSums

__all__ = ["GenerateTotals", "ScoreTotals", "Totals"]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts; the sum of two is that of their fields."""

    num_bad_lines: int = 0

    def plus(self, other: Self) -> Self:
        """Return the sums of both."""
        names = self.__struct_fields__
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})


class ScoreTotals(Totals, frozen=True, kw_only=True, tag="score"):
    """Sums of scored texts; the last two in units of the grid (see `meari.runtime.engine.calls`).

    num_blank  texts of white space alone, which count for nothing else: training skips them, too
    """

    num_texts: int = 0
    num_blank: int = 0
    num_tokens: int = 0
    num_chars: int = 0
    num_bytes: int = 0
    num_unknown: int = 0
    logprob_units: int = 0
    known_logprob_units: int = 0

    @classmethod
    def of(cls, texts: Sequence[TextSums], *, num_blank: int = 0, num_bad_lines: int = 0) -> ScoreTotals:
        """Return the sums of the texts of a chunk that are not blank."""
        return cls(
            num_bad_lines=num_bad_lines,
            num_texts=len(texts),
            num_blank=num_blank,
            num_tokens=sum(text.num_tokens for text in texts),
            num_chars=sum(text.num_chars for text in texts),
            num_bytes=sum(text.num_bytes for text in texts),
            num_unknown=sum(text.num_unknown for text in texts),
            logprob_units=sum(text.logprob_units for text in texts),
            known_logprob_units=sum(text.known_logprob_units for text in texts),
        )

    def sums(self) -> TextSums:
        """Return the sums of all texts as if they were one."""
        return TextSums(
            self.logprob_units,
            self.known_logprob_units,
            self.num_tokens,
            self.num_chars,
            self.num_bytes,
            self.num_unknown,
        )

    def summary(self, log_base: LogBase, *, add_end: bool) -> dict[str, Any]:
        """Return the figures of the corpus: perplexities weighted by tokens, bits by characters and bytes.

        add_end  the end of each text is among its tokens; then one figure counts it as a character as well
        """
        num_ends = self.num_texts if add_end else 0
        sums = self.sums()
        figures = sums.figures(log_base)
        known = self.num_tokens - self.num_unknown
        return {
            "num_texts": self.num_texts,
            "num_blank": self.num_blank,
            "num_bad_lines": self.num_bad_lines,
            "num_tokens": self.num_tokens,
            "num_unknown": self.num_unknown,
            "num_chars": self.num_chars,
            "num_bytes": self.num_bytes,
            "num_ends": num_ends,
            "log_base": log_base,
            "logprob": figures.logprob,
            "logprob_without_unknown": figures.logprob_without_unknown,
            "perplexity": figures.perplexity,
            "perplexity_without_unknown": _perplexity(sums.known_logprob, known),
            "bits_per_char": figures.bits_per_char,
            "bits_per_char_with_ends": replace(sums, num_chars=sums.num_chars + num_ends).figures("2").bits_per_char,
            "bits_per_byte": figures.bits_per_byte,
        }


class GenerateTotals(Totals, frozen=True, kw_only=True, tag="generate"):
    """Sums of continued prompts."""

    num_prompts: int = 0
    num_samples: int = 0
    prompt_tokens: int = 0
    unknown_tokens: int = 0  # of the prompts
    generated_tokens: int = 0
    num_ended: int = 0  # samples by what ended them: the end token, a stop string, max_tokens
    num_stopped: int = 0
    num_cut: int = 0

    def summary(self) -> dict[str, Any]:
        """Return the counts by their names."""
        counts: dict[str, Any] = msgspec.structs.asdict(self)
        ended, stopped, cut = (counts.pop(name) for name in ("num_ended", "num_stopped", "num_cut"))
        return {**counts, "finish_reasons": {"end": ended, "stop": stopped, "length": cut}}


def _perplexity(logprob: float, num_tokens: int) -> float | None:
    if not num_tokens:
        return None
    nats = -logprob / num_tokens
    return math.exp(nats) if nats < 709.0 else sys.float_info.max

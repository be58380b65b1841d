"""What the log-probabilities of one text, or of many, come to.

Enters: sums in units of the engine's grid, and counts. Leaves: the figures of /score. Sums are integers, so that those
of parts add up to that of the whole, bit for bit.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Final

from meari.runtime.answers import TextFigures
from meari.runtime.engine.calls import GRID
from meari.service.requests.schema import LogBase

__all__ = ["LN_OF", "TextSums", "in_base"]

LN2: Final = math.log(2.0)
LN_OF: Final[dict[LogBase, float]] = {"e": 1.0, "2": LN2, "10": math.log(10.0)}


@dataclass(frozen=True, slots=True)
class TextSums:
    """Log-probabilities in units of 1 / GRID nats: of all tokens, and without the unknown ones."""

    logprob_units: int
    known_logprob_units: int
    num_tokens: int
    num_chars: int
    num_bytes: int
    num_unknown: int

    @property
    def logprob(self) -> float:
        """In nats."""
        return self.logprob_units / GRID

    @property
    def known_logprob(self) -> float:
        """In nats."""
        return self.known_logprob_units / GRID

    def plus(self, other: TextSums) -> TextSums:
        """Both as one text."""
        return TextSums(
            self.logprob_units + other.logprob_units,
            self.known_logprob_units + other.known_logprob_units,
            self.num_tokens + other.num_tokens,
            self.num_chars + other.num_chars,
            self.num_bytes + other.num_bytes,
            self.num_unknown + other.num_unknown,
        )

    def figures(self, log_base: LogBase) -> TextFigures:
        """Logarithms in that base, bits always in base 2."""
        total = self.logprob
        return TextFigures(
            logprob=in_base(total, log_base),
            probability=math.exp(min(total, 0.0)),
            perplexity=_exp(-total / self.num_tokens) if self.num_tokens else None,
            bits_per_char=_per(-total / LN2, self.num_chars),
            bits_per_byte=_per(-total / LN2, self.num_bytes),
            num_tokens=self.num_tokens,
            num_chars=self.num_chars,
            num_bytes=self.num_bytes,
            num_unknown=self.num_unknown,
            logprob_without_unknown=in_base(self.known_logprob, log_base),
        )


def in_base(logprob: float, log_base: LogBase) -> float:
    """Nats in another base; never -0.0."""
    return logprob / LN_OF[log_base] + 0.0


def _exp(nats: float) -> float:
    """exp, or the largest float where that would overflow: JSON has no infinity."""
    return math.exp(nats) if nats < 709.0 else sys.float_info.max


def _per(bits: float, count: int) -> float | None:
    return bits / count + 0.0 if count else None

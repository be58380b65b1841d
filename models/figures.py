"""Held-out figures of a model, and their text for a reader.

Input: sums of -ln P in nats and counts. Output: `Figures`, and text that never exceeds its column, however badly a
training went. Must not know: models, torch, files.
"""

import dataclasses
import math
from dataclasses import dataclass

from meari.models.errors import NotFinite

MAX_SHOWN = 1e6
MAX_NATS = 700.0  # exp of more overflows


def perplexity(nats_per_token: float) -> float:
    """Return exp of nats per token, held below infinity."""
    return math.exp(min(nats_per_token, MAX_NATS))


def show_perplexity(figure: float, decimals: int = 2) -> str:
    """Format a perplexity; beyond a million only as a bound."""
    if math.isinf(figure):
        return "inf"
    return f"{figure:.{decimals}f}" if figure < MAX_SHOWN else "> 1e6"


def show_figure(figure: float, decimals: int = 4) -> str:
    """Format a figure with that many decimals, or as a power of ten if it would fill the line."""
    return f"{figure:.{decimals}f}" if abs(figure) < MAX_SHOWN else f"{figure:.2e}"


def worse_than_guessing(nats_per_token: float, vocabulary_size: int) -> str | None:
    """Return a sentence about a held-out loss above that of guessing evenly among all tokens; None for a lower one."""
    uniform = math.log(vocabulary_size)
    if nats_per_token <= uniform:
        return None
    return (
        f"held-out text takes {show_figure(nats_per_token)} nats a token, more than guessing evenly among "
        f"{vocabulary_size:,} tokens ({uniform:.4f}): the training diverged or was far too short; lower "
        "training.learning_rate or training.clip_norm, raise training.warmup_steps, or train for longer"
    )


@dataclass(frozen=True)
class Figures:
    """Held-out figures. Characters and bytes are those of the text in NFC; `num_ends` are the ends in `num_tokens`."""

    nats_per_token: float
    perplexity: float
    nats_per_char: float
    bits_per_char: float
    bits_per_char_with_ends: float
    bits_per_byte: float
    num_tokens: int
    num_characters: int
    num_bytes: int
    num_ends: int

    def to_json(self) -> dict[str, float | int]:
        return dataclasses.asdict(self)


def figures(nats: float, num_tokens: int, num_characters: int, num_bytes: int, num_ends: int) -> Figures:
    """Compute all figures from a sum of -ln P in nats. Raises NotFinite."""
    if not math.isfinite(nats):
        raise NotFinite(f"the cross-entropy of held-out text is {nats}: the weights are not usable")
    bits = nats / math.log(2)
    per_token = nats / num_tokens
    return Figures(
        nats_per_token=per_token,
        perplexity=perplexity(per_token),
        nats_per_char=nats / num_characters,
        bits_per_char=bits / num_characters,
        bits_per_char_with_ends=bits / (num_characters + num_ends),
        bits_per_byte=bits / num_bytes,
        num_tokens=num_tokens,
        num_characters=num_characters,
        num_bytes=num_bytes,
        num_ends=num_ends,
    )

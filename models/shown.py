"""How figures are written for a reader: never wider than their column, however badly a training went.

In: figures. Out: text. JSON keeps the numbers themselves, which are finite always.
"""

import math

MOST_SHOWN = 1e6
MOST_NATS = 700.0  # exp of more is no float


def perplexity(nats_per_token: float) -> float:
    """exp of nats per token, held below infinity."""
    return math.exp(min(nats_per_token, MOST_NATS))


def show_perplexity(figure: float, decimals: int = 2) -> str:
    """Beyond a million only that it is."""
    if math.isinf(figure):
        return "inf"
    return f"{figure:.{decimals}f}" if figure < MOST_SHOWN else "> 1e6"


def show_figure(figure: float, decimals: int = 4) -> str:
    """So many decimals, or a power of ten where a diverged training would fill a line with digits."""
    return f"{figure:.{decimals}f}" if abs(figure) < MOST_SHOWN else f"{figure:.2e}"


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

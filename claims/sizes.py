"""How large everything is, for a budget in minutes.

In: minutes. Out: `Sizes`. The same minutes give the same sizes on every machine, so that the numbers are the same
wherever the budget suffices; what it does not suffice for is left out (`claims.budget`).
"""

from dataclasses import dataclass, replace

FULL_MINUTES = 30.0
LEAST_STEPS = 60


@dataclass(frozen=True)
class Sizes:
    """parameters          trained ones of every model
    steps, batch_size, chunk_length, evaluate_every, patience   of training; patience counts evaluations
    evaluated_tokens       of the validation part, for early stopping
    horizon                claim 1: the largest k, in tokens
    gradient_sequences, gradient_places   claim 1: sequences, and places t in each
    radii, scaled_steps, scaled_parameters   claim 2: spectral radii, steps of training for each, size of the net
    gate_sequences, gate_tokens   claim 3
    shares                 claim 4: of the training part, the ends first, so that a short budget still has them
    lengths, length_steps  claim 5: tokens that the gradient goes back, and steps of training for each
    memory_tokens, memory_delays   claim 5: the memory curve
    contexts, context_places   claim 6: tokens of history, the longest last, and how many places are predicted
    prompt_tokens, written_tokens, written_texts   claim 7
    made_characters        of the text made by the grammar
    """

    parameters: int = 100_000
    embedding_size: int = 32
    block_size: int = 64
    batch_size: int = 32
    chunk_length: int = 64
    steps: int = 800
    evaluate_every: int = 40
    patience: int = 5
    evaluated_tokens: int = 20_000
    horizon: int = 100
    gradient_sequences: int = 64
    gradient_places: int = 4
    radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    scaled_steps: int = 300
    scaled_parameters: int = 20_000
    gate_sequences: int = 32
    gate_tokens: int = 1024
    shares: tuple[float, ...] = (1.0, 0.01, 0.1, 0.03, 0.3)
    lengths: tuple[int, ...] = (8, 32, 128, 512)
    length_steps: int = 120
    memory_tokens: int = 25_600
    memory_delays: int = 60
    contexts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    context_places: int = 2048
    prompt_tokens: int = 256
    written_tokens: int = 1000
    written_texts: int = 44
    made_characters: int = 600_000


QUICK = Sizes(
    parameters=10_000,
    embedding_size=16,
    block_size=16,
    batch_size=16,
    chunk_length=32,
    steps=150,
    evaluate_every=25,
    evaluated_tokens=4_000,
    horizon=40,
    gradient_sequences=16,
    gradient_places=2,
    radii=(0.5, 1.0, 3.0),
    scaled_steps=30,
    scaled_parameters=5_000,
    gate_sequences=8,
    gate_tokens=256,
    shares=(1.0, 0.1, 0.3),
    lengths=(8, 32, 128),
    length_steps=20,
    memory_tokens=12_800,
    memory_delays=30,
    contexts=(1, 2, 4, 8, 16, 32, 64),
    context_places=256,
    prompt_tokens=64,
    written_tokens=300,
    written_texts=8,
    made_characters=120_000,
)


def sizes_for(minutes: float, is_quick: bool) -> Sizes:
    """Sizes that fit so many minutes of one core; --quick takes a fixed small set."""
    if is_quick:
        return QUICK
    full, share = Sizes(), min(1.0, minutes / FULL_MINUTES)
    return replace(
        full,
        steps=max(LEAST_STEPS, round(full.steps * share)),
        scaled_steps=max(LEAST_STEPS // 2, round(full.scaled_steps * share)),
        length_steps=max(LEAST_STEPS // 2, round(full.length_steps * share)),
        context_places=max(256, round(full.context_places * share)),
    )

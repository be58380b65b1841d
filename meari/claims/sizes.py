"""Sizes of all measurements for a budget in minutes, and the smallest sizes that are judged.

Input: minutes. Output: `Sizes`. Must not know: time: the same minutes give the same sizes on every machine, so that the
numbers are the same wherever the budget suffices; measurements beyond it are left out (`meari.claims.training`).
"""

from dataclasses import dataclass, replace

FULL_MINUTES = 30.0
MIN_STEPS = 60

JUDGED_SEEDS = 3
JUDGED_CHARACTERS = 300_000
JUDGED_SIZES = {
    "parameters": (25_000, "trained parameters"),
    "steps": (300, "training steps"),
    "scaled_steps": (100, "training steps in claim 2"),
    "length_steps": (40, "training steps in claim 5"),
    "context_places": (500, "places in claim 6"),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements.

    seeds                  of weights, streams and sampling; everything is measured once for each
    parameters          trained ones of every model
    steps, batch_size, chunk_length, evaluate_every   of training
    evaluated_tokens       of the validation part, for choosing the length of schedules
    horizon                claim 1: the largest k, in tokens
    gradient_sequences, gradient_places   claim 1: sequences, and places t in each
    radii, rates, scaled_steps, scaled_parameters   claim 2: spectral radii, learning rates at each, steps of training
                           for each, size of the net
    gate_sequences, gate_tokens   claim 3
    shares                 claim 4: of the training part, the ends first, so that a short budget still has them
    lengths, length_steps  claim 5: tokens that the gradient goes back, and steps of training for each
    memory_tokens, memory_delays   claim 5: the memory curve
    contexts, context_places   claim 6: tokens of history, the longest last, and how many places are predicted
    prompt_tokens, written_tokens, written_texts   claim 7
    made_characters        of the text made by the grammar
    """

    seeds: tuple[int, ...] = (1, 2, 3)
    parameters: int = 30_000
    embedding_size: int = 32
    block_size: int = 64
    batch_size: int = 32
    chunk_length: int = 64
    steps: int = 400
    evaluate_every: int = 40
    evaluated_tokens: int = 10_000
    horizon: int = 100
    gradient_sequences: int = 64
    gradient_places: int = 2
    radii: tuple[float, ...] = (1.0, 2.0, 3.0)
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    scaled_steps: int = 150
    scaled_parameters: int = 20_000
    gate_sequences: int = 32
    gate_tokens: int = 1024
    shares: tuple[float, ...] = (1.0, 0.01, 0.1)
    lengths: tuple[int, ...] = (8, 64, 512)
    length_steps: int = 60
    memory_tokens: int = 19_200
    memory_delays: int = 50
    contexts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    context_places: int = 1024
    prompt_tokens: int = 256
    written_tokens: int = 1000
    written_texts: int = 44
    made_characters: int = 600_000


QUICK = Sizes(
    seeds=(1,),
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
    rates=(0.1, 1.0, 10.0),
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


def sizes_for(minutes: float, *, is_quick: bool) -> Sizes:
    """Return the sizes that fit so many minutes of one core; --quick takes a fixed small set."""
    if is_quick:
        return QUICK
    full, share = Sizes(), min(1.0, minutes / FULL_MINUTES)
    return replace(
        full,
        steps=max(MIN_STEPS, round(full.steps * share)),
        scaled_steps=max(MIN_STEPS // 2, round(full.scaled_steps * share)),
        length_steps=max(MIN_STEPS // 2, round(full.length_steps * share)),
        context_places=max(256, round(full.context_places * share)),
    )


def below_judged(sizes: Sizes, num_characters: int) -> tuple[str, ...]:
    """Return the sizes that are too small for a verdict, a phrase each; nothing if all are large enough."""
    counts = [(getattr(sizes, name), least, noun) for name, (least, noun) in JUDGED_SIZES.items()]
    counts += [(num_characters, JUDGED_CHARACTERS, "characters of text"), (len(sizes.seeds), JUDGED_SEEDS, "seeds")]
    return tuple(f"{noun}: {count:,}, judged from {least:,}" for count, least, noun in counts if count < least)

"""Workbenches for tests: a made text, models of about 1,500 weights, a few training steps."""

from dataclasses import replace

from meari.claims.sizes import QUICK, Sizes
from meari.claims.text import Text, made_text, split_text
from meari.claims.training import Budget
from meari.claims.workbench import Workbench

TINY: Sizes = replace(
    QUICK,
    seeds=(1, 2),
    parameters=1_500,
    embedding_size=8,
    block_size=8,
    batch_size=8,
    chunk_length=16,
    steps=12,
    evaluate_every=6,
    evaluated_tokens=1_000,
    horizon=12,
    gradient_sequences=4,
    rates=(0.1, 1.0),
    scaled_steps=6,
    scaled_parameters=1_500,
    gate_sequences=4,
    gate_tokens=128,
    shares=(1.0, 0.1),
    lengths=(4, 16),
    length_steps=4,
    memory_tokens=3_200,
    memory_delays=5,
    contexts=(1, 4, 16),
    context_places=64,
    prompt_tokens=32,
    written_tokens=100,
    written_texts=4,
)


def small_text(num_characters: int = 24_000) -> Text:
    return split_text("made", made_text(num_characters, seed=3))


def tiny_bench(seconds: float = 1000.0, seed: int = 1) -> Workbench:
    """Make a workbench with a stopped clock; a positive budget never ends."""
    return Workbench(small_text(), TINY, Budget.of(seconds, lambda: 0.0), lambda line: None, seed)

"""How many steps a run has and which learning rate each of them takes. Pure arithmetic on the config."""

import math

from meari.models.config import TrainingConfig


def num_steps(config: TrainingConfig, num_targets: int) -> int:
    """Steps of a whole run: as configured, or enough to take `epochs` times `num_targets` tokens."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None, "a config has steps or epochs"
    return max(1, math.ceil(config.epochs * num_targets / tokens_per_step(config, num_targets)))


def chunk_length(config: TrainingConfig, num_targets: int) -> int:
    """Tokens that a stream takes in one step: as configured, and never more than the corpus has."""
    return min(config.chunk_length, num_targets)


def tokens_per_step(config: TrainingConfig, num_targets: int) -> int:
    """Tokens that all streams take together in one step."""
    return config.batch_size * chunk_length(config, num_targets)


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The rate of one step: a straight line up to `learning_rate`, then a half cosine down to `min_learning_rate`.

    step   from 0 to total_steps - 1; the first one already learns
    """
    peak, floor = config.learning_rate, config.min_learning_rate
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    share_done = (step - warmup) / max(1, total_steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share_done))

"""Names that a config may choose from, besides those that a bundle has too (`meari.bundle_format.names`).

Input: nothing. Output: enums. Must not know: the settings that use them.
"""

from __future__ import annotations

from enum import StrEnum


class Pattern(StrEnum):
    """Places of a reservoir's recurrent weights."""

    BLOCK = "block"
    RANDOM = "random"


class Spread(StrEnum):
    """Distribution over a range: even, or even on a logarithmic scale."""

    EVEN = "even"
    LOG = "log"


class Reach(StrEnum):
    """Number of last tokens that a unit sees: all of `input_tokens`, or the last 1, 2, … of them in turn."""

    ALL = "all"
    STAGGERED = "staggered"


class Readout(StrEnum):
    """Training of a reservoir's output layer."""

    SOFTMAX = "softmax"
    RIDGE = "ridge"


class TrainingPrecision(StrEnum):
    """Type of the products of a training; weights and their updates are always float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Schedule(StrEnum):
    """Measure of a training's progress, along which the learning rate falls."""

    STEPS = "steps"
    CLOCK = "clock"


class Optimizer(StrEnum):
    """Rule by which the weights move; Muon moves the matrices of recurrences, and AdamW everything else then."""

    ADAMW = "adamw"
    MUON = "muon"


class Averaging(StrEnum):
    """Mean of the weights over the steps that is measured and kept."""

    NONE = "none"
    EMA = "ema"
    TRIGGERED = "triggered"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"

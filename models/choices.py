"""Names that a config may choose from, besides those that a bundle has too (`meari.bundle_format.names`).

Input: nothing. Output: enums. Must not know: the settings that use them.
"""

from __future__ import annotations

from enum import StrEnum


class Pattern(StrEnum):
    """Where a reservoir's recurrent weights are."""

    BLOCK = "block"
    RANDOM = "random"


class Spread(StrEnum):
    """How numbers are drawn from a range: evenly, or evenly on a logarithmic scale."""

    EVEN = "even"
    LOG = "log"


class Reach(StrEnum):
    """How many of the last tokens a unit sees: all of `input_tokens`, or the last 1, 2, … of them by turns."""

    ALL = "all"
    STAGGERED = "staggered"


class Readout(StrEnum):
    """How a reservoir's output layer is trained."""

    SOFTMAX = "softmax"
    RIDGE = "ridge"


class TrainingPrecision(StrEnum):
    """What the products of a training are computed in; weights and their updates are float32 always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Averaging(StrEnum):
    """Which mean of the weights over the steps is measured and kept."""

    NONE = "none"
    EMA = "ema"
    TRIGGERED = "triggered"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"

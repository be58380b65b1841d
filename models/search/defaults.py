"""What is varied where nobody says: the settings that matter most for a family, in ranges that hold good values.

In: a config. Out: ranges as `meari.models.search.space` reads them.
"""

from typing import Any

from meari.models.choices import Readout
from meari.models.config import Config, ReservoirConfig


def default_ranges(config: Config) -> dict[str, Any]:
    """By the name of the setting, as in TOML."""
    if isinstance(config.model, ReservoirConfig):
        return _reservoir(config.model)
    return {
        "training.learning_rate": {"log": [5e-4, 2e-2]},
        "training.weight_decay": {"log": [1e-3, 1.0]},
        "training.clip_norm": {"log": [0.1, 3.0]},
        "model.dropout": {"even": [0.0, 0.6]},
    }


def _reservoir(model: ReservoirConfig) -> dict[str, Any]:
    ranges: dict[str, Any] = {
        "model.spectral_radius": {"log": [0.05, 1.5]},
        "model.leak_min": {"log": [min(0.05, model.leak_max / 4), model.leak_max]},
        "model.input_scale": {"log": [0.2, 5.0]},
        "model.bias_scale": {"log": [0.02, 2.0]},
    }
    if model.spectral_radius_min is not None:
        del ranges["model.spectral_radius"]
    if model.input_tokens > 1:
        ranges["model.input_decay"] = {"log": [0.25, 1.0]}
    if model.features:
        ranges["model.feature_scale"] = {"log": [0.25, 4.0]}
    if model.readout is Readout.RIDGE:
        return ranges | {"model.ridge": {"log": [1e-3, 1e3]}}
    return ranges | {"training.learning_rate": {"log": [1e-3, 5e-2]}, "training.weight_decay": {"log": [1e-2, 3.0]}}

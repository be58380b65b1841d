"""Options of a search: from the command line, else from the [search] table of the TOML file, else by default.

Input: a file, a config, options. Output: ranges and a budget. Must not know: trials. Raises ConfigError with every
problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meari.models.choices import Readout
from meari.models.config import SEARCH, Config, ReservoirConfig
from meari.models.errors import ConfigError
from meari.models.fields import integer, read_table, real, show
from meari.models.search.run import Budget
from meari.models.search.space import read_option

SETTINGS = "settings"


def _minutes(default: float) -> Any:
    return real(default, expected="≥ 0", fits=lambda minutes: minutes >= 0)


@dataclass(frozen=True)
class _SearchTable:
    trials: int = integer(20, minimum=1)
    trial_minutes: float = _minutes(2.0)
    minutes: float = _minutes(0.0)


@dataclass(frozen=True)
class Options:
    """Ranges and budget of a search.

    settings   ranges, as in TOML
    """

    settings: Mapping[str, object]
    budget: Budget


def read_options(
    tables: Mapping[str, object],
    source: str,
    config: Config,
    varied: Sequence[str],
    *,
    trials: int | None,
    trial_minutes: float | None,
    minutes: float | None,
) -> Options:
    """Read [search] of the tables of a TOML file, `source`, overridden by options; None: not given."""
    table = tables.get(SEARCH, {})
    if not isinstance(table, Mapping):
        raise ConfigError(source, [f"search: got {show(table)}, expected a table"])
    problems: list[str] = []
    own = {key: value for key, value in table.items() if key != SETTINGS}
    given = read_table(_SearchTable, "search.", own, (), problems, known=(SETTINGS,))
    settings = table.get(SETTINGS, {})
    if not isinstance(settings, Mapping):
        problems.append(f"search.settings: got {show(settings)}, expected a table")
    if problems:
        raise ConfigError(source, problems)
    for name, value in (("trials", trials), ("trial_minutes", trial_minutes), ("minutes", minutes)):
        if value is not None:
            given[name] = value
    if varied:
        settings = dict(read_option(text) for text in varied)
    return Options(settings or default_ranges(config), Budget(**given))


def default_ranges(config: Config) -> dict[str, Any]:
    """Return the ranges of a family's most important settings, by the setting's name as in TOML."""
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

"""What a search is told: by the command line, else by the [search] table of the TOML file, else by defaults.

In: a file, a config, options. Out: what varies, and the budget. Raises ConfigError with every problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meari.models.config import SEARCH, Config
from meari.models.errors import ConfigError
from meari.models.fields import integer, read_table, real, show
from meari.models.search.defaults import default_ranges
from meari.models.search.run import Budget
from meari.models.search.space import read_option

SETTINGS = "settings"


def _minutes(default: float) -> Any:
    return real(default, expected="≥ 0", fits=lambda minutes: minutes >= 0)


@dataclass(frozen=True)
class _SearchTable:
    trials: int = integer(20, least=1)
    trial_minutes: float = _minutes(2.0)
    minutes: float = _minutes(0.0)


@dataclass(frozen=True)
class Options:
    """settings   what varies, as TOML has it"""

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
    """Read [search] of the tables of a TOML file, `source`, and let options override it; None: not given."""
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

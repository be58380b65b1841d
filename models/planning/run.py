"""Plan of a training for text files: look at them, time the machine, plan.

Input: files and folders, minutes. Output: a `Plan`, whose config `meari.models.training.run.train` takes. Must not
know: the command line, bundles.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meari.bundle_format.names import NAME_PATTERN, Family
from meari.models.planning.planner import Plan, plan
from meari.models.planning.speed import measure_speed
from meari.models.planning.tables import MachineSpeed
from meari.models.text.facts import look_at

DEFAULT_MINUTES = 5.0
DEFAULT_NAME = "my-model"


def plan_text(
    paths: Sequence[str | Path],
    minutes: float = DEFAULT_MINUTES,
    *,
    name: str | None = None,
    family: Family | None = None,
    settings: Mapping[str, object] | None = None,
    speed: MachineSpeed | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Plan:
    """Plan a training on texts that takes about so many minutes, from planning to the exported bundle.

    name       of the run and the bundle; None: that of the first file
    settings   by name, "training.learning_rate": kept as they are, and everything else is chosen around them
    speed      None: this machine's, measured in about two seconds

    Raises CorpusError for texts that cannot be read, are empty or too short, ConfigError for settings that do not fit.
    """
    own = dict(settings or {})
    max_bad = own.get("corpus.max_bad", 0)
    facts = look_at(paths, max_bad if type(max_bad) is int else 0)
    speed = speed or measure_speed(clock)
    train = [str(path) for path in paths]
    return plan(facts, train, minutes, speed, name=name or name_of(paths), family=family, settings=own)


def name_of(paths: Sequence[str | Path]) -> str:
    """Return a name for a run on these files: the first one's, in the letters that names may have."""
    first = Path(paths[0]).absolute().name if paths else ""
    stem = re.sub(r"(\.(txt|text|gz))+$", "", first, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100]
    return name if re.fullmatch(NAME_PATTERN, name) else DEFAULT_NAME

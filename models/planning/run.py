"""Training on text files without a config: look at them, time the machine, plan, train.

Input: files and folders, minutes. Output: a `Plan`; a run folder. Must not know: the command line, bundles. torch is
imported once the texts and settings are known to be usable.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meari.bundle_format.names import Family
from meari.bundle_format.naming import name_of_file
from meari.models.config import Config
from meari.models.errors import CheckpointError
from meari.models.fields import to_toml
from meari.models.file_uses import Use, check_apart, config_uses
from meari.models.planning.planner import Plan, plan, with_options
from meari.models.planning.tables import MachineSpeed
from meari.models.text.facts import look_at
from meari.models.training.display import Display, NullDisplay
from meari.models.training.run_folder import RunFolder, Start, check_startable
from meari.paths import expand_home

if TYPE_CHECKING:
    from meari.models.training.run import TrainingResult

DEFAULT_MINUTES = 5.0
RUNS = Path("runs")
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
    train = [str(path) for path in paths]

    def planned(speed: MachineSpeed) -> Plan:
        return plan(facts, train, minutes, speed, name=run_name(paths, name, own), family=family, settings=own)

    if speed is None:
        planned(MachineSpeed())  # refuses what cannot be planned before torch is imported and the machine is timed
        from meari.models.planning.speed import measure_speed

        speed = measure_speed(clock)
    return planned(speed)


@dataclass(frozen=True)
class TextRun:
    """A training on texts, and its folder, from which `meari.export.bundle.export_smallest` makes a bundle."""

    config: Config
    folder: RunFolder
    result: TrainingResult


def train_text(
    paths: Sequence[str | Path],
    minutes: float = DEFAULT_MINUTES,
    *,
    name: str | None = None,
    family: Family | None = None,
    settings: Mapping[str, object] | None = None,
    folder: Path | None = None,
    start: Start = Start.FRESH,
    events: Path | None = None,
    display: Display | None = None,
    tell: Callable[[str], None] = lambda _: None,
    speed: MachineSpeed | None = None,
) -> TextRun:
    """Plan as `plan_text`, and train in a folder, runs/NAME by default. SIGINT and SIGTERM end it after a step.

    start   RESUME goes on with the plan of the run in that folder, with the settings that are given again
    events  folder for TensorBoard
    tell    called with each line that says what was chosen

    Raises what `plan_text` and `meari.models.training.run.train_in_folder` raise; FileConflict for a folder that holds
    a text.
    """
    place = folder or RUNS / run_name(paths, name, settings or {})
    toml = None
    check_startable(place, start)
    if start is Start.RESUME:
        named = {} if name is None else {"name": name}
        config = resumed_config(RunFolder(place), paths, {**(settings or {}), **named}, family)
        tell(f"The run in {place} goes on as it was planned")
    else:
        planned = plan_text(paths, minutes, name=name, family=family, settings=settings, speed=speed)
        config, toml = planned.config, toml_of(planned)
        for line in (*planned.reasons, planned.expectation):
            tell(line)
    _check_places(config, place, events)
    from meari.models.training.run import train_in_folder

    result = train_in_folder(config, place, start, display=display or NullDisplay(), toml=toml, events=events)
    return TextRun(config, RunFolder(place), result)


def _check_places(config: Config, folder: Path, events: Path | None) -> None:
    """Raise FileConflict if a text lies in a folder that is written, or both folders are one."""
    written = [Use("folder", folder), *([] if events is None else [Use("tensorboard", events)])]
    check_apart(config_uses(None, config), written)


def resumed_config(
    run: RunFolder, paths: Sequence[str | Path], settings: Mapping[str, object], family: Family | None = None
) -> Config:
    """Return the config of a run on these texts, with the settings that are given again.

    Raises CheckpointError, also for a run on other texts; ConfigError.
    """
    try:
        stored = Config.from_json(run.config.read_text("utf-8"), str(run.config))
    except OSError:
        raise CheckpointError(f"{run.path}: no run to resume here; leave out --resume to start one") from None
    texts = [str(path) for path in paths]
    if [_real(text) for text in texts] != [_real(text) for text in stored.corpus.train]:
        raise CheckpointError(
            f"{run.path}: was started with {', '.join(stored.corpus.train)}, so it cannot be resumed with "
            f"{', '.join(texts)}; replace it with --overwrite, or choose another folder with --run"
        )
    again = {**settings, **({} if family is None else {"model.family": family.value})}
    return with_options(stored.to_tables(), again, "--set")


def toml_of(planned: Plan) -> str:
    """Return the chosen config as a file for `meari train`, its reasons as comments."""
    reasons = "".join(f"# {line}\n" for line in planned.reasons)
    return f"{reasons}{to_toml(planned.tables)}"


def _real(text: str) -> str:
    return os.path.realpath(expand_home(text))


def run_name(paths: Sequence[str | Path], name: str | None, settings: Mapping[str, object]) -> str:
    """Return the name of a run: that of the settings, else `name`, else that of the first file."""
    named = settings.get("name")
    return named if isinstance(named, str) else name or name_of(paths)


def name_of(paths: Sequence[str | Path]) -> str:
    """Return a name for a run on these files: the first one's, in the letters that names may have; always the same."""
    first = Path(paths[0]).absolute().name if paths else ""
    stem = re.sub(r"(\.(txt|text|gz))+$", "", first, flags=re.IGNORECASE)
    return name_of_file(stem, DEFAULT_NAME)

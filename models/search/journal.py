"""Trials of a search, one a line, so that a search can be stopped at any moment and resumed.

    search.jsonl   first the search (`{"search": …}`), then each finished trial

Input: trials as they end. Output: a file, its trials, and a `SearchResult`. Must not know: trainings. A truncated last
line is ignored.
"""

import dataclasses
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meari.models.errors import SearchError
from meari.models.files import write_file
from meari.models.search.space import Value

NAME = "search.jsonl"


@dataclass(frozen=True)
class Trial:
    """One finished trial.

    number      counted from 1
    settings    drawn values
    loss        nats a character of the validation text; None where training failed
    problem     reason of a failure, or ""
    seconds     of the whole trial
    """

    number: int
    settings: dict[str, Value]
    loss: float | None
    nats_per_token: float | None
    steps: int
    ending: str
    problem: str
    seconds: float


class Journal:
    """File of the trials. Call `begin` or `resume` first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def begin(self, described: dict[str, Any]) -> None:
        """Start a new search. Raises SearchError if the folder already has one."""
        if self.path.exists():
            raise SearchError(
                f"{self.path}: this search exists; continue it with --resume, replace it with --overwrite, "
                "or choose another folder with --run"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._replace({"search": described})

    def resume(self, described: dict[str, Any]) -> list[Trial]:
        """Return the trials so far. Raises SearchError if there are none, the file is damaged, or the search
        differs.
        """
        head, trials = self.read()
        if head != described:
            differ = sorted(key for key in {*head, *described} if head.get(key) != described.get(key))
            raise SearchError(
                f"{self.path}: was started with different {', '.join(differ)}, so it cannot be resumed; undo the "
                "changes, replace it with --overwrite, or choose another folder with --run"
            )
        self._replace({"search": head}, *map(asdict, trials))
        return trials

    def read(self) -> tuple[dict[str, Any], list[Trial]]:
        """Return the search and the trials so far. Raises SearchError."""
        try:
            lines = self.path.read_text("utf-8").splitlines(keepends=True)
        except OSError as error:
            raise SearchError(f"{self.path}: got {error.strerror or error}, expected a search to resume") from error
        try:
            whole = [json.loads(line) for line in lines if line.endswith("\n")]
            return whole[0]["search"], [Trial(**line) for line in whole[1:]]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise SearchError(f"{self.path}: is damaged ({error}); start again with --overwrite") from error

    def add(self, trial: Trial) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _replace(self, *lines: dict[str, Any]) -> None:
        """Write the whole file anew, in one step."""
        write_file(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def ranked(trials: list[Trial]) -> list[Trial]:
    """Sort trials, the best first and failed ones last."""
    return sorted(trials, key=lambda trial: (trial.loss is None, trial.loss or 0.0, trial.number))


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    trials      in the order of their runs
    shares      share that each setting explains, see `meari.models.search.importance`
    signal      number of the signal that ended the search, or None
    """

    trials: list[Trial]
    shares: dict[str, float | None]
    signal: int | None

    @property
    def best(self) -> Trial | None:
        """Best trial; None if no trial could be measured."""
        first = ranked(self.trials)[:1]
        return first[0] if first and first[0].loss is not None else None


def format_setting(value: Value) -> str:
    """Format a setting for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_json(found: SearchResult) -> dict[str, Any]:
    """Return the whole result as plain tables."""
    best = found.best
    return {
        "best": None if best is None else dataclasses.asdict(best),
        "explained": found.shares,
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
    }

"""Paths of a run folder, and the check whether a command may start or continue there.

Input: a folder's path, a config, the user's choice. Output: paths, or an error that says what to do. Must not know: the
files' content, except the config.

    config.json  config.toml  tokenizer.json  tokens/  best/  last/  history.jsonl  figures.json  report.png

While a run is written, a lock in its folder excludes other writers (`models/files.py`).
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from meari.models.config import Config
from meari.models.errors import CheckpointError, ConfigError
from meari.models.files import LOCK, current_folder, locked, settle_folder, why_not_writable, write_file


class Start(StrEnum):
    """Treatment of an existing run folder."""

    FRESH = "fresh"
    RESUME = "resume"
    OVERWRITE = "overwrite"
    CONTINUE = "continue"  # resume a run that is there, else start afresh


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def toml(self) -> Path:
        """The config as a file for `meari train`, of a run whose config was chosen."""
        return self.path / "config.toml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last(self) -> Path:
        return self.path / "last"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures.json"

    @property
    def report(self) -> Path:
        return self.path / "report.png"

    def has_snapshot(self) -> bool:
        """Return whether there is a snapshot to resume from."""
        return current_folder(self.last).is_dir()


@contextlib.contextmanager
def claimed_run(path: Path, config: Config, start: Start) -> Iterator[RunFolder]:
    """Call `open_run` with the folder locked within the block; a foreign folder is left alone. Raises FolderInUse
    too.
    """
    _check_kind(RunFolder(path), start)
    with locked(path):
        yield open_run(path, config, start)


def open_run(path: Path, config: Config, start: Start) -> RunFolder:
    """Make or take over a run folder and write the config into it.

    Raises CheckpointError: the folder exists and neither --resume nor --overwrite was asked for; it is not a run;
    it was made by another config (every setting that differs is named).
    """
    run = RunFolder(path)
    if start is Start.CONTINUE:
        start = Start.RESUME if run.config.exists() else Start.FRESH
    _check_start(run, start)
    if start is Start.RESUME:
        _check_same(run, config)
        _settle(run)
    else:
        _empty(run)
    path.mkdir(parents=True, exist_ok=True)
    write_file(run.config, config.to_json().encode())
    return run


def check_startable(path: Path, start: Start) -> None:
    """Raise CheckpointError or FolderInUse for a folder in which no run can be started so."""
    run = RunFolder(path)
    if run.config.exists():
        with locked(path):
            _check_start(run, start)
    elif start is Start.RESUME or path.is_file():
        _check_kind(run, start)
    elif not path.exists() and (reason := why_not_writable(path)):
        raise CheckpointError(f"{path}: no folder can be made there: {reason}")


def _check_start(run: RunFolder, start: Start) -> None:
    _check_kind(run, start)
    if start is Start.FRESH and _is_used(run) and not _never_began(run):
        raise CheckpointError(
            f"{run.path}: this run exists; continue it with --resume, replace it with --overwrite, "
            "or choose another folder with --run"
        )


def _settle(run: RunFolder) -> None:
    """Remove what the end of an interrupted run left half done."""
    for folder in (run.best, run.last):
        settle_folder(folder)
    if not run.has_snapshot():
        run.history.unlink(missing_ok=True)  # its first steps are taken again


def _check_kind(run: RunFolder, start: Start) -> None:
    """Raise CheckpointError if the folder is not a run, or there is none to resume."""
    if _is_used(run) and not run.config.exists():
        raise CheckpointError(f"{run.path}: exists and is not a run; choose another folder with --run")
    if start is Start.RESUME and not run.config.exists():
        raise CheckpointError(f"{run.path}: no run to resume here; leave out --resume to start one")


def _is_used(run: RunFolder) -> bool:
    unfinished = {LOCK, f"{run.config.name}.new"}  # of a command that was ended before its run began
    return run.path.exists() and (
        not run.path.is_dir() or any(path.name not in unfinished for path in run.path.iterdir())
    )


def _never_began(run: RunFolder) -> bool:
    """Return whether a config of ours and the prepared corpus are all there is: no step was taken, so nothing is
    lost.
    """
    prepared = {run.config, run.toml, run.tokenizer, run.tokens, run.tokens.with_name("tokens.old"), run.path / LOCK}
    if any(path.with_name(path.name.removesuffix(".new")) not in prepared for path in run.path.iterdir()):
        return False
    try:
        Config.from_json(run.config.read_text("utf-8"))
    except (OSError, ValueError, ConfigError):
        return False
    return True


def _check_same(run: RunFolder, config: Config) -> None:
    before = Config.from_json(run.config.read_text("utf-8"), str(run.config))
    differences = _differences(before.to_tables(), config.to_tables())
    if differences:
        lines = "\n  ".join(differences)
        raise CheckpointError(
            f"{run.path}: was started with other settings, so it cannot be resumed with these:\n  {lines}\n"
            "Undo the changes, replace the run with --overwrite, or choose another folder with --run"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in [*before, *(key for key in now if key not in before)]:
        was, wanted = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(wanted, dict):
            lines += _differences(was, wanted, f"{prefix}{key}.")
        elif was != wanted:
            lines.append(f"{prefix}{key}: the run has {_shown(was)}, the config {_shown(wanted)}")
    return lines


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)


def _empty(run: RunFolder) -> None:
    """Remove the files of an earlier run. Token files stay: they are made again only if the corpus changed."""
    for folder in (run.best, run.last):
        for suffix in ("", ".new", ".old"):
            shutil.rmtree(folder.with_name(folder.name + suffix), ignore_errors=True)
    for file in (run.toml, run.tokenizer, run.history, run.figures, run.report):
        file.unlink(missing_ok=True)

"""Errors of training, as one tree.

Input: a message. Output: an exception. Must not know: the code that raises it.

    ModelsError
    ├── ConfigError             the TOML file or the JSON of a checkpoint; carries all problems at once
    ├── CorpusError             names the file and, if known, the line
    │   ├── UnreadableFile      missing, no permission, a damaged or truncated .gz
    │   ├── BrokenText          bytes that are not UTF-8
    │   ├── EmptyCorpus         no document, or none left, in a part of the corpus
    │   └── BadExpression       a line of a blocklist or loss mask that is not a regular expression
    ├── TokenizerError          a tokenizer.json that is missing, damaged or not ours; an unsuitable vocabulary
    ├── TokenFileError          a prepared token file that is damaged
    ├── ReservoirError          a reservoir that cannot have the spectral radius asked for
    ├── SearchError             a search that exists already, cannot be resumed, or found nothing
    ├── CheckpointError         a run or checkpoint folder that is missing, incomplete or does not fit
    ├── FolderInUse             another process is writing to a folder
    ├── FileConflict            a file that would be written twice, or is read as well
    └── TrainingError           a training that cannot start or continue
        ├── RidgeError          the equations of a ridge regression have no stable solution
        ├── NotFinite           a loss, gradient or figure that is not a finite number
        └── ProcessFailed          another process of the same run failed and gives the reason itself

Messages state the value, the expected value and, where it helps, what to do. The command line catches `ModelsError`
and prints its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meari.errors import rebuild_error


class ModelsError(Exception):
    """Root of every error of `models`: its text is written for the person who started the command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_error, (type(self), self.args, vars(self))


class ConfigError(ModelsError):
    """A config that cannot be used.

    source    the file that was read, or what stands for it
    problems  every one of them, as `section.key: got X, expected Y`
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{source}: {len(self.problems)} problem(s)", *self.problems]))


class CorpusError(ModelsError):
    """An error in the text files."""

    def __init__(self, message: str, *, source: str | None = None, line: int | None = None) -> None:
        self.source = source
        self.line = line
        place = "" if source is None else f"{source}: " if line is None else f"{source}, line {line}: "
        super().__init__(place + message)


class UnreadableFile(CorpusError):
    """A file or folder of the corpus that cannot be read to its end."""


class BrokenText(CorpusError):
    """A file of the corpus that is not UTF-8."""


class EmptyCorpus(CorpusError):
    """A part of the corpus without a document."""


class BadExpression(CorpusError):
    """A line of a blocklist or loss mask that is not a regular expression, or one that matches every text."""


class TokenizerError(ModelsError):
    """A tokenizer that cannot be trained, read or used."""


class TokenFileError(ModelsError):
    """A damaged prepared token file."""


class ReservoirError(ModelsError):
    """A reservoir that cannot have the given spectral radius."""


class SearchError(ModelsError):
    """A search that cannot be started, resumed or concluded."""


class CheckpointError(ModelsError):
    """A run or checkpoint folder that cannot be used."""


class FolderInUse(ModelsError):
    """A folder that another process is writing to."""


class FileConflict(ModelsError):
    """A file or folder that would be written twice, or that holds what is read."""


class TrainingError(ModelsError):
    """A training that cannot start or continue."""


class RidgeError(TrainingError):
    """Normal equations of a ridge regression without a stable solution."""


class NotFinite(TrainingError):
    """A loss, gradient or figure that is not a finite number."""


class ProcessFailed(TrainingError):
    """The failure or end of another process of the same run; its own message gives the reason."""

"""History of a training, one line of JSON a step, for the report and for resuming.

Input: records. Output: `history.jsonl`. Must not know: models. There are two kinds of lines, told apart by their keys:

    {"step", "loss", "grad_norm", "learning_rate", "seconds"}   a training step; loss in nats per token
    {"step", "validation", "seconds"}                           an evaluation; nats per token of held-out text

step counts finished steps, so the first is 1. seconds is the training time of the run so far, resumed parts included.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meari.models.errors import CheckpointError
from meari.models.files import write_file


@dataclass(frozen=True)
class StepRecord:
    """One training step."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on held-out text, after `step` steps."""

    step: int
    validation: float
    seconds: float


Record = StepRecord | EvaluationRecord


class History:
    """Writer of records. `flush` puts them on the disk: before every checkpoint, so that no checkpoint is ahead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []

    def add(self, record: Record) -> None:
        self._lines.append(json.dumps(dataclasses.asdict(record)) + "\n")

    def flush(self) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(self._lines)
            stream.flush()
            os.fsync(stream.fileno())
        self._lines.clear()

    def cut(self, step: int) -> None:
        """Remove the records after `step`: a resumed run repeats it."""
        kept = [record for record in read_history(self._path) if record.step <= step]
        self._lines.clear()
        lines = (json.dumps(dataclasses.asdict(record)) + "\n" for record in kept)
        write_file(self._path, "".join(lines).encode())


class NullHistory(History):
    """History that keeps nothing: for all processes but the first."""

    def add(self, record: Record) -> None: ...
    def flush(self) -> None: ...
    def cut(self, step: int) -> None: ...


def read_history(path: Path) -> list[Record]:
    """Read all records of a file, in order; a last line that a crash cut short is left out. Raises CheckpointError."""
    records: list[Record] = []
    if not path.exists():
        return records
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            break
        try:
            kind: type[Record] = EvaluationRecord if "validation" in fields else StepRecord
            records.append(msgspec.convert(fields, kind))
        except (TypeError, msgspec.ValidationError) as error:
            problem = f"damaged: line {number}: {error}"
            raise CheckpointError(f"{path}: {problem:.200}; start again with --overwrite") from error
    return records

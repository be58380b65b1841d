"""`results.json`: every number, and enough beside it to draw the pictures and write the page anew.

In: what was measured. Out: JSON, and back again. Knows nothing of pictures or pages.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from claims.families import Described
from claims.sizes import Sizes
from models.atomic import write_file
from models.errors import ModelsError

FILE = "results.json"
FORMAT_VERSION = 1


class ResultsError(ModelsError):
    """A results.json that is missing, damaged or of another version."""


@dataclass(frozen=True)
class Setup:
    """All that the numbers depend on but the machine: results of one setup belong on one page."""

    text: str
    num_characters: tuple[int, int, int]
    vocabulary_size: int
    sizes: Sizes
    seed: int


@dataclass(frozen=True)
class ClaimResult:
    """One claim's numbers as plain JSON, what was left out, how long it took, models trained for others included."""

    title: str
    verdict: str
    conditions: list[dict[str, Any]]
    numbers: dict[str, Any]
    left_out: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Results:
    """minutes, cpu_minutes   of the last run, by the clock and of its process
    models                 the four families as they were measured
    skipped                numbers of claims that the budget did not reach
    """

    format_version: int
    setup: Setup
    machine: str
    written: str
    minutes: float
    cpu_minutes: float
    models: tuple[Described, ...]
    claims: dict[str, ClaimResult] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()

    def write(self, folder: Path) -> None:
        """Write results.json in one step."""
        write_file(folder / FILE, msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1) + b"\n")

    @staticmethod
    def read(folder: Path) -> "Results":
        """What `write` wrote. Raises ResultsError."""
        path = folder / FILE
        try:
            results = msgspec.json.decode(path.read_bytes(), type=Results)
        except OSError as error:
            raise ResultsError(f"{path}: got {error.strerror}, expected the results of a run") from error
        except msgspec.DecodeError as error:
            raise ResultsError(f"{path}: got {error}, expected the results of a run") from error
        if results.format_version != FORMAT_VERSION:
            raise ResultsError(f"{path}: got format_version {results.format_version}, expected {FORMAT_VERSION}")
        return results

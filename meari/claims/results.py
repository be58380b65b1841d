"""`results.json`: every number, and enough beside it to draw the pictures and write the page again.

Input: measurements. Output: JSON, and measurements read back. Must not know: pictures, pages.
"""

from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from meari.claims.families import ModelSummary
from meari.claims.sizes import JUDGED_SEEDS, Sizes, below_judged
from meari.models.errors import ModelsError
from meari.models.files import write_file

FILE = "results.json"
FORMAT_VERSION = 2
DIGITS = 5  # significant ones of every number
LINE_CHARACTERS = 200  # a value that fits is written on one line


class ResultsError(ModelsError):
    """A results.json that is missing, damaged, of another version, or that no page may be made of."""


@dataclass(frozen=True)
class Setup:
    """Everything that the numbers depend on except the machine: results of one setup belong on one page."""

    text: str
    num_characters: tuple[int, int, int]
    vocabulary_size: int
    sizes: Sizes


@dataclass(frozen=True)
class SettledCondition:
    """One condition over all seeds: whether each meets it, and each one's figures."""

    what: str
    is_met: tuple[bool, ...]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class ClaimResult:
    """Result of a claim.

    verdict, conditions   of all seeds; empty until the claim is judged
    numbers               by seed, the claim's numbers as plain JSON
    left_out              parts that the budget did not reach, a phrase each
    seconds               of all seeds, by the clock, models trained for others included
    """

    title: str
    numbers: dict[str, dict[str, Any]]
    left_out: tuple[str, ...]
    seconds: float
    verdict: str = ""
    conditions: tuple[SettledCondition, ...] = ()

    def with_seed(self, seed: int, numbers: Any, left_out: tuple[str, ...], seconds: float) -> "ClaimResult":
        """Return the result with one more seed's numbers, a dataclass."""
        return ClaimResult(
            self.title,
            {**self.numbers, str(seed): plain(numbers)},
            (*self.left_out, *(f"{phrase} (seed {seed})" for phrase in left_out)),
            round(self.seconds + seconds, 1),
        )


@dataclass(frozen=True)
class Results:
    """All results of a run.

    minutes, cpu_minutes   of the last run, by the clock and of its process
    models                 the four families as they were measured
    skipped                numbers of claims that the budget did not reach
    """

    format_version: int
    setup: Setup
    machine: str
    written: str
    minutes: float
    cpu_minutes: float
    models: tuple[ModelSummary, ...]
    claims: dict[str, ClaimResult] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()

    def too_small(self, number: str) -> tuple[str, ...]:
        """Return why a claim cannot be judged, a phrase each; nothing if it can."""
        claim, sizes = self.claims[number], self.setup.sizes
        reasons = below_judged(sizes, sum(self.setup.num_characters))
        measured = len(claim.numbers)
        if measured < min(len(sizes.seeds), JUDGED_SEEDS):
            reasons += (f"{measured} of {len(sizes.seeds)} seeds measured, judged from {JUDGED_SEEDS}",)
        return reasons + (("the time budget left parts out",) if claim.left_out else ())

    @property
    def has_verdicts(self) -> bool:
        """True if any claim has been judged."""
        return any(claim.verdict and not self.too_small(number) for number, claim in self.claims.items())

    def write(self, folder: Path) -> None:
        """Write results.json atomically."""
        write_file(folder / FILE, (_lines(plain(self)) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> "Results":
        """Read what `write` wrote. Raises ResultsError."""
        path = folder / FILE
        try:
            content = path.read_bytes()
            version = msgspec.json.decode(content, type=_Version).format_version
            if version != FORMAT_VERSION:
                raise ResultsError(f"{path}: got format_version {version}, expected {FORMAT_VERSION}")
            return msgspec.json.decode(content, type=Results)
        except OSError as error:
            raise ResultsError(f"{path}: got {error.strerror}, expected the results of a run") from error
        except msgspec.DecodeError as error:
            raise ResultsError(f"{path}: got {error}, expected the results of a run") from error


@dataclass(frozen=True)
class _Version:
    format_version: int


def plain(value: Any) -> Any:
    """Turn a dataclass, or anything in one, into plain JSON with DIGITS significant digits."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _lines(value: Any, indent: str = "") -> str:
    """Write JSON with a line for every value that fits on one."""
    line = msgspec.json.encode(value).decode()
    if len(line) <= LINE_CHARACTERS or not isinstance(value, dict | list):
        return line
    inner = indent + " "
    if isinstance(value, list):
        if not any(isinstance(entry, dict | list) for entry in value):
            return line
        return "[\n" + ",\n".join(inner + _lines(entry, inner) for entry in value) + f"\n{indent}]"
    named = (f"{inner}{msgspec.json.encode(key).decode()}: {_lines(entry, inner)}" for key, entry in value.items())
    return "{\n" + ",\n".join(named) + f"\n{indent}}}"

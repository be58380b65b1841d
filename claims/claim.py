"""What a claim is: what the lecture says, how it is measured, judged, put into words and drawn.

A criterion is a handful of conditions, fixed before anything is measured. It HOLDS where all are met, HOLDS IN PART
where some are, and DOES NOT HOLD where none is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from claims.workbench import Workbench

Numbers = TypeVar("Numbers")


class Verdict(StrEnum):
    HOLDS = "HOLDS"
    IN_PART = "HOLDS IN PART"
    DOES_NOT = "DOES NOT HOLD"


@dataclass(frozen=True)
class Condition:
    """One condition of a criterion: in words, whether it is met, and the figures that say so."""

    what: str
    is_met: bool
    figures: str


def verdict(conditions: Sequence[Condition]) -> Verdict:
    """All met, some met, none met."""
    if all(condition.is_met for condition in conditions):
        return Verdict.HOLDS
    return Verdict.IN_PART if any(condition.is_met for condition in conditions) else Verdict.DOES_NOT


@dataclass(frozen=True)
class Measured(Generic[Numbers]):
    """left_out   what the budget did not suffice for, a phrase each"""

    numbers: Numbers
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim(Generic[Numbers]):
    """kind      the dataclass of the claim's numbers, so that they can be read back from JSON
    says       what the lecture says
    setting    how it was measured, from the sizes alone
    judge      the conditions, from the numbers alone
    describe   two sentences
    """

    number: int
    slug: str
    title: str
    says: str
    kind: type[Numbers]
    setting: str
    measure: Callable[[Workbench], Measured[Numbers]]
    judge: Callable[[Numbers], tuple[Condition, ...]]
    describe: Callable[[Numbers], tuple[str, str]]
    draw: Callable[[Numbers], Figure]

    @property
    def picture(self) -> str:
        """The name of its picture's file."""
        return f"{self.number}-{self.slug}.png"

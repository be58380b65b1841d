"""What a claim is: what the lecture says, how it is measured, judged, put into words and drawn.

A criterion is a handful of conditions, fixed before anything is measured and computed for every seed by itself. With
one seed it HOLDS where all are met, HOLDS IN PART where some are, and DOES NOT HOLD where none is. Where seeds give
different verdicts the claim is NOT SETTLED; where the run is below the sizes that are judged it is TOO SMALL TO JUDGE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from meari.claims.spread import Expectation
from meari.claims.workbench import Workbench

Numbers = TypeVar("Numbers")


class Verdict(StrEnum):
    HOLDS = "HOLDS"
    IN_PART = "HOLDS IN PART"
    DOES_NOT = "DOES NOT HOLD"
    NOT_SETTLED = "NOT SETTLED"
    TOO_SMALL = "TOO SMALL TO JUDGE"


@dataclass(frozen=True)
class Condition:
    """One condition of a criterion: in words, whether it is met, and the figures that say so.

    what   the same for every seed
    """

    what: str
    is_met: bool
    figures: str


def verdict(conditions: Sequence[Condition]) -> Verdict:
    """Return the verdict of one seed: all met, some met, none met."""
    if all(condition.is_met for condition in conditions):
        return Verdict.HOLDS
    return Verdict.IN_PART if any(condition.is_met for condition in conditions) else Verdict.DOES_NOT


def settled(seeds: Sequence[Sequence[Condition]]) -> Verdict:
    """Return the verdict that all seeds share, NOT SETTLED where they differ."""
    found = {verdict(conditions) for conditions in seeds}
    return found.pop() if len(found) == 1 else Verdict.NOT_SETTLED


@dataclass(frozen=True)
class Measured(Generic[Numbers]):
    """left_out   what the budget did not suffice for, a phrase each"""

    numbers: Numbers
    left_out: tuple[str, ...] = ()


def nothing_expected(_seeds: Sequence[Numbers]) -> tuple[Expectation, ...]:
    """A claim without figures that must fall."""
    return ()


@dataclass(frozen=True)
class Claim(Generic[Numbers]):
    """kind      the dataclass of the claim's numbers, so that they can be read back from JSON
    says       what the lecture says
    setting    how it was measured, from the sizes alone
    judge      the conditions, from the numbers of one seed alone
    describe   two sentences, from the numbers of all seeds
    expect     what must hold if the measurement is sound, whatever the verdict; the page is refused where it does not
    """

    number: int
    slug: str
    title: str
    says: str
    kind: type[Numbers]
    setting: str
    measure: Callable[[Workbench], Measured[Numbers]]
    judge: Callable[[Numbers], tuple[Condition, ...]]
    describe: Callable[[Sequence[Numbers]], tuple[str, str]]
    draw: Callable[[Sequence[Numbers]], Figure]
    expect: Callable[[Sequence[Numbers]], tuple[Expectation, ...]] = nothing_expected

    @property
    def picture(self) -> str:
        """The name of its picture's file."""
        return f"{self.number}-{self.slug}.png"

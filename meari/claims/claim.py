"""A claim: the lecture's statement, its measurement, criterion, words and picture; and figures with their noise.

Input: one value for each seed. Output: verdicts, text, and violated expectations. Must not know: single claims.

A criterion is a handful of conditions, fixed before anything is measured and computed for every seed on its own. With
one seed the claim HOLDS if all are met, HOLDS IN PART if some are, and DOES NOT HOLD if none is. If seeds give
different verdicts the claim is NOT SETTLED; if the run is below the sizes that are judged it is TOO SMALL TO JUDGE.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from meari.claims.workbench import Workbench

Numbers = TypeVar("Numbers")
CONFIDENCE = 0.975  # of the one-sided test whether a figure is worse beyond the noise


class Verdict(StrEnum):
    HOLDS = "HOLDS"
    IN_PART = "HOLDS IN PART"
    DOES_NOT = "DOES NOT HOLD"
    NOT_SETTLED = "NOT SETTLED"
    TOO_SMALL = "TOO SMALL TO JUDGE"


@dataclass(frozen=True)
class Condition:
    """One condition of a criterion: in words, its outcome, and its figures.

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


def shared_verdict(seeds: Sequence[Sequence[Condition]]) -> Verdict:
    """Return the verdict that all seeds share, NOT SETTLED where they differ."""
    found = {verdict(conditions) for conditions in seeds}
    return found.pop() if len(found) == 1 else Verdict.NOT_SETTLED


@dataclass(frozen=True)
class Measurement(Generic[Numbers]):
    """Numbers of a claim with one seed.

    left_out   parts that the budget did not reach, a phrase each
    """

    numbers: Numbers
    left_out: tuple[str, ...] = ()


def around(values: Sequence[float], shape: str = ".2f") -> str:
    """Format mean ± sample standard deviation over seeds; the value alone with one seed."""
    mean = f"{np.mean(values):{shape}}"
    return f"{mean} ± {np.std(values, ddof=1):{shape.lstrip('+')}}" if len(values) > 1 else mean


def between(values: Sequence[float], shape: str = ".1e") -> str:
    """Format the median, with the smallest and the largest value: for figures of very different sizes."""
    middle = f"{np.median(values):{shape}}"
    return f"{middle} ({min(values):{shape}} … {max(values):{shape}})" if len(values) > 1 else middle


@dataclass(frozen=True)
class Expectation:
    """Figures that cannot rise from left to right unless the measurement is wrong.

    what     what falls, for example "the held-out loss of the ESN with more text"
    labels   of the columns, left to right
    values   one row a seed, one value a column
    least    smallest rise that is worth a complaint, in the figures' unit
    """

    what: str
    labels: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    least: float

    def violations(self) -> list[str]:
        """Return a phrase for every pair of columns whose rise is larger than `least` and than the noise of the seeds.

        The noise is that of a paired t-test over seeds; one seed has no known noise, so nothing can be beyond it.
        """
        rows = np.array(self.values)
        pairs = ((left, right) for left in range(rows.shape[1]) for right in range(left + 1, rows.shape[1]))
        return [
            f"{self.what}: got {around(rows[:, right].tolist(), '.4g')} at {self.labels[right]}, expected at most "
            f"{around(rows[:, left].tolist(), '.4g')} as at {self.labels[left]}"
            for left, right in pairs
            if self._is_worse(rows[:, right] - rows[:, left])
        ]

    def _is_worse(self, rises: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
        if len(rises) < 2:
            return False
        noise = student_t.ppf(CONFIDENCE, len(rises) - 1) * rises.std(ddof=1) / math.sqrt(len(rises))
        return bool(rises.mean() > max(self.least, noise))


def nothing_expected(_seeds: Sequence[Numbers]) -> tuple[Expectation, ...]:
    """Return no expectation: for a claim without figures that must fall."""
    return ()


@dataclass(frozen=True)
class Claim(Generic[Numbers]):
    """A claim.

    kind       the dataclass of the claim's numbers, so that they can be read back from JSON
    says       the lecture's statement
    setting    the way of measuring, from the sizes alone
    judge      the conditions, from the numbers of one seed alone
    describe   two sentences, from the numbers of all seeds
    expect     conditions of a sound measurement, whatever the verdict; otherwise the page is refused
    """

    number: int
    slug: str
    title: str
    says: str
    kind: type[Numbers]
    setting: str
    measure: Callable[[Workbench], Measurement[Numbers]]
    judge: Callable[[Numbers], tuple[Condition, ...]]
    describe: Callable[[Sequence[Numbers]], tuple[str, str]]
    draw: Callable[[Sequence[Numbers]], Figure]
    expect: Callable[[Sequence[Numbers]], tuple[Expectation, ...]] = nothing_expected

    @property
    def picture(self) -> str:
        """File name of the picture."""
        return f"{self.number}-{self.slug}.png"

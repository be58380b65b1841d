"""Spread over seeds: how a figure is written with its noise, and what may not happen beyond that noise.

Input: one value for each seed. Output: text, and violated expectations. Must not know what is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.975  # one-sided, of the test whether a figure is worse beyond the noise


def around(values: Sequence[float], shape: str = ".2f") -> str:
    """Mean ± sample standard deviation over seeds; the value alone where there is one seed."""
    mean = f"{np.mean(values):{shape}}"
    return f"{mean} ± {np.std(values, ddof=1):{shape.lstrip('+')}}" if len(values) > 1 else mean


def between(values: Sequence[float], shape: str = ".1e") -> str:
    """Median, with the smallest and the largest value: for figures of very different sizes."""
    middle = f"{np.median(values):{shape}}"
    return f"{middle} ({min(values):{shape}} … {max(values):{shape}})" if len(values) > 1 else middle


@dataclass(frozen=True)
class Expectation:
    """Figures that cannot rise from left to right unless the measurement is at fault.

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
        """A phrase for every pair of columns whose rise is larger than `least` and than the noise of the seeds.

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

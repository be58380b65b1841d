"""Importance of settings: the share of the differences between trials that each setting explains on its own.

Input: trials. Output: a share for each setting, the largest first. Must not know: ranges.

Both the setting and the loss are replaced by their ranks, which neither the scale of the setting nor a diverged trial
upsets. A parabola is fitted to them, so that an optimum in the middle counts as well as one at an end; for choices that
are not numbers, the means are fitted. The share is that of the variance explained, adjusted for the number of fitted
parameters, so that a setting without effect is near zero: R² of the fit, 1 - (1 - R²) (n - 1) / (n - p - 1).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meari.models.search.journal import Trial
from meari.models.search.space import Value

MIN_TRIALS = 5

Floats = NDArray[np.float64]


def importances(trials: Sequence[Trial]) -> dict[str, float | None]:
    """Return the share of each setting, 0 … 1, the largest first; None for every setting if there are too few trials.

    A failed trial counts as worse than all others.
    """
    if not trials:
        return {}
    names = list(trials[0].settings)
    if len(trials) < MIN_TRIALS:
        return dict.fromkeys(names, None)
    losses = ranks(np.array([np.inf if trial.loss is None else trial.loss for trial in trials]))
    shares = [(explained([trial.settings[name] for trial in trials], losses), name) for name in names]
    return {name: share for share, name in sorted(shares, key=lambda pair: (-pair[0], pair[1]))}


def explained(values: Sequence[Value], losses: Floats) -> float:
    """Return the adjusted share of the variance of `losses` that a setting explains, 0 … 1."""
    columns = _columns(values)
    spread = losses - losses.mean()
    free = len(losses) - columns.shape[1] - 1
    if free < 1 or not columns.shape[1] or not spread.any():
        return 0.0
    design = np.column_stack((np.ones(len(losses)), columns))
    rest = losses - design @ np.linalg.lstsq(design, losses, rcond=None)[0]
    unexplained = float((rest**2).sum() / (spread**2).sum()) * (len(losses) - 1) / free
    return float(min(max(1.0 - unexplained, 0.0), 1.0))


def ranks(values: Floats) -> Floats:
    """Return ranks from 1 for the smallest; equal values share the mean of their ranks."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = (ends - (counts - 1) / 2).astype(np.float64)
    return means[groups]


def _columns(values: Sequence[Value]) -> Floats:
    """Return the regressors of the loss, float64 [n, p]."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        place = ranks(np.array(values, dtype=np.float64))
        place -= place.mean()
        if not place.any():
            return np.zeros((len(values), 0))
        place /= np.abs(place).max()
        kinds = len(set(values))
        return np.column_stack((place, place**2))[:, : kinds - 1]
    kinds_of = sorted({str(value) for value in values})
    return np.array([[float(str(value) == kind) for kind in kinds_of[1:]] for value in values])

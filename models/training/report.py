"""Picture of a run: training and validation loss, gradient norms, learning rate, over the steps.

Input: a run's history. Output: a PNG. Must not know: models.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from meari.models.figures import Figures, show_figure, show_perplexity
from meari.models.files import write_file
from meari.models.training.history import EvaluationRecord, Record, StepRecord

TRAINING_COLOUR = "#4c78a8"
VALIDATION_COLOUR = "#e45756"
NORM_COLOUR = "#72b7b2"
RATE_COLOUR = "#9d755d"
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 7.0, 100

Floats = NDArray[np.float64]


def write_report(path: Path, name: str, records: Sequence[Record], validation: Figures) -> None:
    """Draw `report.png` atomically. Without `records` the curves are empty."""
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, norm_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(loss_axes, steps, evaluations)
    _draw_norms(norm_axes, steps)
    nats, bits = show_figure(validation.nats_per_char, 3), show_figure(validation.bits_per_char, 3)
    perplexity = show_perplexity(validation.perplexity)
    figure.suptitle(f"{name}: validation {nats} nats/char, {bits} bits/char, perplexity {perplexity} per token")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())


def _draw_losses(axes: Axes, steps: Sequence[StepRecord], evaluations: Sequence[EvaluationRecord]) -> None:
    numbers = np.array([record.step for record in steps])
    losses = np.array([record.loss for record in steps])
    axes.plot(numbers, losses, color=TRAINING_COLOUR, alpha=0.25, linewidth=0.7)
    axes.plot(numbers, smoothed(losses), color=TRAINING_COLOUR, label="training (smoothed)")
    measured = [record.step for record in evaluations], [record.validation for record in evaluations]
    axes.plot(*measured, color=VALIDATION_COLOUR, marker="o", markersize=3, label="validation")
    if evaluations:
        best = min(evaluations, key=lambda record: record.validation)
        axes.axhline(best.validation, color=VALIDATION_COLOUR, linewidth=0.6, linestyle="--")
        axes.set_ylim(*_loss_limits(losses, evaluations))
    axes.set_ylabel("nats per token")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)


def _draw_norms(axes: Axes, steps: Sequence[StepRecord]) -> None:
    numbers = np.array([record.step for record in steps])
    norms = np.array([record.grad_norm for record in steps])
    axes.plot(numbers, norms, color=NORM_COLOUR, alpha=0.4, linewidth=0.7)
    axes.plot(numbers, smoothed(norms), color=NORM_COLOUR, label="gradient norm before clipping")
    if len(norms) and norms.min() > 0:
        axes.set_yscale("log")
    axes.set_ylabel("gradient norm")
    axes.set_xlabel("steps")
    axes.grid(alpha=0.3)
    rate_axes = axes.twinx()
    rates = [record.learning_rate for record in steps]
    rate_axes.plot(numbers, rates, color=RATE_COLOUR, linewidth=1, label="learning rate")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    lines = [*axes.get_lines()[1:], *rate_axes.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")


def smoothed(values: Floats) -> Floats:
    """Return a running mean over a fiftieth of the run, as long as `values`; shorter windows near both ends."""
    window = max(1, len(values) // 50)
    if window == 1:
        return values
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.minimum(np.arange(len(values)) + window // 2 + 1, len(values))
    begins = np.maximum(np.arange(len(values)) - window // 2, 0)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def _loss_limits(losses: Floats, evaluations: Sequence[EvaluationRecord]) -> tuple[float, float]:
    """Return limits that leave the steep beginning out of the picture's scale."""
    measured = [record.validation for record in evaluations]
    lowest = min([*measured, *smoothed(losses)]) if len(losses) else min(measured)
    highest = max([*measured, float(np.quantile(losses, 0.97))]) if len(losses) else max(measured)
    margin = max(0.05 * (highest - lowest), 1e-3)
    return lowest - 3 * margin, highest + margin

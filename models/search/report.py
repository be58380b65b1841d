"""Report of a search: a table of all trials, a picture of each setting against the loss, and the best config as TOML.

Input: trials, ranges, the share that each setting explained; a config. Output: text, a PNG. Must not know: trainings.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from meari.models.figures import show_figure
from meari.models.files import write_file
from meari.models.search.journal import SearchResult, Trial, format_setting, ranked
from meari.models.search.space import Choices, Range

TRIAL_COLOUR, BEST_COLOUR, FAILED_COLOUR = "#4c78a8", "#e45756", "#9d755d"
COLUMNS = 3
INCHES_WIDE, INCHES_HIGH, DOTS_PER_INCH = 3.4, 2.8, 100
MAX_SPREAD = 3.0  # the loss axis ends this many times the inner quartiles' distance above the median
FAILED = "failed"


def write_picture(
    path: Path,
    title: str,
    trials: Sequence[Trial],
    varied: Mapping[str, Range | Choices],
    shares: Mapping[str, float | None],
) -> None:
    """Draw `search.png` atomically; there is at least one setting."""
    columns = min(COLUMNS, len(shares))
    rows = math.ceil(len(shares) / columns)
    figure = Figure(figsize=(INCHES_WIDE * columns, INCHES_HIGH * rows + 0.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.ravel()):
        if place >= len(shares):
            axes.set_visible(False)
            continue
        name = list(shares)[place]
        _draw(axes, name, trials, varied[name])
        share = shares[name]
        axes.set_title(name if share is None else f"{name}: explains {share:.0%}", fontsize=9)
    for line in grid:
        line[0].set_ylabel("validation, nats/char", fontsize=8)
    figure.suptitle(title, fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())


def _draw(axes: Axes, name: str, trials: Sequence[Trial], spec: Range | Choices) -> None:
    limit = _highest(trials)
    names = None
    if isinstance(spec, Choices):
        names = [str(value) for value in spec.values]
    shown: list[tuple[float, float, str, str]] = []
    best = ranked(list(trials))[0]
    for trial in trials:
        value = trial.settings[name]
        place = float(names.index(str(value))) if names is not None else float(value)
        is_shown = trial.loss is not None and trial.loss <= limit
        colour = BEST_COLOUR if trial is best else TRIAL_COLOUR if is_shown else FAILED_COLOUR
        shown.append((place, trial.loss if is_shown and trial.loss is not None else limit, colour, "ox"[not is_shown]))
    for place, loss, colour, marker in shown:
        axes.scatter(place, loss, c=colour, marker=marker, s=22, zorder=2 + (colour == BEST_COLOUR))
    if names is not None:
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif isinstance(spec, Range):
        axes.set_xscale("log" if spec.is_log else "linear")
        axes.set_xlim(spec.low, spec.high)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _highest(trials: Sequence[Trial]) -> float:
    """Return the end of the loss axis; far worse or failed trials are crosses at the top."""
    losses = sorted(trial.loss for trial in trials if trial.loss is not None)
    if not losses:
        return 1.0
    middle, inner = losses[len(losses) // 2], losses[(3 * len(losses)) // 4] - losses[len(losses) // 4]
    return min(losses[-1], middle + MAX_SPREAD * max(inner, 0.01))


def rich_table(found: SearchResult) -> Table:
    """Make a table for a terminal."""
    head, rows, foot = _cells(found)
    table = Table(show_footer=True)
    for name, share in zip(head, foot, strict=True):
        table.add_column(name, footer=share, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def plain_table(found: SearchResult) -> str:
    """Make a table for a file or a pipe: columns of equal width."""
    head, rows, foot = _cells(found)
    lines = [head, *rows, foot]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(found: SearchResult) -> tuple[list[str], list[list[str]], list[str]]:
    """Return heads, rows and feet; the most important settings come first."""
    names = list(found.shares)
    short = [name.split(".")[1] for name in names]
    head = ["trial", "nats/char", "seconds", *(short if len(set(short)) == len(short) else names)]
    rows = [_row(trial, names) for trial in ranked(found.trials)]
    shares = ["" if found.shares[name] is None else f"{found.shares[name]:.0%}" for name in names]
    return head, rows, ["", "explains", "", *shares]


def _row(trial: Trial, names: list[str]) -> list[str]:
    loss = FAILED if trial.loss is None else show_figure(trial.loss)
    return [str(trial.number), loss, f"{trial.seconds:.0f}", *(format_setting(trial.settings[name]) for name in names)]

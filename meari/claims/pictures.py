"""One style for all pictures.

Input: figures and axes. Output: PNG bytes. Must not know: the meaning of what is drawn.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart; a family
also has its own marker and line, the same in every picture.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from meari.bundle_format.names import Family

NUM_COLOURS = 128
MAX_COLUMNS = 3
HEIGHT_INCHES, PANEL_INCHES, DOTS_PER_INCH = 4.2, 4.6, 100

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#CC79A7", "#000000", "#7F7F7F"


@dataclass(frozen=True)
class LineStyle:
    """Style of a line."""

    label: str
    colour: str
    marker: str
    line: str


LINE_STYLES = {
    Family.RNN: LineStyle("Elman", VERMILION, "s", "-"),
    Family.GRU: LineStyle("GRU", GREEN, "^", "-"),
    Family.LSTM: LineStyle("LSTM", BLUE, "o", "-"),
    Family.ESN: LineStyle("ESN", ORANGE, "D", "-"),
}


def panels(num_panels: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side, four of them in two rows."""
    rows = 2 if num_panels > MAX_COLUMNS else 1
    columns = -(-num_panels // rows)
    size = (columns * PANEL_INCHES + 0.4, rows * HEIGHT_INCHES)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def finish(axes: Axes, title: str, x_label: str, y_label: str, *, legend: bool = True) -> None:
    """Set title, labels, grid and legend of a panel."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8, frameon=False)


def plot(axes: Axes, x: Sequence[float], y: Sequence[float], look: LineStyle, *, is_marked: bool = True) -> None:
    """Draw one line."""
    marker = look.marker if is_marked else None
    axes.plot(
        x, y, color=look.colour, marker=marker, markersize=4, linestyle=look.line, linewidth=1.5, label=look.label
    )


def plot_seeds(
    axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], look: LineStyle, *, is_band: bool = False
) -> None:
    """Draw one line of medians over seeds, with bars (or a band) from the smallest to the largest value.

    seeds   one row a seed, one value for each x
    """
    rows = np.array(seeds)
    low, middle, high = rows.min(0), np.median(rows, axis=0), rows.max(0)
    if is_band:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)
    else:
        bars = (middle - low, high - middle)
        axes.errorbar(x, middle, bars, fmt="none", ecolor=look.colour, elinewidth=1.2, capsize=3)
    plot(axes, x, middle.tolist(), look, is_marked=not is_band)


def log_ticks(axes: Axes, values: Sequence[float], shape: str = "{:g}") -> None:
    """Set a logarithmic x axis with ticks at the values alone."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shape.format(value)))


def as_png(figure: Figure) -> bytes:
    """Return the picture's bytes, the same for the same figure; with few colours, since git keeps every version of a
    picture.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    picture = io.BytesIO()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).quantize(NUM_COLOURS).save(picture, "PNG", optimize=True)
    return picture.getvalue()

"""Pictures of the results. A server has the same colour in all of them; meari's stands out.

Input: results. Output: PNG files. Must not know: measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.serving.plan import HTTP_SERVERS, SCORING, LoadKind
from benchmarks.serving.results import Measurement, Results

COLOURS = {
    "meari": "#d1495b",
    "litserve": "#30638e",
    "mosec": "#5b8e7d",
    "bentoml": "#8cb369",
    "ray": "#8e7dbe",
    "flask-torch": "#9a9a9a",
}
MAIN_MODELS = ("lstm-int8", "lstm-fp32")
DPI = 110


def draw_all(results: Results, folder: Path) -> list[str]:
    """Write every picture that the results allow; return the names of the files."""
    written = []
    for name, draw in (("throughput.png", _throughput), ("cpu.png", _cpu), ("first-token.png", _first_token)):
        figure = draw(results)
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI, bbox_inches="tight")
            plt.close(figure)
            written.append(name)
    return written


def _throughput(results: Results) -> Figure | None:
    return _bars(results, lambda m: m.tokens_per_second, "tokens a second (higher is better)", "{:,.0f}")


def _cpu(results: Results) -> Figure | None:
    label = "server CPU-seconds for 1,000 tokens (lower is better)"
    return _bars(results, lambda m: m.cpu_seconds_per_1000, label, "{:.2f}")


def _bars(results: Results, value: Callable[[Measurement], float | None], label: str, form: str) -> Figure | None:
    """Draw a row of panels for each model, a panel a load, a bar a server; each panel has its own scale."""
    models = [name for name in MAIN_MODELS if any(m.model == name for m in results.measurements)]
    if not models:
        return None
    loads = {model: _generating_loads(results, model) for model in models}
    columns = max(map(len, loads.values()))
    figure, axes = plt.subplots(len(models), columns, figsize=(2.1 * columns + 1, 2.6 * len(models)), squeeze=False)
    for row, model in enumerate(models):
        for column in range(columns):
            axis = axes[row][column]
            if column >= len(loads[model]):
                axis.axis("off")
                continue
            _panel(axis, results, model, loads[model][column], value, form)
            if column:
                axis.set_yticklabels([])
        axes[row][0].set_ylabel(model)
    figure.suptitle(label, fontsize=11)
    figure.tight_layout()
    return figure


def _panel(
    axis: Axes, results: Results, model: str, load: str, value: Callable[[Measurement], float | None], form: str
) -> None:
    servers = [
        name
        for name in reversed(HTTP_SERVERS)
        if any((m.server, m.model) == (name, model) for m in results.measurements)
    ]
    found = {m.server: value(m) for m in results.measurements if (m.model, m.load) == (model, load)}
    numbers = [found.get(name) for name in servers]
    axis.barh(servers, [number or 0.0 for number in numbers], color=[COLOURS[name] for name in servers], height=0.7)
    largest = max((number for number in numbers if number), default=1.0)
    for place, number in enumerate(numbers):
        axis.text(
            (number or 0.0) + 0.03 * largest, place, form.format(number) if number else "–", va="center", fontsize=7
        )
    axis.set_xlim(0, 1.35 * largest)
    axis.set_title(load, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="x", labelbottom=False, length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _generating_loads(results: Results, model: str) -> Sequence[str]:
    wanted = (m.load for m in results.measurements if m.model == model and m.kind not in SCORING and not m.share)
    return sorted(dict.fromkeys(wanted), key=lambda load: (load.split(" ")[0] != "whole", load.startswith("mixed")))


def _first_token(results: Results) -> Figure | None:
    """Draw p95 of the first token over the offered share of each server's own capacity."""
    model = MAIN_MODELS[0]
    found = [
        m for m in results.measurements if m.model == model and m.kind == LoadKind.MIXED and m.share and m.first_ms
    ]
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for server in HTTP_SERVERS:
        line = sorted((m.share, m.first_ms.p95) for m in found if m.server == server and m.first_ms)
        if line:
            shares, times = zip(*line, strict=True)
            width = 2.4 if server == "meari" else 1.4
            axis.plot(shares, times, marker="o", color=COLOURS[server], linewidth=width, label=server)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}" if number >= 1 else f"{number:g}")
    axis.yaxis.set_minor_formatter(lambda number, _: f"{number:,.0f}" if str(number)[0] in "25" else "")
    ticks = sorted({m.share for m in found})
    axis.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
    axis.set_xlabel("offered load, as a share of the server's own capacity")
    axis.set_ylabel("p95 of the first token, ms")
    axis.grid(visible=True, axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set_title(f"mixed lengths, Poisson arrivals, {model}", fontsize=10)
    return figure

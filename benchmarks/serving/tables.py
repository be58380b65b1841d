"""Markdown tables of the results.

Input: results. Output: Markdown. Must not know: measurements, targets' verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.serving.results import Measurement, Results, Spread
from benchmarks.serving.targets import Row

MARKS = {True: "met", False: "**missed**", None: "–"}


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Write a Markdown table; columns from `numbers_from` on are aligned to the right."""
    rules = ["---" if place < numbers_from else "---:" for place in range(len(titles))]
    lines = [titles, rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def targets_table(rows: Sequence[Row]) -> str:
    """Write the targets."""
    titles = ("what", "target", "this run", "")
    return table(titles, [(row.what, row.target, row.figure, MARKS[row.met]) for row in rows], numbers_from=9)


def rates_table(results: Results, model: str) -> str:
    """Write tokens a second by server and load, and below them CPU-seconds for 1,000 tokens."""
    found = [m for m in results.measurements if m.model == model]
    loads = list(dict.fromkeys(m.load for m in found))
    servers = list(dict.fromkeys(m.server for m in found))
    by_place = {(m.server, m.load): m for m in found}
    rows = [(server, *(_rate(by_place.get((server, load))) for load in loads)) for server in servers]
    return table(("tokens/s (CPU-s per 1,000)", *loads), rows)


def _rate(measured: Measurement | None) -> str:
    if measured is None:
        return ""
    cpu = f" ({measured.cpu_seconds_per_1000:.3f})" if measured.cpu_seconds_per_1000 else ""
    return f"{measured.tokens_per_second:,.0f}{cpu}"


def waits_table(results: Results, model: str) -> str:
    """Write all times, refusals and memory, a line a server and load."""
    rows = [
        (
            m.server,
            m.load,
            _spread(m.first_ms),
            _spread(m.gap_ms),
            _spread(m.whole_ms),
            f"{m.num_answers:,}",
            f"{m.num_refused:,}" if m.refusal_ms is None else f"{m.num_refused:,} ({_spread(m.refusal_ms)})",
            f"{m.num_late:,}",
            f"{m.num_failed:,}",
            f"{m.memory_mb:,.0f}",
            f"{m.driver_cpu_share:.0%}",
            f"{m.other_cpu_share:.0%}",
        )
        for m in results.measurements
        if m.model == model
    ]
    titles = ("server", "load", "first token", "gap", "whole answer", "answers", "refused", "late", "failed", "MB")
    return table((*titles, "driver", "others"), rows, numbers_from=2)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return " / ".join(_ms(value) for value in (spread.p50, spread.p95, spread.p99))


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def starts_table(results: Results) -> str:
    """Write the time until each server was ready, and the most memory it was seen with."""
    peaks: dict[str, float] = {}
    for m in results.measurements:
        key = f"{m.server} / {m.model}"
        peaks[key] = max(peaks.get(key, 0.0), m.memory_mb)
    rows = [
        (name, f"{seconds:.1f}", f"{peaks[name]:,.0f}" if name in peaks else "–")
        for name, seconds in results.ready_seconds.items()
    ]
    return table(("server / bundle", "ready after, s", "peak memory, MB"), rows)


def inside_table(results: Results, what: str) -> str:
    """Write `raw` or `engine`: tokens a second by model, processes and batch."""
    found = [i for i in results.inside if i.what == what]
    if not found:
        return ""
    batches = sorted({i.batch for i in found})
    keys = dict.fromkeys((i.model, i.processes) for i in found)
    by_place = {(i.model, i.processes, i.batch): i for i in found}
    rows = []
    for model, processes in keys:
        cells = [by_place.get((model, processes, batch)) for batch in batches]
        rates = ("" if i is None else f"{i.tokens_per_second:,.0f} ({i.tokens_per_cpu_second:,.0f})" for i in cells)
        rows.append((model, str(processes), *rates))
    return table(("tokens/s (per CPU-second)", "processes", *map(str, batches)), rows)


def peak_table(results: Results) -> str:
    """Write the machine's peak at matrix products, and the share of it that raw's best steps reach."""
    peaks = results.probes.get("peak", {})
    rows = []
    for model, operations in peaks.get("operations_per_token", {}).items():
        raw = results.best_inside("raw", model, processes=1)
        if raw is None:
            continue
        precision = "int8" if model.endswith("int8") else "fp32"
        peak = peaks[f"{precision}_gops"]
        reached = raw.tokens_per_second * operations / 1e9
        share = f"{reached / peak:.0%}"
        rows.append((model, str(raw.batch), f"{operations / 1e6:.1f}", f"{reached:,.0f}", f"{peak:,.0f}", share))
    if not rows:
        return ""
    titles = ("model", "best batch", "million operations a token", "G/s reached", "G/s peak, one thread", "share")
    return table(titles, rows)

"""Targets, each with the figure of this run beside it.

Input: results. Output: rows. Must not know: servers, pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.serving.plan import CAPACITY, GOODPUT, HTTP_SERVERS, Load, LoadKind
from benchmarks.serving.requests import NEW_TOKENS, PROMPT_WORDS
from benchmarks.serving.results import Measurement, Results

INT8, FP32 = "lstm-int8", "lstm-fp32"
SINGLE_PROCESS, WHOLE, STREAM = Load(LoadKind.WHOLE, 1), Load(LoadKind.WHOLE, 64), Load(LoadKind.STREAM, 64)
AT_80, AT_200 = Load(LoadKind.MIXED, share=0.8), Load(LoadKind.MIXED, share=2.0)
LISTS = Load(LoadKind.SCORE_LIST, 4)
LONG_SECONDS = 540  # under load, before memory is called flat


@dataclass(frozen=True)
class Row:
    """One target. `met` is None if this run has not measured it, or if the machine was not quiet."""

    what: str
    target: str
    figure: str
    met: bool | None


class NotMeasured(Exception):
    """A figure that this run does not have."""


def target_rows(results: Results) -> list[Row]:
    """Return all targets, in the order of the page; none is judged where other processes took much of a CPU."""
    rows = _rows(results)
    return rows if results.is_quiet else [replace(row, met=None) for row in rows]


def _rows(results: Results) -> list[Row]:
    return [
        _row(lambda: _alone(results, INT8, 20.0), "one client, against Flask + PyTorch, int8", "≥ 20 × its tokens/s"),
        _row(lambda: _alone(results, FP32, 4.0), "one client, against Flask + PyTorch, fp32", "≥ 4 × its tokens/s"),
        _row(lambda: _beyond_raw(results), "one client: time beyond the raw steps", "≤ 1.5 ms a request"),
        *(
            _row(
                lambda load=load, model=model, least=least: _of_raw(results, model, load, least),  # type: ignore[misc]
                f"64 clients, {word}: tokens per server CPU-second against raw, {model}",
                f"≥ {least:.0%}",
            )
            for model in (INT8, FP32)
            for load, word, least in ((WHOLE, "whole", 0.85), (STREAM, "streamed", 0.75))
        ),
        _row(lambda: _mixed_rate(results), "mixed load: tokens/s against the best other server", "≥ 2 ×"),
        _row(lambda: _mixed_first(results), "mixed load at 80 %: p95 of the first token, likewise", "≤ a third"),
        _row(lambda: _goodput(results), "goodput: tokens/s against the best other server that streams", "≥ 2.5 ×"),
        _row(lambda: _delivered(results), "offered 200 %: delivered", "≥ 95 % of capacity"),
        _row(lambda: _accepted(results), "offered 200 %: p95 of what is accepted", "≤ 2 × that at 80 %"),
        _row(lambda: _refused(results), "offered 200 %: the rest is refused", "within 10 ms"),
        _row(lambda: _second_cpu(results), "two CPUs against one", "≥ 95 % of what raw gains"),
        _row(
            lambda: _of_raw(results, INT8, LISTS, 0.80), "/score of lists: tokens per CPU-second against raw", "≥ 80 %"
        ),
        _row(lambda: _bulk(results, "score"), "`meari score` of a file: tokens per CPU-second against raw", "≥ 90 %"),
        _row(lambda: _bulk(results, "generate"), "`meari generate` over prompts, likewise", "≥ 90 %"),
        _row(lambda: _nbest_tokens(results), "/score of a 100-best list: computed tokens", "the distinct prefixes"),
        _row(lambda: _nbest_speed(results), "/score of a 100-best list: against each alone", "≥ 3 × as fast"),
        _row(lambda: _seen(results), "a prompt of 1,000 tokens seen before: first token", "≤ 5 ms, same text"),
        _row(lambda: _fairness(results), "one sentence while a list of 1,000 is scored", "≤ 3 × its time alone"),
        _row(lambda: _sampling(results), "sampling, 64 rows, vocabulary 10,000", "≤ 15 % of a step"),
        _row(lambda: _memory(results), "memory of a worker", "≤ weights + 100 MB"),
        _row(lambda: _flat(results), "memory of a worker under mixed load", "flat within 2 %"),
        _row(lambda: _start(results), "start to ready, five bundles", "≤ 2 s"),
    ]


def _row(figure: Callable[[], tuple[str, bool]], what: str, target: str) -> Row:
    try:
        text, met = figure()
    except NotMeasured as reason:
        return Row(what, target, f"not measured ({reason})" if str(reason) else "not measured", None)
    return Row(what, target, text, met)


def _measured(results: Results, server: str, model: str, load: Load) -> Measurement:
    found = results.find(server, model, load)
    if found is None or not found.tokens_per_second:
        raise NotMeasured(f"{server}, {model}, {load.name}")
    return found


def _probe(results: Results, name: str) -> dict[str, Any]:
    if name not in results.probes:
        raise NotMeasured(results.failures.get(name, "").splitlines()[0][:80] if name in results.failures else "")
    return results.probes[name]


def _alone(results: Results, model: str, least: float) -> tuple[str, bool]:
    ours = _measured(results, "meari", model, SINGLE_PROCESS).tokens_per_second
    theirs = _flask_torch(results, model).tokens_per_second
    return f"{ours / theirs:.1f} × ({ours:,.0f} against {theirs:,.0f})", ours >= least * theirs


def _flask_torch(results: Results, model: str) -> Measurement:
    """Return the measurement of either model: torch runs the same weights in float32 for both."""
    found = results.find("flask-torch", model, SINGLE_PROCESS)
    return found or _measured(results, "flask-torch", FP32, SINGLE_PROCESS)


def _beyond_raw(results: Results) -> tuple[str, bool]:
    """Return the middle answer of one client, less the time of its steps in the bare loop at batch 1."""
    whole = _measured(results, "meari", INT8, SINGLE_PROCESS).whole_ms
    raw = next((i for i in results.inside if (i.what, i.model, i.batch, i.processes) == ("raw", INT8, 1, 1)), None)
    if whole is None or raw is None:
        raise NotMeasured("raw at batch 1")
    steps = (PROMPT_WORDS + NEW_TOKENS) * raw.cell_ms + NEW_TOKENS * raw.output_ms
    return f"{whole.p50 - steps:.2f} ms ({whole.p50:.2f} of which {steps:.2f} are steps)", whole.p50 - steps <= 1.5


def _of_raw(results: Results, model: str, load: Load, least: float) -> tuple[str, bool]:
    ours = _measured(results, "meari", model, load).tokens_per_cpu_second
    raw = results.best_inside("raw", model)
    if raw is None or ours is None:
        raise NotMeasured(f"raw, {model}")
    share = ours / raw.tokens_per_cpu_second
    return f"{share:.0%} ({ours:,.0f} of {raw.tokens_per_cpu_second:,.0f})", share >= least


def _best_other(results: Results) -> Measurement:
    """Measurement of the other server with most tokens a second under mixed load, at its capacity."""
    found = [results.find(name, INT8, CAPACITY) for name in HTTP_SERVERS if name != "meari"]
    there = [measured for measured in found if measured is not None and measured.tokens_per_second]
    if not there:
        raise NotMeasured("no other server")
    return max(there, key=lambda measured: measured.tokens_per_second)


def _mixed_rate(results: Results) -> tuple[str, bool]:
    ours = _measured(results, "meari", INT8, CAPACITY).tokens_per_second
    best = _best_other(results)
    ratio = ours / best.tokens_per_second
    return f"{ratio:.2f} × ({ours:,.0f} against {best.tokens_per_second:,.0f} of {best.server})", ratio >= 2


def _mixed_first(results: Results) -> tuple[str, bool]:
    best = _best_other(results).server
    ours, theirs = (_measured(results, server, INT8, AT_80).first_ms for server in ("meari", best))
    if ours is None or theirs is None:
        raise NotMeasured("first tokens")
    ratio = ours.p95 / theirs.p95
    return f"{ratio:.2f} × ({ours.p95:,.1f} against {theirs.p95:,.1f} ms of {best})", 3 * ours.p95 <= theirs.p95


def _goodput(results: Results) -> tuple[str, bool]:
    ours = _measured(results, "meari", INT8, GOODPUT)
    found = [results.find(name, INT8, GOODPUT) for name in HTTP_SERVERS if name != "meari"]
    there = [measured for measured in found if measured is not None]
    if not there:
        raise NotMeasured("no other server")
    best = max(there, key=lambda measured: measured.tokens_per_second)
    rates = f"{ours.tokens_per_second:,.0f} against {best.tokens_per_second:,.0f} of {best.server}"
    if not best.tokens_per_second:
        return f"{rates}, which is too slow under any load", True
    ratio = ours.tokens_per_second / best.tokens_per_second
    return f"{ratio:.2f} × ({rates})", ratio >= 2.5


def _delivered(results: Results) -> tuple[str, bool]:
    capacity = _measured(results, "meari", INT8, CAPACITY).tokens_per_second
    delivered = _measured(results, "meari", INT8, AT_200).tokens_per_second
    return f"{delivered / capacity:.0%} ({delivered:,.0f} of {capacity:,.0f} tokens/s)", delivered >= 0.95 * capacity


def _accepted(results: Results) -> tuple[str, bool]:
    whole = [_measured(results, "meari", INT8, load).whole_ms for load in (AT_80, AT_200)]
    if whole[0] is None or whole[1] is None:
        raise NotMeasured("answers")
    ratio = whole[1].p95 / whole[0].p95
    return f"{ratio:.2f} × ({whole[1].p95:,.0f} against {whole[0].p95:,.0f} ms)", ratio <= 2


def _refused(results: Results) -> tuple[str, bool]:
    measured = _measured(results, "meari", INT8, AT_200)
    if measured.refusal_ms is None:
        raise NotMeasured("nothing was refused")
    spread = measured.refusal_ms
    return f"p50 {spread.p50:.1f}, p95 {spread.p95:.1f}, p99 {spread.p99:.1f} ms ({spread.count})", spread.p99 <= 10


def _second_cpu(results: Results) -> tuple[str, bool]:
    gain = _probe(results, "second CPU")["gain"]
    rates = {
        i.processes: i.tokens_per_second for i in results.inside if (i.what, i.model, i.batch) == ("raw", INT8, 64)
    }
    if len(rates) < 2:
        raise NotMeasured("raw with one process and with several")
    raw = rates[max(rates)] / rates[min(rates)]
    return f"{gain / raw:.0%} ({gain:.2f} × against {raw:.2f} ×)", gain >= 0.95 * raw


def _bulk(results: Results, verb: str) -> tuple[str, bool]:
    ours = _probe(results, "bulk")[f"{verb}_tokens_per_cpu_second"]
    raw = results.best_inside("raw", INT8)
    if raw is None:
        raise NotMeasured("raw")
    share = ours / raw.tokens_per_cpu_second
    return f"{share:.0%} ({ours:,.0f} of {raw.tokens_per_cpu_second:,.0f})", share >= 0.9


def _nbest_tokens(results: Results) -> tuple[str, bool]:
    found = _probe(results, "n-best")
    computed, distinct = found["computed_tokens"], found["distinct_prefixes"]
    return f"{computed:,} for {distinct:,} distinct prefixes", computed == distinct


def _nbest_speed(results: Results) -> tuple[str, bool]:
    found = _probe(results, "n-best")
    equal = "same figures" if found["equal"] else "OTHER FIGURES"
    text = f"{found['times_as_fast']:.1f} × ({found['list_ms']:.1f} against {found['alone_ms']:.1f} ms; {equal})"
    return text, found["times_as_fast"] >= 3 and found["equal"]


def _seen(results: Results) -> tuple[str, bool]:
    found = _probe(results, "seen prompt")
    equal = "same text" if found["equal"] else "ANOTHER TEXT"
    text = f"{found['warm_ms']:.1f} ms, worst {found['warm_worst_ms']:.1f}; cold {found['cold_ms']:.1f}; {equal}"
    return text, found["warm_ms"] <= 5 and found["equal"]


def _fairness(results: Results) -> tuple[str, bool]:
    found = _probe(results, "fairness")
    return f"{found['ratio']:.2f} × ({found['busy_ms']:.1f} against {found['idle_ms']:.1f} ms)", found["ratio"] <= 3


def _sampling(results: Results) -> tuple[str, bool]:
    found = _probe(results, "sampling")
    text = f"{found['share']:.0%} ({found['sampled_us']:.0f} µs a token, {found['greedy_us']:.0f} greedy)"
    return text, found["share"] <= 0.15


def _memory(results: Results) -> tuple[str, bool]:
    found = _probe(results, "memory")
    beyond = found["beyond_weights_mb"]
    return f"weights + {beyond:.0f} MB ({found['largest_mb']:.0f} MB PSS)", beyond <= 100


def _flat(results: Results) -> tuple[str, bool]:
    found = _probe(results, "memory")
    text = f"{found['growth']:+.1%} over {found['seconds']:,} s"
    if found["seconds"] < LONG_SECONDS:
        raise NotMeasured(f"{text}, too short to tell")
    return text, found["growth"] <= 0.02


def _start(results: Results) -> tuple[str, bool]:
    found = _probe(results, "start")
    return f"{found['seconds']:.2f} s, {found['bundles']} bundles", found["seconds"] <= 2

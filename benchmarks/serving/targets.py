"""Targets, each with the figure of this run beside it.

Input: results. Output: rows. Must not know: servers, pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.serving.plan import CAPACITY, GOODPUT, HTTP_SERVERS, Load, LoadKind
from benchmarks.serving.requests import NEW_TOKENS, PROMPT_WORDS
from benchmarks.serving.results import Inside, Measurement, Results

INT8, FP32, SMALL = "lstm-int8", "lstm-fp32", "shakespeare-lstm"
SINGLE_PROCESS, WHOLE, STREAM = Load(LoadKind.WHOLE, 1), Load(LoadKind.WHOLE, 64), Load(LoadKind.STREAM, 64)
AT_80, AT_200 = Load(LoadKind.MIXED, share=0.8), Load(LoadKind.MIXED, share=2.0)
LISTS = Load(LoadKind.SCORE_LIST, 4)
Figure = tuple[str, float]  # as it is shown, and the number; NaN meets no bound
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
        _least(lambda: _alone(results, INT8), "one client, against Flask + PyTorch, int8", "≥ {:g} × its tokens/s", 20),
        _least(lambda: _alone(results, FP32), "one client, against Flask + PyTorch, fp32", "≥ {:g} × its tokens/s", 4),
        _most(lambda: _beyond_raw(results), "one client: time beyond the raw steps", "≤ {:g} ms a request", 2),
        *(
            _least(
                lambda load=load, model=model: _of_raw(results, model, load),  # type: ignore[misc]
                f"64 clients, {word}: tokens per server CPU-second against raw, {model}",
                "≥ {:.0%}",
                bound,
            )
            for model in (INT8, FP32)
            for load, word, bound in ((WHOLE, "whole", 0.78), (STREAM, "streamed", 0.70))
        ),
        _least(lambda: _small(results), f"64 clients, whole: tokens/s against raw, {SMALL}", "≥ {:.0%}", 0.45),
        _least(lambda: _mixed(results), "mixed load: tokens per CPU-second against the best other", "≥ {:g} ×", 1.35),
        _most(
            lambda: _mixed_first(results),
            "mixed load at 80 %: p95 of the first token, against the fastest",
            "≤ {:.2f} ×",
            1 / 3,
        ),
        _least(lambda: _goodput(results), "goodput: tokens/s against the best other that streams", "≥ {:g} ×", 2.5),
        _least(lambda: _delivered(results), "offered 200 %: delivered", "≥ {:.0%} of capacity", 0.97),
        _most(lambda: _accepted(results), "offered 200 %: p95 of what is accepted", "≤ {:g} × that at 80 %", 2),
        _most(lambda: _refused(results), "offered 200 %: p99 of the refusals", "≤ {:g} ms", 10),
        _least(lambda: _second_cpu(results), "two CPUs against one", "≥ {:.0%} of what raw gains", 0.92),
        _least(
            lambda: _of_raw(results, INT8, LISTS),
            "/score of lists: tokens per CPU-second against raw",
            "≥ {:.0%}",
            0.95,
        ),
        _least(lambda: _bulk(results, "score"), "`meari score` of a file, likewise", "≥ {:.0%}", 0.98),
        _least(lambda: _bulk(results, "generate"), "`meari generate` over prompts, likewise", "≥ {:.0%}", 0.85),
        _most(
            lambda: _nbest_tokens(results), "/score of a 100-best list: computed tokens", "≤ {:g} a distinct prefix", 1
        ),
        _least(lambda: _nbest_speed(results), "/score of a 100-best list: against each alone", "≥ {:g} × as fast", 3),
        _most(lambda: _seen(results), "a prompt of 1,000 tokens seen before: first token", "≤ {:g} ms, same text", 5),
        _most(lambda: _fairness(results), "one sentence while a list of 1,000 is scored", "≤ {:g} × its time alone", 3),
        _most(lambda: _sampling(results), "sampling, 64 rows, vocabulary 10,000", "≤ {:.0%} of a step", 0.15),
        _most(lambda: _memory(results), "memory of a worker", "≤ weights + {:g} MB", 100),
        _most(lambda: _flat(results), "growth of a worker under mixed load", "≤ {:.0%}", 0.02),
        _most(lambda: _start(results), "start to ready, five bundles", "≤ {:g} s", 2),
    ]


def _least(figure: Callable[[], Figure], what: str, target: str, bound: float) -> Row:
    return _row(figure, what, target.format(bound), lambda number: number >= bound)


def _most(figure: Callable[[], Figure], what: str, target: str, bound: float) -> Row:
    return _row(figure, what, target.format(bound), lambda number: number <= bound)


def _row(figure: Callable[[], Figure], what: str, target: str, is_met: Callable[[float], bool]) -> Row:
    try:
        text, number = figure()
    except NotMeasured as reason:
        return Row(what, target, f"not measured ({reason})" if str(reason) else "not measured", None)
    return Row(what, target, text, is_met(number))


def _measured(results: Results, server: str, model: str, load: Load) -> Measurement:
    found = results.find(server, model, load)
    if found is None or not found.tokens_per_second:
        raise NotMeasured(f"{server}, {model}, {load.name}")
    return found


def _probe(results: Results, name: str) -> dict[str, Any]:
    if name not in results.probes:
        raise NotMeasured(results.failures.get(name, "").splitlines()[0][:80] if name in results.failures else "")
    return results.probes[name]


def _alone(results: Results, model: str) -> Figure:
    ours = _measured(results, "meari", model, SINGLE_PROCESS).tokens_per_second
    theirs = _flask_torch(results, model).tokens_per_second
    return f"{ours / theirs:.1f} × ({ours:,.0f} against {theirs:,.0f})", ours / theirs


def _flask_torch(results: Results, model: str) -> Measurement:
    """Return the measurement of either model: torch runs the same weights in float32 for both."""
    found = results.find("flask-torch", model, SINGLE_PROCESS)
    return found or _measured(results, "flask-torch", FP32, SINGLE_PROCESS)


def _raw_of(measured: Measurement) -> Inside:
    """Return the bare loop beside a load."""
    if measured.raw is None:
        raise NotMeasured(f"raw, {measured.model}")
    return measured.raw


def _beyond_raw(results: Results) -> Figure:
    """Return the middle answer of one client, less the time of its steps in the bare loop at batch 1."""
    ours = _measured(results, "meari", INT8, SINGLE_PROCESS)
    raw, whole = _raw_of(ours), ours.whole_ms
    if whole is None:
        raise NotMeasured("answers")
    steps = (PROMPT_WORDS + NEW_TOKENS) * raw.cell_ms + NEW_TOKENS * raw.output_ms
    return f"{whole.p50 - steps:.2f} ms ({whole.p50:.2f} of which {steps:.2f} are steps)", whole.p50 - steps


def _of_raw(results: Results, model: str, load: Load) -> Figure:
    ours = _measured(results, "meari", model, load)
    raw, share = _raw_of(ours).tokens_per_cpu_second, ours.share_of_raw
    if share is None:
        raise NotMeasured("CPU time")
    return f"{share:.0%} ({share * raw:,.0f} of {raw:,.0f})", share


def _small(results: Results) -> Figure:
    ours = _measured(results, "meari", SMALL, WHOLE)
    rate, raw = ours.tokens_per_second, _raw_of(ours).tokens_per_second
    return f"{rate / raw:.0%} ({rate:,.0f} of {raw:,.0f})", rate / raw


def _others(results: Results) -> list[Measurement]:
    """Return the measurements of the other servers at their capacity under mixed load."""
    found = [results.find(name, INT8, CAPACITY) for name in HTTP_SERVERS if name != "meari"]
    there = [measured for measured in found if measured is not None and measured.tokens_per_second]
    if not there:
        raise NotMeasured("no other server")
    return there


def _mixed(results: Results) -> Figure:
    """Compare shares of the bare loop at the same time: the servers are measured minutes apart."""
    ours = _measured(results, "meari", INT8, CAPACITY).share_of_raw
    theirs, server = max((measured.share_of_raw or 0.0, measured.server) for measured in _others(results))
    if ours is None or not theirs:
        raise NotMeasured(f"raw, {INT8}")
    return f"{ours / theirs:.2f} × ({ours:.0%} of raw against {theirs:.0%} of {server})", ours / theirs


def _mixed_first(results: Results) -> Figure:
    best = max(_others(results), key=lambda measured: measured.tokens_per_second).server
    ours, theirs = (_measured(results, server, INT8, AT_80).first_ms for server in ("meari", best))
    if ours is None or theirs is None:
        raise NotMeasured("first tokens")
    ratio = ours.p95 / theirs.p95
    return f"{ratio:.2f} × ({ours.p95:,.1f} against {theirs.p95:,.1f} ms of {best})", ratio


def _goodput(results: Results) -> Figure:
    ours = _measured(results, "meari", INT8, GOODPUT)
    found = [results.find(name, INT8, GOODPUT) for name in HTTP_SERVERS if name != "meari"]
    there = [measured for measured in found if measured is not None]
    if not there:
        raise NotMeasured("no other server")
    best = max(there, key=lambda measured: measured.tokens_per_second)
    rates = f"{ours.tokens_per_second:,.0f} against {best.tokens_per_second:,.0f} of {best.server}"
    if not best.tokens_per_second:
        return f"{rates}, which is too slow under any load", float("inf")
    ratio = ours.tokens_per_second / best.tokens_per_second
    return f"{ratio:.2f} × ({rates})", ratio


def _delivered(results: Results) -> Figure:
    capacity = _measured(results, "meari", INT8, CAPACITY).tokens_per_second
    delivered = _measured(results, "meari", INT8, AT_200).tokens_per_second
    return f"{delivered / capacity:.0%} ({delivered:,.0f} of {capacity:,.0f} tokens/s)", delivered / capacity


def _accepted(results: Results) -> Figure:
    whole = [_measured(results, "meari", INT8, load).whole_ms for load in (AT_80, AT_200)]
    if whole[0] is None or whole[1] is None:
        raise NotMeasured("answers")
    ratio = whole[1].p95 / whole[0].p95
    return f"{ratio:.2f} × ({whole[1].p95:,.0f} against {whole[0].p95:,.0f} ms)", ratio


def _refused(results: Results) -> Figure:
    measured = _measured(results, "meari", INT8, AT_200)
    if measured.refusal_ms is None:
        raise NotMeasured("nothing was refused")
    spread = measured.refusal_ms
    return f"p50 {spread.p50:.1f}, p95 {spread.p95:.1f}, p99 {spread.p99:.1f} ms ({spread.count})", spread.p99


def _second_cpu(results: Results) -> Figure:
    gain = _probe(results, "second CPU")["gain"]
    rates = {
        i.processes: i.tokens_per_second for i in results.inside if (i.what, i.model, i.batch) == ("raw", INT8, 64)
    }
    if len(rates) < 2:
        raise NotMeasured("raw with one process and with several")
    raw = rates[max(rates)] / rates[min(rates)]
    return f"{gain / raw:.0%} ({gain:.2f} × against {raw:.2f} ×)", gain / raw


def _bulk(results: Results, verb: str) -> Figure:
    found = _probe(results, "bulk")
    ours, raw = found[f"{verb}_tokens_per_cpu_second"], found[f"{verb}_raw"]
    return f"{ours / raw:.0%} ({ours:,.0f} of {raw:,.0f})", ours / raw


def _nbest_tokens(results: Results) -> Figure:
    found = _probe(results, "n-best")
    computed, distinct = found["computed_tokens"], found["distinct_prefixes"]
    return f"{computed:,} for {distinct:,} distinct prefixes", computed / distinct


def _nbest_speed(results: Results) -> Figure:
    found = _probe(results, "n-best")
    equal = "same figures" if found["equal"] else "OTHER FIGURES"
    text = f"{found['times_as_fast']:.1f} × ({found['list_ms']:.1f} against {found['alone_ms']:.1f} ms; {equal})"
    return text, found["times_as_fast"] if found["equal"] else float("nan")


def _seen(results: Results) -> Figure:
    found = _probe(results, "seen prompt")
    equal = "same text" if found["equal"] else "ANOTHER TEXT"
    text = f"{found['warm_ms']:.1f} ms, worst {found['warm_worst_ms']:.1f}; cold {found['cold_ms']:.1f}; {equal}"
    return text, found["warm_ms"] if found["equal"] else float("nan")


def _fairness(results: Results) -> Figure:
    found = _probe(results, "fairness")
    return f"{found['ratio']:.2f} × ({found['busy_ms']:.1f} against {found['idle_ms']:.1f} ms)", found["ratio"]


def _sampling(results: Results) -> Figure:
    found = _probe(results, "sampling")
    text = f"{found['share']:.0%} ({found['sampled_us']:.0f} µs a token, {found['greedy_us']:.0f} greedy)"
    return text, found["share"]


def _memory(results: Results) -> Figure:
    found = _probe(results, "memory")
    beyond = found["beyond_weights_mb"]
    return f"weights + {beyond:.0f} MB ({found['largest_mb']:.0f} MB PSS)", beyond


def _flat(results: Results) -> Figure:
    found = _probe(results, "memory")
    text = f"{found['growth']:+.1%} over {found['seconds']:,} s"
    if found["seconds"] < LONG_SECONDS:
        raise NotMeasured(f"{text}, too short to tell")
    return text, found["growth"]


def _start(results: Results) -> Figure:
    found = _probe(results, "start")
    return f"{found['seconds']:.2f} s, {found['bundles']} bundles", found["seconds"]

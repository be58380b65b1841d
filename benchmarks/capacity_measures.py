"""Measures of one core for the capacity page.

Input: bundles, the length of a load. Output: the figures of docs/benchmarks/capacity.json as plain values. Must not
know: tables.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.serving.answers import read_answers
from benchmarks.serving.driver import Address, LoadRequest, drive_closed
from benchmarks.serving.machine import describe
from benchmarks.serving.measured_servers import NO_END, SERVERS, ServedBundle, http_post
from benchmarks.serving.plan import Load, LoadKind
from benchmarks.serving.processes import Running, free_port, serving
from benchmarks.serving.results import summarise
from loadtests.prompts import PROMPTS, TEXTS

ROOT: Final = Path(__file__).parents[1]
LOADS: Final = (("whole", 1), ("whole", 64), ("stream", 64), ("score", 16))
NEW_TOKENS: Final = 64
WARMUP_SHARE: Final = 0.3
MEARI: Final = SERVERS["meari"]


@dataclass(frozen=True)
class LoadFigures:
    """One model under one load, served by one worker.

    tokens_per_cpu_second   written or scored, for a CPU-second of master and worker
    cpu_ms_a_request        of the same
    answer_ms               median time of an answer under this load
    bytes_a_request         of the answer, heads included
    """

    model: str
    load: str
    tokens_per_cpu_second: float
    cpu_ms_a_request: float
    answer_ms: float
    bytes_a_request: float


def measure(models: Sequence[str], seconds: float) -> dict[str, Any]:
    """Serve the bundles with one worker and measure every load for so many seconds."""
    port = free_port()
    command, environment = MEARI.command(ServedBundle(ROOT / "bundles" / models[0], "", 1), port)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with serving(command, environment, port, MEARI.ready_path, log, 60.0) as running:
            loads = [asdict(_figures(running, model, *load, seconds)) for model in models for load in LOADS]
            series = _num_series(port)
    about = describe()
    machine = f"{about['cpu']}, {about['num_cpus']} CPUs; {about['system']}; one worker, {seconds:g} s a load"
    return {
        "machine": f"{machine}; {datetime.now(UTC):%Y-%m-%d} UTC",
        "loads": loads,
        "series_a_replica": series,
        "bundles_mb": round(_bundle_megabytes(), 1),
    }


def _figures(running: Running, model: str, kind: str, clients: int, seconds: float) -> LoadFigures:
    driven = drive_closed(
        Address(running.port),
        _asks(model, kind),
        num_clients=clients,
        seconds=seconds,
        warmup_seconds=WARMUP_SHARE * seconds,
        drain_seconds=10.0,
        edge=running.usage,
    )
    answers = read_answers(driven.exchanges)
    load = Load(LoadKind.SCORE_LIST if kind == "score" else LoadKind(kind), clients)
    found = summarise(MEARI.name, model, load, driven, answers, 0.0)
    if found.num_failed or found.num_refused or found.cpu_seconds_per_1000 is None or found.whole_ms is None:
        raise SystemExit(f"{model}, {kind} × {clients}: not all requests were answered: {found.problems}")
    tokens_a_request = found.tokens_per_second / found.answers_per_second
    sizes = [sum(len(data) for _, data in each.pieces) for each in driven.exchanges if each.ended]
    return LoadFigures(
        model=model,
        load=f"{kind} × {clients}",
        tokens_per_cpu_second=round(1000 / found.cpu_seconds_per_1000, 1),
        cpu_ms_a_request=round(found.cpu_seconds_per_1000 * tokens_a_request, 4),
        answer_ms=found.whole_ms.p50,
        bytes_a_request=round(statistics.mean(sizes), 1),
    )


def _asks(model: str, kind: str) -> Iterator[LoadRequest]:
    """Yield requests without end: continuations of 64 tokens of ever other prompts, or seven texts to score."""
    for number in itertools.count():
        if kind == "score":
            yield MEARI.score(TEXTS, model=model)
        else:
            prompt = f"{number} {PROMPTS[number % len(PROMPTS)]}"
            body = {"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS, "logit_bias": NO_END, "seed": number}
            yield LoadRequest(http_post(MEARI.generate_path, {**body, "stream": kind == "stream"}), NEW_TOKENS)


def _num_series(port: int) -> int:
    """Return the number of series that a scrape has, all models under load."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines: list[str] = response.read().decode().splitlines()
    return sum(bool(line) and not line.startswith("#") for line in lines)


def _bundle_megabytes() -> float:
    """Return the size of the largest released bundle."""
    folders = [place for place in (ROOT / "bundles").iterdir() if place.is_dir()]
    return max(sum(file.stat().st_size for file in place.iterdir()) for place in folders) / 1e6

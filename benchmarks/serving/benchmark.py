"""The benchmark: a plan, run bundle by bundle, server by server, load by load.

Input: a plan. Output: results; a failure is recorded, and the rest continues. Must not know: pages.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.answers import read_answers
from benchmarks.serving.driver import Address, drive_closed, drive_open
from benchmarks.serving.measured_servers import SERVERS, ServedBundle, Server
from benchmarks.serving.plan import BESIDE_RAW, CAPACITY, INSIDE, SCORING, BenchmarkPlan, Load, LoadKind, Round
from benchmarks.serving.probes import Probes
from benchmarks.serving.processes import Running, StartFailed, free_port, last_lines, serving
from benchmarks.serving.programs import ProgramFailed, run_inside, run_together
from benchmarks.serving.requests import Requests
from benchmarks.serving.results import Inside, Measurement, Results, mean_of, summarise

OUT_OF_TIME = "the time of the run was used up"
ENGINE_CONCURRENCY = (1, 64)
MAX_GOODPUT_SHARE = 1.25  # of capacity
GOODPUT_TRIES = 5


def say(text: str) -> None:
    """Report progress on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass
class Benchmark:
    """One run. `bundle` returns the folder of a model without other bundles; `work` holds logs."""

    plan: BenchmarkPlan
    results: Results
    bundle: Callable[[str], Path]
    work: Path
    num_cpus: int
    deadline: float  # on time.monotonic's clock; the rounds end earlier, by the probes' share of the plan

    def run(self) -> None:
        """Measure every round, then the machine's peak."""
        for turn in self.plan.rounds:
            try:
                place = self.bundle(turn.model)
            except Exception as error:  # noqa: BLE001 (the other models follow)
                self.results.failures[f"all / {turn.model}"] = f"no bundle: {error}"
                continue
            for server in turn.servers:
                self.measure(server, turn, place)
        try:
            self.peak()
        except ProgramFailed as error:
            self.results.failures["peak"] = str(error)

    def measure(self, server: str, turn: Round, place: Path) -> None:
        """Put the loads of a round on one server."""
        key = f"{server} / {turn.model}"
        if self._rounds_are_over():
            self.results.failures[key] = OUT_OF_TIME
            return
        say(key)
        try:
            self._inside(server, place) if server in INSIDE else self._serve(server, turn, place)
        except (ProgramFailed, StartFailed) as error:
            self.results.failures[key] = str(error)
            say(f"  failed: {str(error).splitlines()[0]}")

    def peak(self) -> None:
        """Measure the machine's peak at matrix products, beside the demand of each bundle's graphs."""
        ((found,),) = run_together("gemm", [str(self.plan.raw_seconds)], num_processes=1, num_results=1, timeout=60)
        models = dict.fromkeys(inside.model for inside in self.results.inside if inside.what == "raw")
        found["operations_per_token"] = {model: self._operations(model) for model in models}
        self.results.probes["peak"] = found
        say(f"peak: {in_short(found)}")

    def _operations(self, model: str) -> int:
        ((found,),) = run_together("operations", [str(self.bundle(model))], num_processes=1, num_results=1, timeout=60)
        return int(found["operations_per_token"])

    def probe(self, probes: Probes, names: Sequence[str]) -> None:
        """Run the small measurements."""
        for name in names:
            if time.monotonic() > self.deadline:
                self.results.failures[name] = OUT_OF_TIME
                continue
            try:
                self.results.probes[name] = probes.by_name()[name]()
                say(f"{name}: {in_short(self.results.probes[name])}")
            except Exception as error:  # noqa: BLE001 (one probe must not keep the others from running)
                self.results.failures[name] = f"{type(error).__name__}: {error}"
                say(f"{name}: failed: {self.results.failures[name][:300]}")

    def _rounds_are_over(self) -> bool:
        return time.monotonic() > self.deadline - self.plan.probe_seconds

    # ---- in process ----

    def _inside(self, what: str, place: Path) -> None:
        sizes = self.plan.raw_batches if what == "raw" else ENGINE_CONCURRENCY
        seconds = self.plan.raw_seconds if what == "raw" else self.plan.closed_seconds / 2
        for processes in sorted({1, self.num_cpus}):
            for inside in run_inside(what, place, processes, sizes, seconds):
                self.results.inside.append(inside)
                say(f"  {processes} × {inside.batch:>3} rows: {inside.tokens_per_second:>9,.0f} tokens/s")

    def _raw_beside(self, server: Server, served: ServedBundle, load: Load) -> list[Inside]:
        """Measure the bare loop beside a load that a target compares with it, where it has been measured at all."""
        best = self.results.best_inside("raw", served.name)
        if best is None or load not in BESIDE_RAW or (server.name != "meari" and load != CAPACITY):
            return []
        processes, batch = (1, 1) if load.clients == 1 else (best.processes, best.batch)
        return run_inside("raw", served.bundle, processes, (batch,), self.plan.raw_seconds)

    # ---- over HTTP ----

    def _serve(self, name: str, turn: Round, place: Path) -> None:
        server = SERVERS[name]
        served = ServedBundle(place, _family(place), self.num_cpus)
        if server.needs_torch_weights and not (place / "torch.pt").exists():
            self.results.failures[f"{name} / {turn.model}"] = "this bundle has no torch weights"
            return
        loads = [load for load in turn.loads if _takes(server, load)]
        while loads:
            loads = self._serve_once(server, served, loads)

    def _serve_once(self, server: Server, served: ServedBundle, loads: list[Load]) -> list[Load]:
        """Start the server and put loads on it; return the loads that are left because it did not come to rest.

        A server that continues requests of closed connections would carry one load into the next.
        """
        port = free_port()
        command, environment = server.command(served, port)
        log = self.work / "logs" / f"{server.name}-{served.name}.log"
        with serving(command, environment, port, server.ready_path, log, self.plan.start_timeout) as running:
            key = f"{server.name} / {served.name}"
            self.results.ready_seconds.setdefault(key, round(running.ready_seconds, 2))
            say(f"  ready after {running.ready_seconds:.1f} s")
            for number, load in enumerate(loads):
                before = self._raw_beside(server, served, load)
                measured = self._load(server, served.name, load, running)
                has_ended = running.process.poll() is not None
                is_idle = not has_ended and running.becomes_idle(self.plan.drain_seconds)
                if measured is not None:
                    after = self._raw_beside(server, served, load) if is_idle else []
                    measured = dataclasses.replace(measured, raw=mean_of(before + after))
                    self.results.measurements.append(measured)
                    say("  " + in_a_line(measured))
                if has_ended:
                    code = running.process.returncode
                    raise StartFailed(f"it ended under {load.name} with code {code}\n{last_lines(log)}")
                if self._rounds_are_over():
                    self.results.failures[key] = OUT_OF_TIME
                    return []
                if not is_idle:
                    return loads[number + 1 :]
        return []

    def _load(self, server: Server, model: str, load: Load, running: Running) -> Measurement | None:
        if load.kind is LoadKind.GOODPUT:
            return self._goodput(server, model, load, running)
        if load.share:
            return self._open(server, model, load, running)
        return self._closed(server, model, load, running)

    def _closed(self, server: Server, model: str, load: Load, running: Running) -> Measurement:
        longer = 2 if load.kind is LoadKind.MIXED else 1  # its answers are, and other loads are measured by this one
        driven = drive_closed(
            Address(running.port),
            Requests(server, model).closed(load),
            num_clients=load.clients,
            seconds=self.plan.closed_seconds * longer,
            warmup_seconds=self.plan.warmup_seconds * longer,
            drain_seconds=self.plan.drain_seconds,
            edge=running.usage,
        )
        return summarise(server.name, model, load, driven, read_answers(driven.exchanges), 0.0)

    def _goodput(self, server: Server, model: str, load: Load, running: Running) -> Measurement | None:
        """Halve the range of loads; return the largest with quick tokens, or one of no tokens."""
        low, high, best = 0.0, MAX_GOODPUT_SHARE, None
        for _ in range(GOODPUT_TRIES):
            share = (low + high) / 2
            tried = self._open(server, model, dataclasses.replace(load, share=share), running)
            if tried is None:
                return None
            say(f"  {share:4.0%} {in_a_line(tried)}")
            low, high = (share, high) if tried.is_quick else (low, share)
            best = tried if tried.is_quick else best or dataclasses.replace(tried, tokens_per_second=0.0)
            running.becomes_idle(self.plan.drain_seconds)
        return best

    def _open(self, server: Server, model: str, load: Load, running: Running) -> Measurement | None:
        capacity = self.results.find(server.name, model, CAPACITY)
        if capacity is None or not capacity.answers_per_second:
            return None
        rate = load.share * capacity.answers_per_second
        driven = drive_open(
            Address(running.port),
            Requests(server, model).open(load, rate, self.plan.open_seconds),
            seconds=self.plan.open_seconds,
            drain_seconds=self.plan.drain_seconds,
            edge=running.usage,
        )
        return summarise(server.name, model, load, driven, read_answers(driven.exchanges), rate)


def in_short(figures: dict[str, Any]) -> str:
    """Describe a measurement for the terminal."""
    return ", ".join(f"{key} {value}" for key, value in figures.items() if not isinstance(value, list))


def in_a_line(measured: Measurement) -> str:
    """Describe a measurement for the terminal, in a line."""
    first = f"{measured.first_ms.p95:8.1f}" if measured.first_ms else "       –"
    cpu = f"{measured.cpu_seconds_per_1000:.3f}" if measured.cpu_seconds_per_1000 else "–"
    line = f"{measured.load:<18} {measured.tokens_per_second:>9,.0f} tokens/s  {cpu} CPU-s/1,000  first p95 {first} ms"
    if measured.num_late:
        line += f"  {measured.num_late} late"
    if measured.num_refused:
        line += f"  {measured.num_refused} refused"
    if measured.num_failed:
        line += f"  {measured.num_failed} failed ({measured.problems[0][:120]})"
    return line


def _takes(server: Server, load: Load) -> bool:
    if load.kind in SCORING:
        return server.scores
    if load.kind in (LoadKind.STREAM, LoadKind.GOODPUT):
        return server.streams
    return load.kind is not LoadKind.WHOLE or server.wholes


def _family(place: Path) -> str:
    import json

    return str(json.loads((place / "manifest.json").read_text("utf-8"))["family"])


def granted_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))

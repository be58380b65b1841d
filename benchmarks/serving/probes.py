"""Probes: small measurements of meari alone, each with a server of its own.

Input: a plan, bundles. Output: plain figures for the targets. Must not know: pages.
"""

from __future__ import annotations

import contextlib
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.answers import read_answers
from benchmarks.serving.client import Client
from benchmarks.serving.driver import Address, drive_closed, drive_open
from benchmarks.serving.measured_servers import SERVERS, ServedBundle
from benchmarks.serving.plan import CAPACITY, BenchmarkPlan, Load, LoadKind
from benchmarks.serving.processes import Running, free_port, memory_by_process, serving
from benchmarks.serving.programs import run_inside, run_together
from benchmarks.serving.requests import NEW_TOKENS, PROMPT_WORDS, SENTENCE_WORDS, Requests, make_text, make_words
from benchmarks.serving.results import Measurement, summarise

SHORT_RUN = 100  # lines, of a run that is subtracted for the start that both share
LINES = {"score": 2000, "generate": 500}  # of the long run, for a second of it and a CPU, about
TOKENS = {"score": SENTENCE_WORDS + 1, "generate": NEW_TOKENS}  # a line
RAW_BATCH = 64  # of the bare loop beside them
TIMEOUT_SECONDS = 120
Figures = dict[str, Any]
MEARI = SERVERS["meari"]
SEGMENT_SECONDS = 20.0
MIN_SEGMENTS = 2
WRITER = "shakespeare-lstm"  # writes the corpus on which kenlm is measured


def bulk_rates(bundle: Path, work: Path, seconds: float, raw_rate: Callable[[], float]) -> dict[str, int]:
    """Return tokens a CPU-second of both commands, from the difference of a short run and one of some `seconds`.

    raw_rate   measures tokens a CPU-second of the bare loop, before and after each command
    """
    rates = {}
    for verb, lines in LINES.items():
        many = SHORT_RUN + round(lines * seconds)
        before = raw_rate()
        cpu = _cpu_seconds(bundle, work, verb, many) - _cpu_seconds(bundle, work, verb, SHORT_RUN)
        rates[f"{verb}_tokens_per_cpu_second"] = round((many - SHORT_RUN) * TOKENS[verb] / cpu)
        rates[f"{verb}_raw"] = round((before + raw_rate()) / 2)
    return rates


def _cpu_seconds(bundle: Path, work: Path, verb: str, num_lines: int) -> float:
    generator = random.Random(num_lines)  # noqa: S311 (no secret)
    words = make_words()
    length = SENTENCE_WORDS if verb == "score" else PROMPT_WORDS
    lines = work / "lines.txt"
    lines.write_text("".join(make_text(words, length, generator) + "\n" for _ in range(num_lines)), "utf-8")
    files = [str(lines)] if verb == "score" else ["--prompts", str(lines), "--max-tokens", str(NEW_TOKENS)]
    command = [sys.executable, "-m", "meari.cli.main", verb, *files, "--bundles", str(bundle), "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, timeout=TIMEOUT_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@dataclass(frozen=True)
class Probes:
    """Probes of a run. `bundle` returns the folder that holds a model alone, `released` the folder of the five
    released bundles.
    """

    plan: BenchmarkPlan
    bundle: Callable[[str], Path]
    released: Path
    work: Path
    num_cpus: int
    deadline: float  # of the whole run, on time.monotonic's clock
    model: str = "lstm-int8"

    def by_name(self) -> dict[str, Callable[[], Figures]]:
        """Return the probes in the order in which they are run, the long one last."""
        return {
            "start": self.start,
            "fairness": self.fairness,
            "seen prompt": self.seen_prompt,
            "n-best": self.nbest,
            "sampling": self.sampling,
            "second CPU": self.second_cpu,
            "bulk": self.bulk,
            "kenlm": self.kenlm,
            "memory": self.memory,
        }

    def start(self) -> Figures:
        """Measure the time from the command to ready, with the released bundles; the middle of three."""
        seconds = []
        for _ in range(3):
            served = ServedBundle(self.released / "any", "", self.num_cpus)
            with self._running(served) as running:
                seconds.append(round(running.ready_seconds, 2))
        return {"seconds": statistics.median(seconds), "of": seconds, "bundles": _count_bundles(self.released)}

    def fairness(self) -> Figures:
        """Score one sentence on an idle server, and while one worker scores lists of a thousand."""
        generator = random.Random(5)  # noqa: S311 (no secret)
        words = make_words()
        texts = [make_text(words, SENTENCE_WORDS, generator) for _ in range(1040)]
        with self._alone() as running:
            client, other = Client(running.port), Client(running.port)
            idle = [client.post("/score", {"text": text}).seconds for text in texts[:40]][10:]
            stop, lists = threading.Event(), [0]

            def score_lists() -> None:
                while not stop.is_set():
                    other.post("/score", {"texts": texts[40:]})
                    lists[0] += 1

            thread = threading.Thread(target=score_lists)
            thread.start()
            time.sleep(0.1)  # the list has to be under way
            busy = [client.post("/score", {"text": text}).seconds for text in texts[:40]]
            stop.set()
            thread.join()
        medians = [1000 * statistics.median(values) for values in (idle, busy)]
        worst = 1000 * statistics.quantiles(busy, n=20)[-1]
        return {
            "idle_ms": round(medians[0], 2),
            "busy_ms": round(medians[1], 2),
            "busy_p95_ms": round(worst, 2),
            "ratio": round(medians[1] / medians[0], 2),
            "lists": lists[0] + 1,
        }

    def seen_prompt(self) -> Figures:
        """Measure the first token of a prompt of 1,000 tokens, cold and repeated, and compare the texts."""
        generator = random.Random(6)  # noqa: S311 (no secret)
        words = make_words()
        cold, warm, equal, cached = [], [], True, []
        with self._alone() as running:
            client = Client(running.port)
            client.post("/generate", {"prompt": words[0], "max_tokens": 8})
            for seed in range(12):
                prompt = make_text(words, 1000, generator)
                body = {"prompt": prompt, "max_tokens": 32, "seed": seed}
                first, again = client.stream("/generate", body), client.stream("/generate", body)
                cold.append(1000 * first.first_seconds)
                warm.append(1000 * again.first_seconds)
                equal = equal and first.body["text"] == again.body["text"]
                cached.append(again.body["usage"].get("cached_tokens", 0))
        return {
            "cold_ms": round(statistics.median(cold), 2),
            "warm_ms": round(statistics.median(warm), 2),
            "warm_worst_ms": round(max(warm), 2),
            "equal": equal,
            "cached_tokens": min(cached),
        }

    def nbest(self) -> Figures:
        """Score a hundred hypotheses from beams of the bundle, as a list and each alone."""
        with self._alone() as running:
            client = Client(running.port)
            texts = _hypotheses(client)
            as_list = [client.post("/score", {"texts": texts}) for _ in range(5)]
            began = time.perf_counter()
            alone = [client.post("/score", {"text": text}).body["results"][0]["logprob"] for text in texts]
            alone_seconds = time.perf_counter() - began
        answer = as_list[0].body
        prefixes = {tuple(words[:length]) for words in map(str.split, texts) for length in range(len(words) + 1)}
        list_seconds = statistics.median(timed.seconds for timed in as_list)
        return {
            "texts": len(texts),
            "distinct_prefixes": len(prefixes),
            "computed_tokens": answer["usage"]["computed_tokens"],
            "scored_tokens": answer["usage"]["scored_tokens"],
            "equal": [result["logprob"] for result in answer["results"]] == alone,
            "list_ms": round(1000 * list_seconds, 2),
            "alone_ms": round(1000 * alone_seconds, 2),
            "times_as_fast": round(alone_seconds / list_seconds, 2),
        }

    def sampling(self) -> Figures:
        """Measure the cost of sampling in a step of the engine, in process."""
        arguments = [str(self.bundle(self.model)), str(self.plan.closed_seconds)]
        ((figures,),) = run_together("sampling", arguments, num_processes=1, num_results=1, timeout=120)
        return figures

    def second_cpu(self) -> Figures:
        """Measure tokens a second with one worker and with one a CPU, 64 clients a worker."""
        rates = {}
        for workers in (1, self.num_cpus):
            load = Load(LoadKind.WHOLE, 64 * workers)
            with self._running(self._served(workers)) as running:
                rates[workers] = self._closed(running, load).tokens_per_second
        return {"one": rates[1], "all": rates[self.num_cpus], "gain": round(rates[self.num_cpus] / rates[1], 3)}

    def bulk(self) -> Figures:
        """Measure tokens a CPU-second of `meari score` and `meari generate` over files, without their start."""
        return bulk_rates(self.bundle(self.model), self.work, self.plan.closed_seconds, self._raw_rate)

    def _raw_rate(self) -> float:
        (inside,) = run_inside("raw", self.bundle(self.model), self.num_cpus, (RAW_BATCH,), self.plan.raw_seconds)
        return inside.tokens_per_cpu_second

    def memory(self) -> Figures:
        """Measure a worker's PSS under mixed load at 80 % of capacity: the largest, and its growth."""
        place = self.bundle(self.model)
        weights = sum((place / name).stat().st_size for name in ("cell.onnx", "output.onnx")) / 2**20
        samples: list[tuple[float, float]] = []
        with self._running(self._served(self.num_cpus)) as running:
            rate = 0.8 * self._closed(running, CAPACITY).answers_per_second
            begin = time.monotonic()
            end = min(begin + self.plan.flat_seconds, self.deadline - self.plan.drain_seconds)
            segment = min(SEGMENT_SECONDS, self.plan.flat_seconds / MIN_SEGMENTS)
            while len(samples) < MIN_SEGMENTS or time.monotonic() < end - segment / 2:
                self._open(running, rate, segment, part=len(samples))
                largest = max(memory_by_process(running.process.pid, running.mark).values())
                samples.append((round(time.monotonic() - begin, 1), round(largest, 2)))
        settled = [megabytes for _, megabytes in samples[len(samples) // 10 :]]
        largest = max(megabytes for _, megabytes in samples)
        return {
            "weights_mb": round(weights, 1),
            "largest_mb": largest,
            "beyond_weights_mb": round(largest - weights, 1),
            "growth": round(settled[-1] / settled[0] - 1, 4),
            "seconds": round(samples[-1][0]),
            "samples": samples,
        }

    def kenlm(self) -> Figures:
        """Compare an n-gram model under kenlm with a released bundle, on text that the bundle wrote."""
        arguments = [str(self.released / WRITER), str(self.work / "kenlm")]
        ((figures,),) = run_together("kenlm_scores", arguments, num_processes=1, num_results=1, timeout=240)
        return figures

    # ---- servers ----

    def _served(self, workers: int) -> ServedBundle:
        return ServedBundle(self.bundle(self.model), "", workers)

    def _alone(self) -> contextlib.AbstractContextManager[Running]:
        """Serve with one worker, so that it does all the work on any number of CPUs."""
        return self._running(self._served(1))

    @contextlib.contextmanager
    def _running(self, served: ServedBundle) -> Iterator[Running]:
        port = free_port()
        command, environment = MEARI.command(served, port)
        log = self.work / "logs" / "meari-probe.log"
        with serving(command, environment, port, MEARI.ready_path, log, self.plan.start_timeout) as running:
            yield running

    def _closed(self, running: Running, load: Load) -> Measurement:
        driven = drive_closed(
            Address(running.port),
            Requests(MEARI, self.model).closed(load),
            num_clients=load.clients,
            seconds=self.plan.closed_seconds,
            warmup_seconds=self.plan.warmup_seconds,
            drain_seconds=self.plan.drain_seconds,
            edge=running.usage,
        )
        return summarise("meari", self.model, load, driven, read_answers(driven.exchanges), 0.0)

    def _open(self, running: Running, rate: float, seconds: float, part: int) -> None:
        load = Load(LoadKind.MIXED, clients=part, share=0.8)
        arrivals = Requests(MEARI, self.model).open(load, rate, seconds)
        drive_open(
            Address(running.port), arrivals, seconds=seconds, drain_seconds=self.plan.drain_seconds, edge=running.usage
        )


def _hypotheses(client: Client) -> list[str]:
    """Return a hundred hypotheses: the 16 likeliest texts of 6 tokens, and the 16 likeliest continuations of the first
    of those.
    """
    beams = {"num_beams": 16, "n": 16}
    stems = client.post("/generate", {**beams, "prompt": "", "max_tokens": 6}).body["choices"]
    texts: list[str] = []
    for stem in stems[:7]:
        more = client.post("/generate", {**beams, "prompt": stem["text"], "max_tokens": 14}).body["choices"]
        texts += [f"{stem['text']} {choice['text'].strip()}".strip() for choice in more]
    return texts[:100]


def _count_bundles(folder: Path) -> int:
    return sum((place / "manifest.json").exists() for place in folder.iterdir())

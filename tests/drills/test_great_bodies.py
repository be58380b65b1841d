"""Drill: bodies that are made to cost much, many at once, on a real worker.

Hostile ones are refused within a second of CPU each; heavy ones are answered, or refused because there is no room. All
the while the worker's memory stays within what is documented, and small requests get the very same answer as before,
or its beginning with `finish_reason` timeout.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from flask import Flask

from meari.bundle_format.reader import read_manifest
from meari.runtime.machine import limit_arenas, map_large_pieces, release_free_memory
from meari.runtime.text.detokenizer import StopPatterns, StopSearch, detokenize, partial_bytes
from meari.runtime.text.tokenizer import parse_tokenizer, text_tokenizer
from meari.runtime.text.words import num_words
from meari.service.app import create_app
from meari.service.requests.admission import Admission
from meari.service.settings import Settings
from tests.drills.drill import Drill
from tests.drills.great_bodies import HEAVY, HOSTILE, TEXTS, Case, body_of
from tests.drills.processes import peak_mb, reset_peak, workers_of
from tests.drills.raw_http import Answer, Connection, post
from tests.patience import PATIENCE
from tests.service.running import ROOT, Server, clean_environment, running_server

MIB: Final = 1 << 20
REFUSED: Final = {400, 404, 413, 429}
ANSWERED: Final = {200, 413, 429, 504}
MAX_CPU_SECONDS: Final = 1.0  # of a refusal
INFLIGHT_MB: Final = 128
MAX_OTHER_MB: Final = 48.0  # beside those bytes: threads, answers on their way, freed pieces between others
UNCOUNTED_MB: Final = 4.0  # of one request: its thread, buffers of a turn, pieces of the heap
UNCOUNTED_RELEASED_MB: Final = 24.0  # the same; the turns of a model of some size have larger buffers, an engine's once
RELEASED: Final = ("shakespeare-gru", "nsmc-lstm", "books-lstm")
TRIES: Final = 3  # what a library keeps from its first use on, or frees later, is no memory of a request
GREATER: Final = 4  # times, the second size
MAX_RATIO: Final = 9.0  # of their CPU; 16 where the cost grows with the square
NOISE_SECONDS: Final = 0.03
SMALL: Final[dict[str, Any]] = {"prompt": "ab", "max_tokens": 8, "seed": 7}


@dataclass
class Burst:
    """What came of some requests at once."""

    statuses: Counter[int] = field(default_factory=Counter)
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0  # above what the worker held when it was new


class Worker:
    """One worker, and the answer to a small request, which never changes."""

    def __init__(self, server: Server, max_seconds: float) -> None:
        self.server = server
        self._max_seconds = max_seconds  # of a request
        [self.pid] = workers_of(server.process.pid)
        self._idle_mb = reset_peak(self.pid)
        self.num_small: Counter[int] = Counter()  # small requests by their status
        self.num_cut = 0  # of them, those that their time limit ended early
        self.wrong: list[str] = []
        [self._expected] = server.post("/generate", **SMALL).json()["choices"]
        self._request = post("/generate", json.dumps(SMALL).encode())

    def burst(self, path: str, body: bytes, count: int) -> Burst:
        """Send a body over some connections at once, and small requests beside it."""
        burst, request = Burst(), post(path, body)
        cpu = self._cpu_seconds()
        reset_peak(self.pid)

        def send() -> None:
            connection = Connection(self.server.port)
            burst.statuses[connection.ask(request).status] += 1
            connection.close()

        with self._small_requests():
            senders = [threading.Thread(target=send) for _ in range(count)]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
        burst.cpu_seconds = (self._cpu_seconds() - cpu) / count
        burst.peak_mb = peak_mb(self.pid) - self._idle_mb
        return burst

    @contextmanager
    def _small_requests(self) -> Iterator[None]:
        """Ask small things until the end, at least once."""
        ended = threading.Event()

        def ask() -> None:
            connection = Connection(self.server.port)
            while True:
                answer = connection.ask(self._request)
                self._check_small(answer)
                if ended.wait(0.02):
                    break
            connection.close()

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _check_small(self, answer: Answer) -> None:
        """Count an answer; it has the very same text, or begins like it where its time is up."""
        self.num_small[answer.status] += 1
        if answer.status == 429:
            return
        choice = json.loads(answer.body).get("choices", [{}])[0]
        if choice.get("finish_reason") == "timeout" and answer.seconds >= self._max_seconds:
            self.num_cut += 1
            text = self._expected["text"][: len(choice["text"])]
            is_right = choice == self._expected | {"text": text, "finish_reason": "timeout"}
        else:
            is_right = choice == self._expected
        if not is_right:
            self.wrong.append(f"{answer.status} after {answer.seconds:.2f} s: {answer.body[:200]!r}")

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def worker(drill: Drill, tmp_path: Path, bundles: Path) -> Iterator[Worker]:
    """Run one worker: over tiny bundles, or over the released ones in the long form."""
    max_seconds = drill.pick(10, 5)
    with running_server(
        tmp_path,
        bundles=drill.pick(bundles, ROOT / "bundles"),
        max_inflight_bytes=INFLIGHT_MB * MIB,
        max_timeout_seconds=max_seconds,
        cache_bytes=MIB,
        log_level="error",
    ) as server:
        yield Worker(server, max_seconds)


def bursts(worker: Worker, cases: Iterable[tuple[str, Case]], size: int, count: int) -> dict[str, Burst]:
    """Send each case, and assert that the worker lives."""
    found: dict[str, Burst] = {}
    for name, case in cases:
        found[name] = worker.burst(case[0], body_of(case, size), count)
        print(name, found[name])  # noqa: T201 (pytest shows it with a failure)
    assert workers_of(worker.server.process.pid) == [worker.pid], worker.server.log
    return found


def report(drill: Drill, worker: Worker, found: dict[str, Burst]) -> tuple[str, str]:
    """Note the figures; return the case that cost most CPU, and the one that took most memory."""
    slowest = max(found, key=lambda name: found[name].cpu_seconds)
    largest = max(found, key=lambda name: found[name].peak_mb)
    statuses = sum((burst.statuses for burst in found.values()), Counter[int]())
    drill.record("kinds of bodies", len(found))
    drill.record("answers by status", ", ".join(f"{status}: {statuses[status]:,}" for status in sorted(statuses)))
    drill.record(f"most memory at once, MB ({largest})", found[largest].peak_mb, f"≤ {INFLIGHT_MB + MAX_OTHER_MB:g}")
    small = ", ".join(f"{status}: {count:,}" for status, count in sorted(worker.num_small.items()))
    drill.record("small requests beside them by status", small)
    drill.record("small requests that their time limit cut short, with the beginning of the right text", worker.num_cut)
    drill.record("small requests with another answer", len(worker.wrong), 0)
    print(worker.wrong[:3])  # noqa: T201 (pytest shows it with a failure)
    return slowest, largest


def test_great_bodies_are_refused_soon_and_in_little_memory(drill: Drill, worker: Worker) -> None:
    size, count = drill.pick(500_000, 6_000_000), drill.pick(3, 10)
    found = bursts(worker, HOSTILE.items(), size, count)
    slowest, largest = report(drill, worker, found)
    drill.record("size of a body, bytes; at once", f"{size:,}; {count}")
    drill.record(f"CPU of one refusal, s ({slowest})", found[slowest].cpu_seconds, f"≤ {MAX_CPU_SECONDS:g}")
    assert [name for name, burst in found.items() if not set(burst.statuses) <= REFUSED] == []
    assert [name for name, burst in found.items() if burst.cpu_seconds > MAX_CPU_SECONDS] == []
    assert found[largest].peak_mb <= INFLIGHT_MB + MAX_OTHER_MB
    assert worker.wrong == []
    assert worker.num_small[200] >= len(found)


def test_great_answers_take_no_more_memory_than_is_accounted_for(drill: Drill, worker: Worker) -> None:
    models = drill.pick(["bytes"], ["nsmc-lstm", "shakespeare-lstm"])
    found: dict[str, Burst] = {}
    chosen = dict(itertools.islice(HEAVY.items(), 0, None, drill.pick(4, 1)))  # all come one by one below
    for size in drill.pick([3_000], [30_000, 300_000]):
        for model in models:
            cases = (
                (f"{name}, {size:,} characters, {model}", with_model(case, model)) for name, case in chosen.items()
            )
            found |= bursts(worker, cases, size, drill.pick(3, 10))
    _, largest = report(drill, worker, found)
    assert [name for name, burst in found.items() if not set(burst.statuses) <= ANSWERED] == []
    assert found[largest].peak_mb <= INFLIGHT_MB + MAX_OTHER_MB
    assert worker.wrong == []


def with_model(case: Case, model: str) -> Case:
    """Return a case for another model than the default one."""
    path, make = case
    return path, lambda size: b'{"model":"%b",' % model.encode() + make(size)[1:]


class NotedAdmission(Admission):
    """The bounds, which also note how many bytes were held at most.

    most_bytes  since it was set last
    """

    most_bytes = 0

    def take(self, count: int, held: int = 0) -> None:
        super().take(count, held)
        self.most_bytes = max(self.most_bytes, self.num_bytes)


@contextmanager
def noted_app(folder: Path) -> Iterator[Flask]:
    """Make an application in this process, with bounds that note the account."""
    settings = Settings(
        bundles=folder, workers=1, log_level="error", max_timeout_seconds=120, cache_bytes=MIB, max_texts=1000
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meari.service.app.Admission", NotedAdmission)
        app = create_app(settings)
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app
    registry.stop()


def account_and_growth(app: Flask, path: str, body: bytes) -> tuple[int, float, float]:
    """Ask once; returns the status, and the most MB that were accounted for and by which this process grew."""
    admission = app.extensions["meari"].admission
    gc.collect()
    release_free_memory()
    idle, admission.most_bytes = reset_peak(os.getpid()), 0
    response = app.test_client().post(path, data=body, content_type="application/json")
    for _ in response.iter_encoded():
        pass
    response.close()
    assert admission.num_bytes == 0, f"{path}: {admission.num_bytes} bytes are held after the end"
    return response.status_code, admission.most_bytes / MIB, peak_mb(os.getpid()) - idle


def print_accounts(folder: Path, size: int, uncounted_mb: float, models: dict[str, int]) -> None:
    """Ask every kind of heavy body, each alone, and print the figures as JSON; for a process of its own.

    models  name -> every how many kinds are asked
    """
    limit_arenas()
    map_large_pieces()
    found: dict[str, tuple[int, float, float]] = {}
    with noted_app(folder) as app:
        for model, each in models.items():
            account_and_growth(app, "/score", body_of(with_model(HEAVY["figures of a text"], model), 2000))
            for name, case in itertools.islice(HEAVY.items(), 0, None, each):
                body = body_of(with_model(case, model), size)
                for _ in range(TRIES):
                    figures = found[f"{name}, {model}"] = account_and_growth(app, case[0], body)
                    if figures[2] <= figures[1] + uncounted_mb:
                        break
    print(json.dumps(found))  # noqa: T201 (the result)


def test_request_takes_no_more_memory_than_its_account(drill: Drill, bundles: Path) -> None:
    """Send every kind of heavy body to every kind of tokenizer, in a process whose heap is a worker's."""
    folder, size = drill.pick(bundles, ROOT / "bundles"), drill.pick(6_000, 30_000)
    models = drill.pick({"noise": 1, "letters": 4, "words": 5}, dict.fromkeys(RELEASED, 1))  # most tokens: no merges
    uncounted_mb = drill.pick(UNCOUNTED_MB, UNCOUNTED_RELEASED_MB)
    call = f"drill.print_accounts(drill.Path({str(folder)!r}), {size}, {uncounted_mb}, {models})"
    words = [sys.executable, "-c", f"import tests.drills.test_great_bodies as drill; {call}"]
    done = subprocess.run(words, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, float, float]] = json.loads(done.stdout.splitlines()[-1])
    closest = min(found, key=lambda name: (found[name][1] + uncounted_mb) / max(found[name][2], 0.1))
    drill.record("kinds of bodies times models", len(found))
    _, account, growth = found[closest]
    drill.record(f"account and growth, MB, where they are closest ({closest})", f"{account:.1f}, {growth:.1f}")
    assert {name: figures for name, figures in found.items() if figures[0] not in ANSWERED} == {}
    assert {name: figures for name, figures in found.items() if figures[2] > figures[1] + uncounted_mb} == {}


def growth_problem(prepare: Callable[[int], Callable[[], object]], size: int) -> str:
    """Return "" if work on four times the size takes no more CPU than it may; the least of three tries counts."""
    costs = [math.inf, math.inf]
    works = [prepare(size), prepare(GREATER * size)]
    for _ in range(TRIES):
        for place, work in enumerate(works):
            started = time.process_time()
            work()
            costs[place] = min(costs[place], time.process_time() - started)
        if costs[1] <= MAX_RATIO * costs[0] + NOISE_SECONDS:
            return ""
    return f"{costs[0]:.3f} s, and {costs[1]:.3f} s for {GREATER} times as much"


def test_cost_of_a_refusal_grows_no_faster_than_its_body(drill: Drill, bundles: Path) -> None:
    """Send hostile bodies of two sizes to the application in this process."""
    statuses = dict[str, int]()

    def prepare(name: str, case: Case, size: int) -> Callable[[], None]:
        body = body_of(case, size)

        def send() -> None:
            statuses[name] = client.post(case[0], data=body, content_type="application/json").status_code

        return send

    size = drill.pick(100_000, 1_500_000)
    with noted_app(drill.pick(bundles, ROOT / "bundles")) as app:
        client = app.test_client()
        found = {name: growth_problem(functools.partial(prepare, name, case), size) for name, case in HOSTILE.items()}
    drill.record("kinds of bodies, bytes", f"{len(found)}, {size:,} and {GREATER * size:,}")
    drill.record("bodies whose cost grows faster", len([name for name in found if found[name]]), 0)
    assert {name: problem for name, problem in found.items() if problem} == {}
    assert {name: status for name, status in statuses.items() if status not in REFUSED} == {}


@pytest.mark.parametrize("name", ["shakespeare-gru", "nsmc-lstm", "words"])
def test_cost_of_a_text_grows_no_faster_than_its_length(drill: Drill, bundles: Path, name: str) -> None:
    """Read and write texts that are hostile to tokenizers, and look for their words and for stops that nearly match."""
    folder = bundles / name if name == "words" else ROOT / "bundles" / name
    manifest = read_manifest(folder)[0]
    tokenizer = text_tokenizer(parse_tokenizer((folder / "tokenizer.json").read_bytes())[0], manifest)

    def prepare(make: Callable[[int], str], size: int) -> Callable[[], None]:
        text = make(size)

        def work() -> None:
            tokenizer.tokenizing_bytes(text)
            ids = tokenizer.encode_with_offsets(text).ids
            assert tokenizer.encode(text) == ids
            num_words(text, "unicode")
            num_words(text, True)
            written = detokenize(tokenizer.vocabulary, ids)
            partial_bytes(tokenizer.vocabulary, ids)
            stops = [text[: len(text) // 3] + "?", text[1:-1] + "?"]
            StopSearch(StopPatterns.of(stops, tokenizer.normalized)).feed(written)

        return work

    size = drill.pick(2_000, 50_000)
    found = {each: growth_problem(functools.partial(prepare, make), size) for each, make in TEXTS.items()}
    drill.record("kinds of texts, characters", f"{len(found)}, {size:,} and {GREATER * size:,}")
    drill.record("texts whose cost grows faster", len([each for each in found if found[each]]), 0)
    assert {each: problem for each, problem in found.items() if problem} == {}

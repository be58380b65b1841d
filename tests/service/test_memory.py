"""Test the allocator settings in a subprocess, because they apply to a whole process."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response
from werkzeug.test import EnvironBuilder, run_wsgi_app

from meari.runtime.engine.calls import Sample, TextScore
from meari.runtime.engine.handles import Handle
from meari.runtime.engine.sequences import Request, Sequence
from meari.runtime.machine import NUM_ARENAS
from meari.service.routes.exchange import Exchange
from tests.patience import PATIENCE
from tests.service.running import ROOT

PROGRAM = """
import threading
from pathlib import Path
from meari.runtime.machine import limit_arenas, release_free_memory

def memory_bytes():
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

kept = []

def fill():
    pieces = [bytes(50_000) for _ in range(1000)]  # each below what the allocator maps by itself
    kept.append(bytes(50_000))  # at the end of the heap, so that it does not shrink by itself

limit_arenas()
before = memory_bytes()
threads = [threading.Thread(target=fill) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
release_free_memory()
assert memory_bytes() - before < 10_000_000, (before, memory_bytes())
"""


AGAIN = """
import resource
import numpy as np
from meari.runtime.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        arrays = [np.ones(10_000_000, np.uint8) for _ in range(3)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
faults()
assert faults() < without / 20, (faults(), without)
"""


LARGE = """
from pathlib import Path
import numpy as np
from meari.runtime.machine import map_large_pieces

def memory_bytes():
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

map_large_pieces()
np.ones(16_000_000, np.uint8)  # by itself the C library would put all smaller pieces on the heap from now on
pieces = [(np.ones(2_000_000, np.uint8), np.ones(100_000, np.uint8)) for _ in range(50)]
before = memory_bytes()
small = [small for _, small in pieces]  # between the others, if these lay on the heap
pieces.clear()
assert before - memory_bytes() > 90_000_000, (before, memory_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings need glibc")
def test_large_pieces_are_returned_to_the_system_as_soon_as_they_are_freed() -> None:
    subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, check=True)


STEPS = """
import resource
from pathlib import Path
import numpy as np
from meari.runtime.bundle import open_bundle
from meari.runtime.engine.runner import Choices, WriteInputs
from meari.runtime.machine import limit_arenas, map_large_pieces, release_free_memory

limit_arenas()
map_large_pieces()
runner = open_bundle(Path("bundles/books-lstm"), max_slots=64).runner
ones, limits = np.ones((64, 1), np.float32), np.zeros((64, 3), np.float32)
choices = Choices(inverse_temperatures=ones, limits=limits, samples=True, unranked=True)
halves = np.full((1, 64, 1), 0.5, np.float32)
inputs = WriteInputs(halves, halves, choices)
states, tokens = runner.initial_states(64), np.zeros(64, np.int64)
runner.write(tokens, states, inputs)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):  # the service does so every two seconds, and holes of the right size are rare in its heap
    release_free_memory()
    runner.write(tokens, states, inputs)
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert pages < 50 * 64 * runner.vocabulary_size * 4 / 4096 / 4, pages  # a quarter of one array of distributions a step
"""


LARGE_RUNS = """
from pathlib import Path
import numpy as np
from meari.runtime.bundle import open_bundle
from meari.runtime.machine import limit_arenas, map_large_pieces, release_free_memory, resident_bytes

limit_arenas()
map_large_pieces()
runner = open_bundle(Path("bundles/books-lstm"), max_slots=64).runner
tokens, states = np.zeros((512, 64), np.int64), runner.initial_states(64)

def kept():
    before = resident_bytes()
    runner.run(tokens, states)
    runner.run(tokens[:1], states)  # until then, results lie in the regions
    release_free_memory()
    return resident_bytes() - before

runner.run(tokens[:8], states)
given_back = kept()
runner.keeps_buffers = True  # as bulk work does
print(given_back, kept())
"""


def test_buffers_of_a_large_run_are_given_back_unless_as_large_ones_follow() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_RUNS], cwd=ROOT, check=True, capture_output=True, text=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back < 8_000_000
    assert kept > 64_000_000  # two states and more of 512 steps of 64 rows


def test_buffers_of_steps_keep_their_pages_while_freed_memory_is_returned() -> None:
    subprocess.run([sys.executable, "-c", STEPS], cwd=ROOT, check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings need glibc")
def test_busy_process_reuses_freed_memory() -> None:
    subprocess.run([sys.executable, "-c", AGAIN], cwd=ROOT, check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings need glibc")
def test_memory_freed_by_many_threads_is_returned_to_the_system() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True)


CHOSEN = """
import ctypes, os, threading
from meari.runtime.machine import limit_arenas

limit_arenas()
held = [threading.Thread(target=lambda: bytes(1000)) for _ in range(4)]
for thread in held:
    thread.start()
for thread in held:
    thread.join()
ctypes.CDLL("libc.so.6").malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings need glibc")
def test_operator_chooses_another_number_of_arenas() -> None:
    """Count the arenas that the C library reports on its own."""

    def num_arenas(**chosen: str) -> int:
        environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | chosen
        command = [sys.executable, "-c", CHOSEN]
        said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr
        return said.count("Arena ")

    assert num_arenas() == NUM_ARENAS
    assert num_arenas(MALLOC_ARENA_MAX="2") == 2


@pytest.fixture
def _without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


ANSWERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "a small answer": ("/generate", 200, {"prompt": "ab", "max_tokens": 4}),
    "an answer of some size": ("/tokenize", 200, {"text": "ab" * 2000}),
    "an answer in pieces": ("/score", 200, {"text": "ab" * 2000, "tokens": True, "words": True}),
    "a stream": ("/generate", 200, {"prompt": "ab", "max_tokens": 20, "stream": True}),
    "samples with figures": ("/generate", 200, {"prompt": "ab", "n": 4, "max_tokens": 40, "logprobs": 5}),
    "prompts": ("/v1/completions", 200, {"prompt": ["ab", "b"], "max_tokens": 3, "logprobs": 2, "echo": True}),
    "words": ("/complete", 200, {"text": "ab"}),
    "a search": ("/generate", 200, {"prompt": "a", "num_beams": 3, "n": 2, "max_tokens": 5}),
    "a list": ("/score", 200, {"texts": ["ab", "abc", "b"] * 2, "return_state": True}),
    "a refusal": ("/score", 400, {"text": 5}),
}


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_of_a_request_is_in_memory_once_its_answer_was_sent(app: Flask, name: str) -> None:
    kinds = (Exchange, Response, Request, Sequence, Handle, Sample, TextScore)
    path, status, body = ANSWERS[name]

    def alive() -> Counter[str]:
        return Counter(type(each).__name__ for each in gc.get_objects() if issubclass(type(each), kinds))

    before = alive()
    environ = EnvironBuilder(path=path, method="POST", data=json.dumps(body), content_type="application/json")
    pieces, said, _ = run_wsgi_app(app, environ.get_environ())
    assert b"".join(pieces)
    assert said.startswith(str(status))
    pieces.close()  # type: ignore[attr-defined]
    environ.close()
    del pieces, environ
    until = time.monotonic() + PATIENCE
    while alive() != before and time.monotonic() < until:  # the engine's thread ends its turn
        time.sleep(0.01)
    assert alive() == before

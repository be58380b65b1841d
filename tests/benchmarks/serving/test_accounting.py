"""CPU seconds and memory of real process trees."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.serving.accounting import MARK, machine_seconds, memory_by_process, processes_of, usage

BURN = """
import os, subprocess, sys, time
detached = sys.argv[1] == "detached"
child = "import sys, time\\nwhile time.process_time() < 0.4: pass\\nprint('burnt', flush=True)\\nsys.stdin.read()"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=detached, stdin=subprocess.PIPE)
sys.stdin.read()
process.communicate()
"""


@contextmanager
def burning(kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose child has used 0.4 CPU-seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", BURN, kind],
        env={**os.environ, MARK: "a-mark"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "burnt\n"
        yield process
    finally:
        process.communicate()


def test_children_count_whether_they_stay_in_the_session_or_leave_it() -> None:
    for kind in ("attached", "detached"):
        with burning(kind) as process:
            found = usage(process.pid, "a-mark")
            assert found.num_processes == 2
            assert 0.35 < found.cpu_seconds < 5
            assert found.memory_mb > 1
            assert sum(memory_by_process(process.pid, "a-mark").values()) > 1


def test_process_that_left_its_parent_is_found_by_its_mark() -> None:
    with burning("detached") as process:
        assert len(processes_of(-1, "a-mark")) == 2
        assert processes_of(-1, "another mark") == set()
        assert process.pid in processes_of(-1, "a-mark")


def test_machine_is_never_less_busy_than_one_of_its_processes() -> None:
    before = machine_seconds()
    with burning("attached") as process:
        found = usage(process.pid, "a-mark")
    assert found.machine_seconds >= before
    assert found.machine_seconds > 0.9 * found.cpu_seconds


def test_server_that_has_ended_has_no_processes() -> None:
    with burning("attached") as process:
        pid = process.pid
    assert processes_of(pid, "a-mark") == set()

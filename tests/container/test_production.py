"""Test the container as production runs it: no rights, little memory, killed workers, and too much load."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException

import pytest

from tests.container.client import post
from tests.container.conftest import LIMITS, wait_until
from tests.container.docker import Docker

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

MIB = 1 << 20
SCORED = {"text": "all the bells", "model": "shakespeare-lstm"}
MAX_LEFT_BYTES = MIB  # in /dev/shm after ten deaths, above what the first start left
ANSWERED = {200, 400, 413, 429, 504}
CLIENTS_A_KIND = 6
REQUESTS_A_CLIENT = 2

READ_LIMITS = """
import json, os
from pathlib import Path
from meari.runtime.machine import granted_cpus, granted_memory
from meari.service.settings import load_settings
status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
shared = os.statvfs("/dev/shm")
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": [status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "root_is_read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
    "shared_memory": shared.f_blocks * shared.f_frsize,
    "cpus": granted_cpus(),
    "memory": granted_memory(),
    "workers": load_settings(os.environ).workers,
}))
"""
WORKERS = """
from pathlib import Path
def workers():
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            is_child = path.read_text().rpartition(")")[2].split()[1] == "1"
            if is_child and b"gunicorn" in (path.parent / "cmdline").read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            pass  # it has just ended
    return found
"""
KILL_TEN = """
import json, os, signal, threading, urllib.request
pause = threading.Event()
def shared_bytes():
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize
def is_ready():
    try:
        return urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=10).status == 200
    except OSError:
        return False
before, killed = shared_bytes(), set()
while len(killed) < 10:
    if len(workers() - killed) == 2 and is_ready():
        one = min(workers() - killed)
        os.kill(one, signal.SIGKILL)
        killed.add(one)
    pause.wait(0.1)
while len(workers() - killed) < 2 or not is_ready():
    pause.wait(0.1)
print(json.dumps({"num_killed": len(killed), "left_bytes": shared_bytes() - before}))
"""
KILLED = """
from pathlib import Path
names = ("memory/memory.oom_control", "memory.events")
paths = [path for name in names if (path := Path("/sys/fs/cgroup", name)).exists()]
lines = [line.split() for path in paths for line in path.read_text().splitlines()]
print(sum(int(number) for name, number in lines if name == "oom_kill"))
"""
SHARED_BYTES = """
import os
found = os.statvfs("/dev/shm")
print((found.f_blocks - found.f_bfree) * found.f_frsize)
"""


@pytest.fixture(scope="module")
def ask(docker: Docker) -> Callable[[str, str], str]:
    """Run Python in a container."""
    return lambda container, code: docker.run("exec", container, "python", "-c", code)


def test_container_has_no_rights_and_the_limits_that_it_was_given(
    container: str, ask: Callable[[str, str], str]
) -> None:
    found = json.loads(ask(container, READ_LIMITS))
    assert found["uid"] > 0
    assert {int(mask, 16) for mask in found["capabilities"]} == {0}
    assert (found["no_new_privileges"], found["seccomp"]) == ("1", "2")
    assert found["root_is_read_only"]
    assert found["shared_memory"] == 64 * MIB
    assert found["memory"] == 1024 * MIB


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        (("--cpus", "1"), 1),
        (("--cpus", "1.9"), 1),
        (("--cpuset-cpus", "0"), 1),
        (("--cpus", "2"), 2),
        (("--cpus", "2", "--memory", "300m", "--memory-swap", "300m"), 1),
    ],
)
def test_limits_decide_the_number_of_workers(
    docker: Docker, image: str, options: tuple[str, ...], workers: int
) -> None:
    if workers > num_cpus(docker):
        pytest.skip(f"the engine has fewer than {workers} CPUs")
    found = json.loads(docker.run("run", "--rm", *LIMITS, *options, image, "python", "-c", READ_LIMITS))
    assert found["workers"] == workers


def num_cpus(docker: Docker) -> int:
    return int(docker.run("info", "--format", "{{.NCPU}}"))


def test_ten_killed_workers_are_replaced_and_leave_nothing_behind(
    docker: Docker, start: Callable[..., str], ask: Callable[[str, str], str]
) -> None:
    container = start("--env", "MEARI_WORKERS=2")
    address = docker.address(container)
    expected = post(address, "/score", SCORED)["results"]
    found = json.loads(docker.run("exec", container, "python", "-c", WORKERS + KILL_TEN, timeout=400))
    assert found["num_killed"] == 10
    assert found["left_bytes"] < MAX_LEFT_BYTES
    wait_until(lambda: scores(address) == expected, lambda: docker.run("logs", "--tail", "50", container))


def scores(address: tuple[str, int]) -> object:
    """Return the scores, or the status of the answer."""
    status, data = answer_to(address, json.dumps(SCORED).encode())
    return json.loads(data)["results"] if status == 200 else status


def great_bodies() -> Iterator[bytes]:
    """Yield bodies at the limits, of which a few at a time would fill the memory."""
    yield json.dumps({"text": "To be, or not to be. " * 40_000}).encode()
    yield json.dumps({"texts": ["abc " * 200] * 1000}).encode()
    yield json.dumps({"texts": ["ab" * 400] * 1000, "tokens": True, "top": 5}).encode()
    yield b"{" + b",".join(b'"%06d":1' % number for number in range(600_000)) + b"}"  # unknown names
    yield b'{"texts":[' + b",".join([b'""'] * 2_000_000) + b"]}"  # far too many
    yield b'{"text":"a","top":[' + b",".join([b"1.0"] * 1_500_000) + b"]}"  # a list for a number
    yield b'{"text":"' + b"a" * 6_000_000 + b'\xf0\x9f\x98\x80"}'  # one character makes the others wide


def answer_to(address: tuple[str, int], body: bytes) -> tuple[int | str, bytes]:
    """Return status and body of an answer, or the name of the error that there was instead."""
    connection = HTTPConnection(*address, timeout=200)
    try:
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            return response.status, response.read()
    except (OSError, HTTPException) as error:
        return type(error).__name__, b""
    finally:
        connection.close()


@pytest.mark.parametrize("memory", ["512m"])
def test_load_beyond_the_memory_is_refused_and_no_worker_is_killed(
    docker: Docker, start: Callable[..., str], ask: Callable[[str, str], str], memory: str
) -> None:
    container = start("--memory", memory, "--memory-swap", memory, "--env", "MEARI_MAX_TIMEOUT_SECONDS=5")
    address = docker.address(container)
    alive = ask(container, WORKERS + "print(sorted(workers()))")
    answers: Counter[int | str] = Counter()

    def send(body: bytes) -> None:
        for _ in range(REQUESTS_A_CLIENT):
            answers[answer_to(address, body)[0]] += 1

    clients = [threading.Thread(target=send, args=(body,)) for body in great_bodies() for _ in range(CLIENTS_A_KIND)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert int(ask(container, KILLED)) == 0, answers
    assert ask(container, WORKERS + "print(sorted(workers()))") == alive
    assert set(answers) <= ANSWERED, answers
    assert answers[429] > 0
    wait_until(lambda: isinstance(scores(address), list), lambda: docker.run("logs", "--tail", "50", container))

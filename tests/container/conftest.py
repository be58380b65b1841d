"""Fixtures: the image, built once, and a container that runs it; both are removed at the end."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container.client import is_ready
from tests.container.docker import Docker, find_docker

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 420
READY_SECONDS = 60
POLL_SECONDS = 0.2
# As production runs it: few rights, and the 64 MB of shared memory that are Docker's default.
LIMITS = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--shm-size", "64m", "--memory", "1g", "--memory-swap", "1g", "--cpus", "2", "--pids-limit", "2048"),
)
RUN = ("run", "--detach", *LIMITS, "--publish", "127.0.0.1::8000")


@pytest.fixture(scope="session")
def docker() -> Docker:
    found = find_docker()
    if found is None:
        pytest.skip("no Docker engine is running (DOCKER and DOCKER_HOST select one)")
    return found


@pytest.fixture(scope="session")
def image(docker: Docker) -> Iterator[str]:
    tag = f"meari:test-{os.getpid()}"
    make = ["make", "image", f"IMAGE={tag}", f"DOCKER={docker.program}"]
    built = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert built.returncode == 0, built.stderr[-8000:]
    yield tag
    docker.run("rmi", "--force", tag)


@pytest.fixture(scope="session")
def start(docker: Docker, image: str) -> Iterator[Callable[..., str]]:
    """Start a container of the image with a read-only root and wait until it is ready."""
    started: list[str] = []

    def start_one(*options: str) -> str:
        name = docker.run(*RUN, *options, image)
        started.append(name)
        wait_until(lambda: is_ready(docker.address(name)), lambda: docker.run("logs", name))
        return name

    yield start_one
    for name in started:
        docker.run("rm", "--force", name)


@pytest.fixture(scope="session")
def container(start: Callable[..., str]) -> str:
    return start()


def wait_until(holds: Callable[[], bool], explain: Callable[[], str]) -> None:
    """Poll a condition until it holds; fail with the explanation after a minute."""
    pause = threading.Event()
    for _ in range(int(READY_SECONDS / POLL_SECONDS)):
        if holds():
            return
        pause.wait(POLL_SECONDS)
    pytest.fail(explain())

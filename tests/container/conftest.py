"""Fixtures: the images, built once, and a container that runs the service; all are removed at the end."""

import contextlib
import functools
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
    with built(docker, f"meari:test-{os.getpid()}") as tag:
        yield tag


@pytest.fixture(scope="session")
def training_image(docker: Docker, image: str, torch_index: str) -> Iterator[str]:
    """Build the stage `train`, with the build of torch that has no libraries for GPUs."""
    options = ("--target", "train", "--network", "host", "--build-arg", f"PIP_EXTRA_INDEX_URL={torch_index}")
    with built(docker, f"{image}-train", *options) as tag:
        yield tag


@pytest.fixture(scope="session")
def torch_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the wheel of torch that pip finds for this machine, if it has no libraries for GPUs, which take 3 GB."""
    folder = tmp_path_factory.mktemp("index")
    wanted = (ROOT / "requirements" / "torch.txt").read_text("utf-8").strip() + "+cpu"
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder / "torch"),
        wanted,
    ]
    done = subprocess.run(download, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"pip finds no {wanted}: {done.stderr[-500:]}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SilentHandler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class SilentHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name of the overridden method)
        """Write nothing."""


@contextlib.contextmanager
def built(docker: Docker, tag: str, *options: str) -> Iterator[str]:
    """Build an image, which is removed afterwards."""
    make = ["make", "image", f"IMAGE={tag}", f"DOCKER={docker.program}", f"ARGS={shlex.join(options)}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    try:
        yield tag
    finally:
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

"""The service as compose.yaml runs it, for real; the other images come from a registry, which need not be reachable."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.client import is_ready, post
from tests.container.conftest import wait_until
from tests.container.docker import Docker, find_compose

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


def compose(image: str, *arguments: str) -> str:
    """Run Docker Compose for a project of the test's own, on a port that is free."""
    program = find_compose()
    assert program is not None
    done = subprocess.run(
        [*program, "--file", str(ROOT / "compose.yaml"), "--project-name", f"meari-test-{os.getpid()}", *arguments],
        env={**os.environ, "MEARI_IMAGE": image, "MEARI_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def composed(docker: Docker, image: str) -> Iterator[str]:
    """The container of the service."""
    if find_compose() is None:
        pytest.skip("no Docker Compose here (`docker compose`, or Debian's docker-compose)")
    try:
        compose(image, "up", "--no-build", "--detach", "meari")
        yield compose(image, "ps", "--quiet", "meari")
    finally:
        compose(image, "down", "--volumes")


def metrics(address: tuple[str, int]) -> str:
    """What Prometheus would read."""
    with urllib.request.urlopen("http://{}:{}/metrics".format(*address), timeout=20) as response:
        text: str = response.read().decode()
    return text


def test_the_service_runs_as_composed(docker: Docker, composed: str) -> None:
    address = docker.address(composed)
    assert address[0] == "127.0.0.1"
    wait_until(lambda: is_ready(address), lambda: docker.run("logs", composed))
    wait_until(
        lambda: docker.inspect(composed)["State"]["Health"]["Status"] == "healthy",
        lambda: docker.run("logs", composed),
    )
    assert post(address, "/score", {"text": "all the bells"})["results"][0]["logprob"] < 0
    counted = 'vllm:request_success_total{finished_reason="scored",model_name="shakespeare-lstm"} 1.0'
    # a worker tells the others twice a second what it has counted, and any of them may answer
    wait_until(lambda: counted in metrics(address), lambda: metrics(address))

"""Test the service of compose.yaml in a container; the other images come from a registry and are not tested."""

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
    """Run Docker Compose for a separate project on a free port."""
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
    """Start the service and yield the id of its container."""
    if find_compose() is None:
        pytest.skip("Docker Compose was not found (`docker compose`, or Debian's docker-compose)")
    try:
        compose(image, "up", "--no-build", "--detach", "meari")
        yield compose(image, "ps", "--quiet", "meari")
    finally:
        compose(image, "down", "--volumes")


def metrics(address: tuple[str, int]) -> str:
    """Return the text that Prometheus would scrape."""
    with urllib.request.urlopen("http://{}:{}/metrics".format(*address), timeout=20) as response:
        text: str = response.read().decode()
    return text


def test_service_of_the_compose_file_runs(docker: Docker, composed: str) -> None:
    address = docker.address(composed)
    assert address[0] == "127.0.0.1"
    wait_until(lambda: is_ready(address), lambda: docker.run("logs", composed))
    wait_until(
        lambda: docker.inspect(composed)["State"]["Health"]["Status"] == "healthy",
        lambda: docker.run("logs", composed),
    )
    assert post(address, "/score", {"text": "all the bells"})["results"][0]["logprob"] < 0
    counted = 'vllm:request_success_total{finished_reason="scored",model_name="shakespeare-lstm"} 1.0'
    # workers exchange their counts twice a second, and any worker may answer
    wait_until(lambda: counted in metrics(address), lambda: metrics(address))

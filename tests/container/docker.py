"""Typed calls of Docker's command line."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Docker:
    """Docker's client program; DOCKER_HOST selects the engine."""

    program: str

    def run(self, *arguments: str, timeout: float = 60) -> str:
        """Run one command and return its output; raises AssertionError with its errors."""
        done = subprocess.run(
            [self.program, *arguments],
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}\n{done.stdout}"
        return done.stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """Return the engine's description of an image or a container."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", name))
        return found[0]

    def address(self, container: str) -> tuple[str, int]:
        """Return the host and port at which the container's port 8000 is published."""
        host, _, port = self.run("port", container, "8000/tcp").splitlines()[0].rpartition(":")
        return host, int(port)


def find_compose() -> list[str] | None:
    """Return the Docker Compose command: Docker's plug-in or the program docker-compose."""
    docker = shutil.which(os.environ.get("DOCKER") or "docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    alone = shutil.which("docker-compose")
    return None if alone is None else [alone]


def find_docker() -> Docker | None:
    """Return the client from DOCKER or PATH if its engine is running."""
    program = shutil.which(os.environ.get("DOCKER") or "docker")
    if program is None:
        return None
    try:
        asked = subprocess.run([program, "info"], capture_output=True, timeout=15, check=False)
    except subprocess.TimeoutExpired:
        return None
    return Docker(program) if asked.returncode == 0 else None

"""A Docker engine as the container tests use it: thin, typed calls of its command line."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Docker:
    """The client program; which engine it talks to is said by DOCKER_HOST, as always."""

    program: str

    def run(self, *arguments: str, timeout: float = 60) -> str:
        """Run one command and give back what it printed; raises AssertionError with its errors."""
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
        """What the engine knows of an image or a container."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", name))
        return found[0]

    def address(self, container: str) -> tuple[str, int]:
        """Host and port under which the container's port 8000 is reached."""
        host, _, port = self.run("port", container, "8000/tcp").splitlines()[0].rpartition(":")
        return host, int(port)


def find_compose() -> list[str] | None:
    """The command that takes compose files here, be it Docker's plug-in or a program of its own."""
    docker = shutil.which(os.environ.get("DOCKER") or "docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    alone = shutil.which("docker-compose")
    return None if alone is None else [alone]


def find_docker() -> Docker | None:
    """The client that DOCKER names or PATH holds, where an engine answers it."""
    program = shutil.which(os.environ.get("DOCKER") or "docker")
    if program is None:
        return None
    try:
        asked = subprocess.run([program, "info"], capture_output=True, timeout=15, check=False)
    except subprocess.TimeoutExpired:
        return None
    return Docker(program) if asked.returncode == 0 else None

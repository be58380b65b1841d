"""Fixtures: a running service, an environment with the `meari` command, and a folder with the released bundles."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.service.running import ROOT, Server, clean_environment, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the released bundles like `make serve`."""
    with running_server(tmp_path_factory.mktemp("log"), bundles=ROOT / "bundles") as running:
        yield running


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    """Return the URL of the service."""
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which `meari` runs this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "meari"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m meari.cli.main "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    own = clean_environment()
    return own | {"PATH": f"{folder}:{own['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def quick_environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return one in which `meari` starts in milliseconds; see `tests/forked.py`."""
    folder = tmp_path_factory.mktemp("quick")
    forked.write_command(folder / "meari")
    return environment | {"PATH": f"{folder}:{environment['PATH']}"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a folder with links to the released bundles."""
    (tmp_path / "bundles").mkdir()
    for bundle in (ROOT / "bundles").iterdir():
        (tmp_path / "bundles" / bundle.name).symlink_to(bundle)
    return tmp_path

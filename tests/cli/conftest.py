"""A running service, for the verbs that can ask one, and the command line in a process of its own."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.running import ROOT, Server, clean_environment, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The released bundles, as `make serve` serves them."""
    with running_server(tmp_path_factory.mktemp("log"), bundles=ROOT / "bundles") as running:
        yield running


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    """Where it is."""
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `meari` is this checkout's command."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "meari"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m meari.cli.main "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    own = clean_environment()
    return own | {"PATH": f"{folder}:{own['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the released bundles, where more may be added."""
    (tmp_path / "bundles").mkdir()
    for bundle in (ROOT / "bundles").iterdir():
        (tmp_path / "bundles" / bundle.name).symlink_to(bundle)
    return tmp_path

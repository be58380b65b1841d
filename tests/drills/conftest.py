"""Options and fixtures of the drills.

Every drill is an ordinary test. Its short form takes seconds and runs with all other tests; `make drills` runs the
long forms (`--long`) and writes their figures to docs/reliability.md.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.drills.drill import PAGE, Drill
from tests.service.conftest import bundles, letters
from tests.service.running import ROOT

__all__ = ["bundles", "letters"]  # fixtures: folders of tiny bundles for `running_server`

MAX_LONG_SECONDS: Final = 2400
FAILURE: Final = pytest.StashKey[str]()
MAKE_BUNDLE: Final = """
import pathlib, sys
from benchmarks.serving.bundles import RECIPES, make_bundle
make_bundle(RECIPES["lstm-int8"], pathlib.Path(sys.argv[1]))
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("drills")
    group.addoption("--long", action="store_true", help="run the long forms and write docs/reliability.md")
    group.addoption("--soak-minutes", type=float, default=5.0, help="length of the soak in its long form")
    group.addoption("--ray-lines", type=int, default=100_000, help="lines of the corpus on Ray; 10,000,000 in full")
    group.addoption("--share", type=float, default=1.0, help="share of the long forms' sizes, for a busy machine")
    group.addoption("--drill-seed", type=int, help="seed of random choices: 1, and a new one for each long form")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give long forms the time that they need."""
    if config.getoption("--long", default=False):
        seconds = MAX_LONG_SECONDS + 60 * config.getoption("--soak-minutes") + config.getoption("--ray-lines") / 500
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.timeout(seconds))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the message of a failed drill for the page."""
    report = yield
    if report.when == "call" and report.failed and call.excinfo is not None:
        item.stash[FAILURE] = call.excinfo.exconly().splitlines()[0]
    return report


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Iterator[Drill]:
    """Return the form of the drill and take its figures; after a long form they are on the page."""
    config, item = request.config, request.node
    is_long = config.getoption("--long", default=False)
    seed = config.getoption("--drill-seed", default=None) or (random.SystemRandom().getrandbits(31) if is_long else 1)
    name = f"{item.path.name}::{item.name}"
    minutes, share = config.getoption("--soak-minutes", default=0.0), config.getoption("--share", default=1.0)
    drill = Drill(name, is_long, minutes, seed, share)
    print(f"drill seed {seed}")  # noqa: T201 (pytest shows it with a failure)
    yield drill
    if is_long:
        drill.write(PAGE, failure=item.stash.get(FAILURE, ""))


@pytest.fixture
def bundle(drill: Drill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose answers cost as much as those of a word model in use, or a small one for the short form."""
    if not drill.is_long:
        return ROOT / "bundles" / "shakespeare-gru"
    folder = tmp_path_factory.getbasetemp() / "models"
    if not folder.exists():
        subprocess.run([sys.executable, "-c", MAKE_BUNDLE, str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder / "lstm-int8"

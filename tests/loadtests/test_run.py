"""Test `python -m loadtests`, the command of `make load`, for a few seconds against a fast server."""

import contextlib
import csv
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from loadtests.shapes import Shape
from tests.loadtests.fake_server import NUM_TOKENS, PAUSE_SECONDS, running
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import free_port, running_server

if find_spec("locust") is None:  # not imported: Locust replaces all sockets of the process by gevent's
    pytest.skip("Locust is not installed", allow_module_level=True)

Row = Mapping[str, str]
ROOT = Path(__file__).parents[2]
SHORT = {"MEARI_LOAD_SECONDS": "5", "MEARI_LOAD_USERS": "8", "MEARI_LOAD_SPAWN_RATE": "100"}


def environment(port: int, folder: Path, **variables: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEARI_")}
    return own | SHORT | {"PORT": str(port), "HOST": "127.0.0.1", "MEARI_LOAD_RESULTS": str(folder)} | variables


def run_load(port: int, folder: Path, module: str = "loadtests", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=environment(port, folder, **variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def rows_of(folder: Path) -> dict[str, Row]:
    with (folder / "meari_stats.csv").open(newline="") as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def test_run_writes_its_rows_and_passes_its_thresholds(tmp_path: Path) -> None:
    with running() as server:
        run = run_load(
            server.port,
            tmp_path,
            MEARI_LOAD_MODEL="some-model",
            MEARI_LOAD_MAX_P95_MS="60000",
            MEARI_LOAD_MIN_TOKENS_PER_SECOND="0.01",
        )
    assert run.returncode == 0, run.stderr
    assert {body["model"] for body in server.bodies} == {"some-model"}
    assert {body["path"] for body in server.bodies} == {"/generate", "/score"}
    assert "<html" in (tmp_path / "meari.html").read_text()
    rows = rows_of(tmp_path)
    assert {"/generate", "/generate (stream)", "/score", "Aggregated"} <= rows.keys()
    assert_stream_was_read_as_it_arrived(rows)


def test_refused_requests_are_a_row_and_not_failures(tmp_path: Path) -> None:
    with running(refuse=True) as server:
        run = run_load(server.port, tmp_path)
    assert run.returncode == 0, run.stderr
    row = rows_of(tmp_path)["refused (429)"]
    assert int(row["Request Count"]) > 0
    assert int(row["Failure Count"]) == 0


def assert_stream_was_read_as_it_arrived(rows: Mapping[str, Row]) -> None:
    """Assert that the first event was read long before the last: the server pauses before each event."""
    pause_ms = PAUSE_SECONDS * 1000
    first = float(rows["first token (ms)"]["Average Response Time"])
    gap = float(rows["gap between tokens (ms)"]["Average Response Time"])
    whole = float(rows["/generate (stream)"]["Average Response Time"])
    rate = float(rows["tokens/s of a stream"]["Average Response Time"])
    assert first >= pause_ms
    assert gap >= pause_ms / 2
    assert whole >= first + (NUM_TOKENS - 1) * pause_ms / 2
    assert 0 < rate <= 1 / PAUSE_SECONDS
    streams = int(rows["/generate (stream)"]["Request Count"])
    assert int(rows["gap between tokens (ms)"]["Request Count"]) == streams * (NUM_TOKENS - 1)


def test_broken_thresholds_fail_the_run_and_are_named(tmp_path: Path) -> None:
    with running(refuse=True) as server:
        run = run_load(
            server.port,
            tmp_path,
            MEARI_LOAD_MAX_FIRST_TOKEN_P95_MS="0.001",
            MEARI_LOAD_MAX_REFUSED_RATIO="0.01",
            MEARI_LOAD_MIN_TOKENS_PER_SECOND="1e9",
        )
    assert run.returncode == 1
    assert "first token (ms): 95th percentile" in run.stderr
    assert "tokens/s of a stream: " in run.stderr
    assert "refused requests: " in run.stderr


def test_error_inside_a_stream_is_a_failure(tmp_path: Path) -> None:
    with running(failing=True) as server:
        run = run_load(server.port, tmp_path)
    assert run.returncode == 1
    assert "failed requests: " in run.stderr


def test_missing_server_fails_the_run(tmp_path: Path) -> None:
    with running() as server:
        port = server.port
    run = run_load(port, tmp_path, MEARI_LOAD_SECONDS="1")
    assert run.returncode == 1


def test_load_on_another_machine_is_refused_before_it_starts(tmp_path: Path) -> None:
    run = run_load(8000, tmp_path, HOST="192.0.2.1")
    assert run.returncode == 1
    assert "MEARI_LOAD_ALLOW_REMOTE=1" in run.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a real service for all tests that ask one, and return its port."""
    folder = tmp_path_factory.mktemp("service")
    bundle = write_tiny_bundle(folder / "bundles" / "tiny")
    with running_server(folder, bundles=bundle.parent) as server:
        yield server.port


def test_real_service_passes(tmp_path: Path, port: int) -> None:
    run = run_load(port, tmp_path, MEARI_LOAD_MAX_TOKENS="8")
    assert run.returncode == 0, run.stderr
    assert int(rows_of(tmp_path)["tokens/s of a stream"]["Request Count"]) > 0


def test_master_and_two_workers_make_every_shape_and_one_report(tmp_path: Path, port: int) -> None:
    """All shapes in one run: each lasts twelve seconds, and the levels of a staircase two and a half."""
    users, shapes = 10, (Shape.RAMP, Shape.SPIKE, Shape.SOAK, Shape.STAIRCASE)
    master_port = str(free_port())
    variables = {
        "MEARI_LOAD_SHAPE": ",".join(shapes),
        "MEARI_LOAD_USERS": str(users),
        "MEARI_LOAD_SECONDS": "50",
        "MEARI_LOAD_MAX_TOKENS": "8",
        "MEARI_LOAD_MASTER_PORT": master_port,
        "MEARI_LOAD_WORKERS": "2",
    }
    with contextlib.ExitStack() as workers:
        for number in range(2):
            own = environment(1, tmp_path / f"worker-{number}", **variables, MEARI_LOAD_ROLE="worker")
            process = workers.enter_context(subprocess.Popen([sys.executable, "-m", "loadtests"], cwd=ROOT, env=own))
            workers.callback(process.kill)
        run = run_load(port, tmp_path / "master", **variables, MEARI_LOAD_ROLE="master")
    assert run.returncode == 0, run.stderr
    assert not any(tmp_path.glob("worker-*"))
    assert answered(tmp_path / "master") >= {"/generate", "/generate (stream)", "/score"}
    assert "<html" in (tmp_path / "master" / "meari.html").read_text()
    ramp, rest = rise_of(levels_of(tmp_path / "master"))
    assert len(ramp) > 4, run.stderr
    assert ramp[0] <= 2 < 0.8 * users < ramp[-1], ramp
    assert in_order([2, 10, 2, 10, 2, 4, 6, 8, 10], rest), (ramp, rest, run.stderr)
    assert max(rest) == users


def answered(folder: Path) -> set[str]:
    """Return the names of the rows with requests."""
    return {name for name, row in rows_of(folder).items() if int(row["Request Count"])}


def levels_of(folder: Path) -> list[int]:
    """Return the number of users of each second of a run, those of the end left out, when they leave."""
    with (folder / "meari_stats_history.csv").open(newline="") as file:
        counts = [int(row["User Count"]) for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    while counts and counts[-1] == 0:
        counts.pop()
    return counts


def rise_of(levels: list[int]) -> tuple[list[int], list[int]]:
    """Return the levels until the first fall, each once, and those from it on."""
    falls = (number for number, (before, after) in enumerate(itertools.pairwise(levels), 1) if after < before)
    end = next(falls, len(levels))
    return [level for level, _ in itertools.groupby(levels[:end]) if level], levels[end:]


def in_order(wanted: list[int], found: list[int]) -> bool:
    """Return True if all wanted levels were there, one after another."""
    rest = iter(found)
    return all(level in rest for level in wanted)

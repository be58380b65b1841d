"""Test the search for the largest load: on made-up servers, and by a real master with two workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.knee import Step, find_knee, knee_of, plot_of, with_defaults
from loadtests.settings import read_settings
from tests.loadtests.fake_server import running
from tests.loadtests.test_run import environment, run_load
from tests.patience import PATIENCE
from tests.service.running import ROOT, free_port


def server_that_takes(most: int) -> Any:
    """Return a measure of a server that is within its thresholds up to `most` users."""
    return lambda users: Step(users, 10.0 * min(users, most), 640.0, 50.0, 100.0, () if users <= most else ("slow",))


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64, 100, 777])
def test_knee_is_within_a_tenth_of_the_largest_load_that_holds(most: int) -> None:
    steps = find_knee(server_that_takes(most), 4096)
    knee = knee_of(steps)
    assert knee is not None
    assert 0.9 * most - 1 <= knee.users <= most
    assert [step.users for step in steps] == sorted({step.users for step in steps})
    assert len(steps) < 2 * most.bit_length() + 6


def test_server_that_takes_nothing_has_no_knee_and_one_that_takes_all_has_the_most() -> None:
    assert knee_of(find_knee(server_that_takes(0), 100)) is None
    assert knee_of(find_knee(server_that_takes(1000), 100)).users == 100  # type: ignore[union-attr]


def test_load_that_holds_above_one_that_did_not_is_no_knee() -> None:
    steps = [Step(users, 1.0, 1.0, 1.0, 1.0, ("slow",) if users == 2 else ()) for users in (1, 2, 4)]
    assert knee_of(steps) is steps[0]


def test_thresholds_have_a_bound_for_time_and_refusals() -> None:
    assert with_defaults(read_settings({}).thresholds).max_p95_ms == 1000
    own = with_defaults(read_settings({"MEARI_LOAD_MAX_GAP_P95_MS": "9"}).thresholds)
    assert (own.max_p95_ms, own.max_gap_p95_ms, own.max_refused_ratio) == (None, 9, 0.01)


def test_plot_has_a_point_for_each_load_in_both_diagrams() -> None:
    steps = find_knee(server_that_takes(10), 64)
    plot = plot_of(steps, 1000.0)
    assert plot.count("<circle") == 2 * len(steps)
    assert plot.count('r="7"') == 2
    assert plot.count('class="broken"') == 2 * sum(not step.holds for step in steps)


def test_plot_of_a_server_that_answers_nothing_has_numbers_to_read() -> None:
    plot = plot_of([Step(1, 0.0, 0.0, 0.0, 0.0, ("failures 1, at most 0 wanted",))], 1000.0)
    labels = re.findall(r'text-anchor="end">([^<]*)<', plot)
    assert labels == ["0", "1", "0", "1,500"]
    assert "at most 1,000 ms" in plot


def test_master_and_two_workers_find_the_knee_of_one_process(tmp_path: Path) -> None:
    """A stream of the fake server takes half a second whatever the load: the knee is the most users that are tried."""
    port, variables = str(free_port()), {"MEARI_LOAD_USERS": "4", "MEARI_LOAD_SECONDS": "4"}
    variables["MEARI_LOAD_MAX_P95_MS"] = "60000"  # by default a second, which a busy machine may take for half a one
    roles = {"MEARI_LOAD_MASTER_PORT": port, "MEARI_LOAD_WORKERS": "2"}
    with running() as server:
        command, own = [sys.executable, "-m", "loadtests"], environment(1, tmp_path / "none", **variables, **roles)
        workers = [subprocess.Popen(command, cwd=ROOT, env=own | {"MEARI_LOAD_ROLE": "worker"}) for _ in range(2)]
        try:
            found = run_load(server.port, tmp_path, "loadtests.knee", **variables, **roles, MEARI_LOAD_ROLE="master")
        finally:
            for worker in workers:
                worker.kill()
                worker.wait(PATIENCE)
    assert found.returncode == 0, found.stderr
    figures = json.loads((tmp_path / "knee.json").read_text("utf-8"))
    assert figures["knee"]["users"] == 4
    assert [step["users"] for step in figures["steps"]] == [1, 2, 4]
    assert figures["knee"]["requests_per_second"] > 1.5 * figures["steps"][0]["requests_per_second"]
    assert "**4 users, " in (tmp_path / "knee.md").read_text("utf-8")
    assert (tmp_path / "knee.svg").read_text("utf-8").startswith("<svg")

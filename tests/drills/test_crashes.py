"""Drill: a killed process, a power cut and a full disk while checkpoints, bundles, token files, bulk output, keys and
the trials of a search are written.

The last good version is always there, what is half written is never read as whole, the work resumes and ends in the
same bytes as if nothing had happened, and nothing is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.drills.drill import Drill
from tests.patience import PATIENCE
from tests.service.running import ROOT, clean_environment

# Crashes of the short form and of the long one.
COUNTS = {
    "training": {"kill": (2, 60), "power": (2, 60), "full": (2, 30)},
    "export": {"kill": (6, 150), "power": (5, 60), "full": (3, 60)},
    "tokens": {"kill": (4, 100), "power": (3, 60), "full": (2, 40)},
    "bulk": {"kill": (5, 150), "power": (3, 60), "full": (3, 60)},
    "keys": {"kill": (4, 100), "power": (4, 60), "full": (2, 30)},
    "search": {"kill": (4, 100), "power": (4, 40), "full": (2, 30)},
}


def test_crash_loses_nothing_and_leaves_nothing_half(drill: Drill, tmp_path: Path) -> None:
    sizes = {(writer, mode): drill.size(*size) for writer, modes in COUNTS.items() for mode, size in modes.items()}
    counts = [f"{writer}:{mode}={size}" for (writer, mode), size in sizes.items()]
    words = [sys.executable, "-m", "tests.drills.crashes", str(drill.seed), str(tmp_path), *counts]
    environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
    limit = drill.pick(PATIENCE, 8 * PATIENCE)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for writer in COUNTS:
        crashes = {mode: found[f"{writer}:{mode}"]["num_crashes"] for mode in ("kill", "power", "full")}
        shown = f"{crashes['kill']} kills, {crashes['power']} power cuts, {crashes['full']} full disks"
        drill.record(writer, shown, "the last good version whole, the work resumed to the same bytes")
    problems = [problem for each in found.values() for problem in each["problems"]]
    drill.record("versions lost, half or wrong; files left behind", len(problems), 0)
    drill.record("seed", str(drill.seed))
    assert problems == []
    assert all(each["num_crashes"] for each in found.values()) or not drill.is_long

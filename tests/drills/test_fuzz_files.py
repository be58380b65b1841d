"""Drill: mutated files of every kind that is read are refused in words, or read."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from meari.runtime.machine import granted_cpus
from tests.drills.drill import Drill
from tests.patience import PATIENCE
from tests.service.running import ROOT, clean_environment

MAX_GROWTH_MB = 24.0  # torch keeps a few MB
# Cases of the short form and of the long one.
COUNTS = {
    "bundles": (60, 6_000),
    "archives": (100, 5_000),
    "imports": (100, 5_000),
    "checkpoints": (60, 4_000),
    "corpora": (40, 2_000),
    "configs": (200, 10_000),
    "journals": (100, 5_000),
    "keys": (200, 10_000),
    "environments": (200, 10_000),
}


def test_mutated_files_are_refused_in_words_or_read(drill: Drill, tmp_path: Path) -> None:
    counts = [f"{kind}={drill.size(*sizes)}" for kind, sizes in COUNTS.items()]
    processes = [[count] for count in counts] if drill.is_long else [counts]

    def run(process: list[str]) -> dict[str, Any]:
        folder = tmp_path / process[0].partition("=")[0]
        folder.mkdir()
        words = [sys.executable, "-m", "tests.drills.file_cases", str(drill.seed), str(folder), *process]
        environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
        limit = drill.pick(PATIENCE, 8 * PATIENCE)
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
        assert done.returncode == 0, f"case {(folder / 'case').read_text()}: {done.stderr[-2000:]}"
        outcomes: dict[str, Any] = json.loads(done.stdout)
        return outcomes

    found: dict[str, Any] = {}
    with ThreadPoolExecutor(granted_cpus()) as pool:
        for outcomes in pool.map(run, processes):
            found |= outcomes
    for kind, of_kind in found.items():
        cases, read = of_kind["num_cases"], of_kind["num_read"]
        drill.record(
            kind, f"{cases:,}: {read:,} read, {cases - read:,} refused", "read, or refused by the file's error"
        )
    drill.record("another error, or an inside in a message", sum(len(each["problems"]) for each in found.values()), 0)
    drill.record("slowest case, s", max(each["slowest"] for each in found.values()), "≤ 1")
    drill.record("growth, MB", max(each["grown_mb"] for each in found.values()), f"≤ {MAX_GROWTH_MB:g}")
    drill.record("seed", str(drill.seed))
    assert [problem for each in found.values() for problem in each["problems"]] == []
    assert {kind: each["slowest_case"] for kind, each in found.items() if each["slowest"] > drill.pick(10, 1)} == {}
    assert max(each["grown_mb"] for each in found.values()) <= MAX_GROWTH_MB

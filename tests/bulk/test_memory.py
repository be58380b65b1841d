"""Test that memory grows neither with the number of lines nor with the length of a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.service.running import ROOT, clean_environment

MIB = 1024  # ru_maxrss is in KiB
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_kib(*words: object) -> int:
    """Return the peak memory of the largest process of a run, including workers."""
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", "meari.cli.main", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, check=True, timeout=PATIENCE)
    return int(done.stdout)


@pytest.fixture
def run(bundles: Path, tmp_path: Path) -> list[object]:
    return [
        "score",
        tmp_path / "in.txt",
        "--bundles",
        bundles,
        "-o",
        tmp_path / "out.jsonl",
        "--overwrite",
        "--jobs",
        1,
    ]


def test_peak_is_the_same_for_many_more_lines(run: list[object], tmp_path: Path) -> None:
    peaks = []
    for num_lines in (2_000, 40_000):
        (tmp_path / "in.txt").write_text("the quick brown fox\n" * num_lines)
        peaks.append(peak_kib(*run))
    assert peaks[1] < peaks[0] + 40 * MIB


def test_peak_is_the_same_for_a_much_longer_line(run: list[object], tmp_path: Path) -> None:
    peaks = []
    for num_words in (60_000, 240_000):
        (tmp_path / "in.txt").write_text("abcd " * num_words + "\n")
        peaks.append(peak_kib(*run, "--words"))
    assert peaks[1] < peaks[0] + 40 * MIB

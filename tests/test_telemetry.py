"""Test that onnxruntime's telemetry, which is on by default, never starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SWITCHES = ("CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "TF_BUILD", "XDG_CACHE_HOME")


@pytest.mark.parametrize("module", ["meari.runtime.bundle", "meari.export.sessions"])
def test_importing_onnxruntime_leaves_no_device_identifier(module: str, tmp_path: Path) -> None:
    """onnxruntime writes a device identifier to the home folder when its telemetry starts."""
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    code = f"import {module}, os, onnxruntime; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    run = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.rglob("*")) == []

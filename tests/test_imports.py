"""Test the import rules of pyproject.toml, and that what is imported is not compiled anew each time."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

ROOT = Path(__file__).parents[1]


def test_every_import_rule_is_kept() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 broken" in run.stdout


def test_service_and_command_line_start_without_torch() -> None:
    code = "import sys, meari.cli.main, meari.service.app; sys.exit(bool({'torch', 'meari.models'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_installed_code_never_unpickles() -> None:
    """Files of bundles, checkpoints and runs may be untrusted; SECURITY.md promises that none is unpickled."""
    files = [path for folder in ("export", "meari", "models", "service") for path in (ROOT / folder).rglob("*.py")]
    risky = re.compile(r"torch\.load\(|^\s*(?:import|from) pickle|allow_pickle=True|joblib|np\.load\(", re.MULTILINE)
    assert len(files) > 100
    harmless = (  # of `meari import`: tensors alone, the error that refuses others, and what a message advises
        'torch.load(path, map_location="cpu", weights_only=True)',
        "from pickle import UnpicklingError\n",
        "torch.load({path!r}",
    )
    found = {path: risky.findall(path.read_text("utf-8")) for path in files}
    importer = ROOT / "meari" / "importer" / "weights_file.py"
    text = importer.read_text("utf-8")
    assert all(text.count(each) == 1 for each in harmless)
    assert len(found.pop(importer)) == len(harmless)
    assert [str(path) for path, each in found.items() if each] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_commands_of_make_keep_bytecode_whatever_the_environment_says() -> None:
    """Most of what an import of torch takes is its compilation."""
    rule = "shown: ; @echo bytecode=$$PYTHONDONTWRITEBYTECODE"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "MAKEFLAGS": ""}
    run = subprocess.run(
        ["make", "--silent", "--eval", rule, "shown"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("bytecode=\n", "")

"""Test the wheel: one import name, all files, and no interference from files in the working folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
PARTS = ("LICENSE", "README.md", "export", "meari", "models", "pyproject.toml", "service")
DECOYS = ("bulk", "cli", "export", "models", "service")


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env=environment or None, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the project from a copy, without files of earlier builds."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", str(output), str(source)], output)
    [built] = output.glob("meari-*.whl")
    return built


def test_wheel_has_one_package_and_all_of_its_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [top] = [name for name in archive.namelist() if name.endswith("top_level.txt")]
        assert archive.read(top).decode().split() == ["meari"]
    assert {name.split("/")[0] for name in names} == {"meari"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "meari").rglob("*.py")}
    for linked in ("export", "models", "service"):
        ours |= {f"meari/{path.relative_to(ROOT)}" for path in (ROOT / linked).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours
    assert {"meari/py.typed", "meari/service/web/index.html", "meari/models/configs/shakespeare-lstm.toml"} <= names


def test_decoy_modules_in_the_working_folder_are_not_imported(wheel: Path, tmp_path: Path) -> None:
    installed, folder = tmp_path / "installed", tmp_path / "decoys"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for name in DECOYS:
        (folder / name).mkdir(parents=True)
        for file in (folder / f"{name}.py", folder / name / "__init__.py"):
            file.write_text("raise SystemExit('the wrong module')\n", "utf-8")
    code = (
        "import meari, meari.cli.main, meari.export.bundle, meari.models.training.run, meari.service.app;"
        "print(meari.__file__)"
    )
    paths = [str(installed), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin"}
    assert run([sys.executable, "-c", code], folder, **environment).stdout.startswith(str(installed))
    assert "serve" in run([sys.executable, "-m", "meari.cli.main", "--help"], folder, **environment).stdout
    bundles = ["--bundles", str(ROOT / "bundles"), "--model", "shakespeare-gru"]
    scored = run([sys.executable, "-m", "meari.cli.main", "score", "--text", "To be", *bundles], folder, **environment)
    assert "To be" in scored.stdout

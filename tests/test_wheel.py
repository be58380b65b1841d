"""Test the wheel: one import name, all files, and no interference from files in the working folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import clean_environment, running_server

ROOT = Path(__file__).parents[1]
PARTS = ("LICENSE", "README.md", "bundles", "export", "meari", "models", "pyproject.toml", "service")
BUILT_IN = "meari/built_in/shakespeare-rnn/"
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
    bundle = {BUILT_IN + path.name for path in (ROOT / BUILT_IN).iterdir()}
    assert bundle == {name for name in names if name.startswith("meari/built_in/")}
    assert sum((ROOT / name).stat().st_size for name in bundle) <= 2_000_000
    assert {"meari/py.typed", "meari/service/web/index.html", "meari/models/configs/shakespeare-lstm.toml"} <= names


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh virtual environment, which sees the packages that are here, but not this project.

    Returns its `meari`.
    """
    environment = tmp_path_factory.mktemp("venv")
    venv.create(environment, symlinks=True, with_pip=False)
    [packages] = environment.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment / "bin/python")]
    run([*install, "install", "--no-deps", "--no-index", str(wheel)], environment)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(ours), "utf-8")  # its own .pth files are not read
    return environment / "bin" / "meari"


def clean(folder: Path, **settings: object) -> dict[str, str]:
    """Return the environment of a user who has nothing in the data folder yet."""
    own = {name: value for name, value in clean_environment(**settings).items() if name != "PYTHONPATH"}
    return own | {"XDG_DATA_HOME": str(folder / "data")}


def test_installed_wheel_works_at_once_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    scored = run([str(installed), "score", "--text", "To be, or not to be", "--json"], tmp_path, **clean(tmp_path))
    assert json.loads(scored.stdout)["num_tokens"] > 10
    listed = json.loads(run([str(installed), "bundles", "list", "--json"], tmp_path, **clean(tmp_path)).stdout)
    [bundle] = listed["bundles"]
    assert bundle["folder"].startswith(str(installed.parents[1]))
    assert list(tmp_path.iterdir()) == []


def test_installed_wheel_serves_its_bundle_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    there = ["env", "--chdir", str(empty), "--unset", "PYTHONPATH", f"XDG_DATA_HOME={tmp_path / 'data'}"]
    with running_server(tmp_path, started_by=[*there, str(installed), "serve"]) as server:
        assert server.post("/generate", prompt="To be", max_tokens=5, seed=7).json()["model"] == "shakespeare-rnn"
        bundle = write_tiny_bundle(tmp_path / "made" / "letters")
        assert "is now in" in run([*there, str(installed), "bundles", "add", str(bundle)], tmp_path).stdout
        names = ["letters", "shakespeare-rnn"]
        until(lambda: [model["name"] for model in server.client.get("/models").json()["models"]] == names)
    assert list(empty.iterdir()) == []


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

"""Test the software bills of materials: valid CycloneDX, and complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "serve.txt"


def bill(*arguments: object) -> dict[str, Any]:
    """Run the program and return its document, which has to fit the schema."""
    command = [sys.executable, str(ROOT / "requirements" / "sbom.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return checked(done.stdout)


def checked(text: str) -> dict[str, Any]:
    """Return a document that is valid CycloneDX, with references that lead somewhere."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    document: dict[str, Any] = json.loads(text)
    refs = [part["bom-ref"] for part in (document["metadata"]["component"], *document["components"])]
    assert len(set(refs)) == len(refs)
    edges = document["dependencies"]
    assert {edge["ref"] for edge in edges} | {ref for edge in edges for ref in edge["dependsOn"]} <= set(refs)
    return document


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a wheel with nothing but metadata; tests/test_wheel.py builds the real one."""
    import zipfile

    path = tmp_path_factory.mktemp("wheel") / "meari-1.2.3-py3-none-any.whl"
    metadata = "Metadata-Version: 2.4\nName: meari\nVersion: 1.2.3\nLicense-Expression: MIT\n"
    metadata += "Requires-Dist: Flask<4,>=3.1\nRequires-Dist: pynacl<2; extra == 'sign'\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meari-1.2.3.dist-info/METADATA", metadata)
    return path


def test_bill_of_a_wheel_has_its_hash_and_every_locked_package(wheel: Path) -> None:
    document = bill("wheel", wheel, LOCK)
    root = document["metadata"]["component"]
    assert (root["name"], root["version"], root["hashes"][0]["alg"]) == ("meari", "1.2.3", "SHA-256")
    locked = set(re.findall(r"^([a-z0-9._-]+)==([^ ]+)", LOCK.read_text("utf-8"), re.MULTILINE))
    assert {(part["name"], part["version"]) for part in document["components"]} == locked
    [edge] = document["dependencies"]
    assert [ref.partition("@")[0] for ref in edge["dependsOn"]] == ["pkg:pypi/flask"]
    assert bill("wheel", wheel, LOCK) == document


def test_bill_of_an_environment_has_every_package_and_model() -> None:
    [site_packages] = {str(each.locate_file("")) for each in distributions() if each.name == "numpy"}
    document = bill("image", site_packages, ROOT / "bundles")
    names = {part["name"] for part in document["components"] if part.get("purl", "").startswith("pkg:pypi/")}
    installed = {re.sub(r"[-_.]+", "-", each.name).lower() for each in distributions(path=[site_packages])}
    assert names | {"meari"} == installed
    models = {part["name"] for part in document["components"] if part["type"] == "machine-learning-model"}
    assert models == {path.parent.name for path in (ROOT / "bundles").glob("*/manifest.json")}
    edges = {edge["ref"].partition("@")[0]: edge["dependsOn"] for edge in document["dependencies"]}
    assert any(ref.startswith("pkg:pypi/onnxruntime@") for ref in edges["pkg:pypi/meari"])
    assert any(part["name"] == "python" for part in document["components"])


def lines(name: str) -> list[str]:
    return (ROOT / "requirements" / name).read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", ["bench", "build", "dev", "harness", "load", "serve", "train"])
def test_every_locked_package_has_hashes(name: str) -> None:
    """Every line names a version and goes on with its hashes; torch stands in torch.txt alone."""
    text = "\n".join(line for line in lines(f"{name}.txt") if not line.startswith("#"))
    for requirement in text.replace("\\\n", " ").splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( ; [^\\]*?)?(\s+--hash=sha256:[0-9a-f]{64})+", requirement), requirement
        assert not requirement.startswith("torch==")


def test_torch_is_locked_to_the_constrained_version() -> None:
    [pinned] = lines("torch.txt")
    assert f'constraint-dependencies = ["{pinned}"]' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_every_installation_compares_hashes() -> None:
    """No command installs a package by a name alone, except the project itself and torch."""
    places = [ROOT / "Makefile", ROOT / "Dockerfile", ROOT / ".ci" / "run", ROOT / "requirements" / "install.sh"]
    text = "\n".join(path.read_text("utf-8") for path in places).replace("\\\n", " ")
    for command in re.findall(r"^.*\binstall --no-.*$", text, re.MULTILINE):
        own = "--no-deps" in command and "--no-build-isolation" in command and re.search(r"(--editable)? \.$", command)
        torch = command.endswith("--requirement requirements/torch.txt")
        assert own or torch or "--require-hashes" in command, command


def test_images_stand_on_a_digest() -> None:
    """A stage of the image stands on another stage, or on an image whose digest is fixed."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    names = {name for _, name in stages}
    fixed = dict(re.findall(r"^ARG (\w+)=(\S+@sha256:[0-9a-f]{64})$", text, re.MULTILINE))
    assert stages
    for base, _ in stages:
        assert base in names or base.removeprefix("${").removesuffix("}") in fixed, base


@pytest.mark.parametrize(
    ("finds", "says", "code"),
    [
        ("nothing", "make audit: skipped: the package index gives no vulnerabilities here", 0),
        ("old.txt", "make audit: no known vulnerabilities", 0),
        (r"old.txt\|serve.txt", "requirements/serve.txt:\nFound 1 known vulnerability", 1),
    ],
)
def test_audit_tells_vulnerabilities_or_that_it_cannot_know(tmp_path: Path, finds: str, says: str, code: int) -> None:
    """Run the audit over an index that knows of vulnerabilities in some files: it asks for one that is known first."""
    index = tmp_path / "pip-audit"
    index.write_text(f'#!/bin/sh\necho "$*" | grep -q "{finds}$" && echo "Found 1 known vulnerability in 1 package"\n')
    index.chmod(0o755)
    command = ["sh", "requirements/audit.sh", str(index)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert says in done.stdout + done.stderr

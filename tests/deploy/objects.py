"""Make the objects for Kubernetes, by kustomize and by Helm, and compare them with Kubernetes' schemas."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from tests.service.running import ROOT

KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
CHART: Final = ROOT / "deploy" / "helm" / "meari"
HELM: Final = Path(sys.executable).with_name("helm")
VERSIONS: Final = ("1.30", "1.33", "1.36")
FETCHED: Final = "https://example.org/my-lstm.zip#sha256=" + "0" * 64
CONTAINER_RIGHTS: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

Manifest = dict[str, Any]


def helm_template(*flags: str, release: str = "meari") -> subprocess.CompletedProcess[str]:
    """Render the chart with the flags of Helm."""
    command: list[str | Path] = [HELM, "template", release, CHART, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render_chart(*values: str) -> list[Manifest]:
    """Render the chart. values: settings as NAME=VALUE, and names of files with values."""
    flags = [f"--set={value}" if "=" in value else f"--values={CHART / value}" for value in values]
    done = helm_template(*flags)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def kustomize(folder: Path) -> list[Manifest]:
    """Build a folder as `kubectl apply -k` does."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which builds the overlays, is not installed")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def with_components(beginning: str, *components: str) -> list[Manifest]:
    """Build the base, or an overlay, with some components, as an overlay of somebody's own on top of it does."""
    return _own_overlay({"resources": [f"../../{beginning}"]}, components)


def copied_with_components(overlay: str, *components: str) -> list[Manifest]:
    """Build a copy of an overlay whose list of components has grown."""
    path = KUBERNETES / "overlays" / overlay / "kustomization.yaml"
    return _own_overlay(yaml.safe_load(path.read_text("utf-8")), components)


def _own_overlay(own: dict[str, Any], components: Sequence[str]) -> list[Manifest]:
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "kubernetes" / "overlays" / "own"
        shutil.copytree(KUBERNETES, Path(folder) / "kubernetes")
        overlay.mkdir()
        paths = [*own.get("components", []), *(f"../../components/{name}" for name in components)]
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump({**own, "components": paths}))
        return kustomize(overlay)


def fits_schemas(manifest: Manifest) -> None:
    """Compare an object with the schemas of three versions of Kubernetes; raises ValidationError."""
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Return the objects by their kind and name."""
    return {(each["kind"], each["metadata"]["name"]): each for each in manifests}


def pod_of(manifests: list[Manifest]) -> Manifest:
    """Return what the pods of the one Deployment are made of."""
    [deployment] = [each for each in manifests if each["kind"] == "Deployment"]
    pod: Manifest = deployment["spec"]["template"]["spec"]
    return pod


def settings_of(manifests: list[Manifest]) -> dict[str, str]:
    """Return the settings of the one ConfigMap."""
    [settings] = [each["data"] for each in manifests if each["kind"] == "ConfigMap"]
    return dict(settings)


def mebibytes(quantity: str) -> float:
    """Return a quantity of memory as Kubernetes writes it."""
    return float(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def assert_least_rights(pod: Manifest) -> None:
    """Assert that no container of a pod has a right too many, and that memory is what is asked for."""
    assert_least_pod_rights(pod["securityContext"])
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == CONTAINER_RIGHTS
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert "cpu" not in container["resources"]["limits"], "a throttled worker makes all its clients wait"


def assert_least_pod_rights(context: Manifest) -> None:
    """Assert what holds for all containers of a pod."""
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}

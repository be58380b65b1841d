"""Test the objects for Kubernetes offline: schemas, policies, and kustomize against the Helm chart."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from loadtests.settings import Role, read_settings
from loadtests.shapes import Shape
from meari.bundle_format.folders import find_bundles
from meari.cli.train import command as train_command
from meari.client.download import is_hash, split_hash
from meari.service.settings import SETTINGS, load_settings
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, clean_environment

KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "meari"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
HELM = Path(sys.executable).with_name("helm")
VERSIONS = ("1.30", "1.33", "1.36")
FOREIGN_KINDS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # of operators; Kubernetes has no schema of them

Manifest = dict[str, Any]
FETCHED = "https://example.org/my-lstm.zip#sha256=" + "0" * 64

# By a name: the components of kustomize, and the values with which the chart makes the same objects.
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "base": ([], []),
    "keys": (["keys"], ["keys.enabled=true"]),
    "volume": (["bundles-volume"], ["bundles.volume.enabled=true"]),
    "fetched": (["bundles-fetched"], [f"bundles.fetch[0]={FETCHED}"]),
    "ingress": (["ingress"], ["ingress.enabled=true"]),
    "sticky": (["ingress", "sticky"], ["ingress.enabled=true", "ingress.sticky=true"]),
    "monitoring": (["monitoring"], ["monitoring.enabled=true"]),
    "waiting-tokens": (["waiting-tokens"], ["autoscaling.waitingTokens.enabled=true"]),
}


def render_chart(*values: str) -> list[Manifest]:
    flags = [f"--set={value}" for value in values]
    done = subprocess.run(
        [HELM, "template", "meari", CHART, *flags], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def kustomize(folder: Path) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which builds the overlays, is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", "--load-restrictor=LoadRestrictionsNone", folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def with_components(folder: Path, components: list[str]) -> list[Manifest]:
    """Build the base with some components, as an overlay does."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    overlay = folder / "kubernetes" / "overlays" / "tried"
    overlay.mkdir()
    paths = [f"../../components/{name}" for name in components]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../../base"], "components": paths}))
    return kustomize(overlay)


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(each["kind"], each["metadata"]["name"]): each for each in manifests}


def in_order(value: Any) -> Any:
    """Sort lists of named things (volumes, mounts, variables): their order means nothing."""
    if isinstance(value, dict):
        return {key: in_order(each) for key, each in value.items()}
    if isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value):
        return sorted(map(in_order, value), key=lambda each: (each["name"], each.get("mountPath", "")))
    return value


# For each way to deploy, a maker of its objects.
RENDERED = [
    *(pytest.param(partial(render_chart, *values), id=f"chart {name}") for name, (_, values) in VARIANTS.items()),
    *(
        pytest.param(partial(kustomize, KUBERNETES / "overlays" / name), id=f"overlay {name}")
        for name in ("laptop", "production")
    ),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_kustomize_and_chart_make_the_same_objects(variant: str, tmp_path: Path) -> None:
    components, values = VARIANTS[variant]
    built, charted = by_name(with_components(tmp_path, components)), by_name(render_chart(*values))
    assert built.keys() == charted.keys()
    for name, manifest in built.items():
        assert in_order(charted[name]) == in_order(manifest), name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("render", RENDERED)
def test_objects_fit_the_schemas_of_kubernetes(render: Callable[[], list[Manifest]], version: str) -> None:
    for manifest in render():
        if manifest["kind"] not in FOREIGN_KINDS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_refuse_a_misspelt_field() -> None:
    deployment = by_name(render_chart())["Deployment", "meari"]
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_chart_passes_helms_own_check() -> None:
    done = subprocess.run([HELM, "lint", "--strict", CHART], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["terminationGracePeriodSeconds=70"], "terminationGracePeriodSeconds: got 70, expected more than"),
        (["bundles.fetch[0]=https://example.org/a.zip"], "bundles.fetch: got"),
        (["bundles.fetch[0]=http://example.org/a.zip#sha256=" + "0" * 64], "expected https://HOST"),
    ],
)
def test_chart_refuses_values_that_contradict_each_other(values: list[str], message: str) -> None:
    flags = [f"--set={value}" for value in values]
    done = subprocess.run(
        [HELM, "template", "meari", CHART, *flags], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert message in done.stderr


# --- policies: what has to hold for every way to deploy ---


def pod_of(manifests: list[Manifest]) -> Manifest:
    [deployment] = [each for each in manifests if each["kind"] == "Deployment"]
    pod: Manifest = deployment["spec"]["template"]["spec"]
    return pod


def settings_of(manifests: list[Manifest]) -> dict[str, str]:
    settings: dict[str, str] = by_name(manifests)["ConfigMap", "meari"]["data"]
    return settings


@pytest.fixture(params=RENDERED)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return request.param()  # type: ignore[no-any-return]


def test_every_container_runs_with_the_least_rights(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert "cpu" not in container["resources"]["limits"], "a throttled worker makes all its clients wait"


def test_no_token_of_kubernetes_is_mounted(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    assert pod["automountServiceAccountToken"] is False
    account = by_name(manifests)["ServiceAccount", pod["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is False


def test_kubernetes_sets_no_variables_that_look_like_settings(manifests: list[Manifest]) -> None:
    assert pod_of(manifests)["enableServiceLinks"] is False, "a Service `meari` would set MEARI_PORT to a URL"


def test_workers_are_as_many_as_the_requested_cpus(manifests: list[Manifest]) -> None:
    [container] = pod_of(manifests)["containers"]
    [workers] = [each for each in container["env"] if each["name"] == "MEARI_WORKERS"]
    assert workers["valueFrom"]["resourceFieldRef"] == {
        "containerName": container["name"],
        "resource": "requests.cpu",
        "divisor": "1",
    }
    assert int(container["resources"]["requests"]["cpu"]) >= 1, "a whole number, one worker each"


def test_settings_are_settings_of_the_service(manifests: list[Manifest]) -> None:
    load_settings(settings_of(manifests))
    [container] = pod_of(manifests)["containers"]
    known = {setting.variable for setting in SETTINGS.values()}
    assert {each["name"] for each in container["env"]} <= known


def test_pods_end_in_order(manifests: list[Manifest]) -> None:
    pod, settings = pod_of(manifests), settings_of(manifests)
    [container] = pod["containers"]
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    grace = float(settings["MEARI_GRACEFUL_TIMEOUT_SECONDS"])
    assert grace >= float(settings["MEARI_MAX_TIMEOUT_SECONDS"]), "every open request may end"
    assert pod["terminationGracePeriodSeconds"] > float(pause) + grace
    probe = container["readinessProbe"]
    assert float(pause) >= probe["periodSeconds"] * probe["failureThreshold"], "balancers notice before SIGTERM"


def test_probes_ask_the_paths_that_are_made_for_them(manifests: list[Manifest]) -> None:
    [container] = pod_of(manifests)["containers"]
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60, "loading may take a while on a busy node"


def test_selectors_match_the_pods(manifests: list[Manifest]) -> None:
    named = by_name(manifests)
    deployment = named["Deployment", "meari"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"], named["Service", "meari"]["spec"]["selector"]]
    selectors += [
        each["spec"]["selector"]["matchLabels"] for each in manifests if each["kind"] == "PodDisruptionBudget"
    ]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in manifests if each["kind"] == "NetworkPolicy"]
    constraints = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    selectors += [each["labelSelector"]["matchLabels"] for each in constraints]
    assert len(constraints) == 2
    for selector in selectors:
        assert selector.items() <= labels.items()


def test_the_service_opens_no_connections(manifests: list[Manifest]) -> None:
    """Fetching bundles needs names of hosts, and https."""
    policy = by_name(manifests)["NetworkPolicy", "meari"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ports = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
    assert ports == ([53, 53, 443] if pod_of(manifests).get("initContainers") else [])


def test_fetched_bundles_are_checked_by_hash_and_only_read_by_the_service(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    for init in pod.get("initContainers", []):
        [service] = pod["containers"]
        [written] = init["volumeMounts"]
        [read] = [mount for mount in service["volumeMounts"] if mount["name"] == written["name"]]
        assert read == {**written, "readOnly": True}
        assert (init["image"], init["envFrom"]) == (service["image"], service["envFrom"])
        assert written["mountPath"] in re.findall(r"MEARI_BUNDLES=(\S+)", DOCKERFILE)[0].split(":")
        assert all(is_hash(split_hash(url)[1]) for url in init["args"])


def test_init_container_fetches_a_bundle_into_the_shared_volume(tmp_path: Path) -> None:
    """The command as the pod has it, twice, as after a restart: the second time nothing is to be done."""
    [init] = pod_of(render_chart(f"bundles.fetch[0]={FETCHED}"))["initContainers"]
    bundle = write_tiny_bundle(tmp_path / "web" / "tiny")
    archive = Path(shutil.make_archive(str(bundle), "zip", bundle.parent, "tiny"))
    command = [word.replace("/bundles", str(tmp_path / "volume")) for word in init["command"] if word != "meari"]
    with http_server(tmp_path / "web") as address:
        url = f"{address}/tiny.zip#sha256={hashlib.sha256(archive.read_bytes()).hexdigest()}"
        for said in ("is now in", "was already in"):
            done = run_meari(*command, url)
            assert (done.returncode, said in done.stdout) == (0, True), done.stderr
    assert find_bundles(tmp_path / "volume").folders.keys() == {"tiny"}


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run_meari(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meari.cli.main", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_replicas_are_set_by_one_side_only(manifests: list[Manifest]) -> None:
    """A number in the Deployment would undo the autoscaler's at every `apply`."""
    scaled = any(each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") for each in manifests)
    [deployment] = [each for each in manifests if each["kind"] == "Deployment"]
    assert ("replicas" in deployment["spec"]) is not scaled


def test_ingress_does_not_buffer_streams() -> None:
    ingress = by_name(render_chart("ingress.enabled=true"))["Ingress", "meari"]
    annotations = ingress["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[prefix + "proxy-buffering"] == "off"
    timeout = float(annotations[prefix + "proxy-read-timeout"])
    assert timeout > float(settings_of(render_chart())["MEARI_MAX_TIMEOUT_SECONDS"])
    assert annotations[prefix + "proxy-body-size"] == f"{load_settings({}).max_body_bytes // 2**20}m"


def test_load_comes_from_a_master_and_workers_with_the_same_settings() -> None:
    named = by_name(kustomize(KUBERNETES / "load"))
    [settings] = [each["data"] for (kind, _), each in named.items() if kind == "ConfigMap"]
    load = read_settings(settings)
    assert (load.allow_remote, load.role, load.shapes) == (True, Role.ALONE, (Shape.STAIRCASE,))
    image = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["locust"]["image"]
    for role in ("master", "worker"):
        job = named["Job", f"meari-load-{role}"]
        pod = job["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["image"] == image
        assert container["env"] == [{"name": "MEARI_LOAD_ROLE", "value": role}]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        for version in VERSIONS:
            kubernetes_validate.validate(job, version, strict=True)
    assert named["Job", "meari-load-worker"]["spec"]["parallelism"] == load.num_workers
    service = named["Service", load.master_host]["spec"]
    assert service["ports"][0]["port"] == load.master_port
    labels = named["Job", "meari-load-master"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_rules_of_the_operator_are_those_of_prometheus() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8"))
    assert by_name(render_chart("monitoring.enabled=true"))["PrometheusRule", "meari"]["spec"] == rules


def test_training_job_fits_the_schemas_and_calls_a_command_that_exists() -> None:
    service, job = yaml.safe_load_all((KUBERNETES / "training" / "job.yaml").read_text("utf-8"))
    for version in VERSIONS:
        for manifest in (service, job):
            kubernetes_validate.validate(manifest, version, strict=True)
    [train_job] = yaml.safe_load_all((KUBERNETES / "training" / "trainjob.yaml").read_text("utf-8"))
    spec = job["spec"]
    [container] = spec["template"]["spec"]["containers"]
    trainer = train_job["spec"]["trainer"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == trainer["numNodes"]
    assert f"--nnodes={spec['completions']}" in container["args"]
    [place] = [word for word in container["args"] if word.startswith("--rdzv-endpoint=")]
    host, _, port = place.removeprefix("--rdzv-endpoint=").partition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    for arguments in (container["args"], trainer["args"]):
        verb = arguments[arguments.index("--") + 1 :]
        assert verb[:2] == ["meari", "train"]
        train_command.make_context("train", verb[2:]).close()


def test_training_job_runs_with_the_least_rights() -> None:
    _, job = yaml.safe_load_all((KUBERNETES / "training" / "job.yaml").read_text("utf-8"))
    pod = job["spec"]["template"]["spec"]
    test_every_container_runs_with_the_least_rights([{"kind": "Deployment", "spec": {"template": {"spec": pod}}}])
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)


def test_secrets_stand_in_no_file() -> None:
    for path in [*KUBERNETES.rglob("*.yaml"), *CHART.rglob("*.yaml")]:
        assert "kind: Secret\n" not in path.read_text("utf-8"), path


def test_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{chart["appVersion"]}"' in project
    assert chart["version"] == chart["appVersion"]

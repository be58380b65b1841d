"""Test the objects for Kubernetes offline: schemas, policies, and kustomize against the Helm chart."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from meari.bundle_format.folders import find_bundles
from meari.client.download import is_hash, split_hash
from meari.service.settings import MIB, MIN_INFLIGHT_BYTES, SETTINGS, WORKER_BYTES, load_settings
from tests import forked
from tests.deploy.objects import (
    CHART,
    FETCHED,
    KUBERNETES,
    VERSIONS,
    Manifest,
    assert_least_rights,
    by_name,
    copied_with_components,
    fits_schemas,
    kustomize,
    mebibytes,
    pod_of,
    render_chart,
    settings_of,
    with_components,
)
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, clean_environment

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")
FOREIGN_KINDS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # of operators; Kubernetes has no schema of them

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
VARIANTS["everything"] = (
    list(dict.fromkeys(name for components, _ in VARIANTS.values() for name in components)),
    list(dict.fromkeys(value for _, values in VARIANTS.values() for value in values)),
)
OVERLAYS = ("laptop", "production")
ADDED = {  # to a copy of an overlay: what it does not have, but for `sticky` of the laptop, which has no Ingress
    "laptop": ("keys", "ingress", "bundles-volume", "bundles-fetched", "monitoring", "waiting-tokens"),
    "production": ("bundles-volume", "bundles-fetched", "sticky", "waiting-tokens"),
}


def in_order(value: Any) -> Any:
    """Sort lists of named things (volumes, mounts, variables): their order means nothing."""
    if isinstance(value, dict):
        return {key: in_order(each) for key, each in value.items()}
    if isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value):
        return sorted(map(in_order, value), key=lambda each: (each["name"], each.get("mountPath", "")))
    return value


# For each way to deploy, a maker of its objects, which are made once.
MAKERS: dict[str, Callable[[], list[Manifest]]] = {
    "base": partial(kustomize, KUBERNETES / "base"),
    **{f"overlay {name}": partial(kustomize, KUBERNETES / "overlays" / name) for name in OVERLAYS},
    **{
        f"overlay {name} with {component}": partial(with_components, f"overlays/{name}", component)
        for name in OVERLAYS
        for component in ("bundles-volume", "bundles-fetched")
    },
    "overlay production with waiting-tokens": partial(with_components, "overlays/production", "waiting-tokens"),
    **{
        f"copy of {name} with {component}": partial(copied_with_components, name, component)
        for name, components in ADDED.items()
        for component in components
    },
    **{f"base with {name}": partial(with_components, "base", *parts) for name, (parts, _) in VARIANTS.items()},
    **{f"chart {name}": partial(render_chart, *values) for name, (_, values) in VARIANTS.items()},
    **{f"chart {name}": partial(render_chart, f"values-{name}.yaml") for name in OVERLAYS},
}


@cache
def rendered(way: str) -> list[Manifest]:
    """Return the objects of a way to deploy; they must not be changed."""
    return MAKERS[way]()


@pytest.mark.parametrize("variant", VARIANTS)
def test_kustomize_and_chart_make_the_same_objects(variant: str) -> None:
    """A release knows its namespace, to which it holds the tokens that wait; kustomize's component does not."""
    charted = copy.deepcopy(rendered(f"chart {variant}"))
    for manifest in charted:
        if manifest["kind"] == "ScaledObject":
            trigger = manifest["spec"]["triggers"][0]["metadata"]
            before, own, after = trigger["query"].partition('namespace="default",')
            assert own
            trigger["query"] = before + after
    assert_same(rendered(f"base with {variant}"), charted)


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_and_the_charts_values_make_the_same_objects(name: str) -> None:
    """The namespace of an overlay is that of the release for Helm."""
    built = copy.deepcopy(rendered(f"overlay {name}"))
    namespaces = {each["metadata"].pop("namespace", None) for each in built}
    assert namespaces == {"meari" if name == "production" else None}
    assert_same(built, rendered(f"chart {name}"))


def assert_same(built: list[Manifest], charted: list[Manifest]) -> None:
    left, right = by_name(built), by_name(charted)
    assert left.keys() == right.keys()
    for name, manifest in left.items():
        assert in_order(right[name]) == in_order(manifest), name


@pytest.mark.parametrize("way", MAKERS)
def test_objects_fit_the_schemas_of_three_versions_of_kubernetes(way: str) -> None:
    for manifest in rendered(way):
        if manifest["kind"] not in FOREIGN_KINDS:
            fits_schemas(manifest)


def test_schemas_refuse_a_misspelt_field() -> None:
    deployment = copy.deepcopy(by_name(rendered("base"))["Deployment", "meari"])
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


# --- policies: what has to hold for every way to deploy ---


@pytest.fixture(params=MAKERS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(request.param)


def test_every_container_runs_with_the_least_rights(manifests: list[Manifest]) -> None:
    assert_least_rights(pod_of(manifests))


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
    cpus = int(container["resources"]["requests"]["cpu"])
    assert cpus >= 1, "a whole number, one worker each"
    needed = cpus * (WORKER_BYTES + MIN_INFLIGHT_BYTES) / MIB
    assert mebibytes(container["resources"]["limits"]["memory"]) >= needed


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


def test_replicas_lie_apart_and_go_one_at_a_time(manifests: list[Manifest]) -> None:
    named = by_name(manifests)
    deployment = named["Deployment", "meari"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    spread = {each["topologyKey"]: each for each in deployment["template"]["spec"]["topologySpreadConstraints"]}
    assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(each["maxSkew"] == 1 for each in spread.values())
    if deployment.get("replicas") == 1:  # a budget for one replica would keep its node from being emptied
        assert ("PodDisruptionBudget", "meari") not in named
    else:
        assert named["PodDisruptionBudget", "meari"]["spec"]["maxUnavailable"] == 1


def test_autoscaler_follows_cpu_and_where_asked_the_waiting_tokens(manifests: list[Manifest]) -> None:
    """No limit stands above 90 %, so that a new replica is ready before the old ones are full."""
    known = set(re.findall(r"^\| `([\w:]+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.MULTILINE))
    for manifest in manifests:
        spec = manifest["spec"] if manifest["kind"] in SCALERS else {}
        if manifest["kind"] == "HorizontalPodAutoscaler":
            [metric] = spec["metrics"]
            assert metric["resource"]["name"] == "cpu"
            assert metric["resource"]["target"]["averageUtilization"] <= 90
            least, most = spec["minReplicas"], spec["maxReplicas"]
        elif manifest["kind"] == "ScaledObject":
            tokens, cpu = spec["triggers"]
            assert (cpu["type"], cpu["metricType"]) == ("cpu", "Utilization")
            assert int(cpu["metadata"]["value"]) <= 90
            assert tokens["type"] == "prometheus"
            assert set(re.findall(r"meari_\w+", tokens["metadata"]["query"])) == {"meari_waiting_tokens"} <= known
            assert 'service="meari"' in tokens["metadata"]["query"], "not the tokens of another deployment"
            least, most = spec["minReplicaCount"], spec["maxReplicaCount"]
        else:
            continue
        assert spec["scaleTargetRef"]["name"] == "meari"
        assert 2 <= least < most, "one may fail"


def test_prometheus_finds_every_replica_under_the_job_of_the_rules(manifests: list[Manifest]) -> None:
    named = by_name(manifests)
    if ("ServiceMonitor", "meari") not in named:
        return
    monitor, service = named["ServiceMonitor", "meari"]["spec"], named["Service", "meari"]
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "meari"
    [endpoint] = monitor["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert named["PrometheusRule", "meari"]["spec"] == yaml.safe_load(ALERTS.read_text("utf-8"))


def test_keys_come_from_a_secret_that_no_file_has(manifests: list[Manifest]) -> None:
    assert not any(each["kind"] == "Secret" for each in manifests)
    pod = pod_of(manifests)
    [container] = pod["containers"]
    variables = {each["name"]: each for each in container["env"]}
    state_key = variables["MEARI_STATE_KEY"]["valueFrom"]["secretKeyRef"]
    assert (state_key["name"], state_key["key"]) == ("meari", "state-key")
    assert state_key["optional"] is ("MEARI_KEYS_FILE" not in variables), "with keys, a missing Secret is a fault"
    if "MEARI_KEYS_FILE" not in variables:
        return
    [volume] = [each["secret"] for each in pod["volumes"] if "secret" in each]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "keys"]
    assert (volume["secretName"], mount["readOnly"]) == ("meari", True)
    [item] = volume["items"]
    assert variables["MEARI_KEYS_FILE"]["value"] == f"{mount['mountPath']}/{item['path']}"
    assert volume["defaultMode"] & 0o007 == 0, "for the group of the service alone"


def test_bundles_of_a_volume_take_the_place_of_those_of_the_image(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    claims = {each["name"]: each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each}
    for name, claim in claims.items():
        [mount] = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == name]
        assert mount["mountPath"] == re.findall(r"MEARI_BUNDLES=(\S+)", DOCKERFILE)[0].split(":")[-1]
        assert mount["readOnly"] is claim["readOnly"] is True
        made = by_name(manifests)["PersistentVolumeClaim", claim["claimName"]]["spec"]
        assert made["accessModes"] == ["ReadOnlyMany"], "all replicas read the same volume"
    assert bool(claims) is any(each["kind"] == "PersistentVolumeClaim" for each in manifests)


def test_every_container_has_the_same_image(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    [(image, policy)] = {(each["image"], each["imagePullPolicy"]) for each in containers}
    assert image.startswith(("meari:", "registry.example/meari:"))
    assert policy == "IfNotPresent", "an image that was loaded onto the node is enough"


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
    [rule] = policy["ingress"]
    assert rule["from"] == [{"namespaceSelector": {}}], "clients, the Ingress and Prometheus of any namespace"
    [container] = pod_of(manifests)["containers"]
    assert {port["port"] for port in rule["ports"]} == {port["name"] for port in container["ports"]}
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
            assert (done.returncode, said in done.stdout.decode()) == (0, True), done.stderr
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


def run_meari(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return forked.run(arguments, env=clean_environment())


def test_replicas_are_set_by_one_side_only(manifests: list[Manifest]) -> None:
    """A number in the Deployment would undo the autoscaler's at every `apply`."""
    scaled = any(each["kind"] in SCALERS for each in manifests)
    assert sum(each["kind"] in SCALERS for each in manifests) <= 1
    [deployment] = [each for each in manifests if each["kind"] == "Deployment"]
    assert ("replicas" in deployment["spec"]) is not scaled


def test_ingress_does_not_buffer_streams(manifests: list[Manifest]) -> None:
    named = by_name(manifests)
    if ("Ingress", "meari") not in named:
        return
    ingress, service = named["Ingress", "meari"], named["Service", "meari"]
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"]["service"]["name"] == "meari"
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    annotations = ingress["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[prefix + "proxy-buffering"] == "off"
    timeout = float(annotations[prefix + "proxy-read-timeout"])
    assert timeout > float(settings_of(manifests)["MEARI_MAX_TIMEOUT_SECONDS"])
    assert annotations[prefix + "proxy-body-size"] == f"{load_settings({}).max_body_bytes // 2**20}m"
    read = load_settings(settings_of(manifests))
    assert (read.allowed_hosts, read.trusted_hops) == ((rule["host"],), 1), "else its clients are answered 421"


def test_changed_host_of_production_reaches_the_service_and_its_certificate(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    file = tmp_path / "kubernetes" / "overlays" / "production" / "kustomization.yaml"
    text = file.read_text("utf-8")
    assert text.count("meari.example") == 1
    file.write_text(text.replace("meari.example", "text.example.org"), "utf-8")
    test_ingress_does_not_buffer_streams(built := kustomize(file.parent))
    assert by_name(built)["ConfigMap", "meari"]["data"]["MEARI_ALLOWED_HOSTS"] == "text.example.org"


def test_sticky_clients_are_hashed_by_the_header_of_the_balancer_without_kubernetes() -> None:
    """Consistent hashing, over all replicas at once, so that few clients move when their number changes."""
    haproxy = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text("utf-8")
    [header] = re.findall(r"balance hdr\((.*)\)", haproxy)
    for way in ("base with sticky", "chart everything"):
        annotations = by_name(rendered(way))["Ingress", "meari"]["metadata"]["annotations"]
        by = annotations["nginx.ingress.kubernetes.io/upstream-hash-by"]
        assert f"$http_{header.lower().replace('-', '_')}" in by
        assert annotations["nginx.ingress.kubernetes.io/upstream-hash-by-subset"] == "false"


def test_secrets_stand_in_no_file() -> None:
    for path in [*KUBERNETES.rglob("*.yaml"), *CHART.rglob("*.yaml")]:
        assert "kind: Secret\n" not in path.read_text("utf-8"), path

"""Test the Helm chart with somebody else's values: its objects are right, or it refuses the values with the reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from meari.service.settings import MIB, MIN_INFLIGHT_BYTES, SETTINGS, WORKER_BYTES, load_settings
from tests.deploy.objects import CHART, HELM, Manifest, by_name, fits_schemas, helm_template, pod_of, settings_of
from tests.service.running import ROOT

NAME = "a" * 53  # the longest of a release
REDIS = {"name": "MEARI_REDIS_URL", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}}}
TO_REDIS = {"ports": [{"port": 6379, "protocol": "TCP"}]}
VALUES: dict[str, Any] = {  # as in a file of values, where numbers are numbers
    "image": {"tag": "20261130", "pullSecrets": ["registry", "another"]},
    "replicas": 3,
    "autoscaling": {"enabled": False},
    "resources": {"requests": {"cpu": 8, "memory": "1.5Gi"}, "limits": {"memory": "1.5Gi"}},
    "settings": {
        "MEARI_MAX_BODY_BYTES": 16777216,
        "MEARI_MAX_TIMEOUT_SECONDS": 600,
        "MEARI_GRACEFUL_TIMEOUT_SECONDS": 600.5,
        "MEARI_LOG_TEXT_CHARS": 0,
        "MEARI_TRUSTED_HOPS": 0,
    },
    "terminationGracePeriodSeconds": 700,
    "env": [REDIS],
    "keys": {"enabled": True, "secret": "my-keys"},
    "bundles": {"volume": {"enabled": True, "claim": "filled"}},
    "ingress": {"enabled": True, "host": "*.example.org", "tlsSecret": "", "sticky": True},
    "monitoring": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}},
    "networkPolicy": {"egress": [TO_REDIS]},
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    file: Path = tmp_path_factory.mktemp("chart") / "values.yaml"
    file.write_text(yaml.safe_dump(VALUES), "utf-8")
    done = helm_template(f"--values={file}", release=NAME)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def test_objects_with_other_values_fit_the_schemas(manifests: list[Manifest]) -> None:
    kinds = {each["kind"] for each in manifests}
    assert {"Deployment", "Ingress", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"} < kinds
    for manifest in manifests:
        assert len(manifest["metadata"]["name"]) <= 63
        if manifest["apiVersion"] != "monitoring.coreos.com/v1":
            fits_schemas(manifest)
        else:
            assert manifest["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_numbers_of_a_file_reach_the_service_as_they_are(manifests: list[Manifest]) -> None:
    settings = settings_of(manifests)
    assert settings["MEARI_MAX_BODY_BYTES"] == "16777216"
    read = load_settings(settings)
    assert (read.allowed_hosts, read.trusted_hops) == (("*.example.org",), 0), "0 is no less a value"
    assert (read.max_body_bytes, read.graceful_timeout_seconds, read.log_text_chars) == (16777216, 600.5, 0)


def test_ingress_follows_the_settings(manifests: list[Manifest]) -> None:
    ingress = by_name(manifests)["Ingress", NAME]
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "16777216"
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "615"
    assert "tls" not in ingress["spec"]
    assert ingress["spec"]["rules"][0]["host"] == "*.example.org"


def test_secrets_and_claims_that_exist_are_used(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    [container] = pod["containers"]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["MEARI_STATE_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "my-keys"
    assert variables["MEARI_REDIS_URL"] == REDIS
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "my-keys"
    assert volumes["bundles"]["persistentVolumeClaim"]["claimName"] == "filled"
    assert not any(each["kind"] == "PersistentVolumeClaim" for each in manifests)
    assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "another"}]
    assert by_name(manifests)["NetworkPolicy", NAME]["spec"]["egress"] == [TO_REDIS]


def test_replicas_are_fixed_without_autoscaling(manifests: list[Manifest]) -> None:
    assert by_name(manifests)["Deployment", NAME]["spec"]["replicas"] == 3
    assert not any(each["kind"] == "HorizontalPodAutoscaler" for each in manifests)


@pytest.mark.parametrize("values", ["values.yaml", "values-laptop.yaml", "values-production.yaml"])
def test_chart_passes_helms_own_check(values: str) -> None:
    command = [str(HELM), "lint", "--strict", str(CHART), "--values", str(CHART / values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("terminationGracePeriodSeconds=70", "terminationGracePeriodSeconds: got 70, expected more than"),
        ("settings.MEARI_GRACEFUL_TIMEOUT_SECONDS=75", "got 80, expected more than preStopSeconds (5)"),
        ("settings.MEARI_MAX_TIMEOUT_SECONDS=66", "got 65 for MEARI_GRACEFUL_TIMEOUT_SECONDS, expected at least"),
        ("settings.MEARI_MAX_TIMEOUT_SECONDS=66s", "settings.MEARI_MAX_TIMEOUT_SECONDS"),
        ("settings.MEARI_WORKERS=4", "got MEARI_WORKERS, which the chart settles"),
        ("env[0].name=MEARI_STATE_KEY", "got MEARI_STATE_KEY, which the chart settles"),
        ("resources.requests.cpu=2500m", "resources.requests.cpu"),
        ("resources.requests.cpu=0", "resources.requests.cpu"),
        ("resources.requests.memory=4Gi", "got 4Gi for requests.memory and 1Gi for limits.memory"),
        ("resources.requests.cpu=8", "got 1Gi of memory, expected at least 1536Mi for 8 workers"),
        ("resources=null", "resources is required"),
        ("autoscaling.minReplicas=11", "got 11 for minReplicas, expected at most maxReplicas (10)"),
        ("autoscale.enabled=false", "autoscale"),
        ("preStopSeconds=1", "preStopSeconds"),
        ("image.tag=20261130", "image.tag: Invalid type. Expected: string"),
        ("image.digest=sha256:12", "image.digest"),
        ("keys.secret=My_Keys", "keys.secret"),
        ("ingress.host=https://example.org", "ingress.host"),
        ("bundles.fetch[0]=https://example.org/a.zip", "bundles.fetch.0"),
        ("bundles.fetch[0]=http://example.org/a.zip#sha256=" + "0" * 64, "bundles.fetch.0"),
    ],
)
def test_chart_refuses_values_that_are_wrong_or_contradict_each_other(values: str, message: str) -> None:
    done = helm_template(f"--set={values}")
    assert done.returncode != 0
    assert message in done.stderr


def test_chart_refuses_secrets_among_the_settings() -> None:
    for setting in SETTINGS.values():
        if setting.is_secret:
            refused = helm_template(f"--set=settings.{setting.variable}=abc")
            assert f"got {setting.variable}, which is a secret" in refused.stderr


@pytest.mark.parametrize("release", ["9lives", "a.b", "a" * 60])
def test_chart_refuses_a_release_whose_name_no_service_can_have(release: str) -> None:
    done = helm_template(release=release)
    assert done.returncode != 0
    assert "release name" in done.stderr


def test_chart_knows_the_times_of_a_service_that_has_none_set() -> None:
    usual = load_settings({})
    unset = "settings.MEARI_MAX_TIMEOUT_SECONDS=null,settings.MEARI_GRACEFUL_TIMEOUT_SECONDS="
    least = 5 + int(usual.graceful_timeout_seconds) + 1
    refused = helm_template(f"--set={unset}null,terminationGracePeriodSeconds={least - 1}")
    assert f"MEARI_GRACEFUL_TIMEOUT_SECONDS ({usual.graceful_timeout_seconds:g})" in refused.stderr
    refused = helm_template(f"--set={unset}{usual.max_timeout_seconds - 1:g}")
    assert f"MEARI_MAX_TIMEOUT_SECONDS ({usual.max_timeout_seconds:g})" in refused.stderr
    done = helm_template(f"--set={unset}null,terminationGracePeriodSeconds={least},ingress.enabled=true")
    assert f'proxy-read-timeout: "{usual.max_timeout_seconds + 15:g}"' in done.stdout


def test_chart_wants_as_much_memory_for_a_worker_as_the_service() -> None:
    needed = 8 * (WORKER_BYTES + MIN_INFLIGHT_BYTES) // MIB
    assert f"expected at least {needed}Mi for 8 workers" in helm_template("--set=resources.requests.cpu=8").stderr


def test_schema_has_every_value_of_the_chart_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert schema["properties"].keys() - {"global"} == values.keys()
    for name, value in values.items():
        described = schema["properties"][name]
        if described.get("additionalProperties") is False:
            assert described["properties"].keys() == value.keys() == set(described["required"]), name


def test_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{chart["appVersion"]}"' in project
    assert chart["version"] == chart["appVersion"]
    values = yaml.safe_load((CHART / "values-production.yaml").read_text("utf-8"))
    assert str(values["image"]["tag"]) == chart["appVersion"]

"""Test the Jobs for Kubernetes offline: load from many pods, and training on several nodes."""

from __future__ import annotations

import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from loadtests.settings import Role, read_settings
from loadtests.shapes import Shape
from meari.cli.train import command as train_command
from tests.deploy.objects import (
    CONTAINER_RIGHTS,
    KUBERNETES,
    Manifest,
    assert_least_pod_rights,
    assert_least_rights,
    by_name,
    fits_schemas,
    kustomize,
)
from tests.service.running import ROOT


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
        assert_least_rights(pod)
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        fits_schemas(job)
    assert named["Job", "meari-load-worker"]["spec"]["parallelism"] == load.num_workers
    service = named["Service", load.master_host]["spec"]
    assert service["ports"][0]["port"] == load.master_port
    labels = named["Job", "meari-load-master"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def training_jobs() -> list[Manifest]:
    """Return the Service and the indexed Job, then the TrainJob."""
    texts = [(KUBERNETES / "training" / name).read_text("utf-8") for name in ("job.yaml", "trainjob.yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text)]


def test_training_jobs_fit_the_schemas_and_call_a_command_that_exists() -> None:
    service, job, train_job = training_jobs()
    fits_schemas(service)
    fits_schemas(job)
    read = TrainerV1alpha1TrainJob.from_dict(train_job)
    assert read is not None
    assert read.to_dict() == train_job, "Kubeflow's own types know every field"
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


def test_training_jobs_are_the_same_training_with_the_least_rights() -> None:
    _, job, train_job = training_jobs()
    pod = job["spec"]["template"]["spec"]
    assert_least_rights(pod)
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    [patch] = train_job["spec"]["runtimePatches"]
    [node] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    patched, trainer = node["template"]["spec"]["template"]["spec"], train_job["spec"]["trainer"]
    assert_least_pod_rights(patched["securityContext"])
    [container], [other] = pod["containers"], patched["containers"]
    assert other["securityContext"] == CONTAINER_RIGHTS
    assert (patched["volumes"], other["volumeMounts"]) == (pod["volumes"], container["volumeMounts"])
    assert patched["terminationGracePeriodSeconds"] == pod["terminationGracePeriodSeconds"]
    assert trainer["resourcesPerNode"] == container["resources"]
    assert (trainer["image"], trainer["env"]) == (container["image"], container["env"])


def test_kubeflows_types_do_not_know_the_patches_of_older_versions() -> None:
    """So that the comparison above means something."""
    train_job = training_jobs()[-1]
    train_job["spec"]["podTemplateOverrides"] = train_job["spec"].pop("runtimePatches")
    read = TrainerV1alpha1TrainJob.from_dict(train_job)
    assert read is not None
    assert "podTemplateOverrides" not in read.to_dict()["spec"]

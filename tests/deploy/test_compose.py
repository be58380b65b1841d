"""Test compose.yaml without its images."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.settings import Role, read_settings
from meari.service.settings import SETTINGS
from tests.container.conftest import LIMITS
from tests.container.docker import find_compose
from tests.patience import PATIENCE, until
from tests.service.running import ROOT, clean_environment, free_port

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
PORT = re.compile(r"^\$\{MEARI_BIND:-(?P<address>[\d.]+)\}:\$\{(?P<name>\w+):-(?P<outside>\d+)\}:(?P<inside>\d+)$")


def port_of(service: str) -> re.Match[str]:
    [port] = SERVICES[service]["ports"]
    found = PORT.match(port)
    assert found is not None, port
    return found


def volumes(service: str) -> list[list[str]]:
    texts = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume) for volume in SERVICES[service]["volumes"]]
    return [text.split(":") for text in texts]


def test_services_are_meari_monitoring_and_load_test() -> None:
    assert set(SERVICES) == {"meari", "prometheus", "grafana", "locust"}


@pytest.mark.parametrize("service", SERVICES)
def test_service_listens_on_loopback_by_default(service: str) -> None:
    assert port_of(service)["address"] == "127.0.0.1"


def test_no_two_services_share_a_port() -> None:
    assert len({port_of(service)["outside"] for service in SERVICES}) == len(SERVICES)
    assert len({port_of(service)["name"] for service in SERVICES}) == len(SERVICES)


def test_published_ports_match_the_ports_of_the_programs() -> None:
    assert port_of("meari")["inside"] in re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"--web-port={port_of('locust')['inside']}" in SERVICES["locust"]["command"]
    for service in ("prometheus", "grafana", "locust"):
        assert f":{port_of(service)['inside']}/" in " ".join(SERVICES[service]["healthcheck"]["test"])
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets["meari"] == [f"meari:{port_of('meari')['inside']}"]


def test_images_are_fixed_by_their_digests() -> None:
    """A tag moves; a digest does not. The image of the service itself is built here."""
    bases = re.findall(r"^(?:ARG BASE=|FROM )(\S+)", DOCKERFILE, re.MULTILINE)
    images = [SERVICES[name]["image"] for name in SERVICES if name != "meari"]
    for image in (*bases, *images):
        assert image in ("${BASE}", "service") or re.fullmatch(r"[a-z/]+:v?\d[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_image_is_the_service_unless_training_is_asked_for() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", DOCKERFILE, re.MULTILINE)
    assert stages == [("${BASE}", "build"), ("${BASE}", "service"), ("service", "train"), ("service", "")]
    sent = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copied = re.findall(r"^COPY (requirements/.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {f"!{path}" for paths in copied for path in paths.split()} <= set(sent)


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_has_rights_or_can_get_some(service: str) -> None:
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]


def test_meari_has_the_limits_under_which_the_image_is_tested() -> None:
    described = SERVICES["meari"]
    assert (described["read_only"], described["tmpfs"]) == (True, ["/tmp"])
    tested = options_of(LIMITS)
    assert str(described["shm_size"]) == tested["--shm-size"]
    assert str(described["pids_limit"]) == tested["--pids-limit"]
    assert {"mem_limit", "cpus"} <= described.keys()


def options_of(arguments: Sequence[str]) -> dict[str, str]:
    """Return the options with a value."""
    pairs = itertools.pairwise(arguments)
    return {name: value for name, value in pairs if name.startswith("--") and not value.startswith("--")}


def test_service_starts_alone_without_a_profile() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"meari"}
    assert all(SERVICES[name]["profiles"] == ["observe"] for name in ("prometheus", "grafana"))
    assert all(service["profiles"] == ["load"] for name, service in SERVICES.items() if name.startswith("locust"))


def test_own_bundles_lie_beside_those_of_the_image() -> None:
    mounts = [volume for volume in SERVICES["meari"]["volumes"] if volume.endswith(":ro")]
    assert mounts == ["${MEARI_OWN_BUNDLES:-./bundles}:/bundles:ro"]
    assert "\nENV MEARI_BUNDLES=/bundles:/srv/meari/bundles\n" in DOCKERFILE


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_readme_runs_the_image_on_its_second_screen_with_own_bundles_where_the_image_looks_first(name: str) -> None:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("docker run "))
    assert at < 2 * 40
    assert lines[at - 1] == "make image"
    words = lines[at].split()
    assert words[-1] == re.findall(r"^IMAGE \?= (\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[0]
    assert words[words.index("-v") + 1] == "./my-bundles:/bundles:ro"
    assert words[words.index("-p") + 1].split(":")[-1] == "8000"


def test_keys_reach_the_service_if_they_are_set() -> None:
    passed = {name: value for name, value in SERVICES["meari"]["environment"].items() if "KEY" in name}
    names = {"MEARI_ADMIN_KEYS", "MEARI_API_KEYS", "MEARI_KEYS_FILE", "MEARI_SIGNING_KEYS", "MEARI_STATE_KEY"}
    assert set(passed) == names
    limits = {name: value for name, value in SERVICES["meari"]["environment"].items() if "_MAX_" in name}
    assert limits
    for name, value in (passed | limits).items():
        assert name in {setting.variable for setting in SETTINGS.values()}
        assert value == f"${{{name}:-}}"


def test_every_service_has_a_health_check() -> None:
    assert "\nHEALTHCHECK " in DOCKERFILE  # the image of meari
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == set(SERVICES) - {"meari"}


def test_mounted_folders_exist_and_are_read_only() -> None:
    for service in SERVICES:
        for source, _, *mode in volumes(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"], source


def test_prometheus_finds_its_configuration_in_its_mount() -> None:
    [config] = [word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")]
    inside = Path(config.removeprefix("--config.file="))
    mounts = {target: source for source, target, *_ in volumes("prometheus")}
    folder = ROOT / mounts[str(inside.parent)]
    rules = yaml.safe_load((folder / inside.name).read_text("utf-8"))["rule_files"]
    assert all((folder / rule).is_file() for rule in rules)


def test_command_of_the_locust_service_starts_its_page(tmp_path: Path) -> None:
    [[source, inside, _]] = volumes("locust")
    port = free_port()
    options = [word.replace(inside, str(ROOT / source)) for word in SERVICES["locust"]["command"]]
    options = [f"--web-port={port}" if word.startswith("--web-port") else word for word in options]
    settings = {name: re.sub(r"\$\{\w+:-\}", "", value) for name, value in SERVICES["locust"]["environment"].items()}
    environment = clean_environment() | settings | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "locust", *options, "--web-host=127.0.0.1"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
            until(lambda: _status(client) == 200, PATIENCE)
            page = client.get("/").text
        assert "http://meari:8000" in page
        assert "StreamUser" in page
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _status(client: httpx.Client) -> int:
    try:
        return client.get("/").status_code
    except httpx.TransportError:
        return 0


def test_docker_compose_accepts_the_file() -> None:
    assert set(accepted("compose.yaml")) == set(SERVICES)


def test_docker_compose_accepts_the_load_beside_it() -> None:
    services = accepted("compose.yaml", "deploy/load/compose.yaml")
    assert set(services) == {*SERVICES, "load-master", "load-worker"}
    for name in ("load-master", "load-worker"):
        service = services[name]
        environment = {key: str(value) for key, value in service["environment"].items()}
        settings = read_settings(environment)
        assert (settings.role, settings.allow_remote) == (Role(name.removeprefix("load-")), True)
        assert settings.master_host == "load-master"
        assert service["image"] == SERVICES["locust"]["image"]
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])


def accepted(*files: str) -> dict[str, Any]:
    """Return the services of the files, those of all profiles, as Docker Compose understands them."""
    command = find_compose()
    if command is None:
        pytest.skip("Docker Compose was not found (`docker compose`, or Debian's docker-compose)")
    profiles = [f"--profile={profile}" for profile in ("observe", "load")]
    arguments = [*command, *(f"--file={ROOT / file}" for file in files), *profiles]
    done = subprocess.run(
        [*arguments, "config"], capture_output=True, text=True, check=False, timeout=PATIENCE, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found

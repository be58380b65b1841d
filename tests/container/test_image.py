"""Test the built image: its contents, its responses and its shutdown."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.container.client import events_of, get, is_ready, post, sent
from tests.container.conftest import wait_until
from tests.container.docker import Docker
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.test_sbom import checked

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

MAX_SIZE_BYTES = 350_000_000
STREAM_SECONDS = 8  # long enough for the signal to arrive while the stream is open
NEVER_END = {"0": -100.0}  # excludes the boundary token, to make texts exactly as long as requested


def test_image_is_small(docker: Docker, image: str) -> None:
    assert docker.inspect(image)["Size"] <= MAX_SIZE_BYTES


def test_image_runs_as_a_numeric_non_root_user(docker: Docker, container: str) -> None:
    assert docker.inspect(container)["Config"]["User"].partition(":")[0].isdecimal()
    uid = docker.run("exec", container, "python", "-c", "import os; print(os.getuid())")
    assert int(uid) > 0


@pytest.mark.parametrize("package", ["torch", "onnx", "huggingface_hub", "pip", "setuptools"])
def test_image_excludes_packages_that_serving_does_not_need(docker: Docker, container: str, package: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec('{package}'))"
    assert docker.run("exec", "--workdir", "/", container, "python", "-c", code) == "None"


def test_image_has_a_bill_of_all_its_packages(docker: Docker, container: str) -> None:
    place = docker.inspect(container)["Config"]["Labels"]["org.cyclonedx.sbom"]
    document = checked(docker.run("exec", container, "cat", place))
    code = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    installed = {
        name.lower().replace("_", "-") for name in json.loads(docker.run("exec", container, "python", "-c", code))
    }
    listed = {part["name"] for part in document["components"]}
    assert installed - listed == {"meari"}
    system = docker.run("exec", container, "dpkg-query", "--show", "--showformat", "${Package}\n").splitlines()
    assert set(system) <= listed
    assert {"shakespeare-lstm", "python"} <= listed


def test_container_reports_its_health(docker: Docker, container: str) -> None:
    def health() -> str:
        return str(docker.inspect(container)["State"]["Health"]["Status"])

    wait_until(lambda: health() == "healthy", lambda: f"{health()}: {docker.run('logs', container)}")
    assert health() == "healthy"


def test_container_generates(docker: Docker, container: str) -> None:
    body = {"prompt": "The bells ", "max_tokens": 20, "seed": 7, "logit_bias": NEVER_END}
    answer = post(docker.address(container), "/generate", body)
    assert answer["seed"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["text"]
    assert answer["usage"]["generated_tokens"] == 20


def test_container_scores(docker: Docker, container: str) -> None:
    answer = post(docker.address(container), "/score", {"texts": ["all the bells", "slleb eht lla"]})
    likely, unlikely = (result["logprob"] for result in answer["results"])
    assert unlikely < likely < 0


def test_own_bundles_are_served_beside_the_released_ones(
    docker: Docker, start: Callable[..., str], tmp_path: Path
) -> None:
    write_tiny_bundle(tmp_path / "letters")
    write_tiny_bundle(tmp_path / "shakespeare-gru")  # comes before the released one of its name
    (tmp_path / "DEFAULT").write_text("shakespeare-lstm")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055)
    name = start("--volume", f"{tmp_path}:/bundles:ro")
    found = get(docker.address(name), "/models")
    sizes = {model["name"]: model["sizes"]["parameters"] for model in found["models"]}
    assert found["default"] == "shakespeare-lstm"
    assert sizes["letters"] == sizes["shakespeare-gru"] < sizes["shakespeare-lstm"]
    assert "hidden by /bundles/shakespeare-gru" in docker.run("exec", name, "meari", "bundles", "list")


def test_container_has_the_pictures_of_the_claims(docker: Docker, container: str) -> None:
    claims = get(docker.address(container), "/web/claims.json")["claims"]
    assert len(claims) == 7


def test_container_scores_in_bulk_without_a_server(docker: Docker, container: str) -> None:
    script = "printf 'all the bells\\nslleb eht lla\\n' | meari score - --model shakespeare-lstm"
    likely, unlikely = map(json.loads, docker.run("exec", container, "sh", "-c", script).splitlines())
    assert unlikely["logprob"] < likely["logprob"] < 0


def test_verbs_without_training_run_in_the_container(docker: Docker, container: str) -> None:
    listed = json.loads(docker.run("exec", container, "meari", "models", "--json"))
    asked = json.loads(docker.run("exec", container, "meari", "models", "--server", "http://127.0.0.1:8000", "--json"))
    inspected = json.loads(docker.run("exec", container, "meari", "inspect", "shakespeare-lstm", "--json"))
    assert {model["name"] for model in listed["models"]} == {model["name"] for model in asked["models"]}
    assert inspected["name"] == "shakespeare-lstm"
    assert "complete" in docker.run("exec", container, "meari", "completion", "bash")


def test_stopped_container_finishes_its_open_stream_and_exits_with_code_0(
    docker: Docker, start: Callable[..., str]
) -> None:
    container = start("--env", "MEARI_MAX_TOKENS=100000", "--env", "MEARI_WORKERS=1")
    address = docker.address(container)
    num_tokens = tokens_of_a_long_stream(address)
    body = {"max_tokens": num_tokens, "seed": 1, "logit_bias": NEVER_END, "stream": True}
    with sent(address, "/generate", body) as response:
        events = events_of(response)
        assert next(events)["choices"][0]["text"]
        stop = subprocess.Popen([docker.program, "stop", "--time", "60", container], stdout=subprocess.DEVNULL)
        wait_until(lambda: not is_ready(address), lambda: docker.run("logs", container))
        refused = time.monotonic()
        rest = list(events)
    assert time.monotonic() - refused > 0.5, "the stream ended before the signal arrived"
    assert [event["choices"][0]["finish_reason"] for event in rest if finished(event)] == ["length"]
    assert rest[-1]["usage"]["generated_tokens"] == num_tokens
    assert stop.wait(timeout=90) == 0
    state = docker.inspect(container)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), docker.run("logs", container)


def finished(event: dict[str, list[dict[str, str]]]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices", []))


def tokens_of_a_long_stream(address: tuple[str, int]) -> int:
    """Return the number of tokens that take STREAM_SECONDS on this machine, estimated from a short stream."""
    num_tokens = 1000
    body = {"max_tokens": num_tokens, "seed": 1, "logit_bias": NEVER_END, "stream": True}
    started = time.monotonic()
    with sent(address, "/generate", body) as response:
        assert list(events_of(response))
    return min(100_000, int(num_tokens * STREAM_SECONDS / (time.monotonic() - started)))

"""Test a real Prometheus that scrapes a real service of two workers under load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.dashboard import expressions
from tests.deploy.prometheus import METRIC, MISSING, PROMETHEUS, Prometheus, alert_rules, running_prometheus
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server, events, running_server
from tests.service.test_tls import TLS_METRIC

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)

Body = dict[str, Any]
REQUESTS: list[tuple[str, Body]] = [
    ("/generate", {"prompt": "ab", "max_tokens": 20, "seed": 1}),
    ("/generate", {"prompt": "ab", "max_tokens": 20, "seed": 2, "n": 3}),
    ("/generate", {"prompt": "abc", "max_tokens": 10, "seed": 3, "stream": True}),
    ("/generate", {"prompt": "w", "max_tokens": 10, "num_beams": 3, "n": 2}),
    ("/score", {"context": "ab", "texts": ["cd", "cde"]}),
    ("/v1/completions", {"prompt": ["ab", "b"], "max_tokens": 8, "n": 2}),
    ("/v1/completions", {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}),
]
TIMES = 8


class Load:
    """Send requests to a service and count the tokens and sequences in its responses."""

    def __init__(self, server: Server) -> None:
        address, each_anew = str(server.client.base_url), {"Connection": "close"}  # the kernel chooses the worker
        with (
            httpx.Client(base_url=address, headers=each_anew, timeout=PATIENCE, trust_env=False) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            answers = list(pool.map(lambda request: self._ask(client, *request), REQUESTS * TIMES))
        self.generated = sum(generated for generated, _, _ in answers)
        self.read = sum(read for _, read, _ in answers)
        self.ended = sum(ended for _, _, ended in answers)

    def _ask(self, client: httpx.Client, path: str, body: Body) -> tuple[int, int, int]:
        """Send one request; return the numbers of generated tokens, read tokens, and choices or texts."""
        response = client.post(path, json={"model": "letters", **body})
        assert response.status_code == 200, response.text
        if body.get("stream"):
            usage = json.loads(events(response)[-2])["usage"]
            return usage["generated_tokens"], usage["prompt_tokens"], 1
        answer = response.json()
        if path == "/score":
            return 0, 2 + 2 + 3, len(answer["results"])
        usage = answer["usage"]
        written = usage.get("generated_tokens", usage.get("completion_tokens"))
        return written, usage["prompt_tokens"], len(answer["choices"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Server]:
    """Run two workers with three bundles, one of which cannot be loaded."""
    write_tiny_bundle(folder / "bundles" / "letters")
    write_tiny_bundle(folder / "bundles" / "idle")
    write_tiny_bundle(folder / "bundles" / "broken")
    (folder / "bundles" / "broken" / "cell.onnx").write_bytes(b"not a graph")
    settings: dict[str, Any] = {"bundles": folder / "bundles", "workers": 2, "runtime_folder": folder / "runtime"}
    with running_server(folder, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(folder: Path, service: Server) -> Iterator[Prometheus]:
    with running_prometheus(folder, f"127.0.0.1:{service.port}") as found:
        until(lambda: _holds(lambda: found.query('up{job="meari"}') == [1.0]), PATIENCE)
        yield found


@pytest.fixture(scope="module")
def load(service: Server, prometheus: Prometheus) -> Load:
    return Load(service)


def _holds(condition: Callable[[], bool]) -> bool:
    """Return the condition; False while Prometheus accepts no connections."""
    try:
        return condition()
    except (httpx.TransportError, json.JSONDecodeError):
        return False


def test_sums_over_all_workers_match_the_responses(prometheus: Prometheus, load: Load, folder: Path) -> None:
    def total(metric: str) -> float:
        return sum(prometheus.query(f'sum({metric}{{model_name="letters"}})'))

    until(lambda: total("vllm:request_success_total") >= load.ended, PATIENCE)
    until(lambda: total("vllm:generation_tokens_total") >= load.generated, PATIENCE)
    assert total("vllm:request_success_total") == load.ended
    assert total("vllm:generation_tokens_total") == load.generated
    assert total("vllm:prompt_tokens_total") == load.read
    until(lambda: total("vllm:num_requests_running") == total("vllm:num_requests_waiting") == 0)
    assert len(list((folder / "runtime" / "metrics").glob("histogram_*.db"))) == 2


def test_every_metric_of_dashboard_and_rules_exists(prometheus: Prometheus, load: Load) -> None:
    named = {name for text in expressions() for name in METRIC.findall(text)}
    named |= {name for rule in alert_rules() for name in METRIC.findall(rule["expr"])}
    named -= {TLS_METRIC}  # of a service with TLS
    assert len(named) > 25
    until(lambda: named <= prometheus.names(), PATIENCE)


def test_every_panel_has_data(prometheus: Prometheus, load: Load) -> None:
    def empty() -> list[str]:
        asked = [expression for expression in expressions() if TLS_METRIC not in expression]
        return [expression for expression in asked if not prometheus.query(expression)]

    until(lambda: bool(prometheus.query("rate(meari_requests_total[1m]) > 0")), PATIENCE)
    until(lambda: not empty(), PATIENCE)


def test_every_rule_loads_and_is_evaluated(prometheus: Prometheus) -> None:
    def rules() -> list[Body]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), PATIENCE)
    assert [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules()] == [
        (rule["alert"], "ok", None) for rule in alert_rules()
    ]


def test_alerts_fire_for_a_broken_bundle_and_a_stopped_service(
    prometheus: Prometheus, service: Server, load: Load
) -> None:
    until(lambda: prometheus.alerts().get("MeariBundleFailed") == "firing", PATIENCE)
    until(lambda: "MeariDown" not in prometheus.alerts(), PATIENCE)
    service.terminate()
    service.wait(PATIENCE)
    until(lambda: prometheus.alerts().get("MeariDown") == "firing", PATIENCE)

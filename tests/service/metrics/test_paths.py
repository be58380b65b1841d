"""Test that every kind of request is counted correctly, with one worker and /metrics before and after a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.service.metrics.exposition import Exposition


class Difference:
    """Change of a model's metrics by one request."""

    def __init__(self, client: FlaskClient, model: str = "letters") -> None:
        self._client = client
        self._model = model
        self._before = self._look()

    def _look(self) -> Exposition:
        return Exposition(self._client.get("/metrics").text)

    def read(self) -> Callable[..., float]:
        """Return a function from a vLLM metric to its increase."""
        after = self._look()

        def change(name: str, **labels: str) -> float:
            labels = {"model_name": self._model, **labels}
            return after.value(f"vllm:{name}", **labels) - self._before.value(f"vllm:{name}", **labels)

        return change


def ask(client: FlaskClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json={"model": "letters", **body})
    assert response.status_code == status, response.text
    return response if body.get("stream") else response.json


def finished(change: Callable[..., float]) -> dict[str, float]:
    reasons = ("stop", "length", "timeout", "scored", "abort", "error")
    counts = {reason: change("request_success_total", finished_reason=reason) for reason in reasons}
    return {reason: count for reason, count in counts.items() if count}


@pytest.fixture
def difference(client: FlaskClient) -> Difference:
    return Difference(client)


def test_whole_generation_is_counted(client: FlaskClient, difference: Difference) -> None:
    answer = ask(client, "/generate", prompt="ab", temperature=0, max_tokens=5)
    change = difference.read()
    assert change("generation_tokens_total") == answer["usage"]["generated_tokens"] == 5
    assert change("prompt_tokens_total") == answer["usage"]["prompt_tokens"] == 2
    assert finished(change) == {"length": 1}
    for name in (
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "time_to_first_token_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert change(f"{name}_count") == 1, name
    assert change("inter_token_latency_seconds_count") == 4
    parts = change("request_prefill_time_seconds_sum") + change("request_decode_time_seconds_sum")
    assert parts == pytest.approx(change("request_inference_time_seconds_sum"))
    assert change("time_to_first_token_seconds_sum") <= change("e2e_request_latency_seconds_sum")


def test_stream_and_its_end_token_are_counted(client: FlaskClient, difference: Difference) -> None:
    response = ask(client, "/generate", prompt="w", temperature=0, stream=True)
    assert '"finish_reason":"end"' in response.text
    response.close()
    change = difference.read()
    assert change("generation_tokens_total") == 4
    assert change("inter_token_latency_seconds_count") == 3
    assert finished(change) == {"stop": 1}


def test_shared_prompt_of_several_choices_is_counted_once(client: FlaskClient, difference: Difference) -> None:
    answer = ask(client, "/generate", prompt="ab", n=3, max_tokens=6, seed=1, logit_bias={"0": -100})
    change = difference.read()
    assert change("generation_tokens_total") == answer["usage"]["generated_tokens"] == 18
    assert change("prompt_tokens_total") == 2
    assert change("inter_token_latency_seconds_count") == 15
    assert change("request_generation_tokens_count") == 3
    assert change("e2e_request_latency_seconds_count") == 1
    assert finished(change) == {"length": 3}


def test_beam_search_counts_its_results(client: FlaskClient, difference: Difference) -> None:
    answer = ask(client, "/generate", prompt="ab", num_beams=4, n=2, max_tokens=6)
    change = difference.read()
    assert change("generation_tokens_total") == answer["usage"]["generated_tokens"] > 2
    assert change("inter_token_latency_seconds_count") == 0
    assert sum(finished(change).values()) == 2


def test_stop_string_and_timeout_are_counted(client: FlaskClient, difference: Difference) -> None:
    ask(client, "/generate", prompt="a", temperature=0, stop="d")
    ask(client, "/generate", max_tokens=500, logit_bias={"0": -100}, timeout_seconds=0.000_001)
    assert finished(difference.read()) == {"stop": 1, "timeout": 1}


def test_scores_are_counted(client: FlaskClient, difference: Difference) -> None:
    ask(client, "/score", context="ab", texts=["cd", "cde"])
    change = difference.read()
    assert change("prompt_tokens_total") == 2 + 2 + 3
    assert change("generation_tokens_total") == 0
    assert change("e2e_request_latency_seconds_count") == change("request_queue_time_seconds_count") == 1
    assert change("time_to_first_token_seconds_count") == 0
    assert finished(change) == {"scored": 2}


def test_completed_words_are_counted_by_route(client: FlaskClient, difference: Difference) -> None:
    route = {"route": "/complete", "status": "200"}
    ask(client, "/complete", text="v")
    before = Exposition(client.get("/metrics").text)
    answer = ask(client, "/complete", text="wx", n=1)
    change, after = difference.read(), Exposition(client.get("/metrics").text)
    assert change("prompt_tokens_total") == 1 + answer["usage"]["prompt_tokens"] == 3
    assert change("e2e_request_latency_seconds_count") == 2
    assert after.value("meari_requests_total", **route) == before.value("meari_requests_total", **route) + 1


def test_states_request_counts_one_text(client: FlaskClient, difference: Difference) -> None:
    ask(client, "/states", text="abc")
    change = difference.read()
    assert change("prompt_tokens_total") == 3
    assert finished(change) == {"scored": 1}


def test_completions_of_several_prompts_are_counted(client: FlaskClient, difference: Difference) -> None:
    answer = ask(client, "/v1/completions", prompt=["ab", "abc"], n=2, max_tokens=4, logit_bias={"0": -100})
    change = difference.read()
    assert change("generation_tokens_total") == answer["usage"]["completion_tokens"] == 16
    assert change("prompt_tokens_total") == answer["usage"]["prompt_tokens"] == 5
    assert change("e2e_request_latency_seconds_count") == 2
    assert finished(change) == {"length": 4}


@pytest.mark.parametrize(("max_tokens", "reason"), [(0, "scored"), (3, "length")])
def test_echoed_prompt_is_counted_once(
    client: FlaskClient, difference: Difference, max_tokens: int, reason: str
) -> None:
    body: dict[str, Any] = {
        "prompt": "abc",
        "echo": True,
        "logprobs": 1,
        "max_tokens": max_tokens,
        "logit_bias": {"0": -100},
    }
    answer = ask(client, "/v1/completions", **body)
    change = difference.read()
    assert change("prompt_tokens_total") == answer["usage"]["prompt_tokens"] == 3
    assert change("generation_tokens_total") == answer["usage"]["completion_tokens"] == max_tokens
    assert finished(change) == {reason: 1}


def test_refused_request_is_not_counted_for_a_model(client: FlaskClient, difference: Difference) -> None:
    ask(client, "/generate", 400, max_tokens=0)
    ask(client, "/generate", 404, model="none")
    change = difference.read()
    assert change("e2e_request_latency_seconds_count") == 0
    assert finished(change) == {}


def test_prefix_cache_is_counted_in_tokens(client: FlaskClient) -> None:
    prompt = f"thepromptofthistest{time.monotonic_ns()}"
    cold = Difference(client, "bytes")
    first = ask(client, "/generate", model="bytes", prompt=prompt, max_tokens=1)["usage"]
    change = cold.read()
    assert change("prefix_cache_queries_total") == first["prompt_tokens"]
    assert change("prefix_cache_hits_total") == first["cached_tokens"]
    warm = Difference(client, "bytes")
    second = ask(client, "/generate", model="bytes", prompt=prompt, max_tokens=1)["usage"]
    change = warm.read()
    assert change("prefix_cache_queries_total") == second["prompt_tokens"]
    assert change("prefix_cache_hits_total") == second["cached_tokens"] > 0


def test_every_metric_of_a_model_exists_before_its_first_request(client: FlaskClient) -> None:
    look = Exposition(client.get("/metrics").text)
    assert look.value("vllm:request_success_total", model_name="words", finished_reason="error") == 0
    assert look.value("vllm:num_requests_running", model_name="words") == 0
    assert look.value("meari_slots", model="words") == 64
    assert look.value("meari_ready_workers") == look.value("meari_workers") == 1
    assert look.value("meari_failed_bundles") == 1
    assert look.value("meari_resident_memory_bytes") > 10_000_000
    assert look.value("meari_cpu_seconds_total") > 0

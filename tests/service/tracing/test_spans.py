"""Test the spans of a real service with a real OTLP receiver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.service.running import Server, running_server
from tests.service.test_server import ENDLESS, raw_post
from tests.service.tracing.collector import Collector, running_collector

PROMPT = "abcdefgh"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER_KIND, ERROR_STATUS = 2, 2


def ask(server: Server, path: str, request_id: str, body: Any, **headers: str) -> int:
    headers["X-Request-Id"] = request_id
    return server.client.post(path, json=body, headers=headers).status_code


@pytest.fixture(scope="module")
def traced(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Collector, list[dict[str, Any]]]]:
    """Send requests to two workers; return the spans, which are exported at shutdown, and the log lines."""
    with running_collector() as collector, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        folder = tmp_path_factory.mktemp("traced")
        settings: dict[str, Any] = {"bundles": letters, "default_model": "letters", "max_tokens": 1_000_000}
        with running_server(folder, workers=2, **settings) as server:
            whole = {"prompt": PROMPT, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "max_tokens": 4, "n": 2}
            assert ask(server, "/generate", "whole", whole, traceparent=f"00-{TRACE}-{PARENT}-01") == 200
            assert ask(server, "/generate", "unsampled", {}, traceparent=f"00-{TRACE}-{PARENT}-00") == 200
            assert ask(server, "/generate", "stream", {**ENDLESS, "stream": True, "max_tokens": 100}) == 200
            assert ask(server, "/v1/completions", "openai", {"prompt": ["ab", "c"], "max_tokens": 2}) == 200
            assert ask(server, "/score", "score", {"texts": [PROMPT, PROMPT], "context": "z"}) == 200
            assert ask(server, "/generate", "invalid", {"prompt": PROMPT, "top_p": PROMPT}) == 400
            assert ask(server, "/nowhere", "nowhere", {}) == 404
            with server.connect() as connection:
                body = json.dumps({**ENDLESS, "max_tokens": 1_000_000, "stream": True}).encode()
                connection.sendall(raw_post(body, b"X-Request-Id: gone"))
                assert connection.recv(20)
            until(lambda: '"request_id":"gone"' in server.log)
            server.client.get("/healthz")
            server.terminate()
            assert server.wait() == 0
            assert collector.bodies, "spans are sent before the end"
            yield collector, [json.loads(line) for line in server.log.splitlines()]


def test_span_of_a_generation_follows_the_naming_conventions(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    span, attributes = traced[0].span_of("whole")
    assert (span.name, span.kind, span.status.code) == ("POST /generate", SERVER_KIND, 0)
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.request.model"] == attributes["gen_ai.response.model"] == "letters"
    asked = {
        name: attributes[f"gen_ai.request.{name}"] for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")
    }
    assert asked == {"max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7}
    assert attributes["gen_ai.request.choice.count"] == 2
    assert attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert attributes["gen_ai.usage.output_tokens"] == 8
    assert attributes["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert attributes["gen_ai.response.id"] == "whole"
    assert (attributes["http.route"], attributes["http.response.status_code"]) == ("/generate", 200)
    assert attributes["http.request.method"] == "POST"
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert attributes["gen_ai.latency.e2e"] == pytest.approx(seconds, abs=1e-6)
    assert attributes["gen_ai.latency.time_in_queue"] <= attributes["gen_ai.latency.time_to_first_token"] <= seconds


def test_trace_of_the_caller_is_continued_and_logged(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    collector, lines = traced
    span, _ = collector.span_of("whole")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    by_id = {line["request_id"]: line for line in lines if "request_id" in line}
    assert (by_id["whole"]["trace_id"], by_id["whole"]["span_id"]) == (TRACE, span.span_id.hex())
    own, _ = collector.span_of("score")
    assert not own.parent_span_id
    assert by_id["score"]["trace_id"] == own.trace_id.hex() != TRACE


def test_unsampled_trace_of_the_caller_is_not_exported(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    collector, lines = traced
    ids = [name for span in collector.spans for name in [span.trace_id.hex()]]
    assert ids.count(TRACE) == 1
    assert [line["trace_id"] for line in lines if line.get("request_id") == "unsampled"] == [TRACE]


def test_spans_of_complete_and_aborted_streams_cover_their_duration(
    traced: tuple[Collector, list[dict[str, Any]]],
) -> None:
    span, attributes = traced[0].span_of("stream")
    assert attributes["gen_ai.request.stream"] is True
    assert attributes["gen_ai.usage.output_tokens"] == 100
    assert attributes["gen_ai.response.time_to_first_chunk"] > 0
    _, gone = traced[0].span_of("gone")
    assert (gone["error.type"], gone["gen_ai.response.finish_reasons"]) == ("client_gone", ["cancelled"])
    assert span.end_time_unix_nano > span.start_time_unix_nano


def test_openai_route_and_scores_have_spans(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    _, openai = traced[0].span_of("openai")
    assert (openai["gen_ai.response.id"], openai["gen_ai.operation.name"]) == ("cmpl-openai", "text_completion")
    assert (openai["gen_ai.usage.input_tokens"], openai["gen_ai.request.max_tokens"]) == (3, 2)
    _, score = traced[0].span_of("score")
    assert (score["gen_ai.operation.name"], score["gen_ai.usage.input_tokens"]) == ("score", 17)
    assert score["meari.usage.scored_tokens"] == 18


def test_invalid_request_is_not_a_span_error(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    span, attributes = traced[0].span_of("invalid")
    assert (span.status.code, attributes["meari.error.code"]) == (0, "invalid_request")
    assert "error.type" not in attributes
    nowhere, attributes = traced[0].span_of("nowhere")
    assert nowhere.name == "POST"
    assert "http.route" not in attributes


def test_probes_have_no_spans_and_spans_have_no_text(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    collector, _ = traced
    names = {span.name for span in collector.spans}
    assert names == {"POST /generate", "POST /v1/completions", "POST /score", "POST"}
    assert PROMPT.encode() not in b"".join(collector.bodies)


def test_exported_resource_names_the_service(traced: tuple[Collector, list[dict[str, Any]]]) -> None:
    for resource in traced[0].resources:
        assert resource["service.name"] == "meari"
        assert resource["service.version"]
        assert resource["deployment.environment.name"] == "tests"

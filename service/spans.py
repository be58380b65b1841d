"""A finished request → an OpenTelemetry span with the `gen_ai` attributes, sent over OTLP.

Input: a `RequestLine`, the parsed request and the request's headers. Output: a span, and its ids in the line.

Sampling, batches, limits, endpoint, headers and resource come from the standard OTEL_… variables, which the SDK reads
itself. A span continues the trace that came with the request (`traceparent`, or as OTEL_PROPAGATORS says). It is made
when the request ends, with its true times, so that a request costs nothing before. No text is ever an attribute:
neither prompts nor stop strings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Final

from msgspec import UNSET
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, format_span_id, format_trace_id

from meari.service.log import RequestLine, RequestOutcome

__all__ = ["OtlpTracing", "attributes_of"]

Value = str | int | float | tuple[str, ...]
OPERATIONS: Final = {"/generate": "text_completion", "/v1/completions": "text_completion"}  # others are our own
ASKED: Final = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}


class WsgiHeaders(Getter[Mapping[str, object]]):
    """Reads headers by their HTTP names."""

    def get(self, carrier: Mapping[str, object], key: str) -> list[str] | None:
        """Return the header's value, None where it was not sent."""
        value = carrier.get("HTTP_" + key.upper().replace("-", "_"))
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, object]) -> list[str]:
        """Return the names of the headers that were sent."""
        return [key[5:].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_HEADERS: Final = WsgiHeaders()


class OtlpTracing:
    """Records and sends spans; made after the fork, because a thread sends the batches."""

    def __init__(self) -> None:
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("meari", _version())

    def record(self, line: RequestLine, asked: object, headers: Mapping[str, object]) -> None:
        """See `Tracing`."""
        ended = time.time_ns()
        started = ended - int(line.total_seconds * 1e9)
        span = self._tracer.start_span(
            f"{line.method} {line.route}" if line.has_route else line.method,
            context=extract(headers, getter=_HEADERS),
            kind=SpanKind.SERVER,
            attributes=attributes_of(line, asked),
            start_time=started,
        )
        if line.outcome is RequestOutcome.FAILED:
            span.set_status(Status(StatusCode.ERROR, line.error_message or None))
        span.end(ended)
        context = span.get_span_context()
        line.trace_id, line.span_id = format_trace_id(context.trace_id), format_span_id(context.span_id)

    def stop(self) -> None:
        """See `Tracing`."""
        self._provider.shutdown()


def attributes_of(line: RequestLine, asked: object) -> dict[str, Value]:
    """Return the attributes of a request's span, named by the HTTP and `gen_ai` conventions."""
    attributes: dict[str, Value] = {
        "http.request.method": line.method,
        "url.path": line.quoted_path,
        "url.scheme": "http",
        "http.response.status_code": line.status,
        "http.response.header.x-request-id": (line.request_id,),
    }
    if line.has_route:
        attributes["http.route"] = line.route
    if line.error is not None:
        attributes["meari.error.code"] = line.error.code
    if line.outcome is RequestOutcome.FAILED:
        attributes["error.type"] = "internal" if line.error is None else line.error.code
    elif line.outcome is RequestOutcome.ABORTED:
        attributes["error.type"] = "client_gone"
    return attributes | (_gen_ai(line, asked) if line.model else {})


def _gen_ai(line: RequestLine, asked: object) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": OPERATIONS.get(line.route, line.route.strip("/")),
        "gen_ai.provider.name": "meari",
        "gen_ai.request.model": line.model,
        "gen_ai.response.model": line.model,
        "gen_ai.response.id": f"cmpl-{line.request_id}" if line.route.startswith("/v1/") else line.request_id,
        "gen_ai.latency.e2e": line.total_seconds,
    }
    for field, name in ASKED.items():
        value = getattr(asked, field, None)
        if value is not None and value is not UNSET:
            attributes[name] = value
    if line.stream:
        attributes["gen_ai.request.stream"] = True
    work = line.work
    if work is not None:
        attributes["gen_ai.usage.input_tokens"] = work.prompt_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = work.cached_tokens
        attributes["gen_ai.usage.output_tokens"] = work.generated_tokens
        attributes["meari.usage.scored_tokens"] = work.scored_tokens
        if work.finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = work.finish_reasons
    if line.queue_seconds is not None:
        attributes["gen_ai.latency.time_in_queue"] = line.queue_seconds
    if line.first_token_seconds is not None:
        attributes["gen_ai.latency.time_to_first_token"] = line.first_token_seconds
        if line.stream:
            attributes["gen_ai.response.time_to_first_chunk"] = line.first_token_seconds
    return attributes


def _resource() -> Resource:
    """Return our resource, overridden by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES."""
    own = Resource({"service.name": "meari", "service.version": _version(), "process.pid": os.getpid()})
    return Resource.create().merge(own).merge(OTELResourceDetector().detect())


def _version() -> str:
    try:
        return metadata.version("meari")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from its folder, not installed

"""OpenTelemetry traces, where the standard OTEL_… variables ask for them.

Input: the environment. Output: a recorder of one span per request, or None; a warning tells why requested traces cannot
be sent. Must not know: Flask.

The packages are an extra (`meari[otel]`), imported only where traces are requested: a variable set for a whole
cluster must not keep a service from starting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Protocol

from meari.service.log import RequestLine

__all__ = ["Tracing", "start_tracing"]

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
log = logging.getLogger("meari.service.tracing.start")  # as operators know it


class Tracing(Protocol):
    """Records spans; safe from any thread."""

    def record(self, line: RequestLine, asked: object, headers: Mapping[str, object]) -> None:
        """Record the span of a finished request, and put its ids into the line.

        asked: the parsed request, None where there is none; headers: in WSGI's names.
        """
        ...

    def stop(self) -> None:
        """Send the recorded spans, and end."""
        ...


def start_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Start tracing where it is requested. Called in a worker, after the fork: the exporter has a thread of its own."""
    if not is_wanted(environment):
        return None
    problem = problem_of(environment)
    if problem is None:
        try:
            from meari.service.spans import OtlpTracing

            return OtlpTracing()
        except ImportError as error:
            problem = f"{error.name} is not installed: pip install 'meari[otel]'"
    log.warning("no traces are sent: %s", problem)
    return None


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether an exporter or an endpoint is named, and nothing switches the SDK off."""
    exporter = _value(environment, "OTEL_TRACES_EXPORTER").lower()
    if _value(environment, "OTEL_SDK_DISABLED").lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(_value(environment, name) for name in ENDPOINTS)


def problem_of(environment: Mapping[str, str]) -> str | None:
    """Return why the requested exporter or protocol is not supported: only OTLP over HTTP in protobuf is."""
    exporter = _value(environment, "OTEL_TRACES_EXPORTER").lower()
    if exporter not in ("", "otlp"):
        return f"OTEL_TRACES_EXPORTER: got {exporter!r}, expected otlp or none"
    for name in PROTOCOLS:
        protocol = _value(environment, name)
        if protocol:
            return None if protocol == "http/protobuf" else f"{name}: got {protocol!r}, expected http/protobuf"
    return None


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip()

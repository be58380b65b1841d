"""OpenTelemetry traces: a span a request, where the standard OTEL_… variables ask for it. Else nothing is imported."""

from meari.service.tracing.start import Tracing, start_tracing

__all__ = ["Tracing", "start_tracing"]

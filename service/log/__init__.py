"""The service's log: events and one line a request, as JSON or for a person. Knows nothing of Flask or gunicorn."""

from meari.service.log.configure import configure_logging, flush_log, line_format
from meari.service.log.request_line import NO_ROUTE, Outcome, RequestLine, log_request

__all__ = ["NO_ROUTE", "Outcome", "RequestLine", "configure_logging", "flush_log", "line_format", "log_request"]

"""What the log says of one request, and how bad that is.

Enters: what was noted while the request was handled. Leaves: names and values, in the order in which they are written.
Prompts and answers are there only where the caller put them; nothing else here quotes a request but its method, its
path and the model's name.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from meari.errors import MeariError
from meari.runtime.answers import Work

__all__ = ["NO_ROUTE", "Outcome", "RequestLine", "log_request"]

MAX_PATH_CHARS: Final = 200
NO_ROUTE: Final = "none"
NOT_OURS: Final = (501, 505)  # HTTP that the service does not have was asked for
_access: Final = logging.getLogger("meari.service.access")


class Outcome(enum.StrEnum):
    """How a request ended."""

    OK = "ok"
    INVALID = "invalid"  # the caller's mistake
    REFUSED = "refused"  # for want of room, or while starting or ending
    FAILED = "failed"  # the service's own
    ABORTED = "aborted"  # the client went away first


@dataclass(slots=True)
class RequestLine:
    """Filled in while the request is handled; seconds count from its head."""

    request_id: str
    method: str
    path: str
    route: str
    status: int = 0
    model: str = ""
    stream: bool = False
    aborted: bool = False
    error: MeariError | None = None
    error_field: str = ""  # the first that is wrong, where it is one of the contract's
    error_message: str = ""  # where it quotes nothing, or texts are shown
    work: Work | None = None
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    trace_id: str = ""
    span_id: str = ""
    prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def has_route(self) -> bool:
        """False where the path is none of the service's."""
        return self.route != NO_ROUTE

    @property
    def outcome(self) -> Outcome:
        """From what was noted; a stream that fails has a status of 200."""
        if self.aborted:
            return Outcome.ABORTED
        status = self.status if self.error is None else self.error.status
        if status in (429, 503):
            return Outcome.REFUSED
        if status >= 400:
            return Outcome.FAILED if status >= 500 and status not in NOT_OURS else Outcome.INVALID
        return Outcome.OK

    def fields(self) -> dict[str, object]:
        """What applies to this request, named and with units."""
        fields: dict[str, object] = {"request_id": self.request_id}
        if self.trace_id:
            fields |= {"trace_id": self.trace_id, "span_id": self.span_id}
        fields |= {
            "method": self.method,
            "path": self.quoted_path,
            "route": self.route,
            "status": self.status,
            "outcome": self.outcome.value,
        }
        if self.model:
            fields |= {"model": self.model, "stream": self.stream}
        if self.work is not None:
            fields |= _work_fields(self.work)
        if self.queue_seconds is not None:
            fields["queue_ms"] = _milliseconds(self.queue_seconds)
        if self.first_token_seconds is not None:
            fields["first_token_ms"] = _milliseconds(self.first_token_seconds)
        fields["total_ms"] = _milliseconds(self.total_seconds)
        if self.error is not None:
            fields["error"] = self.error.code
        if self.error_field:
            fields["error_field"] = self.error_field
        if self.error_message:
            fields["error_message"] = self.error_message
        if self.prompts or self.answers:
            fields |= {"prompts": self.prompts, "answers": self.answers}
        return fields

    @property
    def quoted_path(self) -> str:
        """One word of ASCII, whatever came."""
        return quote(self.path[:MAX_PATH_CHARS], safe="/%")


def log_request(line: RequestLine) -> None:
    """Write the line: an error where the service failed, a warning where a time limit did, else information."""
    level = logging.INFO
    if line.outcome is Outcome.FAILED:
        level = logging.WARNING if line.error is not None and line.error.status == 504 else logging.ERROR
    if _access.isEnabledFor(level):
        _access.log(level, "%s %s %d", line.method, line.quoted_path, line.status, extra={"request": line})


def _work_fields(work: Work) -> dict[str, object]:
    fields: dict[str, object] = {
        "prompt_tokens": work.prompt_tokens,
        "cached_tokens": work.cached_tokens,
        "generated_tokens": work.generated_tokens,
        "scored_tokens": work.scored_tokens,
    }
    if work.finish_reasons:
        fields["finish_reasons"] = work.finish_reasons
    return fields


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

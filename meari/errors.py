"""Every error that a caller can meet, with the status and the code of the HTTP contract.

    MeariError
    ├── InvalidRequest        400  invalid_request
    │   ├── BundleRefused     409  invalid_request
    │   ├── HeadTimeout       408  invalid_request
    │   ├── ExpectationFailed 417  invalid_request
    │   └── WrongHost         421  invalid_request
    ├── Unauthorized          401  unauthorized
    ├── Forbidden             403  forbidden
    ├── NotFound              404  not_found
    │   └── UnknownModel      404  unknown_model
    ├── MethodNotAllowed      405  method_not_allowed
    ├── TooLarge              413  too_large
    │   ├── TargetTooLong     414  too_large
    │   └── HeadersTooLarge   431  too_large
    ├── UnsupportedMediaType  415  unsupported_media_type
    ├── Overloaded            429  overloaded      (with Retry-After)
    ├── RateLimited           429  rate_limit_exceeded (with Retry-After)
    ├── EngineFailed          500  internal
    ├── NotImplementedHere    501  not_implemented (a part of HTTP; the caller's mistake)
    │   └── VersionNotSupported 505 not_implemented
    ├── NotReady              503  not_ready       (with Retry-After)
    ├── ScoreTimeout          504  timeout
    └── BundleError           500  internal        (a bundle that cannot be served; raised at load, never by a request)

Input: problems as data (field, what came, what was expected) or a plain message. Output: an exception whose text is the
message a caller may see. Must not know: HTTP libraries.

What came may be a text that must not appear in a log: `quotes_request` tells which errors repeat it, and `MAY_QUOTE`
marks log records of unexpected exceptions.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

__all__ = [
    "MAY_QUOTE",
    "Bound",
    "BundleError",
    "BundleRefused",
    "EngineFailed",
    "ExpectationFailed",
    "Forbidden",
    "HeadTimeout",
    "HeadersTooLarge",
    "InvalidRequest",
    "MeariError",
    "MethodNotAllowed",
    "NotFound",
    "NotImplementedHere",
    "NotReady",
    "Overloaded",
    "Problem",
    "RateLimited",
    "ScoreTimeout",
    "TargetTooLong",
    "TooLarge",
    "Unauthorized",
    "UnknownModel",
    "UnsupportedMediaType",
    "VersionNotSupported",
    "WrongHost",
    "did_you_mean",
    "rebuild_error",
]


MAY_QUOTE: Final = {"may_quote": True}  # `extra` of a log record whose exception may quote a request


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that is not as it should be: `field: got G, expected E: reason`.

    field     path of a field (`texts[3]`, `stream_options.include_usage`), or another part of the request (`body`)
    got       the value that came, in words or as it came; None for a field that is missing
    expected  the values that are allowed; "" where the reason says everything
    reason    further words, "" for none
    """

    field: str
    got: str | None = None
    expected: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """The outermost field of the path."""
        return self.field.partition(".")[0].partition("[")[0]

    def __str__(self) -> str:
        if not self.expected:
            return f"{self.field}: {self.reason}"
        came = "missing" if self.got is None else f"got {self.got}"
        return f"{self.field}: {came}, expected {self.expected}" + (f": {self.reason}" if self.reason else "")


class MeariError(Exception):
    """Root of all errors.

    `str(error)` is the message a caller may see; `quotes_request` is true where it may repeat what the caller sent.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    quotes_request: ClassVar[bool] = True
    retry_after_seconds: int | None = None

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problem for problem in problems if isinstance(problem, Problem))


class InvalidRequest(MeariError):
    """The request says something that the contract does not allow."""

    status = 400
    code = "invalid_request"


class BundleRefused(InvalidRequest):
    """An admin asks for a bundle that cannot be served."""

    status = 409


class HeadTimeout(InvalidRequest):
    """A client began a request and fell silent."""

    status = 408
    quotes_request = False


class ExpectationFailed(InvalidRequest):
    """An `Expect` that is not `100-continue`."""

    status = 417


class WrongHost(InvalidRequest):
    """A public name in `Host` that is not one of the service's own."""

    status = 421
    quotes_request = False


class Unauthorized(MeariError):
    """No key came, or one that is not among the service's keys."""

    status = 401
    code = "unauthorized"
    quotes_request = False


class Forbidden(MeariError):
    """The key is known, but it may not do this."""

    status = 403
    code = "forbidden"
    quotes_request = False


class NotFound(MeariError):
    """No such path."""

    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    """No bundle of that name is being served."""

    code = "unknown_model"


class MethodNotAllowed(MeariError):
    """The path exists, not with this method."""

    status = 405
    code = "method_not_allowed"


class TooLarge(MeariError):
    """A body, a text or a list past the server's limit."""

    status = 413
    code = "too_large"
    quotes_request = False


class TargetTooLong(TooLarge):
    """The first line of a request."""

    status = 414


class HeadersTooLarge(TooLarge):
    """The head of a request, or the end of a chunked body."""

    status = 431


class UnsupportedMediaType(MeariError):
    """The body is not JSON in UTF-8, or is compressed."""

    status = 415
    code = "unsupported_media_type"


class Bound(enum.StrEnum):
    """The bound at which a request was refused: a label of `meari_refusals_total`."""

    OVERLOAD = "overload"  # more and more requests are inside
    REQUESTS = "requests"  # MEARI_MAX_REQUESTS
    QUEUE = "queue"  # MEARI_MAX_WAITING
    BYTES = "bytes"  # MEARI_MAX_INFLIGHT_BYTES
    CONNECTIONS = "connections"  # MEARI_MAX_CONNECTIONS_PER_ADDRESS


class Overloaded(MeariError):
    """A bound is reached: the request was refused before any work was done for it."""

    status = 429
    code = "overloaded"
    quotes_request = False
    retry_after_seconds = 1

    def __init__(self, message: str, bound: Bound = Bound.REQUESTS) -> None:
        super().__init__(message)
        self.bound = bound


class RateLimited(MeariError):
    """A limit of the caller's key or address is reached; others are served.

    limit  which one: tokens, requests or wrong_keys
    """

    status = 429
    code = "rate_limit_exceeded"
    quotes_request = False

    retry_after_seconds = 1

    def __init__(self, message: str, limit: str = "tokens", retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class EngineFailed(MeariError):
    """The engine's loop met an error of its own; the details are in the log."""

    status = 500
    code = "internal"
    quotes_request = False


class NotImplementedHere(MeariError):
    """A part of HTTP that the service does not have: a transfer coding other than chunked."""

    status = 501
    code = "not_implemented"


class VersionNotSupported(NotImplementedHere):
    """HTTP of another version than 1."""

    status = 505


class NotReady(MeariError):
    """The bundles are still being loaded, or the process is about to end."""

    status = 503
    code = "not_ready"
    quotes_request = False
    retry_after_seconds = 1


class ScoreTimeout(MeariError):
    """Scores or completions were not finished within the server's limit."""

    status = 504
    code = "timeout"
    quotes_request = False


class BundleError(MeariError):
    """A bundle's folder is incomplete, changed, of an unknown format, or computes other figures than it should."""


def rebuild_error(kind: type[Exception], args: tuple[object, ...], fields: dict[str, object]) -> Exception:
    """Return an error as it was before it was pickled, without its constructor, which may take other arguments.

    A process pool waits for ever for an error that cannot be unpickled.
    """
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or an empty text where none is near; case does not count."""
    spelled = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name[:100].lower(), spelled, n=1)
    return f" (did you mean {spelled[near[0]]}?)" if near else ""

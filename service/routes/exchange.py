"""One request on its way through Flask.

Input: Flask's request. Output: its id, ticket and body; at its end metrics, a span and a line of the log. Must not
know: what a route does with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

import msgspec
from flask import Request as HttpRequest
from flask import Response, g
from gunicorn.http.errors import ParseException
from gunicorn.util import split_request_uri
from msgspec import UNSET, UnsetType

from meari.errors import (
    InvalidRequest,
    MeariError,
    NotImplementedHere,
    NotReady,
    Overloaded,
    Problem,
    RateLimited,
    TooLarge,
    UnsupportedMediaType,
)
from meari.runtime.answers import Work
from meari.runtime.engine import Waitable
from meari.runtime.model import LoadedModel
from meari.runtime.requests import check_num_chars
from meari.service.clients import BODY_SECONDS, Client, ClientGone, Watch
from meari.service.error_body import SAFE_HEADERS, wrong_field
from meari.service.log import NO_ROUTE, RequestLine, log_request, request_id
from meari.service.requests.admission import Ticket
from meari.service.requests.keys import ANYBODY, Caller
from meari.service.requests.limits import Limits, Quota
from meari.service.requests.origins import CAME_AT, HEAD_BYTES, client_network, cors_headers
from meari.service.service import Service

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "CLIENT_GONE",
    "OPEN_BLUEPRINTS",
    "Exchange",
    "asked_path",
    "current_exchange",
    "json_response",
    "reading_body",
]

STEP_SECONDS: Final = 0.5  # longer than a step, so a cancelled request ends within it
OPEN_BLUEPRINTS: Final = (
    "docs",
    "health",
    "metrics",
    "web",
)  # answered without a key unless protected, and left out of traces
CLIENT_GONE: Final = 499  # for the log alone
MESSAGE_CHARS: Final = 500  # of an error, in the log
PIECE_BYTES: Final = 64 * 1024
HEAD_COPIES: Final = 2  # of a head: as it came, and its fields
SMALL_HEAD: Final = 4096  # bytes of one that is not accounted for
SENT_AT_ONCE: Final = 16 * 1024  # bytes of an answer that every connection has room for


class ModelRequest(Protocol):
    """A request that is for a model; without a name for the default."""

    @property
    def model(self) -> str | UnsetType | None: ...


Request = TypeVar("Request", bound=ModelRequest)
Parsed_co = TypeVar("Parsed_co", bound=ModelRequest, covariant=True)


class Parse(Protocol[Parsed_co]):
    """A parser of bodies, which accounts for many values before it makes them."""

    def __call__(self, body: bytes, hold: Callable[[int], None], /) -> Parsed_co: ...


class Exchange:
    """A request from its head until its answer was sent; closed exactly once."""

    def __init__(self, service: Service, asked: HttpRequest) -> None:
        """asked: not Flask's proxy, each use of which takes as long as a look-up of the route."""
        self._service = service
        self._request = asked
        self.caller: Caller = ANYBODY
        self._started: float = asked.environ.get(CAME_AT) or time.monotonic()  # the engines' clock
        self._ticket: Ticket | None = None
        self._quota: Quota | None = None
        self._model: LoadedModel | None = None
        self._handle: Waitable | None = None
        self._client: Client | None = None
        self._work: Callable[[], Work] | None = None
        self._asked: object = None
        self._closed = False
        self.request_id = request_id(asked.environ.get("HTTP_X_REQUEST_ID"))
        self.route = asked.url_rule.rule if asked.url_rule else NO_ROUTE
        self._environ = asked.environ  # a stream ends after Flask has dropped its request
        tracing = service.tracing
        self._tracing = None if tracing is None or asked.blueprint in OPEN_BLUEPRINTS else tracing
        self.line = RequestLine(self.request_id, asked.method, asked_path(asked), self.route)
        self.line.client_address = self.client_address

    @property
    def client_address(self) -> str:
        """Address of the client, as trusted proxies report it; "" where it is unknown."""
        return str(self._environ.get("REMOTE_ADDR", ""))

    @property
    def ticket(self) -> Ticket:
        """The share of the admitted request; `read_body` admits it."""
        assert self._ticket is not None, "a request is admitted before it takes memory"
        return self._ticket

    def deadline(self, seconds: float) -> float:
        """Return the time of the engines' clock that many seconds after the request came, before it was parsed."""
        return self._started + seconds

    def read_body(self) -> bytes:
        """Admit the request, then read its body.

        Raises NotReady, RateLimited, Overloaded, UnsupportedMediaType, TooLarge, InvalidRequest.
        """
        if self._service.drain.refuses_work:
            raise NotReady("the service is shutting down")
        if self._service.limits is not None:
            self._open_quota(self._service.limits)
        self._ticket = self._service.admission.enter(self.caller.name or client_network(self.client_address))
        self._ticket.quota = self._quota
        head_bytes = self._environ.get(HEAD_BYTES, 0)
        if head_bytes > SMALL_HEAD:
            self._ticket.take_bytes(HEAD_COPIES * head_bytes)
        _check_codings(self._environ)
        _check_media_type(self._request)
        if self._request.content_length is not None:
            _check_length(self._request.content_length, self._service.settings.max_body_bytes)
        return b"".join(self._pieces())

    def _open_quota(self, limits: Limits) -> None:
        self._quota = Quota.of(limits, self.caller)
        if self._quota is not None:
            self._quota.open()

    def _pieces(self) -> Iterable[bytes]:
        """Yield the body, accounted for piece by piece: a chunked one announces no length."""
        size, announced_size = 0, self._request.content_length
        with reading_body():
            stream = self._request.stream
            while size != announced_size and (piece := stream.read(PIECE_BYTES)):
                size += len(piece)
                _check_length(size, self._service.settings.max_body_bytes)
                self.ticket.take_bytes(2 * len(piece))  # once joined, parts of it are copied
                yield piece
            if announced_size is not None and size < announced_size:
                announced = f"{announced_size} as Content-Length says"
                raise InvalidRequest(Problem("body", f"{size} bytes", announced))

    def accept(self, parse: Parse[Request]) -> tuple[Request, LoadedModel]:
        """Admit the request, read and parse its body, and find the model that it is for.

        Raises as `read_body`, `parse` and `Registry.borrow` do.
        """
        body = self.read_body()
        asked = parse(body, self.ticket.take_bytes)
        self._asked = asked
        name = UNSET if asked.model is None else asked.model
        self._model = model = self._service.registry.borrow(name, self.caller.models)
        self.line.model = model.name
        return asked, model

    def hold_texts(
        self, field: str, texts: Sequence[str | list[int]], bytes_per_token: int, max_chars: int | None = None
    ) -> int:
        """Account for texts before they are tokenized. Raises TooLarge for too many characters, Overloaded.

        bytes_per_token  of as many tokens as they may have; the result: of all of these
        max_chars        lower limit than that of the settings
        """
        limit = self._service.settings.max_text_chars
        check_num_chars(field, texts, limit if max_chars is None else min(max_chars, limit))
        assert self._model is not None, "the request was accepted"
        held = sum(map(self._model.tokenizer.max_tokens, texts)) * bytes_per_token
        self.ticket.take_bytes(held)
        return held

    @property
    def open_streams(self) -> set[object]:
        """All streams that are open in this worker."""
        return self._service.streams

    def watch(self, handle: Waitable, model: LoadedModel) -> Watch:
        """Note the engine's handle of the request, and watch its client."""
        self._handle = handle
        self._client = Client(self._environ.get("gunicorn.socket"))
        self._service.disconnects.watch(self._client, handle.cancel)
        return Watch(self._client, self._service.drain, model.engine.clock)

    @property
    def kept_chars(self) -> int:
        """Characters of an answer that are kept for the log; 0 by default."""
        return self._service.settings.log_text_chars

    def note_work(self, work: Callable[[], Work]) -> None:
        """Register a callback that reports the work done; called once when the request ends."""
        self._work = work

    def note_error(self, error: MeariError) -> None:
        """Note the error of the request, without the frames that it came through: they hold the body."""
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.line.error = error
        self.line.error_field = wrong_field(error, self._service.schemas.field_names) or ""
        if not error.quotes_request or self.kept_chars:
            self.line.error_message = str(error)[: max(self.kept_chars, MESSAGE_CHARS)]
        if isinstance(error, Overloaded):
            self._service.metrics.refusals.labels(self.line.model, error.bound).inc()
        if isinstance(error, RateLimited):
            self._service.metrics.limited.labels(error.limit).inc()

    def stream(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same pieces; a request whose pieces were not all sent was aborted."""
        self.line.aborted = True
        try:
            yield from pieces
        except ClientGone:
            return
        self.line.aborted = False

    def finish(self, response: Response) -> Response:
        """Add the headers of every answer, and close the exchange once the answer is sent."""
        response.headers["X-Request-Id"] = self.request_id
        for name, value in SAFE_HEADERS:
            response.headers.setdefault(name, value)
        if self._quota is not None:
            response.headers.update(self._quota.headers())
        origins = self._service.settings.cors_origins
        if origins:
            response.headers.update(cors_headers(origins, self._environ.get("HTTP_ORIGIN")))
        if not response.is_streamed and not response.content_length:
            response.headers.pop("Content-Type", None)  # Flask sets HTML for an answer without a body
        status = response.status_code  # what is called on close must not lead back to the answer, which keeps it
        if response.is_streamed:
            response.call_on_close(lambda: self._close(status))
        elif (response.content_length or 0) <= SENT_AT_ONCE:
            self._close(status)
        else:
            ticket, self._ticket = self._ticket, None
            self._close(status)
            if ticket is not None:
                response.call_on_close(lambda: self._when_sent(ticket.release))
        return response

    def _when_sent(self, release: Callable[[], None]) -> None:
        """Release a whole answer's share once its client has taken it."""
        connection = self._environ.get("gunicorn.socket")
        if connection is None:
            release()
        else:
            connection.when_sent(release)

    def _close(self, status: int) -> None:
        if self._closed:
            return
        self._closed = True
        if self._client is not None:
            self._service.disconnects.forget(self._client)
        if self._handle is not None and not self._handle.ended:
            self._handle.cancel()
            self._handle.wait_end(STEP_SECONDS)
        if self._model is not None:
            self._service.registry.give_back(self._model)
        seconds = time.monotonic() - self._started
        try:
            self._count(status, seconds)
        finally:
            if self._ticket is not None:
                self._ticket.release()
        try:
            self._describe(status, seconds)
        finally:
            self._close_quota()
        if self._tracing is not None:
            self._tracing.record(self.line, self._asked, self._environ)
        log_request(self.line)

    def _close_quota(self) -> None:
        work = self.line.work
        if self._quota is not None:
            self._quota.close(0 if work is None else work.prompt_tokens + work.generated_tokens)

    def _describe(self, status: int, seconds: float) -> None:
        """Complete the request's line."""
        line, handle = self.line, self._handle
        line.status, line.total_seconds = status, seconds
        line.aborted = line.aborted or status == CLIENT_GONE
        if handle is not None and handle.started_at is not None:
            line.queue_seconds = handle.started_at - handle.submitted_at
        if handle is not None and handle.first_token_at is not None:
            line.first_token_seconds = handle.first_token_at - self._started
        if self._work is not None:
            line.work = self._work()
            if self.kept_chars:
                line.prompts = cut(line.work.prompts, self.kept_chars)
                line.answers = cut(line.work.answers, self.kept_chars)

    def _count(self, status: int, seconds: float) -> None:
        metrics, handle = self._service.metrics, self._handle
        metrics.requests.labels(self.route, str(status)).inc()
        if self._model is None:
            return
        name = self._model.name
        metrics.seconds.labels(self.route, name).observe(seconds)
        if handle is not None:
            metrics.note_request(name, handle.calls, self._model.engine.clock() - seconds)


@contextlib.contextmanager
def reading_body() -> Iterator[None]:
    """Tell why a body cannot be read. Raises InvalidRequest."""
    try:
        yield
    except TimeoutError:
        raise InvalidRequest(Problem("body", reason=f"not complete after {BODY_SECONDS:g} seconds")) from None
    except OSError:
        raise InvalidRequest(Problem("body", reason="it broke off before it was complete")) from None
    except ParseException as error:
        raise InvalidRequest(Problem("body", reason=f"its transfer coding is malformed: {error}")) from None


def cut(texts: Iterable[str], max_chars: int) -> tuple[str, ...]:
    """Return the texts, cut to `max_chars` characters together."""
    kept, left = [], max_chars
    for text in texts:
        kept.append(text[:left])
        left -= len(kept[-1])
        if left <= 0:
            break
    return tuple(kept)


def current_exchange() -> Exchange:
    """Return the exchange of the request being handled."""
    return cast(Exchange, g.exchange)


def asked_path(asked: HttpRequest) -> str:
    """Return the path of the request; one that matches no route as it came: Flask merges slashes, WSGI decodes them."""
    if asked.url_rule is not None:
        return asked.path
    return split_request_uri(asked.environ.get("RAW_URI", "")).path or asked.path


def json_response(body: object, status: int = 200) -> Response:
    """Return an answer in JSON, UTF-8."""
    return Response(msgspec.json.encode(body), status, mimetype="application/json")


def _check_media_type(asked: HttpRequest) -> None:
    if asked.environ.get("CONTENT_TYPE") == "application/json":
        return
    charset = asked.mimetype_params.get("charset", "utf-8").lower()
    if asked.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        came = asked.content_type
        got = came[:100] if came else "nothing"
        raise UnsupportedMediaType(Problem("Content-Type", got, "application/json in UTF-8"))


def _check_codings(environ: WSGIEnvironment) -> None:
    """Refuse codings of the body, which is read as it comes."""
    content = environ.get("HTTP_CONTENT_ENCODING", "")
    if not _codings(content) <= {"identity"}:
        raise UnsupportedMediaType(Problem("Content-Encoding", content[:100], "none", "the body is read as it comes"))
    transfer = environ.get("HTTP_TRANSFER_ENCODING", "")
    if not _codings(transfer) <= {"identity", "chunked"}:
        raise NotImplementedHere(Problem("Transfer-Encoding", transfer[:100], "chunked or none"))


def _codings(value: str) -> set[str]:
    if not value:
        return set()
    return {coding.strip().lower() for coding in value.split(",")} - {""}


def _check_length(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLarge(Problem("body", f"{size} bytes or more", f"at most {max_bytes}"))

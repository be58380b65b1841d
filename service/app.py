"""The Flask application: settings → parts of the service → blueprints.

Input: settings. Output: a WSGI application. Must not know: gunicorn.

`create_app()` is what gunicorn calls in every worker, after the fork. It starts the loading of the bundles and
returns at once.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response, abort, g
from flask.globals import request_ctx
from flask.typing import ResponseReturnValue

from meari.errors import Problem, WrongHost
from meari.service.clients import Disconnects
from meari.service.host import metrics_folder
from meari.service.log import configure_logging
from meari.service.metrics import Metrics
from meari.service.requests.admission import Admission
from meari.service.requests.keys import KeyRing
from meari.service.requests.limit_stores import HostStore, RedisStore
from meari.service.requests.limits import Limits
from meari.service.requests.origins import SENT_HOST, may_answer, preflight_headers
from meari.service.requests.schema import Schemas
from meari.service.routes.complete import complete_blueprint
from meari.service.routes.completions import generate_blueprint, openai_blueprint
from meari.service.routes.errors import register_error_handlers
from meari.service.routes.exchange import OPEN_BLUEPRINTS, Exchange, current_exchange
from meari.service.routes.pages import docs_blueprint, web_blueprint
from meari.service.routes.score import score_blueprint
from meari.service.routes.status import health_blueprint, metrics_blueprint, models_blueprint
from meari.service.routes.tokens import states_blueprint, tokenize_blueprint
from meari.service.service import Registry, Service
from meari.service.settings import Settings, load_settings
from meari.service.tracing import start_tracing
from meari.service.workers import Drain, own_place

__all__ = ["create_app"]


class _SynchronousFlask(Flask):
    """Flask without its check whether a function is a coroutine, made several times per request: none is.

    Whatever a route raises is an answer here. Flask lets a `BaseException` pass, which would leave the request's share
    of the bounds taken and end the worker's loop: a panic of Rust code is one.
    """

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function itself."""
        return func

    def dispatch_request(self) -> ResponseReturnValue:
        """Run the route."""
        try:
            return super().dispatch_request()
        except Exception:
            raise
        except BaseException as error:
            raise RuntimeError(f"a route ended with {type(error).__name__}") from error


def create_app(settings: Settings | None = None) -> Flask:
    """Make the application over `settings`, or over those of the environment. Raises SettingsError."""
    settings = settings or load_settings(os.environ)
    configure_logging(settings.log_level, settings.log_format)
    service = _service(settings)
    app = _SynchronousFlask("meari", static_folder=None)
    app.url_map.merge_slashes = app.url_map.redirect_defaults = False  # no answer repeats the caller's Host
    app.extensions["meari"] = service
    register_error_handlers(app)
    _frame_requests(app, service)
    for blueprint in (
        generate_blueprint,
        complete_blueprint,
        score_blueprint,
        models_blueprint,
        tokenize_blueprint,
        openai_blueprint,
        states_blueprint,
        docs_blueprint,
        health_blueprint,
        metrics_blueprint,
        web_blueprint,
    ):
        app.register_blueprint(blueprint(service))
    app.url_map.update()  # otherwise the first request would
    if service.limits is not None:
        service.limits.start()
    service.registry.start()
    service.disconnects.start()
    return app


def _service(settings: Settings) -> Service:
    shared = settings.runtime_folder
    place = own_place()
    registry = Registry(settings, place)
    metrics = Metrics(place.board, metrics_folder(shared) if shared else None)
    keys, limits = _access(settings, metrics)
    return Service(
        settings=settings,
        schemas=Schemas(settings),
        registry=registry,
        admission=Admission(settings.max_requests, settings.max_inflight_bytes, settings.max_slots),
        metrics=metrics,
        drain=Drain(settings.drain_seconds, settings.graceful_timeout_seconds, place),
        disconnects=Disconnects(),
        state_keys=settings.state_key or (secrets.token_hex(32),),
        keys=keys,
        limits=limits,
        tracing=start_tracing(os.environ),
    )


def _access(settings: Settings, metrics: Metrics) -> tuple[KeyRing | None, Limits | None]:
    """Make the keys and their limits; nothing where no keys are set."""
    if not settings.has_keys:
        return None, None
    host = HostStore(settings.runtime_folder)
    shared = RedisStore(settings.redis_url) if settings.redis_url else None
    return KeyRing(settings, host), Limits(host, shared, metrics.redis_failures.inc)


def _frame_requests(app: Flask, service: Service) -> None:
    """Run code before and after every request, whatever its route."""

    @app.before_request
    def begin() -> Response | None:
        asked = request_ctx.request
        is_no_path = _is_no_path(asked.environ.get("RAW_URI", ""), asked.environ["PATH_INFO"])
        if is_no_path:
            asked.url_rule = None
        g.exchange = exchange = Exchange(service, asked)
        if asked.method == "OPTIONS":
            preflight = preflight_headers(service.settings.cors_origins, dict(asked.headers))
            if preflight is not None:
                return Response(status=204, headers=preflight)
        if is_no_path:
            abort(404)
        if asked.url_rule is not None:
            _check_host(asked.environ, service.settings.allowed_hosts)
        if asked.blueprint is not None:
            _identify(service, exchange, asked)
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        return current_exchange().finish(response)


def _check_host(environ: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise WrongHost for a name under which nobody should ask; the name is not repeated."""
    if not may_answer(environ.get("HTTP_HOST", ""), environ.get(SENT_HOST, ""), allowed):
        expected = "an address, localhost, or a name that MEARI_ALLOWED_HOSTS has"
        raise WrongHost(Problem("Host", "another public name", expected))


def _identify(service: Service, exchange: Exchange, asked: Request) -> None:
    """Note whose request this is, if it needs a key. Raises Unauthorized, RateLimited."""
    is_open, is_protected = asked.blueprint in OPEN_BLUEPRINTS, asked.blueprint in service.settings.protect
    if service.keys is None or (is_open and not is_protected):
        return
    header = asked.headers.get("Authorization")
    exchange.caller = service.keys.caller(header, exchange.client_address, must_know=is_protected)
    exchange.line.key = exchange.caller.name


def _is_no_path(target: str, path: str) -> bool:
    """Tell whether a path matches a route only because slashes were merged (by Flask) or decoded (by WSGI)."""
    return path.startswith("//") or "%2f" in target.partition("?")[0].lower()

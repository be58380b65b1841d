"""Test that the private parts of gunicorn on which the service relies exist.

The service pins gunicorn's exact version. For another version, these tests report the removed or changed parts.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import errors, wsgi
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import PollableMethodQueue, ThreadWorker

ROOT = Path(__file__).resolve().parents[2]

# Names read, set, called or overridden in service/process/ and service/routes/exchange.py.
ATTRIBUTES: dict[type, str] = {
    ThreadWorker: """
        accept age alive cfg check_config enqueue_req finish_request get_thread_pool handle handle_error handle_exit
        handle_request init_process load_wsgi log method_queue nr_conns poller run set_accept_enabled sockets
        wait_for_and_dispatch_events worker_connections wsgi
    """,
    PollableMethodQueue: "defer",
    Request: "_expected_100_continue body read_into read_line uri",
    RequestParser: "mesg mesg_class unreader",
    SocketUnreader: "buf chunk sock take_buffered",
    Body: "read reader",
    LengthReader: "length",
    ChunkedReader: "parser",
    wsgi.Response: """
        _emit_body chunked close default_headers force_close headers headers_sent send_headers should_close sock
        start_response write
    """,
    errors.InvalidHTTPVersion: "version",
    errors.ExpectationFailed: "expect",
    errors.UnsupportedTransferCoding: "hdr",
    Logger: "error_log exception setup warning",
    Arbiter: """
        WORKERS cfg kill_worker log manage_workers master_pid num_workers reexec_pid reload spawn_worker stop
        wait_for_signals worker_age
    """,
}
SETTINGS = """
    accesslog backlog bind child_exit control_socket_disable forwarded_allow_ips forwarder_headers graceful_timeout
    http_parser keepalive logger_class loglevel on_exit on_reload on_starting post_fork post_worker_init pre_fork
    preload_app secure_scheme_headers threads timeout worker_class worker_connections worker_exit worker_tmp_dir workers
    wsgi_app
"""
CALLS: list[tuple[Callable[..., Any], tuple[str, ...]]] = [  # with the names of positional arguments
    (wsgi.create, ("req", "sock", "client", "server", "cfg", "response_class")),
    (Request.__init__, ("self", "cfg", "unreader")),
    (Request.read_into, ("self", "unreader", "buf", "stop")),
    (Request.read_line, ("self", "unreader", "buf", "limit")),
    (RequestParser.__init__, ("self", "cfg", "source", "source_addr")),
    (SocketUnreader.__init__, ("self", "sock")),
    (SocketUnreader.chunk, ("self", "size_hint")),
    (ThreadWorker.accept, ("self", "listener")),
    (ThreadWorker.enqueue_req, ("self", "conn")),
    (ThreadWorker.handle, ("self", "conn")),
    (ThreadWorker.set_accept_enabled, ("self", "enabled")),
    (ThreadWorker.handle_request, ("self", "req", "conn")),
    (ThreadWorker.handle_exit, ("self", "sig", "frame")),
    (ThreadWorker.handle_error, ("self", "req", "client", "addr", "exc")),
    (ThreadWorker.wait_for_and_dispatch_events, ("self", "timeout")),
    (ThreadWorker.finish_request, ("self", "conn", "fs")),
    (ThreadWorker.init_signals, ("self",)),
    (ThreadWorker.check_config, ("cfg", "log")),
    (PollableMethodQueue.defer, ("self", "callback")),
    (wsgi.Response._emit_body, ("self", "data")),
    (Logger.setup, ("self", "cfg")),
    (Arbiter.kill_worker, ("self", "pid", "sig")),
    (Arbiter.stop, ("self", "graceful")),
    (Arbiter.wait_for_signals, ("self", "timeout")),
    (util.split_request_uri, ("uri",)),
    (util.write, ("sock", "data")),
]


def names_of(kind: type) -> set[str]:
    """Return the names in the body of a class or its bases, and the names that their methods assign to `self`."""
    names = set(dir(kind))
    for each in kind.__mro__:
        if each.__module__.startswith("gunicorn."):
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
            names |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
    return names


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind, names in ATTRIBUTES.items()
        for name in names.split()
    ],
)
def test_gunicorn_still_has(kind: type, name: str) -> None:
    assert name in names_of(kind), f"gunicorn {metadata.version('gunicorn')} has no {kind.__name__}.{name}"


@pytest.mark.parametrize("name", SETTINGS.split())
def test_gunicorn_still_has_the_setting(name: str) -> None:
    assert name in Config().settings


@pytest.mark.parametrize(("function", "names"), [pytest.param(*call, id=call[0].__qualname__) for call in CALLS])
def test_gunicorn_still_accepts_positional_arguments(function: Callable[..., Any], names: tuple[str, ...]) -> None:
    assert tuple(inspect.signature(function).parameters)[: len(names)] == names


def test_every_import_of_gunicorn_is_listed_here() -> None:
    known = "gunicorn gunicorn.arbiter gunicorn.glogging gunicorn.http gunicorn.http.errors gunicorn.http.message "
    known += "gunicorn.http.parser gunicorn.http.wsgi gunicorn.util gunicorn.workers.gthread"
    found = {
        node.module
        for path in (ROOT / "service").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "gunicorn"
    }
    assert found == set(known.split())


def test_gunicorn_is_pinned_to_an_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"gunicorn=={metadata.version('gunicorn')}" in project["dependencies"]

"""gunicorn's configuration: the service's settings → its own, and what its master process does at start and end.

Used as `gunicorn -c python:meari.service.process.gunicorn_conf`; `meari serve` does the same.
Problems of the settings end the start here, before there is any worker. Workers take settings and certificate from this
process: what they name on disk may be broken or gone when one of them takes another one's place.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gunicorn.glogging import Logger

from meari.runtime.machine import freeze_objects
from meari.service.host import allowed_connections, metrics_folder, models_folder
from meari.service.log import configure_logging, flush_log, line_format, show_libraries
from meari.service.process.master import HostArbiter
from meari.service.process.start import (
    MEMORY,
    NOTHING_STATUS,
    StartError,
    check_reload,
    check_start,
    clear_start,
    load_certificate,
    make_runtime_folder,
    page_address,
    prepare_runtime_folder,
    start_problem,
    tell_start,
)
from meari.service.process.waiting import MAX_READING
from meari.service.process.worker import MAX_STAYING
from meari.service.settings import SETTINGS, Settings, SettingsError, load_settings, with_settings_file
from meari.service.workers import BOARD, take_place

if TYPE_CHECKING:
    from meari.service.process.tls import Certificate

__all__ = ["ServiceLogger"]

RESERVE_THREADS = 32  # for refusals, health and metrics while every request in flight holds a thread
FIXED = ("host", "port", "settings_file")  # settings that only a restart changes

given = dict(os.environ)  # the environment of the start, which no reload changes
try:
    os.environ.update(with_settings_file(given))
    settings = load_settings(os.environ)
except SettingsError as problems:
    sys.stderr.write(f"meari cannot start:\n{problems}\n")
    sys.exit(2)
worker_settings = settings  # of workers to come, complete before the first of them, like the next
certificate: Certificate | None = None

configure_logging(settings.log_level, settings.log_format)

made_here = settings.runtime_folder is None
runtime_folder = settings.runtime_folder or make_runtime_folder()
folders = {"MEARI_RUNTIME_FOLDER": str(runtime_folder), "PROMETHEUS_MULTIPROC_DIR": str(metrics_folder(runtime_folder))}
state_key = secrets.token_hex(32)  # where none is set; the same for all workers; a reload keeps it, a restart does not
os.environ.update(folders)
if not settings.state_key:
    os.environ["MEARI_STATE_KEY"] = state_key


def derived(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's settings that follow from those of the service, and change with them."""
    return {
        "workers": settings.workers,
        "threads": settings.max_requests + RESERVE_THREADS + MAX_STAYING + MAX_READING,
        "worker_connections": allowed_connections(settings.max_connections),
        "graceful_timeout": max(1, int(settings.graceful_timeout_seconds) + 2),
        "loglevel": settings.log_level,
    }


globals().update(derived(settings))
wsgi_app = "meari.service.process.gunicorn_conf:make_app()"
bind = [f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"]
worker_class = "meari.service.process.worker.DrainingWorker"
backlog = 2048
keepalive = 75  # the loop has times of its own: process/waiting.py
timeout = 60  # a worker whose loop is silent for this long is replaced; requests may take longer
preload_app = False  # the application has threads
control_socket_disable = True
http_parser = "python"  # process/http.py adapts it
forwarded_allow_ips = "*"  # no address is checked, because no header of a proxy is trusted:
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
logger_class = "meari.service.process.gunicorn_conf.ServiceLogger"
accesslog = None  # the service writes its own line
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
    worker_tmp_dir = str(MEMORY)


def on_starting(server: Any) -> None:
    """Check and prepare the start; runs in the master, before the first fork."""
    global certificate, worker_settings  # noqa: PLW0603 (gunicorn's hooks share nothing else)
    os.environ["MEARI_WORKERS"] = str(server.cfg.workers)
    try:
        check_start(settings)
        certificate = load_certificate(settings)
        worker_settings = load_settings(os.environ)
    except (StartError, SettingsError) as problem:
        sys.stderr.write(f"meari cannot start: {problem}\n")
        sys.exit(getattr(problem, "status", NOTHING_STATUS))
    if settings.log_text_chars:
        server.log.warning("texts are logged, %d characters a request: MEARI_LOG_TEXT_CHARS", settings.log_text_chars)
    prepare_runtime_folder(runtime_folder)
    clear_start(runtime_folder)
    # Imported once, so that the workers share its memory and start sooner; frozen, so that their garbage collection
    # does not write to it. There are no threads yet.
    importlib.import_module("meari.service.app")
    importlib.import_module("encodings.idna")  # otherwise the first request of each worker would, as the next
    with contextlib.suppress(ImportError):  # not installed
        importlib.import_module("icu4py.breakers")
    freeze_objects()
    HostArbiter.adopt(server, open_bundles(), look_around)


def make_app() -> Any:
    """Make the application; runs in each worker."""
    from meari.service.app import create_app

    return create_app(worker_settings)


def look_around() -> None:
    """Take over a certificate that has changed; runs in the master, several times a second."""
    if certificate is not None:
        certificate.refresh()


def open_bundles() -> Iterator[None]:
    """Open the bundles, one for each `next`, for the workers to come."""
    from meari.runtime.engine import EngineLimits
    from meari.service.ahead import AHEAD

    return AHEAD.open_all(settings.bundles, EngineLimits(settings.max_slots), settings.signing_keys)


def on_reload(server: Any) -> None:
    """Take over the settings from the file, for workers to come; runs in the master. Raises StartError."""
    global certificate, settings, worker_settings  # noqa: PLW0603 (as above)
    try:
        environment = {"MEARI_STATE_KEY": state_key} | with_settings_file(given) | folders
        fresh = load_settings(environment)
        num_workers = server.num_workers if fresh.workers == settings.workers else fresh.workers
        environment["MEARI_WORKERS"] = str(num_workers)
        complete = load_settings(environment)
    except SettingsError as problems:
        raise StartError(str(problems)) from None
    for name in FIXED:
        if getattr(fresh, name) != getattr(settings, name):
            raise StartError(f"{SETTINGS[name].variable}: only a restart changes it")
    check_reload(fresh)
    certificate = load_certificate(fresh)
    for name in os.environ.keys() - environment.keys():
        if name.startswith("MEARI_"):
            del os.environ[name]
    os.environ.update(environment)
    server.num_workers = num_workers
    settings, worker_settings = fresh, complete
    for name, value in derived(settings).items():
        server.cfg.set(name, value)
    configure_logging(settings.log_level, settings.log_format)
    server.log.setup(server.cfg)
    freeze_objects()


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker its slot and the certificate; runs in the master."""
    server.prepare(worker)
    worker.certificate = certificate


def post_fork(_server: Any, worker: Any) -> None:
    """Take the slot; runs in the worker, before anything else."""
    take_place(worker.slot)


def post_worker_init(worker: Any) -> None:
    """Announce the worker when it is ready; runs in the worker, once it has the application."""
    registry = worker.wsgi.extensions["meari"].registry
    address = page_address(settings.host, worker.sockets[0].getsockname()[1], "https" if settings.tls_key else "http")
    aloud = sys.stdout.isatty() and settings.log_format != "json"
    arguments = (registry, runtime_folder, address)
    threading.Thread(target=tell_start, args=arguments, kwargs={"aloud": aloud}, name="start", daemon=True).start()


def worker_exit(_server: Any, worker: Any) -> None:
    """Stop threads and engines at the end of a worker: an engine must not run while the interpreter shuts down."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        app.extensions["meari"].disconnects.stop()
        is_whole = app.extensions["meari"].registry.stop()
        app.extensions["meari"].observe()  # the work since the last look
        if app.extensions["meari"].tracing is not None:
            app.extensions["meari"].tracing.stop()
        if not is_whole:
            flush_log()
            os._exit(0)
    if worker.pid == os.getpid() and worker.ppid != os.getppid():  # the master was killed: the last worker cleans up
        BOARD.free(worker.slot)
        if made_here and not BOARD.living():
            shutil.rmtree(runtime_folder, ignore_errors=True)


def child_exit(server: Any, worker: Any) -> None:
    """Forget a worker that has ended, and keep what it has counted; runs in the master."""
    from meari.service.metrics import fold_metrics

    server.forget(worker)
    for file in models_folder(runtime_folder).glob(f"{worker.pid}.*"):
        file.unlink(missing_ok=True)
    try:
        fold_metrics(BOARD, metrics_folder(runtime_folder), worker.pid)
    except OSError as error:
        server.log.warning("the counts of a worker that has ended stay in its own files: %s", error)


def on_exit(_server: Any) -> None:
    """Clean up, and report a service that had nothing to serve; runs in the master at its end."""
    problem = start_problem(runtime_folder)
    if made_here:
        shutil.rmtree(runtime_folder, ignore_errors=True)
    if problem:
        sys.stderr.write(f"meari cannot start: {problem}")
        sys.exit(NOTHING_STATUS)


class ServiceLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger with the service's format, so that whatever reads the log meets one kind of line."""

    def setup(self, cfg: Any) -> None:
        """Set up the handlers, at the start and when the configuration is reloaded."""
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(line_format())
        show_libraries()

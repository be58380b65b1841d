"""`meari serve`: bundles → a running HTTP service. Checks the settings, then becomes gunicorn."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._options import complete_bundle, echo_json_line, json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from meari.service.settings import Settings

EXAMPLES = """\b
Examples:
  meari serve
  meari serve --host 0.0.0.0 --port 8080 --workers 2
  meari serve --bundles bundles --default-model shakespeare-gru --json
"""
ENDING = (signal.SIGINT, signal.SIGTERM)


@click.command("serve", epilog=EXAMPLES, short_help="Serve bundles over HTTP.")
@click.option("--host", help="Address to listen on (MEARI_HOST).")
@click.option("--port", help="Port to listen on (MEARI_PORT).")
@click.option("--bundles", type=click.Path(), help="Folder of the bundles to serve (MEARI_BUNDLES).")
@click.option(
    "--default-model",
    help="Bundle for requests that name none (MEARI_DEFAULT_MODEL).",
    shell_complete=complete_bundle,
)
@click.option("--workers", help="Worker processes, by default one per CPU (MEARI_WORKERS).")
@click.option("--log-level", help="Log level: debug, info, warning or error (MEARI_LOG_LEVEL).")
@json_option
def command(as_json: bool, **options: str | None) -> None:
    """Serve bundles over HTTP until SIGTERM or Ctrl-C, which both end it with 0. All else is set by MEARI_… variables.

    The log goes to standard error. With --json one line on standard output says where it will listen and what it
    serves, before the bundles are opened.
    """
    for name, value in options.items():
        if value is not None:
            os.environ[f"MEARI_{name.upper()}"] = value
    start(as_json=as_json)


def start(*, as_json: bool) -> None:
    """Check the settings and become the service. Raises UsageError, Exit."""
    from meari.service.process.start import check_start

    Path.cwd()  # raises where it was removed: gunicorn would show its inside
    settings = _checked(check_start)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the master has handlers: `HostArbiter.init_signals`
    if as_json:
        echo_json_line(_described(settings))
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "python:meari.service.process.gunicorn_conf"])  # noqa: S606 (gunicorn takes the place of this process)


def check_free_address() -> str:
    """Check the settings but for the bundles, and that the address can be listened on; return the page's URL.

    Raises UsageError, Exit.
    """
    from meari.service.process.start import check_address, page_address

    settings = _checked(lambda settings: check_address(settings.host, settings.port))
    return page_address(settings.host, settings.port, "https" if settings.tls_certificate else "http")


def _checked(check: Callable[[Settings], None]) -> Settings:
    from meari.service.process.start import StartError
    from meari.service.settings import SettingsError, load_settings, with_settings_file

    try:
        settings = load_settings(with_settings_file(os.environ))
    except SettingsError as problems:
        raise click.UsageError(f"the settings are wrong:\n{problems}") from None
    try:
        check(settings)
    except StartError as problem:
        click.echo(f"meari: {problem}", err=True)
        raise click.exceptions.Exit(problem.status) from None
    return settings


def _described(settings: Settings) -> dict[str, object]:
    from meari.bundle_format.folders import find_bundles, printable
    from meari.errors import BundleError

    try:
        models = list(find_bundles(settings.bundles).folders)
    except BundleError:
        models = []
    return {
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "bundles": printable(settings.bundles),
        "models": models,
        "process": os.getpid(),
    }

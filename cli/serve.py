"""`meari serve`: bundles → a running HTTP service. Checks the settings, then becomes gunicorn."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command()
@click.option("--host", help="Address to listen on (MEARI_HOST).")
@click.option("--port", help="Port to listen on (MEARI_PORT).")
@click.option("--bundles", help="Folder of the bundles to serve (MEARI_BUNDLES).")
@click.option("--default-model", help="Bundle of requests that name none (MEARI_DEFAULT_MODEL).")
@click.option("--workers", help="Worker processes, by default one a CPU (MEARI_WORKERS).")
@click.option("--log-level", help="debug, info, warning or error (MEARI_LOG_LEVEL).")
def command(**options: str | None) -> None:
    """Serve bundles over HTTP until SIGTERM. Everything else is set by MEARI_… variables."""
    from service.settings import SettingsError, load_settings

    for name, value in options.items():
        if value is not None:
            os.environ[f"MEARI_{name.upper()}"] = value
    try:
        load_settings(os.environ)
    except SettingsError as problems:
        raise click.ClickException(f"the settings are wrong:\n{problems}") from None
    config = Path(__file__).resolve().parents[1] / "service" / "process" / "gunicorn_conf.py"
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", str(config)])

"""The application with one more route, which breaks the engines of the worker that answers it."""

from __future__ import annotations

from flask import Flask

from meari.runtime.engine.runner import Sessions
from meari.service.app import create_app as create_sound_app


def create_app() -> Flask:
    """Make the application of the environment's settings."""
    app = create_sound_app()

    @app.post("/break")
    def break_engines() -> str:
        for model in app.extensions["meari"].registry.loaded():
            sessions = model.bundle.runner.sessions
            model.bundle.runner.sessions = Sessions(reader=sessions.writer, writer=sessions.reader)
        return ""

    return app

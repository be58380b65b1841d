"""Fixtures: a separate application, whose prefix cache no other test uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE


@pytest.fixture(scope="session")
def app(settings: Settings) -> Iterator[Flask]:
    app = create_app(settings)
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app
    registry.stop()

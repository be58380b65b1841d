"""Fixtures: tiny bundles, an application for Flask's test client, and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from meari.service.app import create_app
from meari.service.settings import Settings
from tests.patience import PATIENCE
from tests.runtime.spelling_bundle import byte_tokenizer, word_tokenizer, write_spelling_bundle
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server, running_server

SPELLED = "é😀한!"  # all bytes differ, which a chain of bytes requires
WORDS = ["good", "day", ",", "world"]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make bundles: letters, flat (letters, nearly uniform), bytes, noise (bytes, uniform), words, broken."""
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(folder / "letters")
    write_tiny_bundle(folder / "flat", peak=1.0)
    write_tiny_bundle(folder / "broken")
    (folder / "broken" / "cell.onnx").write_bytes(b"not a graph")
    (folder / "notes.txt").write_text("not a bundle", "utf-8")
    chain = byte_tokenizer().encode(SPELLED).ids
    write_spelling_bundle(folder / "bytes", byte_tokenizer(), "bpe", chain)
    write_spelling_bundle(folder / "noise", byte_tokenizer(), "bpe", chain, peak=0.0)
    write_spelling_bundle(folder / "words", word_tokenizer(WORDS), "word", [2, 3, 4, 5])
    return folder


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with only the bundle of letters, which loads fast in tests with their own server."""
    folder = tmp_path_factory.mktemp("letters")
    write_tiny_bundle(folder / "letters")
    return folder


@pytest.fixture(scope="session")
def settings(bundles: Path) -> Settings:
    return Settings(bundles=bundles, default_model="letters", max_texts=8, max_tokens=500, workers=1, log_level="error")


@pytest.fixture(scope="session")
def app(settings: Settings) -> Iterator[Flask]:
    app = create_app(settings)
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    yield app
    registry.stop()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="session")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run two workers over all bundles."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, bundles=bundles, default_model="letters", workers=2, max_tokens=200_000) as server:
        yield server

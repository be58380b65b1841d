"""Fixtures: a real Chromium on a real server of the released bundles; tests are skipped without Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import PATIENCE
from tests.service.running import ROOT, Server, running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def released_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("released"), bundles=ROOT / "bundles") as server:
        yield server


@pytest.fixture(scope="module")  # Playwright's event loop must not run in the tests of other modules
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium was not found: install Debian's chromium, or set CHROMIUM to the program")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, released_server: Server) -> Iterator[Visit]:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/")
    yield visit
    visit.context.close()
    assert visit.complaints == []


class Visit:
    """Page in a browser with its own language and colour scheme, and its console messages."""

    def __init__(self, browser: Browser, url: str, *, wait: bool = True, **context: Any) -> None:
        self.context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1200, "height": 900}, **context})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.goto(url)
        if wait:
            self.page.wait_for_selector("#write-go:enabled")

    def open_pane(self, name: str) -> Page:
        """Select a tab."""
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f"#pane-{name}")
        return self.page

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

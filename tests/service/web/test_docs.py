"""Test the page of the HTTP API in a real browser: it shows every operation, runs one, and loads nothing external."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meari.service.openapi.operations import OPERATIONS
from tests.service.running import Server
from tests.service.web.conftest import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_page_shows_the_contract_and_sends_a_request(browser: Browser, released_server: Server) -> None:
    own = f"http://127.0.0.1:{released_server.port}/"
    visit = Visit(browser, own + "docs", wait=False)
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url))
    visit.page.reload()
    visit.page.wait_for_selector(".opblock")
    assert visit.page.locator(".opblock").count() == len(OPERATIONS)
    visit.page.click("#operations-meari-tokenize .opblock-summary-control")
    visit.page.click("#operations-meari-tokenize .try-out__btn")
    visit.page.click("#operations-meari-tokenize .execute")
    visit.page.wait_for_selector("#operations-meari-tokenize .live-responses-table")
    answer = visit.page.locator("#operations-meari-tokenize .live-responses-table").inner_text()
    assert "200" in answer
    assert '"tokens"' in answer
    visit.context.close()
    assert visit.complaints == []
    assert [url for url in asked if not url.startswith((own, "data:"))] == []

"""Test the page of the HTTP API in a real browser: it shows every operation, runs one, and loads nothing external."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meari.service.openapi.document import GROUPS
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
    assert visit.page.locator(".opblock-tag").evaluate_all("all => all.map(tag => tag.dataset.tag)") == list(GROUPS)
    visit.page.click("#operations-Tokens_and_states-tokenize .opblock-summary-control")
    visit.page.click("#operations-Tokens_and_states-tokenize .try-out__btn")
    visit.page.click("#operations-Tokens_and_states-tokenize .execute")
    visit.page.wait_for_selector("#operations-Tokens_and_states-tokenize .live-responses-table")
    answer = visit.page.locator("#operations-Tokens_and_states-tokenize .live-responses-table").inner_text()
    assert "200" in answer
    assert '"tokens"' in answer
    visit.context.close()
    assert visit.complaints == []
    assert [url for url in asked if not url.startswith((own, "data:"))] == []


@pytest.mark.parametrize(
    ("scheme", "chosen", "is_dark"), [("dark", "", True), ("light", "dark", True), ("dark", "light", False)]
)
def test_page_is_dark_as_the_playground_and_leads_back_to_it(
    browser: Browser, released_server: Server, scheme: str, chosen: str, is_dark: bool
) -> None:
    own = f"http://127.0.0.1:{released_server.port}/"
    visit = Visit(browser, own, color_scheme=scheme, viewport={"width": 390, "height": 844})
    page = visit.page
    if chosen:
        page.select_option("#theme", chosen)
    page.click("header a")
    page.wait_for_selector(".opblock")
    assert page.url == own + "docs"
    colours = page.evaluate(
        "() => [document.body, document.querySelector('.info .title')].map((each) => getComputedStyle(each))"
        ".map((style, i) => (i ? style.color : style.backgroundColor).match(/[\\d.]+/g).slice(0, 3).map(Number))"
    )
    assert (sum(colours[0]) < sum(colours[1])) is is_dark
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("p a")
    page.wait_for_selector("#write-go:enabled")
    assert page.url == own
    visit.context.close()
    assert visit.complaints == []

"""Test that axe-core finds no serious problems in any pane, light or dark, and that pages fit a telephone's width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.patience import PATIENCE
from tests.service.running import Server
from tests.service.web.conftest import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PANES = ["write", "type", "score", "compare", "learn"]


def fill(visit: Visit, pane: str, tokens: int = 30) -> None:
    """Fill a pane with content."""
    page = visit.open_pane(pane)
    if pane == "write":
        page.fill("#write-max_tokens", str(tokens))
        page.click("#write-go")
        page.wait_for_selector("#write-again:enabled")
        written = page.locator("#write-tokens .token")
        written.nth(min(5, written.count() - 1)).click()  # a review may end after a few tokens
    elif pane == "type":
        page.wait_for_selector("#type-list:not([data-is-old]) li")
    elif pane == "score":
        page.click("#score-go")
        page.wait_for_selector("#score-rows tr")
    elif pane == "compare":
        page.fill("#compare-max_tokens", str(tokens))
        page.click("#compare-go")
        page.wait_for_selector("#compare-chart-lines polyline >> nth=3", state="attached", timeout=PATIENCE * 1000)
        page.wait_for_selector("#compare-go:enabled")
    else:
        page.wait_for_selector("#learn-claims-note:not(:empty)")
        page.wait_for_selector("[data-run=esn] td.number")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-GB", "ko-KR"])
def test_axe_finds_no_serious_problems(browser: Browser, released_server: Server, scheme: str, language: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    url = f"http://127.0.0.1:{released_server.port}/"
    size = {"width": 360, "height": 740} if language == "ko-KR" else {"width": 1200, "height": 900}
    visit = Visit(browser, url, color_scheme=scheme, locale=language, viewport=size, reduced_motion="reduce")
    for pane in PANES:
        fill(visit, pane)
        found = axe.Axe().run(visit.page).response["violations"]
        serious = {
            each["id"]: [node["html"][:200] for node in each["nodes"][:3]]
            for each in found
            if each["impact"] in ("serious", "critical")
        }
        assert serious == {}, pane
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= size["width"], pane
    visit.context.close()
    assert visit.complaints == []


@pytest.mark.parametrize("width", [320, 360])  # 320: a screen of 1,280 at 400 %
def test_controls_of_write_stay_within_the_narrowest_screens(
    browser: Browser, released_server: Server, width: int
) -> None:
    url = f"http://127.0.0.1:{released_server.port}/"
    visit = Visit(browser, url, viewport={"width": width, "height": 568})
    visit.page.locator("#write-more-settings").evaluate("details => { details.open = true }")
    visit.page.wait_for_selector("#write-again:enabled")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    visit.context.close()
    assert visit.complaints == []


def test_bars_are_seen_in_forced_colours(browser: Browser, released_server: Server) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", forced_colors="active")
    visit.page.wait_for_selector("#write-again:enabled")
    visit.page.locator("#write-tokens .token").nth(3).click()
    bar = visit.page.locator("#alternatives .bar").first
    assert "linear-gradient" in bar.evaluate("bar => getComputedStyle(bar).backgroundImage")
    assert bar.evaluate("bar => getComputedStyle(bar).forcedColorAdjust") == "none"
    visit.context.close()
    assert visit.complaints == []


def test_printed_text_keeps_its_shades_on_white_paper_whatever_the_theme(
    browser: Browser, released_server: Server
) -> None:
    style = "token => { const s = getComputedStyle(token); return [s.backgroundColor, s.color, s.printColorAdjust]; }"
    looks = {}
    for theme in ("light", "dark"):
        visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", color_scheme=theme)
        visit.page.wait_for_selector("#write-again:enabled")
        visit.page.select_option("#theme", theme)
        on_screen = visit.page.locator("#write-tokens .bits-3").first.evaluate(style)
        visit.page.emulate_media(media="print")
        printed = visit.page.locator("#write-tokens .bits-3").first.evaluate(style)
        assert printed[2] == "exact"
        assert not visit.page.locator("[role=tablist]").is_visible()
        assert visit.page.locator("#write-tokens").is_visible()
        looks[theme] = on_screen, printed
        visit.context.close()
        assert visit.complaints == []
    assert looks["dark"][0][:2] != looks["light"][0][:2], "on a screen the themes differ"
    assert looks["dark"][1] == looks["light"][1] == [*looks["light"][0][:2], "exact"], "paper is light"

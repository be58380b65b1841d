"""Test the error messages of the playground: missing key, busy server, lost connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server, running_server
from tests.service.web.conftest import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route


def test_entered_key_is_sent_to_a_server_with_keys(browser: Browser, bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="letters", api_keys="open-sesame") as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/", wait=False)
        page = visit.page
        page.fill("#key", "wrong")
        page.click("#key-form .main")
        page.wait_for_selector("#key-wrong:visible")
        page.fill("#key", "open-sesame")
        page.click("#key-form .main")
        page.wait_for_selector("#write-go:enabled")
        assert not page.locator("#key-dialog").is_visible()
        page.fill("#write-prompt", "abc")
        page.fill("#write-max_tokens", "5")
        page.click("#write-go")
        page.wait_for_selector("#write-more:enabled")
        assert all("401" in complaint for complaint in visit.complaints)
        visit.context.close()


def test_page_behind_a_key_works_with_the_key_as_password(browser: Browser, bundles: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bundles": bundles, "default_model": "letters", "api_keys": "open-sesame"}
    with running_server(tmp_path, **settings, protect="metrics,docs,page") as server:
        url = f"http://127.0.0.1:{server.port}/"
        stranger = browser.new_context()
        refused = stranger.request.get(url)
        assert refused.status == 401
        stranger.close()
        visit = Visit(browser, url, http_credentials={"username": "me", "password": "open-sesame"})
        page = visit.page
        assert not page.locator("#key-dialog").is_visible()
        page.fill("#write-prompt", "abc")
        page.fill("#write-max_tokens", "5")
        page.click("#write-go")
        page.wait_for_selector("#write-more:enabled")
        page.goto(url + "docs")
        page.wait_for_selector(".opblock")  # the contract was fetched, too
        assert all("401" in complaint for complaint in visit.complaints)
        visit.context.close()


def test_busy_server_is_reported_and_retry_works(visit: Visit) -> None:
    page = visit.page

    def refuse(route: Route) -> None:
        body = '{"error": {"code": "overloaded", "message": "full", "request_id": "r"}}'
        route.fulfill(status=429, body=body, headers={"Retry-After": "3", "Content-Type": "application/json"})

    page.route("**/generate", refuse)
    page.fill("#write-max_tokens", "5")
    page.click("#write-go")
    error = page.locator("#write-error")
    error.locator("p").wait_for()
    assert "busy" in error.inner_text()
    assert "3 s" in error.inner_text()
    page.unroute("**/generate")
    error.locator("button").click()
    page.wait_for_selector("#write-more:enabled")
    assert error.inner_text() == ""
    assert all("429" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_value_out_of_range_shows_the_message_of_the_server(visit: Visit) -> None:
    page = visit.page
    page.route("**/generate", lambda route: route.continue_(post_data='{"temperature": 99}'))
    page.click("#write-go")
    page.wait_for_selector("#write-error p")
    assert "temperature: got 99" in page.locator("#write-error").inner_text()
    assert page.locator("#write-error button").count() == 0
    visit.complaints.clear()


def test_lost_connection_is_reported_and_the_text_is_kept(browser: Browser, bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="flat", max_tokens=200_000) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/", locale="ko-KR")
        page = visit.page
        page.fill("#write-prompt", "abc")
        page.fill("#write-max_tokens", "5")
        page.click("#write-go")
        page.wait_for_selector("#write-again:enabled")
        kept = page.locator("#write-tokens").text_content()
        _end(server)
        page.click("#write-again")
        page.wait_for_selector("#write-error p")
        assert "서버에 연결할 수 없습니다" in page.locator("#write-error").inner_text()
        assert page.locator("#write-tokens").text_content() == kept
        visit.context.close()


def test_model_that_is_gone_leaves_the_list(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    for name in ("alpha", "beta", "gamma"):
        write_tiny_bundle(folder / name)
    with running_server(tmp_path, bundles=folder) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/")
        page = visit.page
        page.select_option("#write-model", "beta")
        visit.open_pane("score")
        page.select_option("#score-model", "gamma")
        visit.open_pane("write")
        (folder / "beta").rename(folder / ".beta")
        while server.client.get("/models/beta").status_code == 200:
            pass
        page.click("#write-go")
        page.wait_for_selector("#write-error p")
        page.wait_for_selector("#write-model option[value=beta]", state="detached")
        assert page.input_value("#write-model") == "alpha"
        assert page.input_value("#score-model") == "gamma"
        page.fill("#write-max_tokens", "5")
        page.click("#write-go")
        page.wait_for_selector("#write-again:enabled")
        assert page.locator("#write-error").inner_text() == ""
        assert all("404" in complaint for complaint in visit.complaints)
        visit.context.close()


def _end(server: Server) -> None:
    server.terminate()
    server.wait()

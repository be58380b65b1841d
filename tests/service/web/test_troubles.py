"""Test the error messages of the playground: missing key, busy server, lost connection."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import Server, running_server
from tests.service.web.conftest import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route


def test_entered_key_is_sent_to_a_server_with_keys(browser: Browser, bundles: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="letters", api_keys="open-sesame") as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/", wait=False)
        page = visit.page
        page.fill("#key", "열쇠")
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


def test_requests_refused_together_share_one_question_for_a_key(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    for name in ("alpha", "beta", "gamma"):
        write_tiny_bundle(folder / name)
    with running_server(tmp_path, bundles=folder, api_keys="open-sesame") as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/", wait=False)
        page = visit.page
        page.fill("#key", "open-sesame")
        page.click("#key-form .main")
        page.wait_for_selector("#write-go:enabled")
        visit.open_pane("compare")
        page.fill("#compare-prompt", "abc")
        page.fill("#compare-max_tokens", "3")
        for check in page.locator("#compare-models input").all():
            check.check()
        page.evaluate("sessionStorage.setItem('meari-key', 'one that was changed')")
        page.click("#compare-go")
        page.fill("#key", "open-sesame")
        page.click("#key-form .main")
        page.wait_for_selector("#compare-chart:visible")
        assert not page.locator("#key-dialog").is_visible()
        assert page.locator("#compare-rows tr").count() == 3
        visit.context.close()
        assert all("401" in complaint for complaint in visit.complaints)


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


def _event(data: str) -> dict[str, Any]:
    return {"status": 200, "content_type": "text/event-stream", "body": f"data: {data}\n\n"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 502, "body": "<html>"}, "서버에 연결할 수 없습니다"),
        ({"status": 500, "body": "null", "headers": {"X-Request-Id": "r-7"}}, "r-7"),
        ({"status": 418, "body": "[]"}, "서버 안에서"),
        ({"status": 429, "body": "", "headers": {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}}, "1초"),
        ({"status": 200, "body": "<html>"}, "끊겼습니다"),
        (_event('{"choices": [{"ind'), "끊겼습니다"),
        (_event('{"error": {"code": "invalid_request", "message": "of old"}}'), "of old"),
        (_event('{"error": {"code": "overloaded"}}'), "1초"),
        (_event('{"choices": [{"index": 0, "text": "", "finish_reason": "timeout"}]}\n\ndata: [DONE]'), "시간"),
    ],
)
def test_failures_of_proxies_and_streams_are_told_in_the_language_of_the_page(
    browser: Browser, released_server: Server, answer: dict[str, Any], message: str
) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", locale="ko-KR")
    page = visit.page
    page.wait_for_selector("#write-again:enabled")
    kept = page.locator("#write-tokens").text_content()
    page.route("**/generate", lambda route: route.fulfill(**answer))
    page.click("#write-go")
    page.wait_for_selector("#write-error p")
    assert message in page.locator("#write-error p").inner_text()
    assert page.locator("#write-tokens").text_content() == kept
    page.unroute("**/generate")
    page.click("#write-again")
    page.wait_for_selector("#write-outcome:not(:empty)")
    assert page.locator("#write-error").inner_text() == ""
    visit.context.close()
    assert all("Failed to load resource" in complaint for complaint in visit.complaints)


def test_value_that_the_server_refuses_is_pointed_at_with_its_message(visit: Visit) -> None:
    page = visit.page
    page.route("**/generate", lambda route: route.continue_(post_data='{"top_p": 99}'))
    page.click("#write-go")
    page.wait_for_selector("#write-error p")
    assert "top_p: got 99" in page.locator("#write-error").inner_text()
    assert page.locator("#write-error button").count() == 0
    assert _pointed_at(page) == ("write-top_p", "top_p: got 99, expected 0 <= top_p <= 1")
    visit.complaints.clear()


@pytest.mark.parametrize(
    ("language", "name", "value", "message"),
    [
        ("en-GB", "top_p", "7", "From 0.001 to 1"),
        ("ko-KR", "top_k", "1.5", "정수를 적어 주세요"),
        ("en-GB", "max_tokens", "", "From 1 to 4096"),
    ],
)
def test_wrong_value_in_a_closed_section_opens_it_and_is_pointed_at(
    browser: Browser, released_server: Server, language: str, name: str, value: str, message: str
) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", locale=language)
    page = visit.page
    section = page.locator("#pane-write details")
    section.evaluate("details => { details.open = true }")
    right = page.input_value(f"#write-{name}")
    page.fill(f"#write-{name}", value)
    section.evaluate("details => { details.open = false }")
    page.click("#write-go")
    assert _pointed_at(page) == (f"write-{name}", message)
    page.fill(f"#write-{name}", right)
    page.fill("#write-max_tokens", "3")
    assert page.locator(".wrong, [aria-invalid]").count() == 0
    page.click("#write-go")
    page.wait_for_selector("#write-again:enabled")
    visit.context.close()
    assert visit.complaints == []


def _pointed_at(page: Page) -> tuple[str, str]:
    """Return the field that has the focus, is invalid and can be seen, and its description."""
    field = page.locator("[aria-invalid=true]:focus:visible")
    described_by = field.get_attribute("aria-describedby")
    return field.get_attribute("id") or "", page.locator(f"#{described_by}:visible").inner_text()


def test_failures_leave_the_text_and_it_can_be_repeated_and_continued_after_them(
    browser: Browser, bundles: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"bundles": bundles, "default_model": "letters"}
    with running_server(tmp_path, **settings) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/", locale="ko-KR")
        page = visit.page
        for name, value in {"prompt": "abc", "max_tokens": "5", "seed": "7"}.items():
            page.locator(f"#write-{name}").evaluate("(field, value) => { field.value = value }", value)
        page.click("#write-go")
        page.wait_for_selector("#write-again:enabled")
        kept = page.locator("#write-tokens").text_content()
        page.route("**/generate", lambda route: route.fulfill(status=429, json={"error": {"code": "overloaded"}}))
        page.fill("#write-prompt", "xyz")
        page.click("#write-go")
        page.wait_for_selector("#write-error p")
        assert page.locator("#write-prompt-shown").text_content() == "abc"
        page.unroute("**/generate")
        _end(server)
        for button in ("go", "again", "more"):
            page.click(f"#write-{button}")
            page.wait_for_selector(f"#write-{button}:enabled")
            assert "서버에 연결할 수 없습니다" in page.locator("#write-error").inner_text()
            assert page.locator("#write-tokens").text_content() == kept
    with running_server(tmp_path, port=server.port, **settings) as server:  # its state tokens have another key
        page.click("#write-more")
        page.wait_for_selector("#write-again:enabled")
        body: dict[str, Any] = {"model": "letters", "prompt": "abc", "max_tokens": 10, "seed": 7, "temperature": 0.8}
        [whole] = server.post("/generate", **body).json()["choices"]
        assert page.locator("#write-tokens").text_content() == whole["text"]
        page.click("#write-again")
        page.wait_for_selector("#write-outcome:not(:empty)")
        assert page.locator("#write-tokens").text_content() == whole["text"]
        assert page.locator("#write-error").inner_text() == ""
        visit.context.close()


def test_failure_behind_a_chosen_alternative_leaves_the_text_before(visit: Visit) -> None:
    page = visit.page
    page.fill("#write-max_tokens", "20")
    page.click("#write-go")
    page.wait_for_selector("#write-again:enabled")
    kept = page.locator("#write-tokens").text_content()

    def refuse_the_last(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        is_last = "logit_bias" not in body and body["max_tokens"] == 20
        route.fulfill(status=429, json={"error": {"code": "overloaded"}}) if is_last else route.continue_()

    page.route("**/generate", refuse_the_last)
    page.locator("#write-tokens .token").nth(9).click()
    page.locator("#alternatives li:not(.written) button").first.click()
    page.wait_for_selector("#write-error p")
    assert page.locator("#write-tokens").text_content() == kept
    visit.complaints.clear()


def test_sentences_past_the_limits_are_sent_in_parts_that_a_failure_does_not_repeat(
    browser: Browser, bundles: Path, tmp_path: Path
) -> None:
    limits: dict[str, Any] = {"max_texts": 4, "max_body_bytes": 4096}
    with running_server(tmp_path, bundles=bundles, default_model="letters", **limits) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/")
        page = visit.open_pane("score")
        texts = [*("abcdefghi"), *(letter * 1400 for letter in "abc"), "한" * 900, "z"]
        sent: list[list[str]] = []

        def refuse_once(route: Route) -> None:
            sent.append(json.loads(route.request.post_data or "")["texts"])
            is_refused = len(sent) == 3
            route.fulfill(status=429, json={"error": {"code": "overloaded"}}) if is_refused else route.continue_()

        page.route("**/score", refuse_once)
        page.fill("#score-texts", "\n".join(texts))
        page.click("#score-go")
        page.click("#score-error button")
        page.wait_for_selector("#score-rows tr")
        parts = [texts[:4], texts[4:8], texts[8:11], texts[11:12], texts[12:]]
        assert sent == [parts[0], parts[1], parts[2], *parts[2:]]
        page.select_option("#score-order", "input")
        with page.expect_download() as download:
            page.click("#score-csv")
        rows = csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8")[1:]))
        add_end = page.is_checked("#score-end")
        expected = [
            result["logprob"]
            for part in parts
            for result in server.post("/score", texts=part, log_base="2", add_end=add_end).json()["results"]
        ]
        assert [(row["text"], -float(row["bits"])) for row in rows] == list(zip(texts, expected, strict=True))
        visit.context.close()


def test_reload_keeps_what_was_entered_and_forbidden_storage_does_no_harm(
    browser: Browser, released_server: Server
) -> None:
    url = f"http://127.0.0.1:{released_server.port}/"
    for is_forbidden in (False, True):
        visit = Visit(browser, url)
        page = visit.page
        if is_forbidden:
            for kind in ("localStorage", "sessionStorage"):
                thrown = "{ get() { throw new DOMException('no', 'SecurityError'); } }"
                page.add_init_script(f"Object.defineProperty(window, '{kind}', {thrown})")
            page.reload()
            page.wait_for_selector("#write-go:enabled")
        page.locator("#pane-write details").evaluate("details => { details.open = true }")
        page.select_option("#write-model", "shakespeare-gru")
        page.fill("#write-prompt", "Sir,")
        page.fill("#write-top_p", "0.5")
        visit.open_pane("score")
        page.select_option("#score-model", "books-lstm")
        page.uncheck("#score-end")
        visit.open_pane("compare")
        page.uncheck("#compare-models input[value=shakespeare-rnn]")
        page.reload()
        page.wait_for_selector("#write-go:enabled", state="attached")
        values = page.locator("#write-model, #write-prompt, #write-top_p, #score-model, #score-texts").evaluate_all(
            "all => all.map(field => field.value)"
        )
        found = [
            *values,
            page.is_checked("#score-end"),
            page.is_checked("#compare-models input[value=shakespeare-rnn]"),
        ]
        if is_forbidden:
            assert found == ["ROMEO:\n", "shakespeare-lstm", "", found[3], "shakespeare-lstm", False, True]
        else:
            assert found == ["Sir,", "shakespeare-gru", "0.5", found[3], "books-lstm", False, False]
        visit.context.close()
        assert visit.complaints == []


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

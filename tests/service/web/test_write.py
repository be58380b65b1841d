"""Test the Write pane in a real browser on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from tests.service.running import Server
from tests.service.web.conftest import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Page

WRITTEN = "#write-again:enabled"
STOP_AFTER_30 = """() => { window.stopped = new Promise((resolve) => {
  const tokens = document.getElementById("write-tokens");
  new MutationObserver((_, observer) => {
    if (tokens.childElementCount <= 30) return;
    observer.disconnect();
    document.getElementById("write-stop").click();
    resolve();
  }).observe(tokens, { childList: true });
}) }"""


def write(page: Page, tokens: int, **fields: str) -> str:
    page.locator("#pane-write details").evaluate("details => { details.open = true }")
    for name, value in {"max_tokens": str(tokens), **fields}.items():
        page.fill(f"#write-{name}", value)
    page.click("#write-go")
    return finished(page)


def finished(page: Page) -> str:
    page.wait_for_selector(WRITTEN)
    return text(page)


def text(page: Page) -> str:
    return page.locator("#write-tokens").text_content() or ""


def answer(server: Server, **body: object) -> httpx.Response:
    return server.post("/generate", model="shakespeare-lstm", **body)


def test_generated_text_is_shaded_and_matches_the_api_for_its_seed(visit: Visit, released_server: Server) -> None:
    written = write(visit.page, 40, prompt="JULIET:\n", seed="11", temperature="0.7")
    choice = answer(released_server, prompt="JULIET:\n", max_tokens=40, seed=11, temperature=0.7, logprobs=1).json()[
        "choices"
    ][0]
    assert written == choice["text"]
    assert visit.page.locator("#write-seed-used").inner_text() == "11"
    shades = visit.page.locator("#write-tokens .token").evaluate_all("all => all.map(token => token.className)")
    surprising = [i for i, token in enumerate(choice["tokens"]) if token["logprob"] < -8 * 0.6931472]
    assert len(shades) == 40
    assert all("bits-7" in shades[i] or "bits-8" in shades[i] for i in surprising)
    assert len({shade.split()[1] for shade in shades}) > 2


def test_unknown_tokens_of_a_prompt_are_counted(visit: Visit) -> None:
    for prompt, counted in [("한 O", True), ("O", False)]:
        write(visit.page, 3, prompt=prompt, seed="1")
        figures = visit.page.locator("#write-figures").inner_text()
        assert ("that the model does not know: 1." in figures) is counted, figures


def test_selected_alternative_follows_the_unchanged_text(visit: Visit, released_server: Server) -> None:
    page = visit.page
    written = write(page, 40, prompt="JULIET:\n", seed="11", temperature="0.7")
    page.locator("#write-tokens .token").nth(20).hover()
    assert page.locator("#alternatives li").count() >= 8
    page.locator("#write-tokens .token").nth(20).click()
    button = page.locator("#alternatives li:not(.written) button").first
    label = button.get_attribute("aria-label") or ""
    picked = {"space": " ", "new line": "\n"}.get(label.rsplit(", ", 1)[0], label[0])
    button.click()
    rewritten = finished(page)
    assert rewritten.startswith(written[:20] + picked)
    assert len(rewritten) == 21 + 40
    # The state after those 21 characters equals that of the text, hence the API gives the same continuation.
    first = answer(released_server, prompt="JULIET:\n" + written[:20] + picked, max_tokens=40, seed=11, temperature=0.7)
    assert rewritten[21:] == first.json()["choices"][0]["text"]
    page.click("#write-again")
    page.wait_for_selector("#write-outcome:not(:empty)")
    assert finished(page) == rewritten
    assert "bit for bit" in page.locator("#write-outcome").inner_text()


def test_arrow_keys_move_between_tokens_and_into_alternatives(visit: Visit) -> None:
    page = visit.page
    write(page, 12, prompt="ROMEO:\n", seed="5")
    page.locator("#write-tokens .token").first.focus()
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    assert "Token 11" in page.locator("#alternatives-title").inner_text()
    assert page.evaluate("() => document.activeElement.closest('#alternatives') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.dataset.index") == "10"


def test_stop_keeps_the_text_which_can_be_continued(visit: Visit, released_server: Server) -> None:
    page = visit.page
    page.locator("#pane-write details").evaluate("details => { details.open = true }")
    for name, value in {"max_tokens": "4000", "seed": "3", "prompt": "ROMEO:\n"}.items():
        page.fill(f"#write-{name}", value)
    page.wait_for_selector(WRITTEN)  # the example, which is not to be stopped
    page.evaluate(STOP_AFTER_30)
    page.click("#write-go")
    page.evaluate("window.stopped")
    stopped = finished(page)
    assert 30 < len(stopped) < 4000
    page.fill("#write-max_tokens", "25")
    page.click("#write-more")
    longer = finished(page)
    whole = answer(released_server, prompt="ROMEO:\n", max_tokens=len(longer), seed=3, temperature=0.8)
    assert longer == whole.json()["choices"][0]["text"]
    assert len(longer) == len(stopped) + 25


def test_korean_tokens_with_parts_of_characters_join_to_the_text(visit: Visit, released_server: Server) -> None:
    page = visit.page
    page.select_option("#write-model", "nsmc-lstm")
    written = write(page, 60, prompt="이 영화는", seed="14", temperature="1.6")
    whole = released_server.post(
        "/generate", model="nsmc-lstm", prompt="이 영화는", max_tokens=60, seed=14, temperature=1.6
    )
    assert written == whole.json()["choices"][0]["text"]

"""Test that a copied link, curl and Python code give the very same text, and that a damaged link does no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.patience import PATIENCE, until
from tests.service.running import ROOT, Server, running_server
from tests.service.web.conftest import Visit
from tests.service.web.test_write import finished, write

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page

PROMPT = 'KING:\nWhat\'s "this" & \\that? $HOME `id` 100% <b>é</b>\n'


def _copied(page: Page, kind: str) -> str:
    page.click(f"#write-copy-{kind}")
    return page.input_value("#write-copied")


def test_link_shows_the_very_same_text_to_whoever_opens_it(browser: Browser, released_server: Server) -> None:
    url = f"http://127.0.0.1:{released_server.port}/"
    visit = Visit(browser, url)
    page = visit.page
    write(page, 30, prompt=PROMPT, seed="11", temperature="0.7", top_p="0.9", top_k="40")
    page.click("#write-more")
    finished(page)
    page.locator("#write-tokens .token").nth(17).click()
    page.locator("#alternatives li:not(.written) button").first.click()
    written = finished(page)
    link = _copied(page, "link")
    assert page.locator("#write-copy-curl").is_disabled()  # a chosen alternative is more than one request
    visit.context.close()
    assert visit.complaints == []
    assert link.startswith(url + "#write?")
    other = Visit(browser, link, locale="ko-KR", color_scheme="dark")
    assert finished(other.page) == written
    shown = {
        name: other.page.input_value(f"#write-{name}") for name in ("prompt", "seed", "temperature", "top_p", "top_k")
    }
    assert shown == {"prompt": PROMPT, "seed": "11", "temperature": "0.7", "top_p": "0.9", "top_k": "40"}
    assert other.page.input_value("#write-model") == "shakespeare-lstm"
    assert other.page.locator("#write-tokens .picked").count() == 1
    assert _copied(other.page, "link") == link
    assert other.page.locator("#write-note").inner_text() == ""
    other.context.close()
    assert other.complaints == []


def test_curl_and_python_give_the_very_same_text(visit: Visit) -> None:
    page = visit.page
    written = write(page, 25, prompt=PROMPT, seed="5", temperature="0.9", min_p="0.02")
    curl = _copied(page, "curl")
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, timeout=PATIENCE, check=True).stdout
    assert json.loads(answer)["choices"][0]["text"] == written
    environment = {**os.environ, "NO_PROXY": "*"}
    python = [sys.executable, "-c", _copied(page, "python")]
    printed = subprocess.run(python, capture_output=True, timeout=PATIENCE, check=True, cwd=ROOT, env=environment)
    assert printed.stdout.decode() == written + "\n"


def test_small_limit_bounds_fields_and_copies_and_a_link_s_settings_outlive_a_reload(
    browser: Browser, bundles: Path, tmp_path: Path
) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="letters", max_tokens=8) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/")
        page = visit.page
        finished(page)  # the example is within the limit, too
        assert page.input_value("#write-max_tokens") == page.input_value("#compare-max_tokens") == "8"
        page.fill("#write-prompt", "ab")
        page.locator("#write-repetition_penalty").evaluate("field => { field.value = 1.5 }")
        page.click("#write-go")
        finished(page)
        assert page.locator("#write-copy-curl").is_enabled()
        page.click("#write-more")
        written = finished(page)
        for kind in ("curl", "python"):
            assert page.locator(f"#write-copy-{kind}").is_disabled()
        assert "longer than one request" in page.locator("#write-copy-note").inner_text()
        other = Visit(browser, _copied(page, "link"))
        assert finished(other.page) == written
        other.page.click("#write-go")  # another text takes the link's place in the address
        finished(other.page)
        until(lambda: other.page.url.endswith("#write"))
        other.page.reload()
        other.page.wait_for_selector("#write-go:enabled")
        names = ("prompt", "repetition_penalty", "max_tokens")
        assert [other.page.input_value(f"#write-{name}") for name in names] == ["ab", "1.5", "8"]
        for each in (visit, other):
            each.context.close()
            assert each.complaints == []


def _link(**fields: object) -> str:
    """Return what stands behind # in a link with these fields, with its right check."""
    text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in fields.items())
    hashed = 0x811C9DC5
    for character in text:
        hashed = ((hashed ^ ord(character)) * 0x01000193) & 0xFFFFFFFF
    return f"#write?{text}&check={hashed:08x}"


GOOD = {"model": "shakespeare-rnn", "bundle": "", "prompt": "O", "seed": 1, "tokens": 5}
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (_link(**GOOD)[:-30], "This link is damaged"),
        (_link(**GOOD).replace("rnn", "gru"), "This link is damaged"),
        ("#write?" + HOSTILE, "This link is damaged"),
        (_link(**{**GOOD, "seed": "1e999"}), "This link is damaged"),
        (_link(**{**GOOD, "tokens": -4}), "This link is damaged"),
        (_link(**GOOD, picks="1.x"), "This link is damaged"),
        (_link(**{**GOOD, "model": "none"}), "by the model none, which this server does not have"),
        (_link(**{**GOOD, "model": HOSTILE}), HOSTILE),
        (_link(**{**GOOD, "bundle": "0123"}), "another version of shakespeare-rnn"),
    ],
)
def test_link_that_cannot_be_kept_says_why_and_runs_nothing(visit: Visit, link: str, message: str) -> None:
    page = visit.page
    page.evaluate("link => { location.hash = link }", link)
    page.wait_for_selector("#write-note:not(:empty)")
    assert message in page.locator("#write-note").inner_text()
    page.wait_for_selector("#write-again:enabled")  # the example, or the text of the other version
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x], script:not([src])").count() == 0


def test_prompt_of_a_link_is_text_and_no_markup(visit: Visit) -> None:
    page = visit.page
    page.wait_for_selector("#write-again:enabled")
    page.evaluate("link => { location.hash = link }", _link(**{**GOOD, "prompt": HOSTILE}))
    until(lambda: page.text_content("#write-prompt-shown") == HOSTILE)
    assert page.input_value("#write-prompt") == HOSTILE
    assert page.evaluate("window.hit") is None
    assert page.locator("#pane-write img, #pane-write script").count() == 0


def test_what_is_entered_after_a_link_outlives_a_reload(visit: Visit) -> None:
    page = visit.page
    page.wait_for_selector("#write-again:enabled")
    page.evaluate("link => { location.hash = link }", _link(**GOOD))
    until(lambda: page.text_content("#write-prompt-shown") == GOOD["prompt"])
    page.fill("#write-prompt", "Nobody shall lose this")
    page.reload()
    page.wait_for_selector("#write-go:enabled")
    assert page.input_value("#write-prompt") == "Nobody shall lose this"
    assert page.url.endswith("#write")

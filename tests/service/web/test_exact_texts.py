"""Test that the panes take the text in a box as the service does: white space, normal forms, bytes of characters."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import pytest

from tests.service.running import Server
from tests.service.web.conftest import Visit
from tests.service.web.test_write import write

LINES = [
    "\ufeffTo be",
    "To be\ufeff",
    " To be ",
    "\ufeff",
    "To\x85be",
    "To\u2028be\x0b",
    "To be\x1c",
    unicodedata.normalize("NFD", "한국어 영화"),
    "\u1112\u1161",
    "👨\u200d👩\u200d👧 To be",
]
BLANK = ["", "  ", "\t\u00a0\u3000", "\x1c", "\x85", "\u2028\x0c"]


@pytest.mark.parametrize("model", ["nsmc-lstm", "shakespeare-rnn"])
def test_each_line_is_scored_as_it_stands_and_white_space_alone_is_none(
    visit: Visit, released_server: Server, model: str
) -> None:
    page = visit.open_pane("score")
    page.select_option("#score-model", model)
    page.check("#score-end")
    page.fill("#score-texts", "\n".join([*BLANK, *LINES, *BLANK]))
    page.click("#score-go")
    page.wait_for_selector("#score-list li")
    page.select_option("#score-order", "input")
    results = released_server.post("/score", model=model, texts=LINES, log_base="2", add_end=True).json()["results"]
    with page.expect_download() as download:
        page.click("#score-csv")
    data = Path(download.value.path()).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(data.removeprefix("\ufeff"), newline="")))
    assert [row["text"] for row in rows] == LINES
    assert [float(row["bits"]) for row in rows] == [-result["logprob"] for result in results]
    page.select_option("#score-shade", "token")
    shown = page.locator("#score-list .sentence").evaluate_all(
        """all => all.map((each) =>
          [...each.querySelectorAll(".token:not(.end-word)")].map(({ textContent }) => textContent).join(""))"""
    )
    assert shown == LINES


def test_character_of_several_tokens_is_shown_once(visit: Visit) -> None:
    page = visit.open_pane("score")
    page.select_option("#score-model", "nsmc-lstm")
    page.check("#score-end")
    page.fill("#score-texts", "햏")
    page.click("#score-go")
    page.wait_for_selector("#score-list li")
    page.select_option("#score-shade", "token")
    tokens = page.locator("#score-list .token")
    assert tokens.all_text_contents() == ["", "햏", "end of text"]
    assert "part" in (tokens.first.get_attribute("class") or "").split()


def test_words_of_a_draft_part_where_those_of_the_service_do(visit: Visit) -> None:
    words = """async (texts) => (await import("/web/tokens.js"))
      .bitsOfWords(texts.map((text) => ({ text, shown: text, logprob: -Math.LN2 })))"""
    assert visit.page.evaluate(words, ["a", "\ufeff", "b"]) == [3, 3, 3]
    assert visit.page.evaluate(words, ["a", "\x85", "b"]) == [1, None, 2]
    assert visit.page.evaluate(words, ["a", "\x1c", "b"]) == [1, None, 2]


def test_decomposed_prompt_and_heat_map_point_at_one_another(visit: Visit) -> None:
    page = visit.open_pane("compare")
    page.locator("#compare-models input").evaluate_all(
        "all => all.forEach(each => { if (each.checked !== (each.value === 'nsmc-lstm')) each.click(); })"
    )
    page.fill("#compare-prompt", unicodedata.normalize("NFD", "정말 재미있는 영화, 정말"))
    page.fill("#compare-max_tokens", "5")
    page.click("#compare-go")
    page.wait_for_selector("#compare-chart-lines polyline", state="attached")
    options = page.locator("#compare-cards [role=option]")
    for place in range(4):
        options.nth(place).hover()
        assert page.input_value("#compare-at") == str(place)
        assert options.evaluate_all("all => all.map(each => each.ariaSelected)").index("true") == place


def test_text_with_another_token_keeps_characters_of_several_tokens(visit: Visit, released_server: Server) -> None:
    text = "\ufeff햏 정말"
    tokens = released_server.post("/tokenize", model="nsmc-lstm", text=text).json()["tokens"]
    assert sum("bytes" in token for token in tokens) > 2
    changed = "async (tokens) => (await import('/web/echo.js')).changed(tokens, tokens.length - 1, { kind: 'bpe' })"
    assert visit.page.evaluate(changed, tokens) == "\ufeff햏나"


@pytest.mark.parametrize("value", ["", "1.5", "0", "5000"])
def test_text_is_not_continued_by_a_number_of_tokens_that_is_none(visit: Visit, value: str) -> None:
    page = visit.page
    written = write(page, 5, seed="3")
    page.fill("#write-max_tokens", value)
    page.click("#write-more")
    assert page.locator("[aria-invalid=true]:focus").get_attribute("id") == "write-max_tokens"
    page.locator("#write-tokens .token").first.click()
    page.locator("#alternatives button").last.click()
    assert page.locator("[aria-invalid=true]:focus").get_attribute("id") == "write-max_tokens"
    assert page.locator("#write-tokens").text_content() == written

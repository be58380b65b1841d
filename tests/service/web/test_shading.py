"""Test the first screen of the playground, its model cards, and the shades of surprisal, in a real browser."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import re
from typing import TYPE_CHECKING, Any, Literal

import pytest

from meari.api.surprisal import Surprisal, SurprisalRow
from tests.service.running import Server
from tests.service.web.conftest import Visit
from tests.service.web.test_write import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MIN_TEXT_CONTRAST = 4.5
MIN_SHADE_CONTRAST = 1.2
TOKEN_EDGES = (0.5, 1, 2, 3, 4.5, 6, 8, 11)
WORD_EDGES = (2, 4, 6, 8, 11, 14, 18, 24)
RANGES = {
    "token": ["< 0.5", "0.5–1", "1–2", "2–3", "3–4.5", "4.5–6", "6–8", "8–11", "≥ 11"],
    "word": ["< 2", "2–4", "4–6", "6–8", "8–11", "11–14", "14–18", "18–24", "≥ 24"],
}
COLOURS = """() => [...document.querySelectorAll("#write-legend li:not(.unit)")].map((shade) => {
  const { color, backgroundColor } = getComputedStyle(shade);
  const card = getComputedStyle(document.querySelector("#pane-write .text")).backgroundColor;
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  return [numbers(color), numbers(backgroundColor === "rgba(0, 0, 0, 0)" ? card : backgroundColor)];
})"""


HOSTILE = "<script>top.hit = 1</script> </div></style><img src=x onerror='top.hit = 1'> & \"a\" <b>bold"
RIGHT_TO_LEFT = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"
KOREAN = "이 영화 정말 재미있게 봤습니다."


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("by", ["token", "word"])
def test_table_of_a_notebook_shows_any_text_as_it_is_in_the_shades_of_the_playground(
    browser: Browser, scheme: Literal["light", "dark"], by: Literal["token", "word"]
) -> None:
    edges = TOKEN_EDGES if by == "token" else WORD_EDGES
    context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 800})
    page = context.new_page()
    for text in (HOSTILE, RIGHT_TO_LEFT, KOREAN, "word" * 100):
        rows, at = [], 0
        for nth, part in enumerate(re.findall(r"\s*\S+", text)):
            bits = (0.0, *edges)[nth % 9]
            rows.append(SurprisalRow(part, at, at := at + len(part), bits, -bits, unknown=nth == 1))
        page.set_content(f"<body>{Surprisal(text, by, '2', rows)._repr_html_()}</body>")
        box = page.locator(".meari-text")
        assert (box.text_content() or "").partition("\n")[0] == text
        assert box.locator("*").evaluate_all("all => [...new Set(all.map(each => each.tagName))].sort()") == [
            "SMALL",
            "SPAN",
        ]
        assert page.evaluate("() => window.hit === undefined && document.documentElement.scrollWidth <= 390")
        levels = box.locator("span").evaluate_all("all => all.map(each => each.classList[0])")
        assert levels == [f"b{nth % 9}" for nth in range(len(rows))]
        _tells_shades_apart(page)
        if text == RIGHT_TO_LEFT:
            first, last = (each.bounding_box() for each in box.locator("span").all()[:2])
            assert first is not None
            assert last is not None
            assert first["x"] > last["x"]
            assert first["x"] > 200
    context.close()


def _tells_shades_apart(page: Page) -> None:
    found = page.locator(".meari-text").evaluate(
        """box => [getComputedStyle(box), ...[1, 2, 3, 4, 5, 6, 7, 8].map((level) => {
          const shade = box.appendChild(document.createElement("span"));
          shade.className = `b${level}`;
          return getComputedStyle(shade);
        })].map(({ color, backgroundColor }) => [color, backgroundColor].map((c) => c.match(/[\\d.]+/g).map(Number)))"""
    )
    for (_, one), (_, other) in itertools.pairwise(found):
        assert _contrast(one, other) >= MIN_SHADE_CONTRAST
    assert all(_contrast(text, shade) >= MIN_TEXT_CONTRAST for text, shade in found)


@pytest.mark.parametrize(
    ("language", "model", "prompt", "seed", "viewport"),
    [
        ("en-GB", "shakespeare-lstm", "ROMEO:\n", 10, {"width": 390, "height": 844}),
        ("ko-KR", "nsmc-lstm", "이 영화는", 35, {"width": 390, "height": 844}),
        ("ko-KR", "nsmc-lstm", "이 영화는", 35, {"width": 1440, "height": 900}),
    ],
)
def test_first_screen_shows_a_shaded_text_of_the_language_s_model_above_the_fold(
    browser: Browser,
    released_server: Server,
    language: str,
    model: str,
    prompt: str,
    seed: int,
    viewport: dict[str, int],
) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", locale=language, viewport=viewport)
    page = visit.page
    page.wait_for_selector("#write-again:enabled")
    body = {"model": model, "prompt": prompt, "temperature": 0.8, "seed": seed, "max_tokens": 120}
    expected = released_server.post("/generate", **body).json()["choices"][0]["text"]
    assert page.locator("#write-tokens").text_content() == expected
    assert page.input_value("#write-model") == model
    assert page.input_value("#write-prompt") == prompt
    assert page.locator("#write-seed-used").inner_text() == str(seed)
    tokens = page.locator("#write-tokens .token")
    assert len(set(tokens.evaluate_all("all => all.map(token => getComputedStyle(token).backgroundColor)"))) > 2
    box = tokens.nth(min(20, tokens.count() - 1)).bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < viewport["height"] - 100
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    visit.context.close()
    assert visit.complaints == []


def test_wide_screen_has_all_sampling_controls_in_one_row(visit: Visit) -> None:
    names = ["max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"]
    boxes = [visit.page.locator(f"#write-{name}").bounding_box() for name in ("model", *names)]
    bottoms = [round(box["y"] + box["height"]) for box in boxes if box is not None]
    assert len(bottoms) == 8
    assert max(bottoms) - min(bottoms) <= 2


def test_cards_say_what_the_service_says_of_a_model(visit: Visit, released_server: Server) -> None:
    page = visit.page
    for name in ("shakespeare-esn", "books-lstm"):
        page.select_option("#write-model", name)
        model = released_server.client.get(f"/models/{name}").json()
        part = model["figures"]["reported_part"]
        date = dt.date.fromisoformat(model["figures"]["training_ended"])
        megabytes = sum(graph["bytes"] for graph in model["graphs"].values()) / 1e6
        assert page.locator("[data-card=write-model]").inner_text().split(" · ") == [
            f"Trained on {model['corpus']['name']} ({model['corpus']['licence']})",
            f"{model['figures'][part]['bits_per_char']:.3f} bits/char on {part} text",
            (
                f"{model['family'].upper()}, {model['sizes']['parameters'] / 1e6:.1f} M parameters, "
                f"{megabytes:.1f} MB ({model['precision']})"
            ),
            f"trained until {date:%b} {date.day}, {date.year}",
        ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_neighbouring_shades_and_the_text_upon_them_are_told_apart(
    browser: Browser, released_server: Server, scheme: str
) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", color_scheme=scheme)
    visit.page.wait_for_selector("#write-again:enabled")
    shades = visit.page.evaluate(COLOURS)
    assert len(shades) == 9
    assert [
        round(_contrast(text, shade), 2) for text, shade in shades if _contrast(text, shade) < MIN_TEXT_CONTRAST
    ] == []
    levels = [_luminance(shade) for _, shade in shades]
    assert levels == sorted(levels, reverse=scheme == "light")
    neighbours = [_contrast(one[1], other[1]) for one, other in itertools.pairwise(shades)]
    assert min(neighbours) > MIN_SHADE_CONTRAST, neighbours
    visit.context.close()


def _contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: list[float]) -> float:
    """Return the relative luminance as WCAG 2 defines it."""
    parts = [value / 255 for value in colour[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_written_text_is_shaded_by_token_or_by_word_with_a_legend_of_its_own(
    visit: Visit, released_server: Server
) -> None:
    page = visit.page
    written = write(page, 80, prompt="JULIET:\n", seed="11", temperature="0.7")
    assert page.locator("#write-legend li:not(.unit)").all_inner_texts() == RANGES["token"]
    page.select_option("#write-shade", "word")
    assert page.locator("#write-legend li:not(.unit)").all_inner_texts() == RANGES["word"]
    body: dict[str, Any] = {"model": "shakespeare-lstm", "context": "JULIET:\n", "text": written, "log_base": "2"}
    [scored] = released_server.post("/score", **body, words=True, tokens=True, add_end=False).json()["results"]
    tokens = _shades(page)
    for word in scored["words"]:
        expected = sum(edge <= -word["logprob"] for edge in WORD_EDGES)
        found = {tokens[at] for at in range(word["start"], word["end"])}
        assert found == {expected}, word
    blank = [at for at, character in enumerate(written) if character.isspace()]
    assert {tokens[at] for at in blank} == {0}
    page.select_option("#write-shade", "token")
    assert _shades(page) == [sum(edge <= -token["logprob"] for edge in TOKEN_EDGES) for token in scored["tokens"]]


def _shades(page: Page) -> list[int]:
    names = page.locator("#write-tokens .token").evaluate_all("all => all.map(token => token.className)")
    return [int(name.split("bits-")[1][0]) for name in names]


def test_spaces_before_a_token_are_not_shaded(visit: Visit) -> None:
    page = visit.page
    page.select_option("#write-model", "books-lstm")
    written = write(page, 40, prompt="The weather", seed="3", temperature="1")
    assert page.locator("#write-tokens").text_content() == written
    card = page.locator("#pane-write .text").evaluate("text => getComputedStyle(text).backgroundColor")
    leads = page.locator("#write-tokens .lead").evaluate_all(
        "all => all.map(lead => [lead.textContent, getComputedStyle(lead).backgroundColor])"
    )
    assert leads
    assert all(text.isspace() and colour == card for text, colour in leads)
    first = page.locator("#write-tokens .token").evaluate_all(
        "all => all.map(token => token.lastChild?.textContent ?? '')"
    )
    assert not [text for text in first if text.strip() and text != text.lstrip()]


def test_unknown_characters_are_marked_and_counted(visit: Visit) -> None:
    page = visit.page
    write(page, 3, prompt="O 한 now, 글", seed="1")
    page.wait_for_selector("#write-prompt-shown mark")
    assert page.locator("#write-prompt-shown mark.unknown").all_inner_texts() == ["한", "글"]
    assert page.locator("#write-prompt-shown").text_content() == "O 한 now, 글"
    assert "does not know: 2." in page.locator("#write-figures").inner_text()
    visit.open_pane("score")
    page.fill("#score-texts", "O 한글 now")
    page.click("#score-go")
    page.wait_for_selector("#score-list li")
    assert page.locator("#score-list .token:has(small.unknown)").count() == 1
    assert "Unknown tokens\n2" in page.locator("#score-list .numbers").inner_text()
    page.select_option("#score-shade", "token")
    assert page.locator("#score-list .token.unknown").all_inner_texts() == ["한", "글"]


def test_scored_sentences_are_shaded_by_word_or_by_token(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("score")
    page.select_option("#score-model", "books-lstm")
    text = "He was very glad to see me."
    page.fill("#score-texts", text)
    page.check("#score-end")
    page.click("#score-go")
    page.wait_for_selector("#score-list li")
    body: dict[str, Any] = {"model": "books-lstm", "text": text, "words": True, "tokens": True, "add_end": True}
    [scored] = released_server.post("/score", **body).json()["results"]
    for unit, edges in (("word", WORD_EDGES), ("token", TOKEN_EDGES)):
        page.select_option("#score-shade", unit)
        assert page.locator("#score-legend li:not(.unit)").all_inner_texts() == RANGES[unit]
        names = page.locator("#score-list .token").evaluate_all("all => all.map(token => token.className)")
        assert [int(name.split("bits-")[1][0]) for name in names] == [
            sum(edge <= -each["logprob"] / math.log(2) for edge in edges) for each in scored[f"{unit}s"]
        ]
    assert (page.locator("#score-list .sentence").text_content() or "").startswith(text)

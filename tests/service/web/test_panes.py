"""Test the panes Score, Compare and Learn in a real browser on a real server."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import PATIENCE, until
from tests.service.running import Server, running_server
from tests.service.web.conftest import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SENTENCES = ["the king is dead", "The king is dead.", "The king is =cabbage, red."]


def test_sentences_are_ranked_by_their_api_scores_and_can_be_downloaded(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("score")
    page.fill("#score-texts", "\n".join(["", *SENTENCES, "  "]))
    page.check("#score-end")
    page.click("#score-go")
    page.wait_for_selector("#score-list li")
    results = released_server.post("/score", texts=SENTENCES, log_base="2", words=True, add_end=True).json()["results"]
    best = sorted(range(3), key=lambda i: -results[i]["logprob"])
    with page.expect_download() as download:
        page.click("#score-csv")
    data = Path(download.value.path()).read_text("utf-8")
    assert data.startswith("\ufeff")
    rows = list(csv.DictReader(io.StringIO(data[1:])))
    assert [row["text"] for row in rows] == [SENTENCES[i] for i in best]
    assert [float(row["bits"]) for row in rows] == [-results[i]["logprob"] for i in best]
    assert float(rows[0]["perplexity"]) == results[best[0]]["perplexity"]
    with page.expect_download() as download:
        page.click("#score-csv-words")
    words = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8")[1:])))
    first = [row for row in words if row["rank"] == "1"]
    assert [row["word"] for row in first[:-1]] == SENTENCES[best[0]].split()
    assert first[-1]["word"] == "<|end|>"
    assert math.isclose(sum(float(row["bits"]) for row in first), -results[best[0]]["logprob"])
    assert "'=cabbage," in {row["word"] for row in words}  # a spreadsheet must not read it as a formula
    assert {row["word"] for row in words if row["unknown"] == "true"} == {"'=cabbage,"}
    assert page.locator("#score-list .token", has=page.locator("small.unknown")).count() == 1


@pytest.mark.parametrize("language", ["en-GB", "ko-KR"])
def test_words_without_end_stay_within_a_telephone(browser: Browser, released_server: Server, language: str) -> None:
    word = "w" * 300
    url = f"http://127.0.0.1:{released_server.port}/"
    visit = Visit(browser, url, locale=language, viewport={"width": 390, "height": 844})
    page = visit.open_pane("score")
    page.fill("#score-texts", f"To {word} be\nTo {word}{word}")
    page.click("#score-go")
    page.wait_for_selector("#score-rows tr")
    for shade in ("word", "token"):
        page.select_option("#score-shade", shade)
        page.wait_for_selector("#score-list .token >> nth=3")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, shade
    page = visit.open_pane("type")
    page.fill("#type-text", f"To {word}")
    page.wait_for_selector("#type-list:not([data-is-old])", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page = visit.open_pane("write")
    page.fill("#write-prompt", word)
    page.fill("#write-max_tokens", "5")
    page.click("#write-go")
    page.wait_for_selector("#write-again:enabled")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.context.close()
    assert visit.complaints == []


def test_end_is_scored_by_the_default_of_the_selected_model(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("score")
    for name, has_ends in (("nsmc-lstm", True), ("shakespeare-gru", False), ("books-lstm", True)):
        page.select_option("#score-model", name)
        assert page.is_checked("#score-end") is has_ends
        page.fill("#score-texts", "abc")
        page.click("#score-go")
        page.wait_for_selector("#score-go:enabled")  # the list of the model before stands there until then
        with page.expect_download() as download:
            page.click("#score-csv")
        [row] = csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8")[1:]))
        [expected] = released_server.post("/score", model=name, text="abc").json()["results"]
        assert (row["model"], row["tokens"]) == (name, str(expected["num_tokens"]))


def test_two_sentences_diverge_at_their_first_different_word(visit: Visit) -> None:
    page = visit.open_pane("score")
    page.fill("#score-texts", "I do love you\nI do not love you")
    page.check("#score-end")
    page.click("#score-go")
    page.wait_for_selector("#score-rows tr")
    page.select_option("#score-left", "1")
    page.select_option("#score-right", "2")
    rows = page.locator("#score-rows tr")
    assert rows.evaluate_all("all => all.map(row => row.className)") == [
        *["prefix"] * 2,
        "parted",
        *["same"] * 3,
        "total",
    ]
    inserted = rows.nth(2).locator("td").all_inner_texts()
    assert (inserted[0], inserted[2]) == ("–", "not")
    assert rows.nth(0).locator("td").last.inner_text() == "0.00"


def test_four_families_generate_together_and_show_their_states(visit: Visit) -> None:
    page = visit.open_pane("compare")
    page.fill("#compare-max_tokens", "40")
    page.click("#compare-go")
    page.wait_for_selector("#compare-cards canvas >> nth=3", timeout=PATIENCE * 1000)
    table = page.locator("#compare-rows tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [row[1] for row in table] == ["RNN", "GRU", "LSTM", "ESN"]
    figures = [[float(cell.replace(",", "")) for cell in row[2:]] for row in table]
    assert all(value > 0 for row in figures for value in row)
    cards = page.locator("#compare-cards article")
    assert cards.nth(2).locator("option").all_inner_texts() == ["h0", "c0", "h1", "c1"]
    colours = page.locator("canvas").evaluate_all(
        """all => all.map(canvas => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return new Set(Array.from({ length: data.length / 4 }, (_, i) => data.slice(4 * i, 4 * i + 3).join())).size;
        })"""
    )
    assert all(count > 50 for count in colours)
    page.locator("#compare-at").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#compare-at-token").inner_text() == "2: O"
    page.click("#compare-echo")
    page.wait_for_selector("#compare-back:visible")
    notes = page.locator("#compare-cards .heat-frame + p").all_inner_texts()
    assert all("token 2 (O)" in note for note in notes)
    assert "gone after" in notes[3]  # the echo state property makes a reservoir forget
    page.click("#compare-back")
    assert "moves by" in page.locator("#compare-cards .heat-frame + p").first.inner_text()


def test_unknown_characters_are_one_token_each_in_what_is_compared(visit: Visit) -> None:
    """Their token is called <|unk|>, which as text would be seven tokens: more than may be asked for, and misplaced."""
    page = visit.open_pane("compare")
    page.fill("#compare-prompt", "영화가 정말 " + "긴단어" * 60)
    page.fill("#compare-max_tokens", "100")
    page.click("#compare-go")
    page.wait_for_selector("#compare-cards canvas >> nth=3", timeout=PATIENCE * 1000)
    page.wait_for_selector("#compare-chart-lines polyline >> nth=3", state="attached", timeout=PATIENCE * 1000)
    widths = page.locator("#compare-cards canvas").evaluate_all("all => all.map(({ width }) => width)")
    assert widths == [8 * 256] * 4


def test_text_with_another_token_has_the_others_as_they_are(visit: Visit) -> None:
    tokens = [{"id": 5, "text": "to"}, {"id": 1, "text": "<|unk|>"}, {"id": 7, "text": "or"}]
    for kind, text in (("word", "to \ufffd e"), ("char", "to\ufffde")):
        changed = "async ([tokens, kind]) => (await import('/web/echo.js')).changed(tokens, 2, { kind, unknown_id: 1 })"
        assert visit.page.evaluate(changed, [tokens, kind]) == text


def test_text_and_heat_map_point_at_one_another_across_tokenizers(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("compare")
    for name in ("rnn", "gru", "esn"):
        page.uncheck(f"#compare-models input[value=shakespeare-{name}]")
    page.check("#compare-models input[value=books-lstm]")
    prompt = "It was late, and the king"
    page.fill("#compare-prompt", prompt)
    page.fill("#compare-max_tokens", "20")
    page.click("#compare-go")
    page.wait_for_selector("#compare-chart-lines polyline >> nth=1", state="attached")
    for card, name in enumerate(("books-lstm", "shakespeare-lstm")):
        body = {"model": name, "prompt": prompt, "max_tokens": 20, "seed": 1, "temperature": 0.7, "logprobs": 0}
        [choice] = released_server.post("/generate", **body).json()["choices"]
        bits = -sum(token["logprob"] for token in choice["tokens"]) / math.log(2)
        assert (
            page.locator("#compare-rows tr").nth(card).locator("td").nth(3).inner_text()
            == f"{bits / len(choice['text']):.2f}"
        )
        text = page.locator("#compare-cards [role=listbox]").nth(card)
        assert text.text_content() == prompt + choice["text"]
        tokens = [each["text"] for each in released_server.post("/tokenize", model=name, text=prompt).json()["tokens"]]
        frame = page.locator("#compare-cards .heat-frame").nth(card)
        assert f"{len(tokens)}: end of the prompt" in frame.inner_text()
        assert "units: fast – slow" in frame.inner_text()
        scale = page.locator("#compare-cards .heat-legend").nth(card).inner_text()
        assert re.fullmatch(r"−(\d\.\d\d)\s*\+\1", scale), scale
        text.locator("[role=option]").nth(2).hover()
        assert page.input_value("#compare-at") == "2"
        assert text.locator("[aria-selected=true]").all_text_contents() == [tokens[2]]
        canvas = frame.locator("canvas")
        columns = canvas.evaluate("canvas => canvas.width / 8")
        box = canvas.bounding_box()
        assert box is not None
        canvas.hover(position={"x": box["width"] * 4.5 / columns, "y": 20})
        assert page.input_value("#compare-at") == "4"
        assert text.locator("[aria-selected=true]").all_text_contents() == [tokens[4]]
        text.focus()
        for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        assert text.locator("[aria-selected=true]").all_text_contents() == [tokens[3]]
        active = text.get_attribute("aria-activedescendant")
        assert page.locator(f"#{active}").text_content() == tokens[3]


def test_echo_of_a_token_is_one_line_for_each_family_at_once(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("compare")
    prompt = "The night is long."
    page.fill("#compare-prompt", prompt)
    page.fill("#compare-max_tokens", "1")
    page.click("#compare-go")
    page.wait_for_selector("#compare-chart-lines polyline >> nth=3", state="attached")
    shown = page.locator("#compare-chart-lines polyline").evaluate_all(
        "all => all.map(line => line.getAttribute('points'))"
    )
    names = page.locator("#compare-chart-lines strong").all_inner_texts()
    assert names == ["shakespeare-rnn · h0", "shakespeare-gru · h0", "shakespeare-lstm · c0", "shakespeare-esn · s0"]
    texts = page.locator("#compare-cards [role=listbox]").all_text_contents()
    for name, text, points in zip(names, texts, shown, strict=True):
        model, tensor = name.split(" · ")
        values = []
        for read in (text, "e" + text[1:]):
            states = released_server.post("/states", model=model, text=read, units=64).json()
            values.append(next(each["values"] for each in states["tensors"] if each["name"] == tensor))
        means = [sum(map(_distance, *rows)) / len(rows[0]) for rows in zip(*values, strict=True)]
        heights = [220 - 208 * mean / max(means) for mean in means]  # the chart's area is from 12 to 220
        found = [float(point.split(",")[1]) for point in points.split()]
        assert found == pytest.approx(heights, abs=0.06), name
    label = page.locator("#compare-chart-lines svg[role=img]").get_attribute("aria-label") or ""
    assert label.startswith("Echo of token 1 (T)")
    assert all(name in label for name in names)


def _distance(one: float, other: float) -> float:
    return abs(one - other)


def test_drawn_cell_runs_on_the_tokens_of_a_loaded_model(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("learn")
    run = page.locator("[data-run=lstm]")
    page.wait_for_selector("[data-run=lstm] td.number")
    run.locator("select").select_option("shakespeare-lstm")
    run.locator("input").fill("The bells")
    run.locator("input").press("Enter")
    until(lambda: run.locator("output").text_content() == "Token 1 of 9: T")
    assert run.locator("tr").nth(1).locator("td").all_inner_texts() == ["–"] * 8
    for _ in range(3):
        run.get_by_role("button", name="One token on").click()
    assert run.locator("output").inner_text() == "Token 4 of 9: ␣"
    _shows_the_step(page, released_server, "lstm", "The bells", 3)
    body: dict[str, Any] = {"model": "shakespeare-lstm", "text": "The bells", "tokens": True, "top": 5}
    [scored] = released_server.post("/score", **body).json()["results"]
    likely = run.locator(".likely").inner_text()
    places = [
        likely.index(f"{each['text']} {100 * math.exp(each['logprob']):.1f}".rstrip("0").rstrip(".") + "%")
        for each in scored["tokens"][4]["top"]
        if each["text"].isalpha()
    ]
    assert places
    assert places == sorted(places)
    for family in ("rnn", "gru", "esn"):
        page.wait_for_selector(f"[data-run={family}] td.number")
        text = page.locator(f"[data-run={family}] input").input_value()
        page.locator(f"[data-run={family}]").get_by_role("button", name="One token on").click()
        _shows_the_step(page, released_server, family, text, 1)


STEPS = {
    "rnn": ["ht−1", "ht"],
    "gru": ["ht−1", "rt", "nt", "zt", "ht"],
    "lstm": ["ct−1", "ht−1", "ft", "it", "gt", "ct", "ot", "ht"],
    "esn": ["st−1", "st"],
}


def _rows(page: Page, family: str) -> list[list[str]]:
    found: list[list[str]] = page.locator(f"[data-run={family}] tr").evaluate_all(
        "all => all.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def _shows_the_step(page: Page, server: Server, family: str, text: str, place: int) -> None:
    """Assert that the rows have the numbers of a step: state before, gates, state after."""
    states = server.post("/states", model=f"shakespeare-{family}", text=text, units=8, gates=True).json()
    values = {each["name"]: each["values"] for each in (*states["tensors"], *states["gates"])}
    rows = _rows(page, family)
    assert [row[0] for row in rows] == ["Unit", *STEPS[family]]
    for name, *cells in rows[1:]:
        at = place - 1 if name.endswith("t−1") else place
        assert [_number(cell) for cell in cells] == pytest.approx(values[f"{name[0]}0"][at], abs=0.0051), name


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_pictures_of_the_claims_are_enlarged_have_korean_titles_and_are_dark_in_the_dark(
    browser: Browser, released_server: Server
) -> None:
    visit = Visit(browser, f"http://127.0.0.1:{released_server.port}/", locale="ko-KR", color_scheme="dark")
    page = visit.open_pane("learn")
    page.wait_for_selector("#learn-claims figure")
    assert page.locator("#learn-claims figcaption").first.inner_text().startswith("1. 기울기는 사라지고")
    captions = page.locator("#learn-claims figcaption span").all_inner_texts()
    assert all(re.search("[가-힣]", caption) for caption in captions)
    brightness = page.locator("#learn-claims img").first.evaluate("image => getComputedStyle(image).filter")
    assert "invert(0.9)" in brightness
    page.locator("#learn-claims .picture").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#picture-dialog[open] h2").inner_text() == captions[0].removeprefix("1. ")
    assert (page.get_attribute("#picture", "src") or "").endswith("/web/claims/1-vanishing-gradients.png")
    page.keyboard.press("Escape")
    assert page.locator("#picture-dialog[open]").count() == 0
    visit.context.close()
    assert visit.complaints == []


def test_model_of_another_corpus_writes_the_line_that_the_panes_begin_with(
    browser: Browser, bundles: Path, tmp_path: Path
) -> None:
    with running_server(tmp_path, bundles=bundles, default_model="letters") as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}/", viewport={"width": 390, "height": 844})
        body = {"prompt": "", "max_tokens": 40, "temperature": 0.8, "seed": 7}
        line = server.post("/generate", **body).json()["choices"][0]["text"].split("\n")[0].strip()
        page = visit.page
        page.wait_for_selector("[data-card=write-model]:not(:empty)")
        assert re.search(r"RNN, [1-9][\d,]* parameters", page.locator("[data-card=write-model]").inner_text())
        visit.open_pane("score")
        until(lambda: page.input_value("#score-texts") != "")
        assert page.input_value("#score-texts") == line
        page.fill("#score-texts", " ")
        page.click("#score-go")
        page.wait_for_selector("#score-none:visible")
        assert not page.locator("#score-some").is_visible()
        visit.open_pane("compare")
        until(lambda: page.input_value("#compare-prompt") != "")
        name = page.locator("#compare-models label span").first
        assert name.evaluate("name => name.getClientRects().length") == 1  # a short name stays in one line
        page.fill("#compare-prompt", "")
        page.fill("#compare-max_tokens", "5")
        page.click("#compare-go")
        page.wait_for_selector("canvas.heat")
        assert page.locator(".axis-seam").count() == 0  # without a prompt it has no end
        visit.open_pane("learn")
        until(lambda: any(field.input_value() for field in page.locator(".run input").all()))
        visit.context.close()
        assert visit.complaints == []


def test_cells_and_terms_are_explained_in_both_languages(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("learn")
    assert page.locator("#pane-learn article svg").count() == 4
    assert page.locator("#pane-learn math").count() == 15
    assert page.locator("#learn-terms tr").count() >= 20
    page.wait_for_selector("#learn-claims-note:not(:empty)")
    claims = released_server.client.get("/web/claims.json").json()["claims"]
    pictures = page.locator("#learn-claims img")
    assert pictures.count() == len(claims)
    widths = pictures.evaluate_all("all => Promise.all(all.map(each => each.decode().then(() => each.naturalWidth)))")
    assert all(width > 100 for width in widths)
    before = page.locator("#learn-terms td:last-child").all_inner_texts()
    page.select_option("#language", "ko")
    assert page.evaluate("() => document.documentElement.lang") == "ko"
    assert page.locator("#tab-learn").inner_text() == "배우기"
    after = page.locator("#learn-terms td:last-child").all_inner_texts()
    assert len(after) == len(before)
    assert not set(after) & set(before)


@pytest.mark.parametrize("name", ["type", "score", "compare", "learn"])
def test_arrow_keys_select_tabs_and_the_address_keeps_the_selection(visit: Visit, name: str) -> None:
    page = visit.page
    page.focus("#tab-write")
    for _ in range(["write", "type", "score", "compare", "learn"].index(name)):
        page.keyboard.press("ArrowRight")
    assert page.locator("[role=tabpanel]:visible").count() == 1
    assert page.locator(f"#pane-{name}").is_visible()
    page.reload()
    assert page.locator(f"#pane-{name}").is_visible()


def test_completions_follow_the_text_and_are_taken_by_keys(visit: Visit, released_server: Server) -> None:
    page = visit.open_pane("type")
    page.select_option("#type-model", "shakespeare-lstm")
    page.fill("#type-text", "")
    page.locator("#type-text").press_sequentially("To be, or not to b")
    expected = released_server.post("/complete", model="shakespeare-lstm", text="To be, or not to b").json()
    texts = [each["text"] for each in expected["completions"]]
    names = page.locator("#type-list .name")
    shown = page.locator("#type-list:not([data-is-old]) .name").first
    until(lambda: shown.text_content() == texts[0])
    assert names.all_text_contents() == [text.replace(" ", "␣") for text in texts]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#type-text", "aria-activedescendant") == "type-option-1"
    page.keyboard.press("Enter")
    assert page.input_value("#type-text") == "To be, or not to b" + texts[1]
    page.wait_for_selector("#type-list:not([data-is-old]) li")
    before, first = page.input_value("#type-text"), page.inner_text("#type-list .name >> nth=0")
    page.keyboard.press("Tab")
    assert page.input_value("#type-text") == before + first.replace("␣", " ")
    page.wait_for_selector("#type-list:not([data-is-old]) li")
    page.keyboard.press("Escape")
    assert names.count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "type-text"


def test_growing_syllable_is_replaced_by_the_completion(visit: Visit) -> None:
    page = visit.open_pane("type")
    page.select_option("#type-model", "nsmc-lstm")
    page.fill("#type-text", "")
    page.locator("#type-text").press_sequentially("하")
    page.wait_for_selector("#type-list:not([data-is-old]) li")
    first = page.inner_text("#type-list .name >> nth=0")
    page.keyboard.press("Tab")
    assert page.input_value("#type-text") == first
    assert first.startswith(("하", "한", "할", "함", "학", "항"))


def test_moved_caret_gets_the_completions_of_the_text_before_it(visit: Visit) -> None:
    page = visit.open_pane("type")
    page.select_option("#type-model", "shakespeare-lstm")
    page.fill("#type-text", "the wor the")
    page.wait_for_selector("#type-list:not([data-is-old]) li")
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#type-list[data-is-old]", state="detached")
    page.wait_for_selector("#type-list:not([data-is-old]) li")
    first = page.inner_text("#type-list .name >> nth=0")
    page.keyboard.press("Tab")
    assert page.input_value("#type-text") == f"the wor{first} the"
    body = {"model": "shakespeare-lstm", "text": "the wor", "n": 1}
    answer = page.request.post(page.url.split("#")[0] + "complete", data=body).json()
    assert answer["completions"][0]["text"] == first

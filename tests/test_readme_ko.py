"""Test that the Korean README and guide match the English ones: sections, examples, links, figures, settings."""

import re
from pathlib import Path

import pytest

from meari.service.settings import SETTINGS

ROOT = Path(__file__).parents[1]
FENCE = "```"
LAST = "\n## 설정\n"  # the rest of the Korean guide corresponds to docs/operating.md and docs/released-bundles.md


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


GUIDE_KO, _, ONLY_IN_KOREAN = read("docs/guide.ko.md").partition(LAST)
PAIRS = {
    "README": (read("README.md"), read("README.ko.md")),
    "guide": (read("docs/guide.md").partition("\n## Settings\n")[0], GUIDE_KO),
}
both = pytest.mark.parametrize(("english", "korean"), PAIRS.values(), ids=PAIRS)


def blocks(text: str) -> list[list[str]]:
    """Return the lines of each example without comments, which are translated."""
    found: list[list[str]] = []
    is_inside = False
    for line in text.splitlines():
        if line.startswith(FENCE):
            is_inside = not is_inside
            if is_inside:
                found.append([line])
        elif is_inside:
            found[-1].append(re.sub(r"\s+# .*$", "", line))
    return [block for block in found if block[0] != FENCE]  # the folder tree is translated


def outline(text: str) -> list[str]:
    """Return the sequence of headings (by level), table rows, list items and code blocks."""
    outside = re.sub(r"^```.*?^```$", FENCE, text, flags=re.DOTALL | re.MULTILINE)
    marks = [re.match(r"#+|\||- |```|    \S", line) for line in outside.splitlines()]
    return ["code" if mark[0][0] == " " else mark[0].strip() for mark in marks if mark]


def figures(text: str) -> list[list[str]]:
    """Return the numbers and names in each row of the table of bundles."""
    rows = re.findall(r"^\| `(?:shakespeare-|books-|nsmc-).*$", text, re.MULTILINE)
    return [re.findall(r"[\d.,]*\d|`[^`]+`", row) for row in rows]


def folders(text: str) -> list[str]:
    return re.findall(r"^ *[a-z_]+/(?= +\S)", text, re.MULTILINE)


@both
def test_examples_are_the_same(english: str, korean: str) -> None:
    assert len(blocks(korean)) > 3
    assert blocks(korean) == blocks(english)


@both
def test_outline_is_the_same(english: str, korean: str) -> None:
    assert len(outline(korean)) > 20
    assert outline(korean) == outline(english)


@pytest.mark.parametrize("part", [figures, folders], ids=lambda part: part.__name__)
def test_tables_and_folders_are_the_same(part) -> None:  # type: ignore[no-untyped-def]
    english, korean = PAIRS["README"]
    assert len(part(korean)) > 5
    assert part(korean) == part(english)


def test_claims_have_the_same_numbers() -> None:
    english, korean = (
        sorted(
            re.findall(r"\d[\d,.]*\d", "".join(re.findall(r"^- \*\*.*?(?=^- |^##)", text, re.DOTALL | re.MULTILINE)))
        )
        for text in PAIRS["README"]
    )
    assert len(korean) > 5
    assert korean == english


@both
def test_links_are_the_same(english: str, korean: str) -> None:
    """Compare links; a link to a Korean page counts as one to the English page."""
    links = [
        sorted({link.replace(".ko.md", ".md") for link in re.findall(r"\]\(([^)]+)\)", text)})
        for text in (english, korean)
    ]
    assert len(links[0]) > 5
    assert links[1] == links[0]


@both
def test_both_mention_the_same_settings_paths_and_options(english: str, korean: str) -> None:
    names = r"MEARI_[A-Z_]+[A-Z]|`(?:GET|POST) /[^`]*`|--[a-z][a-z-]+"
    assert set(re.findall(names, korean)) == set(re.findall(names, english))


def test_korean_guide_lists_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(MEARI_[A-Z_]+)` \| (.*?) \|", ONLY_IN_KOREAN, re.MULTILINE)
    assert [name for name, _ in rows] == [setting.variable for setting in SETTINGS.values()]
    for (name, korean), setting in zip(rows, SETTINGS.values(), strict=True):
        number = re.fullmatch(r"(\d+)(?:\.0)?", setting.default)
        if number:
            amount, _, unit = korean.partition(" ")
            assert int(amount) * (1 << 20 if unit == "MiB" else 1) == int(number[1]), name


def test_measured_figures_match_the_english_page() -> None:
    numbers = re.findall(r"\d\.\d{3}", read("docs/released-bundles.md"))
    assert numbers
    assert set(numbers) <= set(re.findall(r"\d\.\d{3}", ONLY_IN_KOREAN))

"""The Korean README says what the English one does: the same sections, examples, links, settings and figures."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, KOREAN = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.ko.md"))
FENCE = "```"


def blocks(text: str) -> list[list[str]]:
    """The examples, line by line, without the comments, which are in the reader's language."""
    found: list[list[str]] = []
    is_inside = False
    for line in text.splitlines():
        if line.startswith(FENCE):
            is_inside = not is_inside
            if is_inside:
                found.append([line])
        elif is_inside:
            found[-1].append(re.sub(r"\s+# .*$", "", line))
    return [block for block in found if block[0] != FENCE]  # the tree of folders is all description


def outline(text: str) -> list[str]:
    """What stands where: headings by their level, tables by their number of rows, lists by their items."""
    outside = re.sub(r"^```.*?^```$", FENCE, text, flags=re.DOTALL | re.MULTILINE)
    marks = [re.match(r"#+|\||- |```|    \S", line) for line in outside.splitlines()]
    return ["code" if mark[0][0] == " " else mark[0].strip() for mark in marks if mark]


def figures(text: str) -> list[list[str]]:
    """Numbers and names of every row of the tables of settings and of bundles."""
    rows = re.findall(r"^\| `(?:MEARI_|shakespeare-|books-|nsmc-).*$", text, re.MULTILINE)
    return [re.findall(r"[\d.,]*\d|`[^`]+`", row) for row in rows]


def folders(text: str) -> list[str]:
    return re.findall(r"^ *[a-z]+/(?= +\S)", text, re.MULTILINE)


def test_examples_are_the_same() -> None:
    assert len(blocks(KOREAN)) > 10
    assert blocks(KOREAN) == blocks(ENGLISH)


@pytest.mark.parametrize("part", [outline, figures, folders], ids=lambda part: part.__name__)
def test_parts_are_the_same(part) -> None:  # type: ignore[no-untyped-def]
    assert len(part(KOREAN)) > 5
    assert part(KOREAN) == part(ENGLISH)


def test_links_are_the_same() -> None:
    english, korean = (sorted(set(re.findall(r"\]\(([^)]+)\)", text))) for text in (ENGLISH, KOREAN))
    assert [link for link in korean if link != "README.md"] == [link for link in english if link != "README.ko.md"]


def test_settings_and_paths_are_named_in_both() -> None:
    names = r"MEARI_[A-Z_]+[A-Z]|`(?:GET|POST) /[^`]*`|--[a-z][a-z-]+"
    assert set(re.findall(names, KOREAN)) == set(re.findall(names, ENGLISH))

"""Test all pages: links, anchors and paths exist, the indexes list every page, README and DESIGN are short."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOP = [path for name in ("*.md", "docs/**/*.md", "bundles/*/README.md") for path in ROOT.glob(name)]
PAGES = sorted(path for path in TOP if not path.is_symlink())
MAX_README_CHARS = 9000
MAX_DESIGN_LINES = 200
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
CODE = {"benchmarks", "deploy", "docs", "examples", "export", "loadtests", "meari", "models", "service", "tests"}
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def prose(path: Path) -> str:
    """Return the text of a page without its code blocks."""
    return FENCED.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub creates for the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (unique := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(unique)
    return found


def links(path: Path) -> list[str]:
    """Return the relative targets of the links and pictures of a page."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    targets = [one or other for one, other in LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_target_of_every_link_and_anchor_exists(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_mentioned_path_exists(page: Path) -> None:
    paths = [path for path in re.findall(r"`([\w.-]+/[\w./-]*)`", prose(page)) if path.split("/")[0] in CODE]
    made = ("NAME", "loadtests/results")  # created by the reader and by load tests
    assert [path for path in paths if not (ROOT / path).exists() and not any(part in path for part in made)] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_mentioned_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)) <= targets


def test_search_for_links_and_anchors_finds_some() -> None:
    assert len([link for page in PAGES for link in links(page)]) > 100
    assert {"settings", "sizing", "mearidown"} <= anchors(DOCS / "operating.md")


@pytest.mark.parametrize("folder", [DOCS, DOCS / "decisions"], ids=named)
def test_index_lists_every_page_of_its_folder_once(folder: Path) -> None:
    index = folder / "README.md"
    lines = [line for line in index.read_text("utf-8").splitlines() if line.startswith(("- ", "| ["))]
    listed = [target for line in lines for target in re.findall(r"\]\(([^)]+\.md)\)", line)]
    pages = [path for path in folder.rglob("*.md") if path != index]
    if folder == DOCS:
        pages = [path for path in pages if path.parent.name != "decisions" or path.name == "README.md"]
    ours = [target for target in listed if (folder / target).resolve().is_relative_to(folder)]
    assert sorted(ours) == sorted(str(path.relative_to(folder)) for path in pages)


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_readme_is_short(name: str) -> None:
    assert len((ROOT / name).read_text("utf-8")) <= MAX_README_CHARS


def test_design_is_short() -> None:
    assert len((ROOT / "DESIGN.md").read_text("utf-8").splitlines()) <= MAX_DESIGN_LINES


def test_changelog_and_image_have_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    dated = [re.fullmatch(r"(\d+\.\d+\.\d+) – \d{4}-\d{2}-\d{2}", heading) for heading in headings]
    assert all(match or heading == "Unreleased" for match, heading in zip(dated, headings, strict=True))
    assert next(match[1] for match in dated if match) == version
    assert f'image.version="{version}"' in (ROOT / "Dockerfile").read_text("utf-8")
    assert f"| {version.rpartition('.')[0]} | yes |" in (ROOT / "SECURITY.md").read_text("utf-8")

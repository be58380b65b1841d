"""The pages of docs/ that have an example: they are found from the README, lead somewhere, and have a script."""

import re
from pathlib import Path

import pytest

from tests.examples.pages import DOCS, PAGES, ROOT, page

README = (ROOT / "README.md").read_text("utf-8")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_linked_from_the_readme_and_has_a_script(name: str) -> None:
    assert f"(docs/{name}.md)" in README
    scripts = re.findall(r"\.venv/bin/python (examples/\w+\.py)", page(name))
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page(name)) if not link.startswith("http")]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (DOCS / path).resolve() if path else DOCS / f"{name}.md"
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", PAGES)
def test_page_is_short(name: str) -> None:
    prose = re.sub(r"```.*?```|^\|[^\n]*$", "", page(name), flags=re.DOTALL | re.MULTILINE)  # tables are looked up
    assert len(prose.split()) < 1400

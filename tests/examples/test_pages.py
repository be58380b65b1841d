"""Test the pages of docs/ that have an example: the index lists them, and each has a script."""

import re

import pytest

from tests.examples.pages import PAGES, ROOT, page

INDEX = page("README")


@pytest.mark.parametrize("name", PAGES)
def test_page_is_in_the_index_and_has_a_script(name: str) -> None:
    assert f"({name}.md)" in INDEX
    scripts = re.findall(r"\.venv/bin/python (examples/\w+\.py)", page(name))
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_short(name: str) -> None:
    prose = re.sub(r"```.*?```|^\|[^\n]*$", "", page(name), flags=re.DOTALL | re.MULTILINE)  # without code and tables
    assert len(prose.split()) < 1400

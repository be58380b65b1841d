"""Test that everything that is shown runs: docstrings, docs/python.md, the notebooks, the generated reference."""

from __future__ import annotations

import ast
import asyncio
import doctest
import html.parser
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import meari
from examples.made_text import sentences
from tests.patience import PATIENCE
from tests.service.running import ROOT, running_server

MODULES = ["meari", *(f"meari.{path.parent.name}.{path.stem}" for path in ROOT.glob("meari/[ac][pl]i*/[a-z]*.py"))]
MODULES = [name for name in MODULES if name.split(".")[1:2] in ([], ["api"], ["client"])]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
REFERENCE = ["-t", "docs/reference", "meari", r"!meari\.(?!errors$).*"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a released bundle."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(ROOT / "bundles/shakespeare-lstm", folder / "bundles/shakespeare-lstm")
    with running_server(folder, bundles=folder / "bundles") as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def released_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEARI_BUNDLES", str(ROOT / "bundles"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_are_true(name: str, url: str) -> None:
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    if not tests:
        return
    with meari.load("shakespeare-lstm") as lm:
        for test in tests:
            test.globs |= {"asyncio": asyncio, "lm": lm, "meari": meari, "url": url, "Client": meari.Client}
            assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0, test.name


def test_modules_with_examples_are_found() -> None:
    assert {"meari", "meari.api.language_model", "meari.client.client", "meari.client.async_client"} <= set(MODULES)


def test_examples_of_the_page_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-text.txt").write_text("".join(f"{line}\n" for line in sentences("english", 300, 1)))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {"asyncio": asyncio, "texts": ["To be", "Be to"], "prompts": ["To be", "It was"]}
    for block in blocks:
        source = block.replace("minutes=5", "minutes=0.03").replace("http://localhost:8000", url)
        code = compile(source, "docs/python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        found = eval(code, names)  # noqa: S307
        if inspect.iscoroutine(found):
            asyncio.run(found)
    assert len(blocks) >= 7
    assert len(names["answers"]) == 2
    assert names["lm"].name == "my-text"
    names["lm"].close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_has_no_output(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"{path.name}[{number}]", "exec"), names)
    assert len(cells) > 3


def test_three_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["anomalies", "nbest", "surprisal"]


class Links(html.parser.HTMLParser):
    """Collects what a page loads from elsewhere, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        place = found.get("src") or (found.get("href") if tag == "link" else None)
        if place and place.startswith(("http:", "https:", "//")):
            self.loaded.append(place)


def test_reference_has_every_public_name_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdoc", "-o", str(tmp_path), *REFERENCE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert all(argument.strip("'") in (ROOT / "Makefile").read_text() for argument in REFERENCE[:3])
    for page in tmp_path.rglob("*.html"):
        links = Links()
        links.feed(page.read_text("utf-8"))
        assert links.loaded == []
        if page.name == "meari.html":
            assert {name for name in meari.__all__ if name != "errors"} <= links.anchors
            assert {
                "LanguageModel.score",
                "Client.generate",
                "AsyncClient.stream",
                "TrainingRun.export",
            } <= links.anchors

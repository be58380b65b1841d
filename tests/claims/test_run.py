"""The whole: measuring into a folder, the page, results.json and the command."""

import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner

from claims.catalogue import CLAIMS
from claims.page import page
from claims.results import FILE, Results, ResultsError
from claims.run import Order, measure_claims, redraw
from cli.claims import NUM_CLAIMS, command
from tests.claims.benches import TINY, small_text


def silent(line: str) -> None:
    """Nobody reads this."""


def standing() -> float:
    return 0.0


def measured_into(folder: Path, *only: int, clock: Callable[[], float] = standing) -> Results:
    return measure_claims(small_text(), TINY, Order(folder, 1.0, only), clock, silent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    measured_into(folder)
    return folder


def test_every_claim_has_a_section_a_verdict_and_its_picture(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for claim in CLAIMS:
        assert f"## {claim.number}. {claim.title}\n" in text
        assert (folder / claim.picture).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^\*\*(?:HOLDS|HOLDS IN PART|DOES NOT HOLD)\.\*\* ", text, re.MULTILINE)) == len(CLAIMS)


def test_links_of_the_page_exist(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(links) > len(CLAIMS)
    for link in links:
        assert link.removeprefix("#") in anchors if link.startswith("#") else (folder / link).is_file()


def test_page_is_a_function_of_the_results_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    redraw(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert page(Results.read(folder), CLAIMS) == (folder / "README.md").read_text()


def test_same_seed_gives_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    again = measured_into(tmp_path, 1).claims["1"].numbers
    assert again == Results.read(folder).claims["1"].numbers


def test_only_some_claims_keeps_the_others_of_the_same_setup(folder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    assert list(measured_into(tmp_path, 2).claims) == list(Results.read(folder).claims)
    other = measure_claims(small_text(30_000), TINY, Order(tmp_path, 1.0, (2,)), standing, silent)
    assert list(other.claims) == ["2"]


def test_what_the_budget_does_not_reach_is_said(tmp_path: Path) -> None:
    ticks = count(step=1000)
    results = measured_into(tmp_path, 1, 2, clock=lambda: float(next(ticks)))
    assert results.skipped
    assert "The budget of time ended before these claims were measured" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("content", [None, b"{", b'{"format_version": 1}'])
def test_results_that_cannot_be_read_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ResultsError, match=FILE):
        redraw(tmp_path)


def test_command_writes_the_page_and_prints_the_verdicts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    done = CliRunner().invoke(command, ["--redraw", "--output", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["claims"]) == [str(claim.number) for claim in CLAIMS]
    assert (tmp_path / "README.md").exists()


def test_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("To be, or not to be")
    done = CliRunner().invoke(command, ["--text", str(tmp_path / "short.txt"), "--output", str(tmp_path / "out")])
    assert "--text: got 19 characters, expected at least" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("numbers", [str(NUM_CLAIMS + 1), "0", "1,x", ""])
def test_number_of_an_unknown_claim_is_refused(numbers: str) -> None:
    done = CliRunner().invoke(command, ["--only", numbers])
    assert done.exit_code == 2
    assert "expected numbers 1 … 7, such as 1,3" in done.output

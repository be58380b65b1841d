"""Test whole runs: the folder of results, the page, results.json and the command."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner

from meari.claims.claim import Verdict
from meari.claims.measures import CLAIMS
from meari.claims.page import page
from meari.claims.results import FILE, Results, ResultsError
from meari.claims.run import Order, check, measure_claims, redraw
from meari.claims.sizes import Sizes
from meari.cli.claims import MAX_THREADS, NUM_CLAIMS, command
from meari.models import config
from meari.models.errors import FolderInUse
from meari.models.files import locked
from tests.claims.workbenches import TINY, small_text

RELEASED = Path(__file__).resolve().parents[2] / "docs" / "claims"


def silent(line: str) -> None:
    """Ignore a progress line."""


def stopped_clock() -> float:
    return 0.0


def measured_into(folder: Path, *only: int, clock: Callable[[], float] = stopped_clock) -> Results:
    return measure_claims(small_text(), TINY, Order(folder, 1.0, only), clock, silent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    measured_into(folder)
    return folder


def test_every_claim_has_a_section_a_verdict_and_a_picture(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for claim in CLAIMS:
        assert f"## {claim.number}. {claim.title}\n" in text
        assert (folder / claim.picture).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^\*\*TOO SMALL TO JUDGE\.\*\* Reasons: ", text, re.MULTILINE)) == len(CLAIMS)
    assert not re.search(r"\*\*(?:HOLDS|HOLDS IN PART|DOES NOT HOLD|NOT SETTLED)|\| met \|", text)


def test_page_of_the_repository_matches_its_results() -> None:
    results = Results.read(RELEASED)
    assert page(results, CLAIMS) == (RELEASED / "README.md").read_text("utf-8")
    assert results.setup.sizes == Sizes()
    assert list(results.claims) == [str(claim.number) for claim in CLAIMS]
    for claim in results.claims.values():
        assert claim.verdict in set(Verdict) - {Verdict.TOO_SMALL}
        assert len(claim.numbers) == len(Sizes().seeds) >= 3


def test_results_of_the_repository_meet_the_expectations() -> None:
    check(Results.read(RELEASED))


def test_page_is_refused_if_more_data_increases_the_loss_beyond_the_noise(tmp_path: Path) -> None:
    raw = json.loads((RELEASED / FILE).read_text("utf-8"))
    for numbers in raw["claims"]["4"]["numbers"].values():
        for learned in numbers["learned"]:
            if (learned["family"], learned["share"]) == ("esn", 1.0):
                learned["loss"] += 2.0
    (tmp_path / FILE).write_text(json.dumps(raw), "utf-8")
    with pytest.raises(ResultsError, match=r"claim 4: held-out loss of the ESN: got .* at 100% of the text"):
        redraw(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_verdict_that_differs_between_seeds_is_not_settled(tmp_path: Path) -> None:
    raw = json.loads((RELEASED / FILE).read_text("utf-8"))
    first, *others = raw["claims"]["4"]["numbers"].values()
    for numbers, loss in ((first, 0.5), *((numbers, 9.0) for numbers in others)):
        for learned in numbers["learned"]:
            if learned["family"] == "lstm":
                learned["loss"] = loss
    raw["claims"] = {"4": raw["claims"]["4"]}
    (tmp_path / FILE).write_text(json.dumps(raw), "utf-8")
    assert redraw(tmp_path).claims["4"].verdict == Verdict.NOT_SETTLED
    assert "**not settled**: met by 1 of 3 seeds" in (tmp_path / "README.md").read_text("utf-8")


def test_run_that_is_too_small_to_judge_does_not_replace_verdicts(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((RELEASED / FILE).read_bytes())
    with pytest.raises(
        ResultsError, match=r"which has verdicts; expected another folder .* training steps: 12, judged"
    ):
        measured_into(tmp_path, 1)
    assert (tmp_path / FILE).read_bytes() == (RELEASED / FILE).read_bytes()


def test_judged_claim_needs_every_seed_and_all_of_its_parts() -> None:
    results = Results.read(RELEASED)
    assert results.too_small("1") == ()
    claim = results.claims["1"]
    short = replace(claim, numbers=dict(list(claim.numbers.items())[:2]))
    parts = replace(claim, left_out=("the LSTM had 3 of 400 training steps (seed 1)",))
    assert replace(results, claims={"1": short}).too_small("1") == ("2 of 3 seeds measured, judged from 3",)
    assert replace(results, claims={"1": parts}).too_small("1") == ("the time budget left parts out",)


def test_links_of_the_page_exist(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(links) > len(CLAIMS)
    for link in links:
        if not link.startswith("https://"):
            assert link.removeprefix("#") in anchors if link.startswith("#") else (folder / link).is_file()


def test_page_depends_only_on_the_results(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    redraw(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert page(Results.read(folder), CLAIMS) == (folder / "README.md").read_text()


def test_numbers_depend_on_the_seed_only(folder: Path, tmp_path: Path) -> None:
    again = measured_into(tmp_path, 1).claims["1"].numbers
    assert again == Results.read(folder).claims["1"].numbers
    assert list(again) == ["1", "2"]
    assert again["1"] != again["2"]


def test_resumed_run_measures_only_missing_claims(folder: Path, tmp_path: Path) -> None:
    whole = Results.read(folder)
    half = replace(whole.claims["4"], numbers={"1": whole.claims["4"].numbers["1"]})
    others = {number: claim for number, claim in whole.claims.items() if number not in ("2", "4")}
    replace(whole, claims={**others, "4": half}).write(tmp_path)
    lines: list[str] = []
    resumed = measure_claims(small_text(), TINY, Order(tmp_path, 1.0, is_resumed=True), stopped_clock, lines.append)
    assert [line for line in lines if line.startswith("seed")] == [
        f"seed 1, claim 2: {CLAIMS[1].title}",
        f"seed 2, claim 2: {CLAIMS[1].title}",
        f"seed 2, claim 4: {CLAIMS[3].title}",
    ]
    assert resumed.claims["2"].numbers == whole.claims["2"].numbers
    assert list(resumed.claims["4"].numbers) == ["1", "2"]


def test_selected_claims_keep_the_other_results_of_the_same_setup(folder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    assert list(measured_into(tmp_path, 2).claims) == list(Results.read(folder).claims)
    other = measure_claims(small_text(30_000), TINY, Order(tmp_path, 1.0, (2,)), stopped_clock, silent)
    assert list(other.claims) == ["2"]


def test_claims_beyond_the_budget_are_reported(tmp_path: Path) -> None:
    ticks = count(step=1000)
    results = measured_into(tmp_path, 1, 2, clock=lambda: float(next(ticks)))
    assert results.skipped
    assert "The time budget ended before these claims were measured" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("content", [None, b"{", b'{"format_version": 1}', b'{"format_version": 2}'])
def test_unreadable_results_are_refused(content: bytes | None, tmp_path: Path) -> None:
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


def test_folder_in_use_by_another_run_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path):
        for way in (["--redraw"], ["--quick"], ["--quick", "--resume"]):
            refused = CliRunner().invoke(command, [*way, "--output", str(tmp_path)])
            assert isinstance(refused.exception, FolderInUse), refused.output
            assert "another run is writing to it" in str(refused.exception)


def test_number_of_threads_has_the_same_bound_as_training() -> None:
    assert config.MAX_THREADS == MAX_THREADS
    refused = CliRunner().invoke(command, ["--quick", "--threads", str(MAX_THREADS + 1)])
    assert refused.exit_code == 2
    assert "1<=x<=1024" in refused.output


def test_short_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("To be, or not to be")
    done = CliRunner().invoke(command, ["--text", str(tmp_path / "short.txt"), "--output", str(tmp_path / "out")])
    assert "--text: got 19 characters, expected at least" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("numbers", [str(NUM_CLAIMS + 1), "0", "1,x", ""])
def test_number_of_an_unknown_claim_is_refused(numbers: str) -> None:
    done = CliRunner().invoke(command, ["--only", numbers])
    assert done.exit_code == 2
    assert "expected numbers 1 … 7, such as 1,3" in done.output

"""Run of all claims, one seed after the other, written after each claim, so that an interruption loses little.

Input: text files or none, a folder, minutes. Output: README.md, pictures and results.json in the folder. Must not know:
single claims.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from meari.claims.claim import Claim, Measurement, Verdict, shared_verdict
from meari.claims.families import FAMILIES, NAMES, ModelSummary, fresh_model, num_trained
from meari.claims.measures import CLAIMS, in_order_of_work
from meari.claims.page import page
from meari.claims.pictures import as_png
from meari.claims.results import FILE, FORMAT_VERSION, ClaimResult, Results, ResultsError, SettledCondition, Setup
from meari.claims.sizes import Sizes, below_judged
from meari.claims.text import Text
from meari.claims.training import Budget, Clock, OutOfTime
from meari.claims.workbench import Workbench
from meari.models.files import write_file
from meari.models.training.process import describe_machine

PAGE = "README.md"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """Claims to measure, and where.

    minutes      the budget
    only         numbers of claims, none for all
    is_resumed   keep the folder's results of the same text and sizes, and measure the missing ones
    """

    output: Path
    minutes: float
    only: tuple[int, ...] = ()
    is_resumed: bool = False


def measure_claims(text: Text, sizes: Sizes, order: Order, clock: Clock, tell: Tell) -> Results:
    """Measure, judge and write; results of other claims in the folder stay where text and sizes are the same.

    Raises ResultsError where the folder has verdicts that this run is too small to give, and as `write_page` does.
    """
    results = _beginning(text, sizes, order)
    order.output.mkdir(parents=True, exist_ok=True)
    whole = Budget.of(60 * order.minutes, clock)
    start = _Start(clock(), time.process_time(), results.minutes, results.cpu_minutes)
    for place, seed in enumerate(sizes.seeds):
        bench = Workbench(text, sizes, whole.part(1 / (len(sizes.seeds) - place)), tell, seed)
        for claim in in_order_of_work(order.only):
            known = results.claims.get(str(claim.number), ClaimResult(claim.title, {}, (), 0.0))
            if str(seed) in known.numbers:
                continue
            tell(f"seed {seed}, claim {claim.number}: {claim.title}")
            result = _with_seed(known, claim, bench, clock)
            results = replace(results, claims={**results.claims, str(claim.number): result})
            results = start.timed(results, clock())
            results.write(order.output)
    measured = {number: claim for number, claim in results.claims.items() if claim.numbers}
    skipped = tuple(sorted(int(number) for number in results.claims.keys() - measured.keys()))
    return write_page(replace(results, claims=measured, skipped=skipped), order.output)


@dataclass(frozen=True)
class _Start:
    """Start of a run, and the minutes of the run that it resumes."""

    clock: float
    cpu: float
    minutes: float
    cpu_minutes: float

    def timed(self, results: Results, now: float) -> Results:
        minutes = self.minutes + (now - self.clock) / 60
        cpu_minutes = self.cpu_minutes + (time.process_time() - self.cpu) / 60
        return replace(results, minutes=round(minutes, 1), cpu_minutes=round(cpu_minutes, 1))


def _with_seed(known: ClaimResult, claim: Claim[Any], bench: Workbench, clock: Clock) -> ClaimResult:
    """Return the known result of a claim with the numbers of one more seed, unless the budget has ended."""
    began = clock()
    try:
        measured = _measured(claim, bench)
    except OutOfTime:
        bench.tell(f"claim {claim.number}: left out, the budget has ended")
        return known
    return known.with_seed(bench.seed, measured.numbers, measured.left_out, clock() - began)


def _measured(claim: Claim[Any], bench: Workbench) -> Measurement[Any]:
    if bench.budget.is_spent:
        raise OutOfTime
    return claim.measure(bench)


def redraw(folder: Path) -> Results:
    """Judge, draw and write again from results.json. Raises ResultsError."""
    return write_page(Results.read(folder), folder)


def write_page(results: Results, folder: Path) -> Results:
    """Judge, and write results.json, pictures and page.

    Raises ResultsError where a judged claim's figures are worse than they can be if the measurement is sound; the
    numbers are written all the same.
    """
    claims = [claim for claim in CLAIMS if str(claim.number) in results.claims]
    judged = {str(claim.number): _judged(claim, results) for claim in claims}
    results = replace(results, claims=judged)
    results.write(folder)
    check(results)
    for claim in claims:
        write_file(folder / claim.picture, as_png(claim.draw(_numbers(claim, results))))
    write_file(folder / PAGE, page(results, CLAIMS).encode())
    return results


def check(results: Results) -> None:
    """Raise ResultsError if a judged claim violates `Claim.expect`."""
    found = [
        f"claim {claim.number}: {violation}, beyond the noise of the seeds"
        for claim in CLAIMS
        if str(claim.number) in results.claims and not results.too_small(str(claim.number))
        for expectation in claim.expect(_numbers(claim, results))
        for violation in expectation.violations()
    ]
    if found:
        raise ResultsError(f"{FILE}: no page is made of a measurement that cannot be sound. {'; '.join(found)}")


def _numbers(claim: Claim[Any], results: Results) -> list[Any]:
    """Read the claim's numbers of every seed back."""
    return [msgspec.convert(numbers, claim.kind) for numbers in results.claims[str(claim.number)].numbers.values()]


def _judged(claim: Claim[Any], results: Results) -> ClaimResult:
    """Return a claim's result with its verdict: that of every seed, if it is large enough to be judged."""
    seeds = [claim.judge(numbers) for numbers in _numbers(claim, results)]
    conditions = tuple(
        SettledCondition(same[0].what, tuple(each.is_met for each in same), tuple(each.figures for each in same))
        for same in zip(*seeds, strict=True)
    )
    verdict = Verdict.TOO_SMALL if results.too_small(str(claim.number)) else shared_verdict(seeds)
    return replace(results.claims[str(claim.number)], title=claim.title, verdict=verdict.value, conditions=conditions)


def _beginning(text: Text, sizes: Sizes, order: Order) -> Results:
    """Return the results without the claims that are to be measured."""
    lengths = (len(text.training), len(text.validation), len(text.held_out))
    setup = Setup(text.name, lengths, text.vocabulary_size, sizes)
    models = (fresh_model(family, text.vocabulary_size, sizes, sizes.seeds[0]) for family in FAMILIES)
    described = tuple(
        ModelSummary(NAMES[family], num_trained(model), model.hidden_size)
        for family, model in zip(FAMILIES, models, strict=True)
    )
    machine = describe_machine(torch.device("cpu"))
    written = datetime.now(UTC).strftime("%Y-%m-%d")
    fresh = Results(FORMAT_VERSION, setup, machine, written, 0.0, 0.0, described)
    try:
        before = Results.read(order.output)
    except ResultsError:
        return fresh
    if before.setup != setup:
        _refuse_to_replace(before, setup, order.output)
        return fresh
    if order.is_resumed:
        return replace(fresh, claims=before.claims, minutes=before.minutes, cpu_minutes=before.cpu_minutes)
    again = {str(claim.number) for claim in in_order_of_work(order.only)}
    return replace(fresh, claims={number: claim for number, claim in before.claims.items() if number not in again})


def _refuse_to_replace(before: Results, setup: Setup, folder: Path) -> None:
    """Raise ResultsError if a run that is too small for verdicts would replace verdicts."""
    reasons = below_judged(setup.sizes, sum(setup.num_characters))
    if reasons and before.has_verdicts:
        raise ResultsError(
            f"--output: got {folder}, which has verdicts; expected another folder for a run that is too small to "
            f"judge ({'; '.join(reasons)})"
        )


def monotonic() -> float:
    """Clock that the command passes in."""
    return time.monotonic()

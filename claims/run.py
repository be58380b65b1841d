"""All claims, one after the other: measured, judged, drawn, and written after each, so that no interruption loses much.

In: text files or none, a folder, minutes. Out: README.md, pictures and results.json in the folder.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from claims.budget import Budget, Clock, OutOfTime
from claims.catalogue import CLAIMS, in_order_of_work
from claims.claim import Claim, Measured, verdict
from claims.families import FAMILIES, NAMES, Described, num_trained
from claims.page import page
from claims.pictures import as_png
from claims.results import FORMAT_VERSION, ClaimResult, Results, ResultsError, Setup
from claims.sizes import Sizes
from claims.text import Text
from claims.workbench import SEED, Workbench
from models.atomic import write_file
from models.training.device import describe_machine

PAGE = "README.md"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is wanted: only   numbers of claims, none for all; minutes   the budget"""

    output: Path
    minutes: float
    only: tuple[int, ...] = ()


def measure_claims(text: Text, sizes: Sizes, order: Order, clock: Clock, tell: Tell) -> Results:
    """Measure and write; results of other claims that lie in the folder stay where text and sizes are the same."""
    began, cpu_began = clock(), time.process_time()
    bench = Workbench(text, sizes, Budget.of(60 * order.minutes, clock), tell)
    order.output.mkdir(parents=True, exist_ok=True)
    results = _beginning(bench, order.output)
    for claim in in_order_of_work(order.only):
        tell(f"claim {claim.number}: {claim.title}")
        started = clock()
        try:
            measured = _measured(claim, bench)
        except OutOfTime:
            tell(f"claim {claim.number}: left out, the budget has ended")
            results = replace(results, skipped=(*results.skipped, claim.number))
            continue
        result = _result(claim, measured, clock() - started)
        results = replace(
            results,
            claims={**results.claims, str(claim.number): result},
            minutes=round((clock() - began) / 60, 1),
            cpu_minutes=round((time.process_time() - cpu_began) / 60, 1),
        )
        tell(f"claim {claim.number}: {result.verdict} ({result.seconds:.0f} s)")
        _write_claim(claim, measured.numbers, order.output)
        _write(results, order.output)
    _write(results, order.output)
    return results


def _measured(claim: Claim[Any], bench: Workbench) -> Measured[Any]:
    if bench.budget.is_spent:
        raise OutOfTime
    return claim.measure(bench)


def redraw(folder: Path) -> Results:
    """Judge, draw and write anew what results.json holds. Raises ResultsError."""
    results = Results.read(folder)
    judged = {}
    for claim in CLAIMS:
        if str(claim.number) in results.claims:
            kept = results.claims[str(claim.number)]
            numbers = msgspec.convert(kept.numbers, claim.kind)
            judged[str(claim.number)] = _result(claim, Measured(numbers, kept.left_out), kept.seconds)
            _write_claim(claim, numbers, folder)
    results = replace(results, claims=judged)
    _write(results, folder)
    return results


def _beginning(bench: Workbench, folder: Path) -> Results:
    text = bench.text
    lengths = (len(text.training), len(text.validation), len(text.held_out))
    setup = Setup(text.name, lengths, text.vocabulary_size, bench.sizes, SEED)
    models = tuple(
        Described(NAMES[family], num_trained(model), model.hidden_size)
        for family, model in ((family, bench.fresh(family)) for family in FAMILIES)
    )
    machine = describe_machine(torch.device("cpu"))
    written = datetime.now(UTC).strftime("%Y-%m-%d")
    try:
        before = Results.read(folder)
    except ResultsError:
        before = None
    kept = before.claims if before is not None and before.setup == setup else {}
    return Results(FORMAT_VERSION, setup, machine, written, 0.0, 0.0, models, kept)


def _result(claim: Claim[Any], measured: Measured[Any], seconds: float) -> ClaimResult:
    conditions = claim.judge(measured.numbers)
    return ClaimResult(
        claim.title,
        verdict(conditions).value,
        [asdict(condition) for condition in conditions],
        msgspec.json.decode(msgspec.json.encode(asdict(measured.numbers))),
        measured.left_out,
        round(seconds, 1),
    )


def _write_claim(claim: Claim[Any], numbers: Any, folder: Path) -> None:
    write_file(folder / claim.picture, as_png(claim.draw(numbers)))


def _write(results: Results, folder: Path) -> None:
    results = replace(results, claims=dict(sorted(results.claims.items())))
    results.write(folder)
    write_file(folder / PAGE, page(results, CLAIMS).encode())


def monotonic() -> float:
    """The clock that the command passes in."""
    return time.monotonic()

"""Results → the page. Everything on it comes from the numbers; no text of a corpus is on it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from claims.claim import Claim
from claims.results import ClaimResult, Results

TITLE = "# The lecture's claims, measured"


def page(results: Results, claims: Sequence[Claim[Any]]) -> str:
    """README.md: a head, a table of verdicts, and a section for every claim that was measured."""
    measured = [claim for claim in claims if str(claim.number) in results.claims]
    parts = [TITLE, _head(results), _table(results, measured)]
    if results.skipped:
        numbers = ", ".join(map(str, results.skipped))
        parts.append(f"The budget of time ended before these claims were measured: {numbers}.")
    parts += [_section(claim, results.claims[str(claim.number)]) for claim in measured]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    setup = results.setup
    training, validation, held_out = setup.num_characters
    models = ", ".join(
        f"{model.name} {model.trained_parameters:,} ({model.hidden_size:,} units)" for model in results.models
    )
    steps, batch, length = setup.sizes.steps, setup.sizes.batch_size, setup.sizes.chunk_length
    lines = (
        (
            f"Written by `meari claims`, {results.written}, in {results.minutes:g} minutes, "
            f"{results.cpu_minutes:g} of them CPU time; {results.machine}."
        ),
        (
            f"Text: {setup.text}; {training:,} characters to train on, {validation:,} for early stopping, {held_out:,} "
            "held out, one part behind the other. A token is a character. All losses are in nats a token."
        ),
        (
            f"Trained parameters: {models}. The echo state network's are its readout alone, the others' are all they "
            f"have. Every model has one layer and one seed ({setup.seed}); AdamW, a half cosine, at most {steps:,} "
            f"steps of {batch} × {length} tokens where nothing else is said; kept are the weights with the "
            "best validation loss."
        ),
        (
            "A criterion is a list of conditions, fixed in the code and computed from the numbers: a claim HOLDS where "
            "all are met, HOLDS IN PART where some are, DOES NOT HOLD where none is. One seed, small models and one "
            "text: a demonstration, no proof. Every number is in [results.json](results.json)."
        ),
    )
    return "\n\n".join(lines)


def _table(results: Results, claims: Sequence[Claim[Any]]) -> str:
    rows = ["| | claim | verdict |", "|---|---|---|"]
    for claim in claims:
        link = f"[{claim.title}](#{_anchor(claim)})"
        rows.append(f"| {claim.number} | {link} | **{results.claims[str(claim.number)].verdict}** |")
    return "\n".join(rows)


def _anchor(claim: Claim[Any]) -> str:
    """The anchor that GitHub makes of a section's heading."""
    kept = (char for char in _heading(claim).lower() if char.isalnum() or char in " -")
    return "".join(kept).replace(" ", "-")


def _heading(claim: Claim[Any]) -> str:
    return f"{claim.number}. {claim.title}"


def _section(claim: Claim[Any], result: ClaimResult) -> str:
    numbers = msgspec.convert(result.numbers, claim.kind)
    first, second = claim.describe(numbers)
    conditions = [
        f"| {condition['what']} | {condition['figures']} | {'met' if condition['is_met'] else '**not met**'} |"
        for condition in result.conditions
    ]
    left_out = [f"Left out, for want of time: {'; '.join(result.left_out)}.", ""] if result.left_out else []
    return "\n".join(
        [
            f"## {_heading(claim)}",
            "",
            f"The lecture: {claim.says}",
            "",
            f"![{claim.title}]({claim.picture})",
            "",
            f"**{result.verdict}.** {first} {second}",
            "",
            "| condition | measured | |",
            "|---|---|---|",
            *conditions,
            "",
            *left_out,
            f"{claim.setting} Took {result.seconds:.0f} s, models included that later claims share.",
        ]
    )

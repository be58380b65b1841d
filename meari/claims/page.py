"""The page of the claims.

Input: results. Output: Markdown, computed from the numbers alone. Must not know: the corpus, measurements.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from meari.claims.claim import Claim, Verdict
from meari.claims.results import Results, SettledCondition
from meari.claims.sizes import JUDGED_CHARACTERS, JUDGED_SEEDS, JUDGED_SIZES

TITLE = "# The lecture's claims, measured"


def page(results: Results, claims: Sequence[Claim[Any]]) -> str:
    """Write README.md: a head, a table of verdicts, and a section for every measured claim."""
    measured = [claim for claim in claims if str(claim.number) in results.claims]
    parts = [TITLE, _head(results), _table(results, measured)]
    if results.skipped:
        numbers = ", ".join(map(str, results.skipped))
        parts.append(f"The budget of time ended before these claims were measured: {numbers}.")
    parts += [_section(claim, results) for claim in measured]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    setup = results.setup
    training, validation, held_out = setup.num_characters
    models = ", ".join(
        f"{model.name} {model.trained_parameters:,} ({model.hidden_size:,} units)" for model in results.models
    )
    sizes = setup.sizes
    seeds = f"{len(sizes.seeds)} seeds" if len(sizes.seeds) > 1 else "one seed"
    judged = ", ".join(f"{least:,} {noun}" for least, noun in JUDGED_SIZES.values())
    lines = (
        (
            f"Written by `meari claims`, {results.written}, in {results.minutes:g} minutes, "
            f"{results.cpu_minutes:g} of them CPU time; {results.machine}."
        ),
        (
            f"Text: {setup.text}; {training:,} characters to train on, {validation:,} for choosing "
            f"the length of schedules, "
            f"{held_out:,} held out, one part behind the other. A token is a character. All losses are in nats a token."
        ),
        (
            f"Trained parameters: {models}. The echo state network's are its readout alone, the others' are all they "
            f"have. Every model has one layer and is trained from {seeds} (weights, order of the text, sampling); "
            f"AdamW, a half cosine, at most {sizes.steps:,} steps of {sizes.batch_size} × {sizes.chunk_length} tokens "
            "where nothing else is said; no training stops before its schedule ends, and the weights at its end are "
            "measured. Figures are the mean ± standard deviation over seeds, or, where they differ by "
            "orders of magnitude, the median (smallest … largest)."
        ),
        (
            "A criterion is a list of conditions, fixed in the code and computed from the numbers of each seed by "
            f"itself: a claim {Verdict.HOLDS} where all are met, {Verdict.IN_PART} where some are, {Verdict.DOES_NOT} "
            f"where none is, and is {Verdict.NOT_SETTLED} where seeds give different verdicts. Judged are runs of at "
            f"least {judged}, {JUDGED_CHARACTERS:,} characters of text and {JUDGED_SEEDS} seeds that the budget left "
            f"nothing out of; others are {Verdict.TOO_SMALL}. Small models and one text: a demonstration, no proof. "
            "Every number is in [results.json](results.json)."
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
    """Return the anchor that GitHub makes of a section's heading."""
    kept = (char for char in _heading(claim).lower() if char.isalnum() or char in " -")
    return "".join(kept).replace(" ", "-")


def _heading(claim: Claim[Any]) -> str:
    return f"{claim.number}. {claim.title}"


def _section(claim: Claim[Any], results: Results) -> str:
    result = results.claims[str(claim.number)]
    first, second = claim.describe([msgspec.convert(numbers, claim.kind) for numbers in result.numbers.values()])
    reasons = results.too_small(str(claim.number))
    verdict = f"**{result.verdict}.**" + (f" Reasons: {'; '.join(reasons)}." if reasons else "")
    seeds = "seed" if len(result.numbers) == 1 else "each of the seeds"
    left_out = [f"Left out, for want of time: {'; '.join(result.left_out)}.", ""] if result.left_out else []
    return "\n".join(
        [
            f"## {_heading(claim)}",
            "",
            f"The lecture: {claim.says}",
            "",
            f"![{claim.title}]({claim.picture})",
            "",
            f"{verdict} {first} {second}",
            "",
            f"| condition | measured, with {seeds} {', '.join(result.numbers)} (one line where all are alike) | |",
            "|---|---|---|",
            *(_row(condition, is_judged=not reasons) for condition in result.conditions),
            "",
            *left_out,
            f"{claim.setting} Took {result.seconds:.0f} s, models included that later claims share.",
        ]
    )


def _row(condition: SettledCondition, *, is_judged: bool) -> str:
    num_met, num_seeds = sum(condition.is_met), len(condition.is_met)
    answer = f"**not settled**: met by {num_met} of {num_seeds} seeds"
    if num_met in (0, num_seeds):
        answer = "met" if num_met else "**not met**"
    figures = condition.figures[0] if len(set(condition.figures)) == 1 else "<br>".join(condition.figures)
    return f"| {condition.what} | {figures} | {answer if is_judged else '–'} |"

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
LECTURE = (
    "The lecture is what courses on recurrent networks commonly tell; a text of it that is free to read, in the same "
    "signs, is chapter 10 of [Goodfellow, Bengio and Courville, *Deep Learning*]"
    "(https://www.deeplearningbook.org/contents/rnn.html)."
)


def page(results: Results, claims: Sequence[Claim[Any]]) -> str:
    """Write README.md: a head, a table of verdicts, and a section for every measured claim."""
    measured = [claim for claim in claims if str(claim.number) in results.claims]
    parts = [TITLE, _head(results), _table(results, measured)]
    if results.skipped:
        numbers = ", ".join(map(str, results.skipped))
        parts.append(f"The time budget ended before these claims were measured: {numbers}.")
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
        LECTURE,
        (
            f"Written by `meari claims`, {results.written}, in {results.minutes:g} minutes, "
            f"{results.cpu_minutes:g} of them CPU time; {results.machine}."
        ),
        (
            f"Text: {setup.text}; {training:,} characters for training, {validation:,} to choose the length of "
            f"schedules, {held_out:,} held out, in this order. A token is a character. All losses are in nats a token."
        ),
        (
            f"Trained parameters: {models}. Those of the echo state network are its readout alone, those of the others "
            f"all of their parameters. Every model has one layer and is trained from {seeds} (weights, order of the "
            f"text, sampling); AdamW, a half cosine, at most {sizes.steps:,} steps of "
            f"{sizes.batch_size} × {sizes.chunk_length} tokens unless stated otherwise; every training runs its "
            "schedule to the end, and the final weights are measured. "
            "Figures are the mean ± standard deviation over seeds, or, if they differ by orders of magnitude, the "
            "median (smallest … largest)."
        ),
        (
            "A criterion is a list of conditions, fixed in the code and computed from the numbers of each seed on its "
            f"own: a claim {Verdict.HOLDS} if all are met, {Verdict.IN_PART} if some are, {Verdict.DOES_NOT} if none "
            f"is, and is {Verdict.NOT_SETTLED} if seeds give different verdicts. A run is judged if it has at least "
            f"{judged}, {JUDGED_CHARACTERS:,} characters of text and {JUDGED_SEEDS} seeds, and the budget left nothing "
            f"out; other runs are {Verdict.TOO_SMALL}. Small models and one text: a demonstration, not a proof. "
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
    left_out = (
        [f"Left out, because the time budget ended: {'; '.join(result.left_out)}.", ""] if result.left_out else []
    )
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
            f"| condition | measured, with {seeds} {', '.join(result.numbers)} (one line if all are equal) | |",
            "|---|---|---|",
            *(_row(condition, is_judged=not reasons) for condition in result.conditions),
            "",
            *left_out,
            f"{claim.setting} Took {result.seconds:.0f} s, including models that later claims share.",
        ]
    )


def _row(condition: SettledCondition, *, is_judged: bool) -> str:
    num_met, num_seeds = sum(condition.is_met), len(condition.is_met)
    answer = f"**not settled**: met by {num_met} of {num_seeds} seeds"
    if num_met in (0, num_seeds):
        answer = "met" if num_met else "**not met**"
    figures = condition.figures[0] if len(set(condition.figures)) == 1 else "<br>".join(condition.figures)
    return f"| {condition.what} | {figures} | {answer if is_judged else '–'} |"

"""`meari score`: a file of texts → their log-probabilities, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cli._bulk import (
    bundle_folder,
    bundle_options,
    check_summary,
    columns_of,
    endings,
    format_of,
    rate,
    run_options,
    run_plan,
    shown,
    tell_summary,
)

if TYPE_CHECKING:
    from bulk.options import ScoreOptions
    from bulk.run import Outcome
    from service.requests.schema import LogBase

EXAMPLES = """\b
Examples:
  meari score corpus.txt --model shakespeare-lstm -o scores.jsonl
  meari score corpus.txt -o scores.jsonl --resume          # after Ctrl-C, a kill or a power cut
  meari score nbest.jsonl --no-end --format tsv > scores.tsv
  meari score stimuli.txt --words --log-base 2 --format tsv > surprisal.tsv
  zcat corpus.gz | meari score - --skip-bad --summary figures.json > scores.jsonl
"""


@click.command("score", short_help="Score a file of texts, without a server.", epilog=EXAMPLES)
@click.argument("file", metavar="FILE|-")
@bundle_options
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["jsonl", "tsv"]),
    default="jsonl",
    show_default=True,
    help="An object a text, or tab-separated values.",
)
@click.option(
    "--log-base", type=click.Choice(["e", "2", "10"]), default="e", show_default=True, help="Of every logarithm."
)
@click.option("--tokens", is_flag=True, help="Figures of every token; in TSV a row a token.")
@click.option("--words", is_flag=True, help="Figures of every word; in TSV a row a word.")
@click.option(
    "--top",
    metavar="K",
    type=click.IntRange(0, 20),
    default=0,
    help="Likeliest alternatives at every token (with --tokens).",
)
@click.option("--no-end", is_flag=True, help="Leave out the probability that a text ends where it ends.")
@click.option(
    "--context", metavar="TEXT", default="", help="What every text stands after; a line's own `context` comes first."
)
@run_options
def command(
    file: str,
    model: str | None,
    bundles: Path | None,
    output_format: Literal["jsonl", "tsv"],
    log_base: LogBase,
    tokens: bool,
    words: bool,
    top: int,
    no_end: bool,
    context: str,
    input_format: str,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    skip_bad: bool,
    no_text: bool,
    jobs: int | None,
    progress: bool | None,
    summary: Path | None,
    quiet: bool,
) -> None:
    """Score every line of FILE ("-": standard input) as POST /score does, in order, with all CPUs.

    FILE is text, a text a line, empty lines too; or JSONL: objects with `text`, and `context` if they like, whose
    other fields stand in the output again. Files of any size take the same memory.
    """
    if top and not tokens:
        raise click.UsageError(f"--top: got {top} without --tokens, expected 0, or --tokens")
    if output_format == "tsv" and tokens and words:
        raise click.UsageError(
            "--tokens, --words: got both with --format tsv, expected one: a row is a token or a word"
        )
    check_summary(summary)
    with endings():
        import msgspec

        from bulk.options import ScoreOptions
        from bulk.run import run
        from bulk.source import Source

        plan = run_plan(output, jobs=jobs, resume=resume, overwrite=overwrite, progress=progress)
        folder = bundle_folder(model, bundles)
        source = Source(file)
        options = ScoreOptions(
            bundle=str(folder.resolve()),
            input_format=format_of(input_format, file, source),
            format=output_format,
            skip_bad=skip_bad,
            with_text=not no_text,
            context=context,
            add_end=not no_end,
            log_base=log_base,
            tokens=tokens,
            words=words,
            top=top,
        )
        options = msgspec.structs.replace(options, columns=columns_of(source, options))
        outcome = run(source, options, plan)
        tell_summary(_summary(outcome, options), _in_words, summary, quiet=quiet)


def _summary(outcome: Outcome, options: ScoreOptions) -> dict[str, Any]:
    from bulk.totals import ScoreTotals

    totals = outcome.totals
    assert isinstance(totals, ScoreTotals)
    return {"model": outcome.model, **totals.summary(options.log_base), **rate(outcome, totals.num_tokens)}


def _in_words(summary: dict[str, Any]) -> str:
    unknown, bad = summary["num_unknown"], summary["num_bad_lines"]
    counts = f"{summary['num_texts']:,} texts, {summary['num_tokens']:,} tokens"
    counts += f", {unknown:,} of them unknown" if unknown else ""
    counts += f"; {bad:,} bad lines" if bad else ""
    rows = (
        (f"logprob (base {summary['log_base']})", "logprob", "logprob_without_unknown"),
        ("perplexity of a token", "perplexity", "perplexity_without_unknown"),
        ("bits a character", "bits_per_char", None),
        ("bits a byte", "bits_per_byte", None),
        ("tokens a second", "tokens_per_second", None),
    )
    lines = [f"{summary['model']}: {counts}, {summary['seconds']:.1f} s"]
    for label, name, known in rows:
        line = f"  {label:<22}{shown(summary[name]):>16}"
        lines.append(f"{line}   without unknown tokens {shown(summary[known])}" if known and unknown else line)
    return "\n".join(lines)

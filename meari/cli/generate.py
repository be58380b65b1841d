"""`meari generate`: a prompt, or a file of them → continuations, by a bundle or a running service."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.cli._bulk import (
    RUN_OPTIONS,
    RunOptions,
    bundle_uses,
    check_names,
    columns_of,
    endings,
    rate,
    tell_summary,
    uses,
    work_options,
)
from meari.cli._options import Choice, json_option, packed
from meari.cli._place import MODEL_OPTION, WHERE_OPTIONS, Place
from meari.cli._sampling import SAMPLING_OPTIONS, SamplingOptions
from meari.cli._tables import shown

if TYPE_CHECKING:
    from meari.bulk.options import OutputFormat
    from meari.bulk.run import Outcome
    from meari.runtime.answers import GenerateUsage
    from meari.runtime.requests import GenerateRequest

EXAMPLES = """\b
Examples:
  meari generate "ROMEO:" --model shakespeare-lstm --max-tokens 200 --temperature 0.7
  meari generate "ROMEO:" --seed 7 --server http://localhost:8000
  meari generate "ROMEO:" --n 3 --seed 7 --json
  meari generate "ROMEO:" --num-beams 8 --n 8 --format tsv
  meari generate --prompts prompts.txt --seed 7 -o texts.jsonl
  meari generate --prompts prompts.txt --seed 7 -o texts.jsonl --resume
  meari generate --prompts prompts.jsonl --n 4 --format tsv > samples.tsv
"""


@click.command("generate", short_help="Continue a prompt or a file of prompts.", epilog=EXAMPLES)
@click.argument("prompt", required=False)
@click.option("--prompts", metavar="FILE|-", type=click.Path(), help="Continue every line of a file instead.")
@packed("place", Place, MODEL_OPTION, *WHERE_OPTIONS)
@packed("sampling", SamplingOptions, *SAMPLING_OPTIONS)
@click.option(
    "--format",
    "output_format",
    type=Choice(["text", "jsonl", "tsv"]),
    help="Text as it comes, an object a prompt, or a row a sample.  [text; of --prompts jsonl]",
)
@packed("run", RunOptions, *RUN_OPTIONS)
@json_option
def command(
    prompt: str | None,
    prompts: str | None,
    place: Place,
    sampling: SamplingOptions,
    output_format: OutputFormat | None,
    run: RunOptions,
    as_json: bool,
) -> None:
    """Continue PROMPT as POST /generate does, or with --prompts every line of a file, in order, with all CPUs.

    A file is text, a prompt a line; or JSONL: objects with `prompt`, whose other fields stand in the output again.
    What comes of a line depends on the seed and the line's number alone; its own seed is told in the output.
    A service gives the texts that a bundle of this machine would.
    """
    if as_json and output_format not in (None, "jsonl"):
        raise click.UsageError(f"--json: got it with --format {output_format}, expected one of the two")
    wanted = "jsonl" if as_json else output_format
    request = sampling.request()
    if prompts is None:
        if given := run.needs_lines:
            raise click.UsageError(f"{given[0]}: got it without --prompts, which alone has lines")
        with endings():
            _one(prompt or "", request, place, wanted or "text", run)
        return
    if prompt is not None:
        raise click.UsageError(f"PROMPT and --prompts: got {prompt!r} and {prompts!r}, expected one of the two")
    if run.skips_bad and wanted == "text":
        raise click.UsageError(
            "--skip-bad, --max-bad: got --format text, which has no place for errors, expected jsonl or tsv"
        )
    with endings():
        _many(prompts, request, place, wanted or "jsonl", run)


def _many(name: str, request: GenerateRequest, place: Place, output_format: OutputFormat, run: RunOptions) -> None:
    """Every line of a file."""
    import msgspec

    from meari.bulk.options import GenerateOptions
    from meari.bulk.run import run as run_bulk
    from meari.bulk.run import seed_of
    from meari.bulk.source import Source

    source = Source([name])
    common, plan, _ = work_options(place, run, uses("--prompts", [name]), source, output_format)
    options = GenerateOptions(
        request=request, seed=seed_of(plan) if request.seed is msgspec.UNSET else request.seed, **common
    )
    options = msgspec.structs.replace(options, columns=columns_of(source, options))
    check_names(source, options)
    outcome = run_bulk(source, options, plan)
    summary = {**_summary(outcome, options.seed), "max_bad_lines": run.bad_limit}
    tell_summary(summary, _in_words, run, summary["num_prompts"])


def _one(prompt: str, request: GenerateRequest, place: Place, output_format: OutputFormat, run: RunOptions) -> None:
    """One prompt; text is written as it comes. A seed that nobody gave is told."""
    import msgspec

    from meari.bulk.output import Output

    is_random = request.seed is msgspec.UNSET
    seed = secrets.randbits(53) if is_random else request.seed  # exact in every reader of JSON
    request = msgspec.structs.replace(request, prompt=prompt, seed=seed)
    run.check_files(bundle_uses(place))
    note_usage = (lambda _: None) if run.quiet else _tell_unknown
    with closing(Output(run.output)) as output, closing(_pieces(request, place, output_format, note_usage)) as pieces:
        first = next(pieces)  # before it, the bundle is opened: what a file holds stays if that fails
        output.start_at(0, 0)
        for piece in chain([first], pieces):
            output.write(piece)
    if is_random and output_format == "text" and request.num_beams == 1 and not run.quiet:
        click.echo(f"seed {seed}", err=True)


def _tell_unknown(usage: GenerateUsage) -> None:
    if num_unknown := usage.unknown_tokens or 0:
        click.echo(
            f"meari: unknown to the model: {num_unknown:,} of the prompt's {usage.prompt_tokens:,} tokens", err=True
        )


def _pieces(
    request: GenerateRequest, place: Place, output_format: OutputFormat, note_usage: Callable[[GenerateUsage], None]
) -> Generator[bytes]:
    service = place.service()
    if service is None:
        from meari.bulk.one_prompt import continue_prompt

        return continue_prompt(Path(place.folder()), request, output_format, note_usage)
    from meari.bulk.served_generate import continue_served_prompt

    return continue_served_prompt(service, place.model, request, output_format, note_usage)


def _summary(outcome: Outcome, seed: int) -> dict[str, Any]:
    from meari.bulk.totals import GenerateTotals

    totals = outcome.totals
    assert isinstance(totals, GenerateTotals)
    return {"model": outcome.model, "seed": seed, **totals.summary(), **rate(outcome, totals.generated_tokens)}


def _in_words(summary: dict[str, Any]) -> str:
    num_bad = summary["num_bad_lines"]
    bad = f"; {num_bad:,} bad lines of at most {summary['max_bad_lines']:,}" if num_bad else ""
    unknown = f"; {summary['unknown_tokens']:,} tokens of prompts unknown" if summary["unknown_tokens"] else ""
    reasons = ", ".join(f"{count:,} by {reason}" for reason, count in summary["finish_reasons"].items() if count)
    return (
        f"{summary['model']}, seed {summary['seed']}: {summary['num_prompts']:,} prompts{bad}{unknown}, "
        f"{summary['num_samples']:,} samples of {summary['generated_tokens']:,} tokens in {summary['seconds']:.1f} s, "
        f"{shown(summary['tokens_per_second'])} a second; ended {reasons or 'none'}"
    )

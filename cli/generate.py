"""`meari generate`: a prompt, or a file of them → continuations, without a server."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from bulk.options import OutputFormat
    from bulk.run import Outcome
    from service.requests.schema import GenerateRequest

EXAMPLES = """\b
Examples:
  meari generate "ROMEO:" --model shakespeare-lstm --max-tokens 200 --temperature 0.7
  meari generate --prompts prompts.txt --seed 7 -o texts.jsonl
  meari generate --prompts prompts.txt --seed 7 -o texts.jsonl --resume
  meari generate --prompts prompts.jsonl --n 4 --format tsv > samples.tsv
  meari generate "ROMEO:" --num-beams 8 --n 8 --format jsonl
"""


@click.command("generate", short_help="Continue a prompt or a file of prompts, without a server.", epilog=EXAMPLES)
@click.argument("prompt", required=False)
@click.option("--prompts", metavar="FILE|-", help="Continue every line of a file instead.")
@bundle_options
@click.option("--max-tokens", metavar="N", type=int, default=64, show_default=True, help="New tokens at most.")
@click.option("--temperature", metavar="T", type=float, default=1.0, show_default=True, help="0 takes the likeliest.")
@click.option("--top-k", metavar="K", type=int, default=0, help="Keep the K likeliest tokens; 0 is off.")
@click.option("--top-p", metavar="P", type=float, default=1.0, help="Keep the nucleus of probability P.")
@click.option("--min-p", metavar="P", type=float, default=0.0, help="Keep what has this share of the likeliest one's.")
@click.option("--repetition-penalty", metavar="R", type=float, default=1.0, help="As in the CTRL paper; 1 is off.")
@click.option("--logit-bias", metavar="ID=BIAS", multiple=True, help="Added to a token's logit; may be repeated.")
@click.option("--seed", metavar="N", type=int, help="The same seed gives the same text.  [random, told]")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before it; may be repeated, at most 8 times.")
@click.option("--n", metavar="N", type=int, default=1, help="Samples of each prompt, at most 16.")
@click.option("--num-beams", metavar="N", type=int, default=1, help="Over 1: beam search, which returns the best --n.")
@click.option("--logprobs", metavar="K", type=int, help="Figures of every token and K alternatives, 0 to 20.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "jsonl", "tsv"]),
    help="Text as it comes, an object a prompt, or a row a sample.  [text; of --prompts jsonl]",
)
@run_options
def command(
    prompt: str | None,
    prompts: str | None,
    model: str | None,
    bundles: Path | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    logit_bias: tuple[str, ...],
    seed: int | None,
    stop: tuple[str, ...],
    n: int,
    num_beams: int,
    logprobs: int | None,
    output_format: OutputFormat | None,
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
    """Continue PROMPT as POST /generate does, or with --prompts every line of a file, in order, with all CPUs.

    A file is text, a prompt a line; or JSONL: objects with `prompt`, whose other fields stand in the output again.
    What comes of a line depends on the seed and the line's number alone; its own seed is told in the output.
    """
    request = _request(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        logit_bias=_biases(logit_bias),
        **({} if seed is None else {"seed": seed}),
        stop=list(stop),
        n=n,
        num_beams=num_beams,
        logprobs=logprobs,
    )
    if prompts is None:
        if resume or overwrite or skip_bad or summary is not None or input_format != "auto":
            raise click.UsageError(
                "--resume, --overwrite, --skip-bad, --summary, --input-format: got one without --prompts"
            )
        with endings():
            _one(prompt or "", request, bundle_folder(model, bundles), output_format or "text", output)
        return
    if prompt is not None:
        raise click.UsageError(f"PROMPT and --prompts: got {prompt!r} and {prompts!r}, expected one of the two")
    check_summary(summary)
    if skip_bad and output_format == "text":
        raise click.UsageError("--skip-bad: got --format text, which has no place for errors, expected jsonl or tsv")
    with endings():
        import msgspec

        from bulk.options import GenerateOptions
        from bulk.run import run, seed_of
        from bulk.source import Source

        plan = run_plan(output, jobs=jobs, resume=resume, overwrite=overwrite, progress=progress)
        folder = bundle_folder(model, bundles)
        source = Source(prompts)
        options = GenerateOptions(
            bundle=str(folder.resolve()),
            input_format=format_of(input_format, prompts, source),
            format=output_format or "jsonl",
            skip_bad=skip_bad,
            with_text=not no_text,
            request=request,
            seed=seed_of(plan) if seed is None else seed,
        )
        options = msgspec.structs.replace(options, columns=columns_of(source, options))
        outcome = run(source, options, plan)
        tell_summary(_summary(outcome, options.seed), _in_words, summary, quiet=quiet)


def _request(**fields: object) -> GenerateRequest:
    """The options as a request, checked as one. Raises UsageError, naming the option."""
    import msgspec

    from bulk.options import checked_request
    from service.errors import InvalidRequest

    try:
        return checked_request(msgspec.json.encode(fields))
    except InvalidRequest as error:
        name, colon, rest = str(error).partition(":")
        raise click.UsageError(f"--{name.replace('_', '-')}{colon}{rest}") from None


def _biases(pairs: tuple[str, ...]) -> dict[str, float] | None:
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[token] = float(bias)
        except ValueError:
            raise click.UsageError(f"--logit-bias: got {pair!r}, expected ID=BIAS, as 17=-2.5") from None
    return biases or None


def _one(
    prompt: str,
    request: GenerateRequest,
    folder: Path,
    output_format: OutputFormat,
    path: Path | None,
) -> None:
    """One prompt, in this process; text is written as it comes."""
    import msgspec

    from bulk.one_prompt import continue_prompt
    from bulk.output import Output

    request = msgspec.structs.replace(request, prompt=prompt)
    with closing(Output(path)) as output, closing(continue_prompt(folder, request, output_format)) as pieces:
        first = next(pieces)  # before it, the bundle is opened: what a file holds stays if that fails
        output.start_at(0, 0)
        for piece in chain([first], pieces):
            output.write(piece)


def _summary(outcome: Outcome, seed: int) -> dict[str, Any]:
    from bulk.totals import GenerateTotals

    totals = outcome.totals
    assert isinstance(totals, GenerateTotals)
    return {"model": outcome.model, "seed": seed, **totals.summary(), **rate(outcome, totals.generated_tokens)}


def _in_words(summary: dict[str, Any]) -> str:
    bad = f"; {summary['num_bad_lines']:,} bad lines" if summary["num_bad_lines"] else ""
    endings = ", ".join(f"{count:,} by {reason}" for reason, count in summary["finish_reasons"].items() if count)
    return (
        f"{summary['model']}, seed {summary['seed']}: {summary['num_prompts']:,} prompts{bad}, "
        f"{summary['num_samples']:,} samples of {summary['generated_tokens']:,} tokens in {summary['seconds']:.1f} s, "
        f"{shown(summary['tokens_per_second'])} a second; ended {endings or 'none'}"
    )

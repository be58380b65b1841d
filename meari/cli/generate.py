"""`meari generate`: a prompt, or a file of them → continuations, by a bundle or a running service."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import click

from meari.cli._bulk import (
    bundle_uses,
    check_format,
    check_names,
    columns_of,
    endings,
    format_of,
    rate,
    refuse_urls,
    tell_summary,
    uses,
    work_options,
)
from meari.cli._options import Choice, PathType, json_option, packed
from meari.cli._run_options import RUN_OPTIONS, RunOptions
from meari.cli._tables import shown
from meari.cli._target import MODEL_OPTION, TARGET_OPTIONS, Target, signing_keys

if TYPE_CHECKING:
    from meari.bulk.options import OutputFormat
    from meari.bulk.plan import RunResult
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


SAMPLING_OPTIONS = (
    click.option(
        "--max-tokens", metavar="N", type=int, default=64, show_default=True, help="Maximum number of new tokens."
    ),
    click.option(
        "--min-tokens", metavar="N", type=int, default=0, help="Minimum number of tokens before an end or a stop."
    ),
    click.option(
        "--temperature",
        metavar="T",
        type=float,
        default=1.0,
        show_default=True,
        help="Sampling temperature; 0 takes the likeliest token.",
    ),
    click.option("--top-k", metavar="K", type=int, default=0, help="Keep the K likeliest tokens; 0 is off."),
    click.option("--top-p", metavar="P", type=float, default=1.0, help="Keep the nucleus of probability P."),
    click.option(
        "--min-p",
        metavar="P",
        type=float,
        default=0.0,
        help="Keep tokens with this share of the likeliest token's probability.",
    ),
    click.option(
        "--repetition-penalty",
        metavar="R",
        type=float,
        default=1.0,
        help="Repetition penalty of the CTRL paper; 1 is off.",
    ),
    click.option(
        "--frequency-penalty",
        metavar="F",
        type=float,
        default=0.0,
        help="Subtracted from a token's logit per earlier occurrence.",
    ),
    click.option(
        "--presence-penalty",
        metavar="P",
        type=float,
        default=0.0,
        help="Subtracted from the logits of tokens generated before.",
    ),
    click.option("--logit-bias", metavar="ID=BIAS", multiple=True, help="Added to a token's logit; may be repeated."),
    click.option("--seed", metavar="N", type=int, help="The same seed gives the same text.  [random, told]"),
    click.option(
        "--stop", metavar="TEXT", multiple=True, help="Stop before this text; may be repeated, at most 8 times."
    ),
    click.option("--n", metavar="N", type=int, default=1, help="Samples of each prompt, at most 16."),
    click.option(
        "--num-beams", metavar="N", type=int, default=1, help="Above 1: beam search, which returns the best --n."
    ),
    click.option("--logprobs", metavar="K", type=int, help="Figures of each token with K alternatives, 0 to 20."),
)


@dataclass(frozen=True)
class SamplingOptions:
    """The options that are fields of POST /generate, by its names."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: tuple[str, ...]
    seed: int | None
    stop: tuple[str, ...]
    n: int
    num_beams: int
    logprobs: int | None

    def request(self) -> GenerateRequest:
        """Return the options as a checked request. Raises UsageError, naming the option."""
        import msgspec

        from meari.bulk.options import checked_request
        from meari.errors import InvalidRequest

        fields = asdict(self) | {"logit_bias": _biases(self.logit_bias)}
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):  # JSON has none of these
                raise click.UsageError(f"--{name.replace('_', '-')}: got {value}, expected a number")
        if self.seed is None:
            del fields["seed"]
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


@click.command("generate", short_help="Continue a prompt or a file of prompts.", epilog=EXAMPLES)
@click.argument("prompt", required=False)
@click.option("--prompts", metavar="FILE|-", type=PathType(), help="Continue each line of a file instead.")
@packed("target", Target, MODEL_OPTION, *TARGET_OPTIONS)
@packed("sampling", SamplingOptions, *SAMPLING_OPTIONS)
@click.option(
    "--format",
    "output_format",
    type=Choice(["text", "jsonl", "tsv", "parquet"]),
    help="Text as it is written, one object per prompt, one row per sample, or with meari[parquet] Parquet.  [text; of "
    "--prompts as -o FILE is called, or jsonl]",
)
@packed("run", RunOptions, *RUN_OPTIONS)
@json_option
def command(
    prompt: str | None,
    prompts: str | None,
    target: Target,
    sampling: SamplingOptions,
    output_format: Literal["jsonl", "tsv", "text", "parquet"] | None,
    run: RunOptions,
    as_json: bool,
) -> None:
    """Continue PROMPT as POST /generate does, or with --prompts every line of a file, in order, with all CPUs.

    A file is text, a prompt a line; or JSONL: objects with `prompt`, whose other fields stand in the output again.
    What comes of a line depends on the seed and the line's number alone; its own seed is told in the output.
    A service gives the texts that a bundle of this machine would.
    """
    check_format(output_format, run, as_json=as_json)
    to_parquet = run.writes_parquet or output_format == "parquet"  # made of JSONL
    named = None if output_format == "parquet" else output_format
    wanted = "jsonl" if as_json or to_parquet else named
    request = sampling.request()
    if prompts is None:
        if given := run.needs_lines:
            raise click.UsageError(f"{given[0]}: got it without --prompts, which alone has lines")
        with endings():
            _one(prompt or "", request, target, wanted or "text", run)
        return
    if prompt is not None:
        raise click.UsageError(f"PROMPT and --prompts: got {prompt!r} and {prompts!r}, expected one of the two")
    if run.skips_bad and wanted == "text":
        raise click.UsageError(
            "--skip-bad, --max-bad: got --format text, which has no place for errors, expected jsonl or tsv"
        )
    with endings():
        _many(prompts, request, target, wanted or "jsonl", run, to_parquet=to_parquet)


def _many(
    name: str,
    request: GenerateRequest,
    target: Target,
    output_format: OutputFormat,
    run: RunOptions,
    *,
    to_parquet: bool,
) -> None:
    """Continue every line of a file."""
    if run.engine == "ray":
        result, seed = _many_with_ray(name, request, target, output_format, run, to_parquet=to_parquet)
    else:
        result, seed = _many_here(name, request, target, output_format, run)
    summary = {**_summary(result, seed), "max_bad_lines": run.bad_limit}
    tell_summary(summary, _in_words, run, summary["num_prompts"])


def _many_with_ray(
    name: str,
    request: GenerateRequest,
    target: Target,
    output_format: OutputFormat,
    run: RunOptions,
    *,
    to_parquet: bool,
) -> tuple[RunResult, int]:
    import msgspec

    from meari.bulk.options import GenerateOptions
    from meari.bulk.ray_engine import seed_of_job
    from meari.cli._ray import run_with_ray

    seed = request.seed
    if seed is msgspec.UNSET:
        seed = secrets.randbits(53)
        seed = seed_of_job(run.output, seed) if run.resume and run.output is not None else seed
    assert isinstance(seed, int)

    def options_of(common: dict[str, Any], _: object) -> GenerateOptions:
        return GenerateOptions(request=request, seed=seed, **common)

    result, _, _ = run_with_ray([name], target, run, output_format, options_of, to_parquet=to_parquet)
    return result, seed


def _many_here(
    name: str, request: GenerateRequest, target: Target, output_format: OutputFormat, run: RunOptions
) -> tuple[RunResult, int]:
    import msgspec

    from meari.bulk.options import GenerateOptions
    from meari.bulk.run import run as run_bulk
    from meari.bulk.run import seed_of
    from meari.bulk.source import Source

    refuse_urls("--prompts", [name])
    source = Source([name])
    run.check()
    common, plan, _ = work_options(target, run, uses("--prompts", [name]), format_of(run, source), output_format)
    options = GenerateOptions(
        request=request, seed=seed_of(plan) if request.seed is msgspec.UNSET else request.seed, **common
    )
    options = msgspec.structs.replace(options, columns=columns_of(source, options))
    check_names(source, options)
    return run_bulk(source, options, plan), options.seed


def _one(prompt: str, request: GenerateRequest, target: Target, output_format: OutputFormat, run: RunOptions) -> None:
    """Continue one prompt; text is written as it comes. A random seed is reported."""
    import msgspec

    from meari.bulk.output import Output

    is_random = request.seed is msgspec.UNSET
    seed = secrets.randbits(53) if is_random else request.seed  # exact in every reader of JSON
    request = msgspec.structs.replace(request, prompt=prompt, seed=seed)
    run.check_files(bundle_uses(target))
    note_usage = (lambda _: None) if run.quiet else _tell_unknown
    with (
        closing(Output(run.output_file)) as output,
        closing(_pieces(request, target, output_format, note_usage)) as pieces,
    ):
        first = next(pieces)  # this opens the bundle: if that fails, an output file is not touched
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
    request: GenerateRequest, target: Target, output_format: OutputFormat, note_usage: Callable[[GenerateUsage], None]
) -> Generator[bytes]:
    """Yield the output of one prompt."""
    from meari.bulk.backends import Backend, open_local
    from meari.bulk.generate import continue_prompt

    service = target.service()
    backend: Backend
    if service is None:
        backend = open_local(target.folder(), signing_keys())
    else:
        from meari.bulk.remote import RemoteBackend

        backend = RemoteBackend(service, target.model)
    with closing(backend):
        yield from continue_prompt(backend, request, output_format, note_usage)


def _summary(result: RunResult, seed: int) -> dict[str, Any]:
    from meari.bulk.totals import GenerateTotals

    totals = result.totals
    assert isinstance(totals, GenerateTotals)
    return {"model": result.model, "seed": seed, **totals.summary(), **rate(result, totals.generated_tokens)}


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

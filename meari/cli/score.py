"""`meari score`: texts, or a file of them → their log-probabilities, by a bundle or a running service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import click

from meari.cli._bulk import (
    ModelFacts,
    check_format,
    check_names,
    columns_of,
    endings,
    format_of,
    input_names,
    rate,
    tell_summary,
    uses,
    work_options,
)
from meari.cli._files import Use
from meari.cli._options import Choice, PathType, json_option, packed
from meari.cli._run_options import RUN_OPTIONS, RunOptions
from meari.cli._tables import Table, show, shown
from meari.cli._target import MODEL_OPTION, TARGET_OPTIONS, Target

if TYPE_CHECKING:
    from meari.bulk.options import InputFormat, OutputFormat, ScoreOptions
    from meari.bulk.plan import RunPlan, RunResult
    from meari.runtime.requests import LogBase

EXAMPLES = """\b
Examples:
  meari score --text "To be, or not to be" --text "To be, or not too bee"
  meari score --text "To be, or not to be" --words --log-base 2 --server http://localhost:8000
  meari score corpus.txt --model shakespeare-lstm -o scores.jsonl
  meari score corpus.txt -o scores.jsonl --resume          # after Ctrl-C, a kill or a power cut
  meari score nbest.jsonl --no-end --format tsv > scores.tsv
  meari score stimuli.txt --words --log-base 2 --format tsv > surprisal.tsv
  meari score part-1.jsonl.gz part-2.jsonl.gz --field body --skip-bad --summary figures.json > scores.jsonl
"""

WORDS = ("spaces", "unicode")


class WordsCommand(click.Command):
    """A command whose `--words` may stand alone before an argument that click would take for its value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        following = [*args[1:], ""]
        alone = "--words=" + WORDS[0]
        words = [alone if a == "--words" and b not in WORDS else a for a, b in zip(args, following, strict=False)]
        return super().parse_args(ctx, words)


FIGURE_OPTIONS = (
    click.option(
        "--log-base", type=Choice(["e", "2", "10"]), default="e", show_default=True, help="Base of all logarithms."
    ),
    click.option("--tokens", is_flag=True, help="Figures of each token; in TSV one row per token."),
    click.option(
        "--words",
        type=Choice(WORDS),
        is_flag=False,
        flag_value=WORDS[0],
        help="Figures of each word, in TSV one row per word; without a value words end at spaces. unicode (with "
        "meari[segment]) also finds words that no spaces separate, and takes marks for words.",
    ),
    click.option(
        "--top",
        metavar="K",
        type=click.IntRange(0, 20),
        default=0,
        help="Number of likeliest alternatives per token (with --tokens).",
    ),
    click.option(
        "--end/--no-end",
        default=None,
        help="Count the probability that a text ends where it ends.  [if the model's training text had ends]",
    ),
    click.option(
        "--context",
        metavar="TEXT",
        default="",
        help="Context of every text; a line's own `context` takes precedence.",
    ),
)


@dataclass(frozen=True)
class FigureOptions:
    """The figures that are asked for. Raises UsageError if the options contradict each other."""

    log_base: LogBase
    tokens: bool
    words: str | None
    top: int
    end: bool | None
    context: str

    def __post_init__(self) -> None:
        if self.top and not self.tokens:
            raise click.UsageError(f"--top: got {self.top} without --tokens, expected 0, or --tokens")

    def fields(self, *, has_ends: bool) -> dict[str, Any]:
        """Return fields of `ScoreOptions`; has_ends: the model's training text had ends."""
        named = {name: getattr(self, name) for name in ("log_base", "tokens", "top", "context")}
        words = self.words if self.words == "unicode" else self.words is not None
        return {**named, "words": words, "add_end": has_ends if self.end is None else self.end}


@click.command(
    "score",
    cls=WordsCommand,
    short_help="Compute the probability of texts, or of each line of a file.",
    epilog=EXAMPLES,
)
@click.argument("files", metavar="[FILE|DIR|-]…", nargs=-1, type=PathType())
@click.option(
    "--text", "texts", metavar="TEXT", multiple=True, help="Score this text instead of a file; may be repeated."
)
@packed("target", Target, MODEL_OPTION, *TARGET_OPTIONS)
@click.option(
    "--format",
    "output_format",
    type=Choice(["jsonl", "tsv", "parquet", "table"]),
    help="One object per text, tab-separated values, Parquet with meari[parquet], or for --text a table.  [as -o FILE "
    "is called, or jsonl; of --text table]",
)
@packed("figures", FigureOptions, *FIGURE_OPTIONS)
@packed("run", RunOptions, *RUN_OPTIONS)
@json_option
def command(
    files: tuple[str, ...],
    texts: tuple[str, ...],
    target: Target,
    output_format: Literal["jsonl", "tsv", "parquet", "table"] | None,
    figures: FigureOptions,
    run: RunOptions,
    as_json: bool,
) -> None:
    """Score every line of the FILEs ("-": standard input) as POST /score does, in order, with all CPUs; or each --text.

    A FILE is text, a text a line, empty lines too; or JSONL: objects with `text`, and `context` if they like, whose
    other fields stand in the output again. Either may be packed by gzip. Of a folder the text files are read. Files of
    any size take the same memory. A service gives the figures that a bundle of this machine would.
    """
    check_format(output_format, run, as_json=as_json)
    to_parquet = run.writes_parquet or output_format == "parquet"  # made of JSONL
    named = None if output_format == "parquet" else output_format
    wanted = "jsonl" if as_json or to_parquet else named or ("table" if texts else "jsonl")
    if bool(files) == bool(texts):
        raise click.UsageError("FILE and --text: got " + ("both" if texts else "none") + ", expected one of the two")
    if wanted == "tsv" and figures.tokens and figures.words:
        raise click.UsageError(
            "--tokens, --words: got both with --format tsv, expected one: a row is a token or a word"
        )
    with endings():
        if not files:
            _score_texts(texts, target, wanted, figures, run)
        elif wanted == "table":
            raise click.UsageError("--format: got table with FILE, expected jsonl or tsv, or --text")
        else:
            result, options, model_facts = _score_lines(files, target, wanted, figures, run, to_parquet=to_parquet)
            summary = {**_summary(result, options, model_facts), "max_bad_lines": run.bad_limit}
            tell_summary(summary, _in_words, run, summary["num_texts"] + summary["num_blank"])


def _score_texts(
    texts: tuple[str, ...],
    target: Target,
    output_format: Literal["jsonl", "tsv", "table"],
    figures: FigureOptions,
    run: RunOptions,
) -> None:
    """Score a few texts in this process, as if they were lines of a file."""
    import msgspec

    from meari.bulk.run import run_texts, score_texts

    if given := run.needs_lines:
        raise click.UsageError(f"{given[0]}: got it with --text, expected FILE, which alone has lines")
    if output_format != "table":
        options, plan, _ = _plan(target, figures, run, [], "jsonl", output_format)
        run_texts(texts, options, plan)
        return
    if run.output is not None:
        raise click.UsageError("--output: got it for a table, expected --format jsonl or tsv with it")
    run = replace(run, no_text=False, prefix="")
    options, plan, _ = _plan(target, figures, run, [], "jsonl", "jsonl")
    records = score_texts(texts, options, plan).splitlines()
    show_scores([msgspec.json.decode(record) for record in records], figures.log_base)


def _score_lines(
    files: Sequence[str],
    target: Target,
    output_format: OutputFormat,
    figures: FigureOptions,
    run: RunOptions,
    *,
    to_parquet: bool,
) -> tuple[RunResult, ScoreOptions, ModelFacts]:
    """Score every line of some files."""
    if run.engine == "ray":
        from meari.bulk.options import ScoreOptions
        from meari.cli._ray import run_with_ray

        return run_with_ray(
            files,
            target,
            run,
            output_format,
            lambda common, facts: ScoreOptions(**common, **figures.fields(has_ends=facts.has_ends)),
            to_parquet=to_parquet,
        )
    import msgspec

    from meari.bulk.run import run as run_bulk
    from meari.bulk.source import Source

    names, tells_files = input_names(files)
    source = Source(names, tells_files=tells_files)
    run.check()
    input_format = format_of(run, source)
    options, plan, model_facts = _plan(target, figures, run, uses("FILE", files), input_format, output_format)
    options = msgspec.structs.replace(options, with_file=tells_files)
    options = msgspec.structs.replace(options, columns=columns_of(source, options))
    check_names(source, options)
    return run_bulk(source, options, plan), options, model_facts


def _plan(
    target: Target,
    figures: FigureOptions,
    run: RunOptions,
    inputs: list[Use],
    input_format: InputFormat,
    output_format: OutputFormat,
) -> tuple[ScoreOptions, RunPlan, ModelFacts]:
    from meari.bulk.options import ScoreOptions

    common, plan, model_facts = work_options(target, run, inputs, input_format, output_format)
    return ScoreOptions(**common, **figures.fields(has_ends=model_facts.has_ends)), plan, model_facts


def _summary(result: RunResult, options: ScoreOptions, model_facts: ModelFacts) -> dict[str, Any]:
    from meari.bulk.totals import ScoreTotals

    totals = result.totals
    assert isinstance(totals, ScoreTotals)
    return {
        "model": result.model,
        **totals.summary(options.log_base, add_end=options.add_end),
        **rate(result, totals.num_tokens),
        **model_facts.machine,
    }


def _in_words(summary: dict[str, Any]) -> str:
    unknown, bad = summary["num_unknown"], summary["num_bad_lines"]
    blank = f" ({summary['num_blank']:,} blank, not counted)" if summary["num_blank"] else ""
    counts = f"{summary['num_texts']:,} texts{blank}, {summary['num_tokens']:,} tokens"
    counts += f", {unknown:,} of them unknown" if unknown else ""
    counts += f"; {bad:,} bad lines of at most {summary['max_bad_lines']:,}" if bad else ""
    rows = (
        (f"logprob (base {summary['log_base']})", "logprob", "logprob_without_unknown"),
        ("perplexity of a token", "perplexity", "perplexity_without_unknown"),
        ("bits a character", "bits_per_char", None),
        ("  ends as characters", "bits_per_char_with_ends", None),
        ("bits a byte", "bits_per_byte", None),
        ("tokens a second", "tokens_per_second", None),
    )
    lines = [f"{summary['model']}: {counts}, {summary['seconds']:.1f} s"]
    for label, name, known in rows:
        line = f"  {label:<22}{shown(summary[name]):>16}"
        lines.append(f"{line}   without unknown tokens {shown(summary[known])}" if known and unknown else line)
    if summary["cpu"]:
        lines.append(f"  on {summary['cpu']}, onnxruntime {summary['onnxruntime']}")
    return "\n".join(lines)


def show_scores(records: list[dict[str, Any]], log_base: str) -> None:
    """Print records of the JSONL output as tables: a row a text, then a row a word or token, which add up."""
    logprob = "ln P" if log_base == "e" else f"log{log_base} P"
    tables = [_texts(records, logprob)]
    for record in records:
        if "words" in record:
            tables.append(_parts(record, "word", logprob))
        if "tokens" in record:
            tables.append(_parts(record, "token", logprob))
    show(*tables)


def _texts(records: list[dict[str, Any]], logprob: str) -> Table:
    figures = ("logprob", "perplexity", "bits_per_char")
    numbers = (logprob, "perplexity", "bits/char", "tokens", "unknown")
    rows = [
        (
            _quoted(record["text"]),
            *(shown(record[name]) for name in figures),
            str(record["num_tokens"]),
            str(record["num_unknown"]),
        )
        for record in records
    ]
    return Table("", ("text", *numbers), rows, frozenset(numbers))


def _parts(record: dict[str, Any], name: str, logprob: str) -> Table:
    """Return a table of words or tokens and their total; tokens have a rank, and alternatives if wanted."""
    parts: list[dict[str, Any]] = record[f"{name}s"]
    more: dict[str, Callable[[dict[str, Any]], str]] = {
        "rank": lambda part: str(part["rank"]),
        "likeliest": lambda part: "  ".join(f"{_token(x)} {shown(x['logprob'])}" for x in part["top"]),
        "unknown": lambda part: "yes" if part["unknown"] else "",
    }
    wanted = [
        column
        for column, is_wanted in (
            ("rank", any("rank" in part for part in parts)),
            ("likeliest", any(part.get("top") for part in parts)),
            ("unknown", any(part["unknown"] for part in parts)),
        )
        if is_wanted
    ]
    rows = [(_name(part), *_both(part["logprob"]), *(more[column](part) for column in wanted)) for part in parts]
    rows.append(("total", *_both(record["logprob"]), *("" for _ in wanted)))
    title = f"{name}s of {_quoted(record['text'])}"
    return Table(title, (name, logprob, "surprisal", *wanted), rows, frozenset({logprob, "surprisal", "rank"}))


def _both(logprob: float) -> tuple[str, str]:
    """Return a log-probability and its surprisal."""
    return shown(logprob), shown(0.0 - logprob)


def _name(part: dict[str, Any]) -> str:
    """Return the text in quotation marks, but for the end of a text, which has no length."""
    return str(part["text"]) if part["start"] == part["end"] else _token(part)


def _token(part: dict[str, Any]) -> str:
    """Return the token in quotation marks; a part of a character as its bytes."""
    if "bytes" in part:
        return '"' + "".join(f"\\x{byte:02x}" for byte in part["bytes"]) + '"'
    return _quoted(part["text"])


def _quoted(text: str) -> str:
    """Return the text on one line, with its white space visible."""
    return '"' + text.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r") + '"'

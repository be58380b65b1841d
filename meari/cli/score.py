"""`meari score`: texts, or a file of them → their log-probabilities, by a bundle or a running service."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from meari.cli._bulk import (
    RUN_OPTIONS,
    ModelFacts,
    RunOptions,
    check_names,
    columns_of,
    endings,
    input_names,
    rate,
    tell_summary,
    uses,
    work_options,
)
from meari.cli._options import Choice, json_option, packed
from meari.cli._place import MODEL_OPTION, WHERE_OPTIONS, Place
from meari.cli._scores import show_scores
from meari.cli._tables import shown

if TYPE_CHECKING:
    from meari.bulk.options import OutputFormat, ScoreOptions
    from meari.bulk.run import Outcome
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
    """Lets `--words` stand alone before whatever is none of its values, which click would take for one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        following = [*args[1:], ""]
        alone = "--words=" + WORDS[0]
        words = [alone if a == "--words" and b not in WORDS else a for a, b in zip(args, following, strict=False)]
        return super().parse_args(ctx, words)


FIGURE_OPTIONS = (
    click.option(
        "--log-base", type=Choice(["e", "2", "10"]), default="e", show_default=True, help="Of every logarithm."
    ),
    click.option("--tokens", is_flag=True, help="Figures of every token; in TSV a row a token."),
    click.option(
        "--words",
        type=Choice(WORDS),
        is_flag=False,
        flag_value=WORDS[0],
        help="Figures of every word, in TSV a row a word; alone it means spaces. unicode (with meari[segment]) finds "
        "words also where no spaces stand between them, and takes marks for words.",
    ),
    click.option(
        "--top",
        metavar="K",
        type=click.IntRange(0, 20),
        default=0,
        help="Likeliest alternatives at every token (with --tokens).",
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
        help="What every text stands after; a line's own `context` comes first.",
    ),
)


@dataclass(frozen=True)
class FigureOptions:
    """Which figures. Raises UsageError where the options contradict each other."""

    log_base: LogBase
    tokens: bool
    words: str | None
    top: int
    end: bool | None
    context: str

    def __post_init__(self) -> None:
        if self.top and not self.tokens:
            raise click.UsageError(f"--top: got {self.top} without --tokens, expected 0, or --tokens")

    def fields(self, has_ends: bool) -> dict[str, Any]:
        """As `ScoreOptions` call them; `has_ends` is what the model says."""
        named = {name: getattr(self, name) for name in ("log_base", "tokens", "top", "context")}
        words = self.words if self.words == "unicode" else self.words is not None
        return {**named, "words": words, "add_end": has_ends if self.end is None else self.end}


@click.command(
    "score", cls=WordsCommand, short_help="Tell how likely texts are, or every line of a file.", epilog=EXAMPLES
)
@click.argument("files", metavar="[FILE|DIR|-]…", nargs=-1, type=click.Path())
@click.option("--text", "texts", metavar="TEXT", multiple=True, help="Score this instead; may be repeated.")
@packed("place", Place, MODEL_OPTION, *WHERE_OPTIONS)
@click.option(
    "--format",
    "output_format",
    type=Choice(["jsonl", "tsv", "table"]),
    help="An object a text, tab-separated values, or of --text a table.  [jsonl; of --text table]",
)
@packed("figures", FigureOptions, *FIGURE_OPTIONS)
@packed("run", RunOptions, *RUN_OPTIONS)
@json_option
def command(
    files: tuple[str, ...],
    texts: tuple[str, ...],
    place: Place,
    output_format: Literal["jsonl", "tsv", "table"] | None,
    figures: FigureOptions,
    run: RunOptions,
    as_json: bool,
) -> None:
    """Score every line of the FILEs ("-": standard input) as POST /score does, in order, with all CPUs; or each --text.

    A FILE is text, a text a line, empty lines too; or JSONL: objects with `text`, and `context` if they like, whose
    other fields stand in the output again. Either may be packed by gzip. Of a folder the text files are read. Files of
    any size take the same memory. A service gives the figures that a bundle of this machine would.
    """
    if as_json and output_format not in (None, "jsonl"):
        raise click.UsageError(f"--json: got it with --format {output_format}, expected one of the two")
    wanted = "jsonl" if as_json else output_format or ("table" if texts else "jsonl")
    if bool(files) == bool(texts):
        raise click.UsageError("FILE and --text: got " + ("both" if texts else "none") + ", expected one of the two")
    if wanted == "tsv" and figures.tokens and figures.words:
        raise click.UsageError(
            "--tokens, --words: got both with --format tsv, expected one: a row is a token or a word"
        )
    with endings():
        if not files:
            _score_texts(texts, place, wanted, figures, run)
        elif wanted == "table":
            raise click.UsageError("--format: got table with FILE, expected jsonl or tsv, or --text")
        else:
            outcome, options, facts = _score_lines(files, place, wanted, figures, run)
            summary = {**_summary(outcome, options, facts), "max_bad_lines": run.bad_limit}
            tell_summary(summary, _in_words, run, summary["num_texts"] + summary["num_blank"])


def _score_texts(
    texts: tuple[str, ...],
    place: Place,
    output_format: Literal["jsonl", "tsv", "table"],
    figures: FigureOptions,
    run: RunOptions,
) -> None:
    """A few texts, as the lines of a file that is here for them alone."""
    import msgspec

    if given := run.needs_lines:
        raise click.UsageError(f"{given[0]}: got it with --text, expected FILE, which alone has lines")
    with tempfile.TemporaryDirectory() as name:
        lines, scores = Path(name, "texts.jsonl"), Path(name, "scores.jsonl")
        lines.write_bytes(b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts))
        if output_format != "table":
            _score_lines([str(lines)], place, output_format, figures, run)
            return
        if run.output is not None:
            raise click.UsageError("--output: got it for a table, expected --format jsonl or tsv with it")
        run = replace(run, output=scores, no_text=False, prefix="")
        _score_lines([str(lines)], place, "jsonl", figures, run)
        show_scores([msgspec.json.decode(line) for line in scores.read_bytes().splitlines()], figures.log_base)


def _score_lines(
    files: Sequence[str], place: Place, output_format: OutputFormat, figures: FigureOptions, run: RunOptions
) -> tuple[Outcome, ScoreOptions, ModelFacts]:
    import msgspec

    from meari.bulk.options import ScoreOptions
    from meari.bulk.run import run as run_bulk
    from meari.bulk.source import Source

    names, tells_files = input_names(files)
    source = Source(names, tells_files=tells_files)
    common, plan, facts = work_options(place, run, uses("FILE", files), source, output_format)
    options = ScoreOptions(**common, **figures.fields(facts.has_ends))
    options = msgspec.structs.replace(options, columns=columns_of(source, options))
    check_names(source, options)
    return run_bulk(source, options, plan), options, facts


def _summary(outcome: Outcome, options: ScoreOptions, facts: ModelFacts) -> dict[str, Any]:
    from meari.bulk.totals import ScoreTotals

    totals = outcome.totals
    assert isinstance(totals, ScoreTotals)
    return {
        "model": outcome.model,
        **totals.summary(options.log_base, add_end=options.add_end),
        **rate(outcome, totals.num_tokens),
        **facts.machine,
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

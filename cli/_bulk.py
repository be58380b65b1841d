"""What the bulk verbs share: options, the way from a first line to its format, endings and their exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bulk.options import InputFormat, WorkOptions
    from bulk.run import Outcome, Plan
    from bulk.source import Source

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
_TEXT_SUFFIXES = (".txt",)
_JSONL_SUFFIXES = (".jsonl", ".ndjson")

_BUNDLE_OPTIONS = (
    click.option("--model", metavar="NAME", help="Bundle by name, or its path.  [as DEFAULT in the folder says]"),
    click.option(
        "--bundles",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder of bundles, or a bundle.  [MEARI_BUNDLES, or bundles]",
    ),
)
_RUN_OPTIONS = (
    click.option(
        "--input-format",
        type=click.Choice(["auto", "text", "jsonl"]),
        default="auto",
        show_default=True,
        help="A line is a text, or a JSON object.",
    ),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Write there; FILE.progress beside it keeps how far the run is.  [standard output]",
    ),
    click.option("--resume", is_flag=True, help="Go on where FILE ends, after an interruption of any kind."),
    click.option("--overwrite", is_flag=True, help="Begin anew, though FILE holds an interrupted run."),
    click.option("--skip-bad", is_flag=True, help="Write an error record for a bad line and go on."),
    click.option("--no-text", is_flag=True, help="Leave the input's text out of the output."),
    click.option(
        "-j",
        "--jobs",
        metavar="N",
        type=click.IntRange(1, 1024),
        help="Worker processes; they change no result.  [CPUs granted]",
    ),
    click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [on a terminal]"),
    click.option(
        "--summary", metavar="FILE", type=click.Path(path_type=Path), help="Write the summary there too, as JSON."
    ),
    click.option("-q", "--quiet", is_flag=True, help="No summary on standard error."),
)


def bundle_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which bundle."""
    return _with(_BUNDLE_OPTIONS, command)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """How to run."""
    return _with(_RUN_OPTIONS, command)


def _with(options: tuple[Decorator, ...], command: Callable[..., None]) -> Callable[..., None]:
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


def bundle_folder(model: str | None, bundles: Path | None) -> Path:
    """The bundle that the options name; without them as for `meari serve`. Raises BulkError."""
    from bulk.bundles import find_bundle
    from service.settings import SettingsError, load_settings

    try:
        settings = load_settings(os.environ)
    except SettingsError as problems:
        raise click.ClickException(f"the settings are wrong:\n{problems}") from None
    return find_bundle(bundles or settings.bundles, model or (None if bundles else settings.default_model))


def format_of(said: str, name: str, source: Source) -> InputFormat:
    """As said; else as the file's name ends; else as the first line looks."""
    from bulk.records import is_like_object

    if said == "text" or (said == "auto" and name.endswith(_TEXT_SUFFIXES)):
        return "text"
    if said == "jsonl" or name.endswith(_JSONL_SUFFIXES) or is_like_object(source.first_line()):
        return "jsonl"
    return "text"


def columns_of(source: Source, options: WorkOptions) -> tuple[str, ...]:
    """Of a TSV output the fields of the first line that are columns of their own."""
    if options.format != "tsv" or options.input_format != "jsonl":
        return ()
    from bulk.carried import carried_columns

    return carried_columns(source.first_line(), options)


def check_summary(path: Path | None) -> None:
    """Raises UsageError before the work rather than after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise click.UsageError(f"--summary: got {path}, expected a file in a folder that exists")


def run_plan(output: Path | None, *, jobs: int | None, resume: bool, overwrite: bool, progress: bool | None) -> Plan:
    """How to run. Raises UsageError."""
    from bulk.run import Plan
    from service.process.cpus import granted_cpus

    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if resume and output is None:
        raise click.UsageError("--resume needs -o FILE: it goes on where FILE ends")
    display = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty()) if progress is None else progress
    return Plan(output, jobs or granted_cpus(), resume=resume, overwrite=overwrite, display=display)


@contextmanager
def endings() -> Iterator[None]:
    """A signal: exit code 130 or 143. A reader of standard output that has gone: a quiet end."""
    from bulk.errors import Interrupted, ReaderGone
    from bulk.interruption import interruptible

    try:
        with interruptible():
            yield
    except Interrupted as interrupted:
        reached = "" if interrupted.line is None else f" after line {interrupted.line:,}; --resume goes on from there"
        click.echo(f"meari: interrupted by {interrupted}{reached}", err=True)
        sys.exit(interrupted.exit_code)
    except ReaderGone:
        sys.exit(0)


def tell_summary(
    summary: dict[str, Any], in_words: Callable[[dict[str, Any]], str], path: Path | None, *, quiet: bool
) -> None:
    """Print it on standard error, and write it as JSON."""
    import json

    if path is not None:
        path.write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", "utf-8")
    if not quiet:
        click.echo(in_words(summary), err=True)


def shown(figure: float | None) -> str:
    """A figure for reading; one that there is none of is a dash."""
    return "–" if figure is None else f"{figure:,.4f}" if abs(figure) < 1e6 else f"{figure:,.1f}"


def rate(outcome: Outcome, num_tokens: int) -> dict[str, Any]:
    """Time and speed, for a summary."""
    seconds = outcome.seconds
    return {"seconds": round(seconds, 3), "tokens_per_second": round(num_tokens / seconds, 1) if seconds else None}

"""What the bulk verbs share: how to run, the way from a first line to its format, endings and their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.cli._files import STREAMS, Use, check_apart
from meari.cli._options import Choice
from meari.cli._place import Place

if TYPE_CHECKING:
    from meari.bulk.options import InputFormat, OutputFormat, WorkOptions
    from meari.bulk.run import Outcome, Plan
    from meari.bulk.source import Source

__all__ = [
    "RUN_OPTIONS",
    "RunOptions",
    "bundle_uses",
    "check_names",
    "columns_of",
    "endings",
    "input_names",
    "rate",
    "tell_summary",
    "uses",
    "work_options",
]

_TEXT_SUFFIXES = (".txt", ".text")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
SERVED_REQUESTS = 8
MAX_BAD = 1_000

RUN_OPTIONS = (
    click.option(
        "--input-format",
        type=Choice(["auto", "text", "jsonl"]),
        default="auto",
        show_default=True,
        help="A line is a text, or a JSON object.",
    ),
    click.option("--field", metavar="NAME", default="", help="The field of JSONL that is the text.  [text, or prompt]"),
    click.option(
        "--prefix", metavar="NAME_", default="", help="Put before the names of all figures, so that they meet no field."
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
    click.option(
        "--max-bad",
        metavar="N",
        type=click.IntRange(0),
        help=f"The same, for at most N bad lines.  [{MAX_BAD:,} with --skip-bad]",
    ),
    click.option("--no-text", is_flag=True, help="Leave the input's text out of the output."),
    click.option(
        "-j",
        "--jobs",
        metavar="N",
        type=click.IntRange(1, 1024),
        help=f"Worker processes, or requests at a time; they change no result.  [CPUs granted, or {SERVED_REQUESTS}]",
    ),
    click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [on a terminal]"),
    click.option(
        "--summary", metavar="FILE", type=click.Path(path_type=Path), help="Write the summary there too, as JSON."
    ),
    click.option("-q", "--quiet", is_flag=True, help="No summary on standard error."),
)


@dataclass(frozen=True)
class RunOptions:
    """How to run, as the options say."""

    input_format: str
    field: str
    prefix: str
    output: Path | None
    resume: bool
    overwrite: bool
    skip_bad: bool
    max_bad: int | None
    no_text: bool
    jobs: int | None
    progress: bool | None
    summary: Path | None
    quiet: bool

    def check(self) -> None:
        """Raises UsageError where they contradict each other: before the work rather than after it."""
        if self.resume and self.overwrite:
            raise click.UsageError("--resume and --overwrite exclude each other")
        if self.resume and self.output is None:
            raise click.UsageError("--resume needs -o FILE: it goes on where FILE ends")
        if self.field and self.input_format == "text":
            raise click.UsageError(
                f"--field: got {self.field!r} with --input-format text, expected jsonl, which has fields"
            )
        if self.output is not None and self.output.is_dir():
            raise click.UsageError(f"--output: got {self.output}, a folder, expected a file")
        if self.summary is not None and (self.summary.is_dir() or not self.summary.absolute().parent.is_dir()):
            raise click.UsageError(f"--summary: got {self.summary}, expected a file in a folder that exists")

    @property
    def skips_bad(self) -> bool:
        """Whether bad lines are skipped."""
        return self.skip_bad or self.max_bad is not None

    @property
    def bad_limit(self) -> int:
        """How many bad lines there may be."""
        if self.max_bad is not None:
            return self.max_bad
        return MAX_BAD if self.skip_bad else 0

    @property
    def needs_lines(self) -> list[str]:
        """The options given that mean something for a file of lines alone."""
        given = {
            "--resume": self.resume,
            "--overwrite": self.overwrite,
            "--skip-bad": self.skip_bad,
            "--max-bad": self.max_bad is not None,
            "--summary": self.summary is not None,
            "--input-format": self.input_format != "auto",
            "--field": bool(self.field),
        }
        return [name for name, is_given in given.items() if is_given]

    def check_files(self, reads: Iterable[Use]) -> None:
        """Raises UsageError where a file would be written that is read or written by another option."""
        stdout, stderr = STREAMS
        writes = [stdout] if self.output is None else [Use("--output", self.output)]
        if self.output is not None and (self.output.is_file() or not self.output.exists()):
            from meari.bulk.journal import journal_path

            progress = journal_path(self.output)
            beside = (progress, progress.with_name(progress.name + ".tmp"))
            writes += [Use("the progress of --output", path) for path in beside]
        writes += [] if self.summary is None else [Use("--summary", self.summary)]
        check_apart(reads, [*writes, stderr])

    def plan(self, hash_of_served: str | None, api_key: str) -> Plan:
        """The same for the run; the hash is that of the bundle of a service, where one does the work."""
        from meari.bulk.run import Plan, ServedBundle
        from meari.runtime.machine import granted_cpus

        display = self.progress
        if display is None:
            display = sys.stderr.isatty() and (self.output is not None or not sys.stdout.isatty())
        served = None if hash_of_served is None else ServedBundle(hash_of_served, api_key)
        jobs = self.jobs or (granted_cpus() if served is None else SERVED_REQUESTS)
        return Plan(
            self.output,
            jobs,
            resume=self.resume,
            overwrite=self.overwrite,
            display=display,
            served=served,
            max_bad=self.bad_limit if self.skips_bad else None,
        )


def input_names(files: Sequence[str]) -> tuple[list[str], bool]:
    """The files to read, in place of folders the text files in them; and whether records tell which file they are of.

    Raises UsageError, ModelsError.
    """
    from meari.models.text.text_files import list_files

    if "-" in files and len(files) > 1:
        raise click.UsageError("-: got standard input beside files, expected it alone")
    folders = {file for file in files if file not in ("-", "") and Path(file).is_dir()}
    names = [name for file in files for name in (map(str, list_files([file])) if file in folders else [file])]
    return names, len(files) > 1 or bool(folders)


def uses(option: str, names: Iterable[str]) -> list[Use]:
    """The inputs as they are compared with outputs."""
    return [Use(option, 0 if name == "-" else Path(name)) for name in names]


def bundle_uses(place: Place) -> list[Use]:
    """The files of the bundle that does the work, none where a service does. Raises BulkError."""
    return [Use("--model", path) for path in place.folder().iterdir()] if place.server is None else []


@dataclass(frozen=True)
class ModelFacts:
    """Whether the model has learned where texts end, and the CPU and the onnxruntime that do its work."""

    has_ends: bool
    machine: dict[str, str | None]


def work_options(
    place: Place, run: RunOptions, inputs: list[Use], source: Source, output_format: OutputFormat
) -> tuple[dict[str, Any], Plan, ModelFacts]:
    """What `WorkOptions` are made of, the plan, and what is to be known of the model.

    Raises UsageError, BulkError, BundleError, RemoteError.
    """
    run.check()
    run.check_files([*inputs, *bundle_uses(place)])
    service = place.service()
    if service is None:
        plan = run.plan(None, "")
        folder = place.folder()
        bundle, facts = str(folder.resolve()), _facts_here(folder)
    else:
        from meari.client.models import find_model

        found = find_model(service, place.model)
        plan = run.plan(found["hashes"]["bundle"], service.api_key)
        bundle, facts = found["name"], _facts_there(found)
    common = {
        "bundle": bundle,
        "server": "" if service is None else service.url,
        "input_format": format_of(run, source),
        "format": output_format,
        "skip_bad": run.skips_bad,
        "with_text": not run.no_text,
        "with_file": source.tells_files,
        "field": run.field,
        "prefix": run.prefix,
    }
    return common, plan, facts


def _facts_here(folder: Path) -> ModelFacts:
    from importlib.metadata import version

    from meari.bundle_format.manifest import parse_manifest
    from meari.runtime.machine import cpu_name

    has_ends = parse_manifest((folder / "manifest.json").read_bytes()).has_ends
    return ModelFacts(has_ends, {"cpu": cpu_name(), "onnxruntime": version("onnxruntime")})


def _facts_there(described: dict[str, Any]) -> ModelFacts:
    """An earlier service says neither, and counts ends."""
    found = described["self_test"]
    machine = {name: found.get(name) for name in ("cpu", "onnxruntime")}
    return ModelFacts(described["corpus"].get("has_ends", True), machine)


def format_of(run: RunOptions, source: Source) -> InputFormat:
    """As said; else as the names end; else as the first lines look. Raises UsageError for files of both kinds."""
    found: dict[InputFormat, str] = {}
    for name, line in source.first_lines():
        found.setdefault(_format_of_one(run, name, line), name)
    if len(found) > 1:
        both = " and ".join(f"{name} ({kind})" for kind, name in found.items())
        raise click.UsageError(f"FILE: got {both}, expected files of one kind, or --input-format")
    return next(iter(found))


def _format_of_one(run: RunOptions, name: str, first_line: bytes) -> InputFormat:
    from meari.bulk.records import is_like_object

    if run.field or run.input_format == "jsonl":
        return "jsonl"
    name = name.lower().removesuffix(".gz")
    if run.input_format == "text" or name.endswith(_TEXT_SUFFIXES):
        return "text"
    return "jsonl" if name.endswith(_JSONL_SUFFIXES) or is_like_object(first_line) else "text"


def check_names(source: Source, options: WorkOptions) -> None:
    """Raises UsageError where the first line has a field that is called as a figure of the output."""
    import msgspec

    from meari.bulk.names import new_names
    from meari.bulk.records import clashing_names

    if options.input_format != "jsonl":
        return
    try:
        fields = msgspec.json.decode(source.first_line(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # it will be met as a bad line
    if clash := clashing_names(fields, new_names(options)):
        raise click.UsageError(clash)


def columns_of(source: Source, options: WorkOptions) -> tuple[str, ...]:
    """Of a TSV output the fields of the first line that are columns of their own."""
    if options.format != "tsv" or options.input_format != "jsonl":
        return ()
    from meari.bulk.carried import carried_columns

    return carried_columns(source.first_line(), options)


@contextmanager
def endings() -> Iterator[None]:
    """A signal: exit code 130 or 143. A reader of standard output that has gone: a quiet end."""
    from meari.bulk.errors import Interrupted, ReaderGone
    from meari.bulk.interruption import interruptible

    try:
        with interruptible():
            yield
    except Interrupted as interrupted:
        of_file = f" of {interrupted.file}" if interrupted.file else ""
        place = "" if interrupted.line is None else f" after line {interrupted.line:,}{of_file}"
        reached = place and f"{place}; --resume goes on from there"
        click.echo(f"meari: interrupted by {interrupted}{reached}", err=True)
        sys.exit(interrupted.exit_code)
    except ReaderGone:
        sys.exit(0)


def tell_summary(
    summary: dict[str, Any], in_words: Callable[[dict[str, Any]], str], run: RunOptions, num_good: int
) -> None:
    """Print it on standard error, and write it as JSON. Raises BulkError where lines came and none was good."""
    import json

    from meari.bulk.errors import BulkError

    if run.summary is not None:
        try:
            run.summary.write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise BulkError(f"{run.summary}: {error.strerror}, expected a file to write the summary to") from None
    if not run.quiet:
        click.echo(in_words(summary), err=True)
    if summary["num_bad_lines"] and not num_good:
        raise BulkError(f"got {summary['num_bad_lines']:,} bad lines and no good one, expected text in UTF-8, or JSONL")


def rate(outcome: Outcome, num_tokens: int) -> dict[str, Any]:
    """Time and speed, for a summary."""
    seconds = outcome.seconds
    return {"seconds": round(seconds, 3), "tokens_per_second": round(num_tokens / seconds, 1) if seconds else None}

"""The parts that the bulk verbs share: options of a run, the format of the input, endings and their exit codes.

Input: options, the first lines of the input. Output: `WorkOptions`, a `RunPlan`, a summary. Must not know: figures.
"""

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
from meari.cli._target import Target, signing_keys

if TYPE_CHECKING:
    from meari.bulk.options import InputFormat, OutputFormat, WorkOptions
    from meari.bulk.partitions import Inputs
    from meari.bulk.run import RemoteBundle, RunPlan, RunResult
    from meari.bulk.source import Source

__all__ = [
    "RUN_OPTIONS",
    "RunOptions",
    "bundle_uses",
    "check_format",
    "check_names",
    "columns_of",
    "endings",
    "format_of",
    "input_names",
    "rate",
    "tell_summary",
    "uses",
    "work_options",
]

_TEXT_SUFFIXES = (".txt", ".text")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET = ".parquet"
REMOTE_REQUESTS = 8
MAX_BAD = 1_000

RUN_OPTIONS = (
    click.option(
        "--input-format",
        type=Choice(["auto", "text", "jsonl"]),
        default="auto",
        show_default=True,
        help="Each line is a text, or a JSON object.",
    ),
    click.option(
        "--field",
        metavar="NAME",
        default="",
        help="JSONL field or Parquet column that holds the text.  [text, or prompt]",
    ),
    click.option(
        "--prefix",
        metavar="NAME_",
        default="",
        help="Prefix for the names of all figures, to keep them apart from input fields.",
    ),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Output file; FILE.progress beside it records the progress. With meari[parquet] FILE.parquet is Parquet.  "
        "[standard output]",
    ),
    click.option("--resume", is_flag=True, help="Continue where FILE ends, after any interruption."),
    click.option("--overwrite", is_flag=True, help="Start again, even if FILE holds an interrupted run."),
    click.option("--skip-bad", is_flag=True, help="Write an error record for a bad line and continue."),
    click.option(
        "--max-bad",
        metavar="N",
        type=click.IntRange(0),
        help=f"The same, for at most N bad lines.  [{MAX_BAD:,} with --skip-bad]",
    ),
    click.option("--no-text", is_flag=True, help="Do not repeat the input's text in the output."),
    click.option(
        "-j",
        "--jobs",
        metavar="N",
        type=click.IntRange(1, 1024),
        help=f"Worker processes, or requests at a time; they change no result.  [CPUs granted, or {REMOTE_REQUESTS}]",
    ),
    click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [on a terminal]"),
    click.option(
        "--summary",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Also write the summary to this file, as JSON.",
    ),
    click.option(
        "--engine",
        type=Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray, with meari[ray]: actors of a Ray cluster (RAY_ADDRESS, or one started here); -o is then a folder or "
        "URL for the parts of the output.",
    ),
    click.option(
        "--partition-mb",
        metavar="N",
        type=click.FloatRange(0, 1 << 20, min_open=True),
        help="With --engine ray: size of a part of the input, in MiB.  [16]",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Write no summary to standard error."),
)


@dataclass(frozen=True)
class RunOptions:
    """The options of a run."""

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
    engine: str
    partition_mb: float | None
    quiet: bool

    def check(self) -> None:
        """Raise UsageError if options contradict each other: before the work rather than after it."""
        if self.resume and self.overwrite:
            raise click.UsageError("--resume and --overwrite exclude each other")
        if self.resume and self.output is None:
            raise click.UsageError("--resume needs -o FILE: it goes on where FILE ends")
        if self.field and self.input_format == "text":
            raise click.UsageError(
                f"--field: got {self.field!r} with --input-format text, expected jsonl, which has fields"
            )
        if self.partition_mb is not None and self.engine != "ray":
            raise click.UsageError(f"--partition-mb: got {self.partition_mb} without --engine ray, expected none")
        if self.output is not None and self.output.is_dir():
            raise click.UsageError(f"--output: got {self.output}, a folder, expected a file")
        if self.summary is not None and (self.summary.is_dir() or not self.summary.absolute().parent.is_dir()):
            raise click.UsageError(f"--summary: got {self.summary}, expected a file in a folder that exists")

    @property
    def skips_bad(self) -> bool:
        """True if bad lines are skipped."""
        return self.skip_bad or self.max_bad is not None

    @property
    def bad_limit(self) -> int:
        """Maximum number of bad lines."""
        if self.max_bad is not None:
            return self.max_bad
        return MAX_BAD if self.skip_bad else 0

    @property
    def writes_parquet(self) -> bool:
        """True if the output is a Parquet file."""
        return self.output is not None and self.output.suffix.lower() == _PARQUET

    @property
    def needs_lines(self) -> list[str]:
        """Names of the options given that apply to a file of lines alone."""
        given = {
            "--resume": self.resume,
            "--overwrite": self.overwrite,
            "--skip-bad": self.skip_bad,
            "--max-bad": self.max_bad is not None,
            "--summary": self.summary is not None,
            "--input-format": self.input_format != "auto",
            "--field": bool(self.field),
            "--output FILE.parquet": self.writes_parquet,
            "--engine ray": self.engine == "ray",
        }
        return [name for name, is_given in given.items() if is_given]

    def check_files(self, reads: Iterable[Use]) -> None:
        """Raise UsageError if a file would be written that another option reads or writes."""
        stdout, stderr = STREAMS
        writes = [stdout] if self.output is None else [Use("--output", self.output)]
        if self.output is not None and (self.output.is_file() or not self.output.exists()):
            from meari.bulk.output import journal_paths
            from meari.bulk.run import rows_of

            rows = rows_of(self.output) if self.writes_parquet else self.output
            writes += [Use("the rows of --output", rows)] if self.writes_parquet else []
            writes += [Use("the progress of --output", path) for path in journal_paths(rows)]
        writes += [] if self.summary is None else [Use("--summary", self.summary)]
        check_apart(reads, [*writes, stderr])

    def plan(self, remote: RemoteBundle | None) -> RunPlan:
        """Return the plan of a run; remote: the bundle of the service that does the work, if one does."""
        from meari.bulk.run import RunPlan
        from meari.runtime.machine import granted_cpus

        progress = self.progress
        if progress is None:
            progress = sys.stderr.isatty() and (self.output is not None or not sys.stdout.isatty())
        jobs = self.jobs or (granted_cpus() if remote is None else REMOTE_REQUESTS)
        return RunPlan(
            self.output,
            jobs,
            resume=self.resume,
            overwrite=self.overwrite,
            progress=progress,
            remote=remote,
            max_bad=self.bad_limit if self.skips_bad else None,
            signing_keys=signing_keys() if remote is None else (),
        )


def input_names(files: Sequence[str]) -> tuple[list[str], bool]:
    """Return the files to read, for a folder the text files in it; and whether records name their file.

    Raises UsageError, ModelsError.
    """
    if "-" in files and len(files) > 1:
        raise click.UsageError("-: got standard input beside files, expected it alone")
    folders = {file for file in files if file not in ("-", "") and Path(file).is_dir()}
    names = [name for file in files for name in (_files_below(file) if file in folders else [file])]
    return names, len(files) > 1 or bool(folders)


def _files_below(folder: str) -> list[str]:
    """Return the text files of a folder, or the Parquet files if it has some. Raises UsageError for both."""
    from meari.models.text.text_files import TextFolder, list_files

    found = TextFolder.of(Path(folder))
    parquet = sorted(str(path) for path in found.others if path.suffix.lower() == _PARQUET)
    if parquet and found.files:
        raise click.UsageError(
            f"FILE: got {folder} with {Path(parquet[0]).name} and {found.files[0].name}, expected files of one kind"
        )
    return parquet or [str(path) for path in list_files([folder])]


def uses(option: str, names: Iterable[str]) -> list[Use]:
    """Return inputs in the form in which they are compared with outputs."""
    return [Use(option, 0 if name == "-" else Path(name)) for name in names]


def bundle_uses(target: Target) -> list[Use]:
    """Return the files of the bundle that does the work, none if a service does. Raises BundleError."""
    return [Use("--model", path) for path in target.folder().iterdir()] if target.server is None else []


@dataclass(frozen=True)
class ModelFacts:
    """Facts of the model that a run needs.

    has_ends  it has learned where texts end
    machine   CPU and onnxruntime that do its work
    """

    has_ends: bool
    machine: dict[str, str | None]


def work_options(
    target: Target, run: RunOptions, inputs: list[Use], input_format: InputFormat, output_format: OutputFormat
) -> tuple[dict[str, Any], RunPlan, ModelFacts]:
    """Return fields of `WorkOptions`, the plan, and facts of the model.

    Raises UsageError, BundleError, RemoteError.
    """
    run.check()
    run.check_files([*inputs, *bundle_uses(target)])
    service = target.service()
    if service is None:
        plan = run.plan(None)
        folder = target.folder()
        bundle, facts = str(folder.resolve()), _facts_here(folder)
    else:
        from meari.bulk.run import RemoteBundle
        from meari.client.service import find_model

        found = find_model(service, target.model)

        def read_hash() -> str:
            return str(find_model(service, found["name"])["hashes"]["bundle"])

        plan = run.plan(RemoteBundle(found["hashes"]["bundle"], read_hash, service.api_key))
        bundle, facts = found["name"], _facts_there(found)
    common = {
        "bundle": bundle,
        "server": "" if service is None else service.url,
        "input_format": input_format,
        "format": output_format,
        "skip_bad": run.skips_bad,
        "with_text": not run.no_text,
        "field": run.field,
        "prefix": run.prefix,
    }
    return common, plan, facts


def _facts_here(folder: Path) -> ModelFacts:
    from importlib.metadata import version

    from meari.bundle_format.reader import parse_manifest
    from meari.runtime.machine import cpu_name

    has_ends = parse_manifest((folder / "manifest.json").read_bytes()).has_ends
    return ModelFacts(has_ends, {"cpu": cpu_name(), "onnxruntime": version("onnxruntime")})


def _facts_there(described: dict[str, Any]) -> ModelFacts:
    """Read the description of a service's model; an earlier service gives neither, and counts ends."""
    found = described["self_test"]
    machine = {name: found.get(name) for name in ("cpu", "onnxruntime")}
    return ModelFacts(described["corpus"].get("has_ends", True), machine)


def check_format(wanted: str | None, run: RunOptions, *, as_json: bool) -> None:
    """Raise UsageError for a format that another option or the output's name contradicts."""
    if as_json and wanted not in (None, "jsonl"):
        raise click.UsageError(f"--json: got it with --format {wanted}, expected one of the two")
    if wanted == "parquet" and not run.writes_parquet and run.engine != "ray":
        output = "standard output" if run.output is None else run.output
        raise click.UsageError(f"--format: got parquet for {output}, expected -o FILE.parquet with it")
    if run.writes_parquet and (as_json or wanted not in (None, "parquet")):
        came = "--json" if as_json else f"--format {wanted}"
        raise click.UsageError(f"--output: got {run.output} with {came}, expected --format parquet, or another name")


def format_of(run: RunOptions, source: Source | Inputs) -> InputFormat:
    """Return the format by the option, the files' names or their first lines. Raises UsageError for a mixture."""
    found: dict[InputFormat, str] = {}
    for name, line in source.first_lines():
        found.setdefault(_format_of_one(run, name, line), name)
    if len(found) > 1:
        both = " and ".join(f"{name} ({kind})" for kind, name in found.items())
        raise click.UsageError(f"FILE: got {both}, expected files of one kind, or --input-format")
    return next(iter(found))


def _format_of_one(run: RunOptions, name: str, first_line: bytes) -> InputFormat:
    from meari.bulk.parquet import is_parquet
    from meari.bulk.records import is_like_object

    if run.input_format == "text" and is_parquet(name):
        raise click.UsageError(f"--input-format: got text for {name}, which is Parquet, expected auto or jsonl")
    if run.field or run.input_format == "jsonl" or is_parquet(name):
        return "jsonl"
    name = name.lower().removesuffix(".gz")
    if run.input_format == "text" or name.endswith(_TEXT_SUFFIXES):
        return "text"
    return "jsonl" if name.endswith(_JSONL_SUFFIXES) or is_like_object(first_line) else "text"


def check_names(source: Source | Inputs, options: WorkOptions) -> None:
    """Raise UsageError if the first line has a field that is named like a figure of the output."""
    import msgspec

    from meari.bulk.options import new_names, text_name
    from meari.bulk.records import clashing_names

    if options.input_format != "jsonl":
        return
    source.check_texts(text_name(options))
    try:
        fields = msgspec.json.decode(source.first_line(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # the run reports it as a bad line
    if clash := clashing_names(fields, new_names(options)):
        raise click.UsageError(clash)


def columns_of(source: Source | Inputs, options: WorkOptions) -> tuple[str, ...]:
    """Return the fields of the first line that get columns of their own in a TSV output."""
    if options.format != "tsv" or options.input_format != "jsonl":
        return ()
    from meari.bulk.rows import carried_columns

    return carried_columns(source.first_line(), options)


@contextmanager
def endings() -> Iterator[None]:
    """End with exit code 130 or 143 after a signal, and quietly if the reader of standard output has gone."""
    from meari.bulk.errors import Interrupted, ReaderGone, interruptible

    try:
        with interruptible():
            yield
    except Interrupted as interrupted:
        of_file = f" of {interrupted.file}" if interrupted.file else ""
        position = "" if interrupted.line is None else f" after line {interrupted.line:,}{of_file}"
        reached = position and f"{position}; --resume goes on from there"
        click.echo(f"meari: interrupted by {interrupted}{reached}", err=True)
        sys.exit(interrupted.exit_code)
    except ReaderGone:
        sys.exit(0)


def tell_summary(
    summary: dict[str, Any], in_words: Callable[[dict[str, Any]], str], run: RunOptions, num_good: int
) -> None:
    """Print the summary on standard error, and write it as JSON. Raises BulkError if lines came and none was good."""
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


def rate(result: RunResult, num_tokens: int) -> dict[str, Any]:
    """Return time and speed, for a summary."""
    seconds = result.seconds
    return {"seconds": round(seconds, 3), "tokens_per_second": round(num_tokens / seconds, 1) if seconds else None}

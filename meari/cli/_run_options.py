"""The options of a run of a bulk verb.

Input: a command line. Output: `RunOptions`, a `RunPlan`. Must not know: figures, formats of the input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._files import STREAMS, Use, check_apart
from meari.cli._options import Choice, FloatRange, PathType
from meari.cli._target import signing_keys

if TYPE_CHECKING:
    from meari.bulk.plan import RemoteBundle, RunPlan

__all__ = ["RUN_OPTIONS", "RunOptions"]

PARQUET = ".parquet"
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
        type=PathType(),
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
        type=PathType(path_type=Path),
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
        type=FloatRange(0, 1 << 20, min_open=True),
        help="With --engine ray: size of a part of the input, in MiB.  [16]",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Write no summary to standard error."),
)


@dataclass(frozen=True)
class RunOptions:
    """The options of a run.

    output  a file; with --engine ray a folder or URL, which a `Path` would take slashes from
    """

    input_format: str
    field: str
    prefix: str
    output: str | None
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
        if self.output_file is not None and self.output_file.is_dir():
            raise click.UsageError(f"--output: got {self.output}, a folder, expected a file")
        if self.summary is not None and (self.summary.is_dir() or not self.summary.absolute().parent.is_dir()):
            raise click.UsageError(f"--summary: got {self.summary}, expected a file in a folder that exists")

    @property
    def output_file(self) -> Path | None:
        """The output of a run without Ray."""
        return None if self.output is None else Path(self.output)

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
        return self.output_file is not None and self.output_file.suffix.lower() == PARQUET

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
        output = self.output_file
        writes = [stdout] if output is None else [Use("--output", output)]
        if output is not None and (output.is_file() or not output.exists()):
            from meari.bulk.output import journal_paths
            from meari.bulk.run import rows_of

            rows = rows_of(output) if self.writes_parquet else output
            writes += [Use("the rows of --output", rows)] if self.writes_parquet else []
            writes += [Use("the progress of --output", path) for path in journal_paths(rows)]
        writes += [] if self.summary is None else [Use("--summary", self.summary)]
        check_apart(reads, [*writes, stderr])

    def plan(self, remote: RemoteBundle | None) -> RunPlan:
        """Return the plan of a run; remote: the bundle of the service that does the work, if one does."""
        from meari.bulk.plan import RunPlan
        from meari.runtime.machine import granted_cpus

        progress = self.progress
        if progress is None:
            progress = sys.stderr.isatty() and (self.output is not None or not sys.stdout.isatty())
        jobs = self.jobs or (granted_cpus() if remote is None else REMOTE_REQUESTS)
        return RunPlan(
            self.output_file,
            jobs,
            resume=self.resume,
            overwrite=self.overwrite,
            progress=progress,
            remote=remote,
            max_bad=self.bad_limit if self.skips_bad else None,
            signing_keys=signing_keys() if remote is None else (),
        )

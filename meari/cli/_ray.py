"""The part of a bulk verb that `--engine ray` changes: inputs anywhere, a folder of parts in place of a file.

Input: options of a verb. Output: the options of the work, and its result. Must not know: figures, Ray.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meari.cli._bulk import ModelFacts, RunOptions, check_names, columns_of, format_of, input_names, work_options
from meari.cli._target import Target

if TYPE_CHECKING:
    from meari.bulk.options import GenerateOptions, OutputFormat, ScoreOptions
    from meari.bulk.partitions import File
    from meari.bulk.run import RunResult

__all__ = ["output_url", "run_with_ray"]

PARTITION_MB = 16
Options = TypeVar("Options", "ScoreOptions", "GenerateOptions")


def run_with_ray(
    names: Sequence[str],
    target: Target,
    run: RunOptions,
    output_format: OutputFormat,
    options_of: Callable[[dict[str, Any], ModelFacts], Options],
    *,
    to_parquet: bool,
) -> tuple[RunResult, Options, ModelFacts]:
    """Work on every line of some files, and return the result with the options.

    options_of  makes options of their common fields
    to_parquet  write JSONL as Parquet
    Raises UsageError, BulkError, BundleError.
    """
    import msgspec

    from meari.bulk.partitions import Inputs
    from meari.bulk.ray_engine import RayPlan, run_on_ray

    output = _checked(names, target, run)
    files, has_several = _files(names)
    inputs = Inputs(files)
    here_run = replace(run, output=None, resume=False, overwrite=False, engine="local", partition_mb=None)
    common, local, facts = work_options(target, here_run, [], format_of(run, inputs), output_format)
    options = msgspec.structs.replace(options_of(common, facts), with_file=has_several)
    options = msgspec.structs.replace(options, columns=columns_of(inputs, options))
    check_names(inputs, options)
    plan = RayPlan(
        output,
        run.jobs,
        max(1, round((run.partition_mb or PARTITION_MB) * (1 << 20))),
        ".parquet" if to_parquet else {"jsonl": ".jsonl", "tsv": ".tsv", "text": ".txt"}[output_format],
        resume=run.resume,
        overwrite=run.overwrite,
        max_bad=local.max_bad,
        signing_keys=local.signing_keys,
    )
    return run_on_ray(files, options, plan), options, facts


def _files(names: Sequence[str]) -> tuple[list[File], bool]:
    """Return the files to read, and whether records name theirs; of a local folder as without Ray."""
    from meari.bulk.partitions import list_inputs

    paths, has_several = input_names([name for name in names if "://" not in name])
    files = list_inputs([*paths, *(name for name in names if "://" in name)])
    return files, has_several or len(files) > 1


def output_url(run: RunOptions) -> str:
    """Return the output as it was given: a path has lost one of the slashes of a URL."""
    return re.sub(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", r"\1://", str(run.output))


def _checked(names: Sequence[str], target: Target, run: RunOptions) -> str:
    """Return the output. Raises UsageError for options that do not fit."""
    if target.server is not None:
        raise click.UsageError(f"--server: got {target.server} with --engine ray, expected a bundle for the actors")
    if "-" in names:
        raise click.UsageError("-: got standard input with --engine ray, expected files: parts are read in any order")
    if run.output is None:
        raise click.UsageError("--output: missing, expected -o DIR, a folder or URL for the parts of the output")
    if run.output.is_file():
        raise click.UsageError(f"--output: got {run.output}, a file, expected a folder for the parts of the output")
    if run.resume and run.overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    return output_url(run)

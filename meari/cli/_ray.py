"""The part of a bulk verb that `--engine ray` changes: inputs anywhere, a folder of parts in place of a file.

Input: options of a verb. Output: the options of the work, and its result. Must not know: figures, Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meari.cli._bulk import ModelFacts, check_names, columns_of, format_of, input_names, uses, work_options
from meari.cli._files import Use, check_apart
from meari.cli._run_options import RunOptions
from meari.cli._target import Target

if TYPE_CHECKING:
    from meari.bulk.options import GenerateOptions, OutputFormat, ScoreOptions
    from meari.bulk.partitions import File
    from meari.bulk.plan import RunResult
    from meari.bulk.ray_cluster import RayCluster

__all__ = ["open_cluster", "output_of_filter", "run_with_ray", "suffix_of"]

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
    carries_fields: bool = True,
    like: str = "",
) -> tuple[RunResult, Options, ModelFacts]:
    """Work on every line of some files, and return the result with the options.

    options_of      makes options of their common fields
    to_parquet      write JSONL as Parquet
    carries_fields  TSV has the fields of the input
    like            folder of a job on the same files, whose partitions are taken
    Raises UsageError, BulkError, BundleError.
    """
    import msgspec

    from meari.bulk.partitions import Inputs
    from meari.bulk.ray_engine import RayPlan, run_on_ray

    suffix = ".parquet" if to_parquet else {"jsonl": ".jsonl", "tsv": ".tsv", "text": ".txt"}[output_format]
    output = _checked(names, target, run, suffix)
    files, has_several = _files(names)
    inputs = Inputs(files)
    here_run = replace(run, output=None, resume=False, overwrite=False, engine="local", partition_mb=None)
    common, local, facts = work_options(target, here_run, [], format_of(run, inputs), output_format)
    options = msgspec.structs.replace(options_of(common, facts), with_file=has_several)
    columns = columns_of(inputs, options) if carries_fields else ()
    options = msgspec.structs.replace(options, columns=columns)
    check_names(inputs, options)
    plan = RayPlan(
        output,
        max(1, round((run.partition_mb or PARTITION_MB) * (1 << 20))),
        suffix,
        resume=run.resume,
        overwrite=run.overwrite,
        max_bad=local.max_bad,
        signing_keys=local.signing_keys,
        like=like,
    )
    with open_cluster(run) as cluster:
        return run_on_ray(files, options, plan, cluster), options, facts


def open_cluster(run: RunOptions) -> RayCluster:
    """Return the cluster that works."""
    from meari.bulk.ray_cluster import RayCluster

    return RayCluster(run.jobs, lambda text: None if run.quiet else click.echo(f"meari: {text}", err=True))


def _files(names: Sequence[str]) -> tuple[list[File], bool]:
    """Return the files to read, and whether records name theirs; of a local folder as without Ray."""
    from meari.bulk.partitions import list_inputs

    paths, has_several = input_names([name for name in names if "://" not in name])
    files = list_inputs([*paths, *(name for name in names if "://" in name)])
    return files, has_several or len(files) > 1


def output_of_filter(names: Sequence[str], target: Target, run: RunOptions, suffix: str) -> str:
    """Return the folder of a corpus that is divided. Raises UsageError, BulkError; see `check_free`."""
    from meari.bulk.ray_engine import JOB, check_free
    from meari.bulk.storage import Folder

    output = _checked(names, target, run, suffix)
    check_free(Folder(output), ("scores", JOB), resume=run.resume, overwrite=run.overwrite)
    return output


def suffix_of(names: Sequence[str], run: RunOptions) -> str:
    """Return how files of such lines are called. Raises UsageError for Parquet beside others."""
    from meari.bulk.partitions import Inputs

    files, _ = _files(names)
    kinds = {file.kind == "parquet": file.name for file in files}
    if len(kinds) > 1:
        raise click.UsageError(f"FILE: got {kinds[True]} (Parquet) and {kinds[False]}, expected files of one kind")
    if True in kinds:
        return ".parquet"
    return ".txt" if format_of(run, Inputs(files)) == "text" else ".jsonl"


def _checked(names: Sequence[str], target: Target, run: RunOptions, suffix: str) -> str:
    """Return the output without slashes at its end. Raises UsageError for options that do not fit."""
    from meari.bulk.storage import is_url, join

    if target.server is not None:
        raise click.UsageError(f"--server: got {target.server} with --engine ray, expected a bundle for the actors")
    if "-" in names:
        raise click.UsageError("-: got standard input with --engine ray, expected files: parts are read in any order")
    if run.output is None:
        raise click.UsageError("--output: missing, expected -o DIR, a folder or URL for the parts of the output")
    folder = Path(run.output)
    if not is_url(run.output) and folder.is_file():
        raise click.UsageError(f"--output: got {run.output}, a file, expected a folder for the parts of the output")
    for name in (*names, run.output):
        if "memory" in [link.partition(":")[0] for link in name.split("::")]:
            raise click.UsageError(f"{name}: got the memory of one process, expected what all workers reach")
    if run.resume and run.overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if not is_url(run.output):
        there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        part = there / f"part-00000{suffix}"  # stands for those further below, in folders that are not there yet
        reads = uses("FILE", [name for name in names if "://" not in name])
        check_apart(reads, [Use("--output", path) for path in (folder, part)])
    return join(run.output)

"""The parts that the bulk verbs share: their inputs and formats, endings and their exit codes.

Input: options, the first lines of the input. Output: fields of `WorkOptions`, a summary. Must not know: figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.cli._files import Use
from meari.cli._run_options import RunOptions
from meari.cli._target import Target

if TYPE_CHECKING:
    from meari.bulk.options import InputFormat, OutputFormat, WorkOptions
    from meari.bulk.partitions import Inputs
    from meari.bulk.plan import RunPlan, RunResult
    from meari.bulk.source import Source

__all__ = [
    "bundle_uses",
    "check_format",
    "check_names",
    "columns_of",
    "endings",
    "format_of",
    "input_names",
    "rate",
    "refuse_urls",
    "tell_summary",
    "uses",
    "work_options",
]

_TEXT_SUFFIXES = (".txt", ".text")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET = ".parquet"


def input_names(files: Sequence[str]) -> tuple[list[str], bool]:
    """Return the files to read, for a folder the text files in it; and whether records name their file.

    Raises UsageError, ModelsError.
    """
    if "-" in files and len(files) > 1:
        raise click.UsageError("-: got standard input beside files, expected it alone")
    refuse_urls("FILE", files)
    folders = {file for file in files if file not in ("-", "") and Path(file).is_dir()}
    names = [name for file in files for name in (_files_below(file) if file in folders else [file])]
    return names, len(files) > 1 or bool(folders)


def refuse_urls(option: str, names: Iterable[str]) -> None:
    """Raise UsageError for a URL, which the local engine does not read."""
    for name in names:
        if "://" in name and not Path(name).exists():
            raise click.UsageError(f"{option}: got {name}, a URL, expected a path, or --engine ray, which reads URLs")


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
        from meari.bulk.plan import RemoteBundle
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

    from meari.bundle_format.reader import naming_folder, read_manifest
    from meari.runtime.machine import cpu_name

    with naming_folder(folder):
        manifest, _ = read_manifest(folder)
    return ModelFacts(manifest.has_ends, {"cpu": cpu_name(), "onnxruntime": version("onnxruntime")})


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
    from meari.bulk.storage import content_name

    if run.input_format == "text" and is_parquet(name):
        raise click.UsageError(f"--input-format: got text for {name}, which is Parquet, expected auto or jsonl")
    if run.field or run.input_format == "jsonl" or is_parquet(name):
        return "jsonl"
    name = content_name(name).lower().removesuffix(".gz")
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

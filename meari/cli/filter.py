"""`meari filter`: a corpus → its lines in three parts, by how likely a model, or the difference of two, finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.cli._bulk import (
    ModelFacts,
    check_names,
    endings,
    format_of,
    input_names,
    refuse_urls,
    uses,
    work_options,
)
from meari.cli._files import Use
from meari.cli._options import Choice, FloatRange, PathType, echo_json, json_option, packed
from meari.cli._run_options import RUN_OPTIONS, RunOptions
from meari.cli._tables import shown
from meari.cli._target import MODEL_OPTION, TARGET_OPTIONS, Target

if TYPE_CHECKING:
    from meari.bulk.filtering import Criterion, DigitCounts, Figure, Thresholds
    from meari.bulk.options import ScoreOptions
    from meari.bulk.source import Source

EXAMPLES = """\b
Examples:
  meari filter corpus.txt --model books-lstm -o filtered                # 30 % head, 30 % middle, the rest tail
  meari filter corpus.jsonl --model books-lstm --head 30 --middle 40 --reference clean.txt -o filtered-too
  meari filter other.jsonl --model books-lstm --thresholds filtered/thresholds.json -o other
  meari filter pool.jsonl --model shakespeare-lstm --against books-lstm --head 10 --middle 0 -o selected
"""

FILTER_OPTIONS = (
    click.option(
        "--against",
        metavar="NAME",
        help="Second model: lines are compared by the difference of both models' bits a character.",
    ),
    click.option(
        "--by",
        type=Choice(["bits_per_char", "bits_per_byte", "perplexity"]),
        default="bits_per_char",
        show_default=True,
        help="Figure by which lines are compared.",
    ),
    click.option(
        "--head",
        metavar="PERCENT",
        type=FloatRange(0, 100),
        help="Share of the reference's likeliest lines that gives the threshold of the head.  [30]",
    ),
    click.option("--middle", metavar="PERCENT", type=FloatRange(0, 100), help="Share of the next ones.  [30]"),
    click.option(
        "--reference",
        metavar="FILE",
        type=PathType(),
        help="Lines on which the thresholds are measured.  [the corpus itself]",
    ),
    click.option(
        "--thresholds",
        metavar="FILE",
        type=PathType(),
        help="Take the thresholds of an earlier run.",
    ),
    click.option(
        "--end/--no-end",
        default=None,
        help="Count the probability that a line ends where it ends.  [if the model's training text had ends]",
    ),
)
SHARE = 30.0
LEFT_OUT = "num_left_out"
AGAINST = "-against"  # end of the name of the second model's scores


@dataclass(frozen=True)
class FilterOptions:
    """How lines are compared. Raises UsageError if the options contradict each other."""

    against: str | None
    by: Figure
    head: float | None
    middle: float | None
    reference: str | None
    thresholds: str | None
    end: bool | None

    def __post_init__(self) -> None:
        if self.against is not None and self.by != "bits_per_char":
            raise click.UsageError(f"--by: got {self.by} with --against, expected bits_per_char")
        given = [name for name in ("head", "middle", "reference") if getattr(self, name) is not None]
        if self.thresholds is not None and given:
            raise click.UsageError(f"--{given[0]}: got it with --thresholds, expected one of the two")
        if sum(self.shares) > 100:
            raise click.UsageError(
                "--head, --middle: got {:g} and {:g} percent, expected at most 100 together".format(*self.shares)
            )

    @property
    def shares(self) -> tuple[float, float]:
        """Percent of head and middle."""
        head = SHARE if self.head is None else self.head
        return head, min(SHARE, 100 - head) if self.middle is None else self.middle


@click.command("filter", short_help="Sort the lines of a corpus into likely and unlikely ones.", epilog=EXAMPLES)
@click.argument("files", metavar="FILE|DIR…", nargs=-1, required=True, type=PathType())
@packed("target", Target, MODEL_OPTION, *TARGET_OPTIONS)
@packed("options", FilterOptions, *FILTER_OPTIONS)
@packed("run", RunOptions, *RUN_OPTIONS)
@json_option
def command(files: tuple[str, ...], target: Target, options: FilterOptions, run: RunOptions, as_json: bool) -> None:
    """Sort the lines of the FILEs into head, middle and tail: into files in the folder `-o DIR`, byte for byte.

    Each line is scored as `meari score` does, which the same options steer and `--resume` continues; scores.tsv keeps
    the figures. The thresholds are quantiles over a reference and stand in thresholds.json. Empty lines and, with
    --skip-bad, bad ones are left out.
    """
    if "-" in files:
        raise click.UsageError("FILE: got standard input, expected files: they are read twice")
    if run.output is None:
        raise click.UsageError("--output: missing, expected -o DIR, a folder for the parts")
    if run.no_text:
        raise click.UsageError("--no-text: got it, expected none: the scores never repeat the text")
    with endings():
        if run.engine == "ray":
            counts, thresholds = _filter_on_ray(files, target, options, run)
        else:
            counts, thresholds = _filter(files, target, options, run, Path(run.output))
        _tell(counts, thresholds, run, as_json=as_json)


def _filter(
    files: Sequence[str], target: Target, options: FilterOptions, run: RunOptions, folder: Path
) -> tuple[dict[str, int], Thresholds]:
    """Sort the lines into files; return the lines of each file, last those of none, and the thresholds."""
    from meari.bulk.filtering import PARTS, Scores, chunks_of_source, split_lines_by, split_rows_by
    from meari.bulk.parquet import RowRange
    from meari.bulk.source import Source

    names, tells_files = input_names(files)
    refuse_urls("--reference", [options.reference] if options.reference else [])
    source = Source(names, tells_files=tells_files)
    _prepare(folder, run)
    suffix = _suffix_of(names, source, run)
    outputs = [folder / (part + suffix) for part in PARTS]
    reads = [*uses("FILE", names), *uses("--reference", [options.reference] if options.reference else [])]

    def score(names: Sequence[str], own: RunOptions) -> tuple[Scores, Criterion]:
        paths, by = _score(partial(_score_here, names, options=options, reads=reads), target, options, own, ".tsv")
        return Scores(paths, run.prefix + options.by), by

    scores, by = score(names, replace(run, output=str(folder / "scores")))
    thresholds = _thresholds(scores, by, options, lambda own: score([str(options.reference)], own)[0], run)
    thresholds.write(folder / "thresholds.json")
    if suffix == ".parquet":
        counts = split_rows_by(thresholds, scores, [RowRange(name, name) for name in names], outputs)
    else:
        chunks = chunks_of_source(Source(names, tells_files=tells_files))
        counts = split_lines_by(thresholds, scores, chunks, outputs)
    return dict(zip([*map(str, outputs), LEFT_OUT], counts, strict=True)), thresholds


def _filter_on_ray(
    files: Sequence[str], target: Target, options: FilterOptions, run: RunOptions
) -> tuple[dict[str, int], Thresholds]:
    """Sort the lines into parts of partitions; see `_filter`."""
    from meari.bulk.filtering import PARTS
    from meari.bulk.ray_filter import RayScores, split_on_ray
    from meari.bulk.storage import join
    from meari.cli._ray import open_cluster, output_of_filter, suffix_of

    suffix = suffix_of(files, run)
    output = output_of_filter([*files, *filter(None, [options.reference])], target, run, suffix)
    own = replace(run, output=output, resume=True, overwrite=False)  # jobs in the folder, which has been checked
    with open_cluster(run) as cluster:

        def score(names: Sequence[str], own: RunOptions) -> tuple[RayScores, Criterion]:
            folders, by = _score(partial(_score_on_ray, names, options=options), target, options, own, "")
            return RayScores(cluster, folders, run.prefix + options.by), by

        scores, by = score(files, replace(own, output=join(output, "scores")))
        thresholds = _thresholds(scores, by, options, lambda own: score([str(options.reference)], own)[0], own)
        counts = split_on_ray(thresholds, scores, output, suffix)
    names = [join(output, "parts", part) for part in PARTS]
    return dict(zip([*names, LEFT_OUT], counts, strict=True)), thresholds


def _thresholds(
    scores: DigitCounts,
    by: Criterion,
    options: FilterOptions,
    score_reference: Callable[[RunOptions], DigitCounts],
    run: RunOptions,
) -> Thresholds:
    """Return the thresholds of an earlier run, or those of the reference."""
    from meari.bulk.filtering import Thresholds, find_thresholds
    from meari.bulk.storage import join

    if options.thresholds is not None:
        return Thresholds.read(options.thresholds, by)
    if options.reference is not None:
        assert run.output is not None
        field = "" if _is_text(options.reference) else run.field
        scores = score_reference(replace(run, output=join(run.output, "reference"), field=field))
    return find_thresholds(scores, by, *options.shares, of="FILE" if options.reference is None else "--reference")


def _suffix_of(names: Sequence[str], source: Source, run: RunOptions) -> str:
    """Return how files of such lines are called. Raises UsageError for Parquet beside others."""
    from meari.bulk.parquet import is_parquet

    kinds = {is_parquet(name): name for name in names}
    if len(kinds) > 1:
        raise click.UsageError(f"FILE: got {kinds[True]} (Parquet) and {kinds[False]}, expected files of one kind")
    if kinds.get(True):
        return ".parquet"
    return ".txt" if format_of(run, source) == "text" else ".jsonl"


def _prepare(folder: Path, run: RunOptions) -> None:
    """Make the folder. Raises UsageError if it holds a run that nobody asked to replace or continue."""
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"--output: got {folder}, a file, expected a folder for the parts")
    if (folder / "thresholds.json").exists() and not run.overwrite and not run.resume:
        raise click.UsageError(f"--output: {folder} holds the parts of a run, expected another folder, or --overwrite")
    if not folder.absolute().parent.is_dir():
        raise click.UsageError(f"--output: got {folder}, expected a place in a folder that exists")
    folder.mkdir(exist_ok=True)


def _score(
    once: Callable[[Target, RunOptions], tuple[str, bool]],
    target: Target,
    options: FilterOptions,
    run: RunOptions,
    suffix: str,
) -> tuple[tuple[str, ...], Criterion]:
    """Score lines with each model; return the outputs. What holds all scores already is left as it is.

    once  scores with one model; returns the hash of its bundle, and whether ends were counted
    """
    from meari.bulk.filtering import Criterion

    models = [target.model] if options.against is None else [target.model, options.against]
    assert run.output is not None
    outputs = [run.output + more + suffix for more in ("", AGAINST)][: len(models)]
    hashes, has_ends = [], False
    for model, output in zip(models, outputs, strict=True):
        digest, has_ends = once(replace(target, model=model), replace(run, output=output, summary=None))
        hashes.append(digest)
    by = Criterion(figure=options.by, model=hashes[0], against="".join(hashes[1:]), add_end=has_ends)
    return tuple(outputs), by


def _score_here(
    names: Sequence[str], target: Target, run: RunOptions, *, options: FilterOptions, reads: list[Use]
) -> tuple[str, bool]:
    import msgspec

    from meari.bulk.run import run as run_bulk
    from meari.bulk.source import Source
    from meari.bundle_format.reader import read_manifest

    assert run.output is not None
    run = replace(run, resume=run.resume and Path(run.output).exists())
    source = Source(names, tells_files=len(names) > 1)
    common, plan, facts = work_options(target, run, reads, format_of(run, source), "tsv")
    scoring = msgspec.structs.replace(_scoring(common, facts, options), with_file=len(names) > 1)
    check_names(source, scoring)
    run_bulk(source, scoring, plan)
    return read_manifest(Path(scoring.bundle))[1] if plan.remote is None else plan.remote.hash, scoring.add_end


def _score_on_ray(names: Sequence[str], target: Target, run: RunOptions, *, options: FilterOptions) -> tuple[str, bool]:
    from meari.bundle_format.reader import read_manifest
    from meari.cli._ray import run_with_ray

    assert run.output is not None
    first = run.output.removesuffix(AGAINST)
    like = "" if first == run.output else first
    make = partial(_scoring, options=options)
    _, scoring, _ = run_with_ray(names, target, run, "tsv", make, to_parquet=False, carries_fields=False, like=like)
    return read_manifest(Path(scoring.bundle))[1], scoring.add_end


def _scoring(common: dict[str, Any], facts: ModelFacts, options: FilterOptions) -> ScoreOptions:
    from meari.bulk.options import ScoreOptions

    ends = facts.has_ends if options.end is None else options.end
    return ScoreOptions(**{**common, "with_text": False}, add_end=ends)


def _is_text(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(".txt")


def _tell(counts: dict[str, int], thresholds: Thresholds, run: RunOptions, *, as_json: bool) -> None:
    """Print the summary on standard error, and write or print it as JSON where that is asked for."""
    import json

    files = {file: count for file, count in counts.items() if file != LEFT_OUT}
    summary = {
        "figure": thresholds.by.figure,
        "thresholds": {"head": thresholds.head, "middle": thresholds.middle},
        "files": files,
        LEFT_OUT: counts[LEFT_OUT],
    }
    if run.summary is not None:
        run.summary.write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", "utf-8")
    if as_json:
        echo_json(summary)
    if run.quiet:
        return
    total = sum(files.values())
    for (file, count), bound in zip(files.items(), (thresholds.head, thresholds.middle, None), strict=True):
        share = f"{100 * count / total:.1f} %" if total else "-"
        up_to = "" if bound is None else f"   up to {shown(bound)} {thresholds.by.figure}"
        click.echo(f"{file}: {count:,} lines, {share}{up_to}", err=True)
    if counts[LEFT_OUT]:
        click.echo(f"{counts[LEFT_OUT]:,} lines without a figure (empty, or bad) are in no part", err=True)

"""Export of a run as a bundle: read, build, check, describe, and only then write.

Input: a run folder and the folder of the bundle. Output: the whole bundle, or an error and nothing changed.
Must not know: HTTP.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from meari.bundle_format.folders import CELL_GRAPH, GOLDEN, MANIFEST, OUTPUT_GRAPH, TOKENIZER
from meari.bundle_format.names import Precision, TokenizerKind
from meari.export.card import draw_samples, model_card
from meari.export.description import Description, summarise
from meari.export.errors import CheckFailed, UnusableRun
from meari.export.graphs import cell_graph, output_graph
from meari.export.manifest import make_manifest
from meari.export.mixture import check_mixture, fitted, sampled
from meari.export.ngram import NgramWeights, count_ngrams, longest_order
from meari.export.perplexity import (
    MIN_TOKENS,
    TRY_FP32,
    HeldOutFigures,
    check_precision,
    measure_graphs,
    measure_mixture,
)
from meari.export.sessions import Graphs, Tokens
from meari.export.target import check_target
from meari.export.verification import Agreement, check_against_torch, check_isolation, check_valid, make_golden
from meari.export.weights import ModelWeights
from meari.export.weights_from_torch import read_weights
from meari.models.checkpoint import Checkpoint, load_checkpoint
from meari.models.errors import NotFinite
from meari.models.evaluation import evaluate, has_ends
from meari.models.figures import worse_than_guessing
from meari.models.files import current_folder, locked_beside, replaced_folder
from meari.models.text.token_file import TokenFile, open_token_file

MAX_HELD_OUT = 200_000  # tokens at most
MIN_GAIN, TOKENS_FOR_MIN_GAIN = 3.0, 2_000_000  # nats of an n-gram by default; more where there are more tokens
CHARACTERS_IN_NGRAM, TOKENS_IN_NGRAM = 7, 4  # where nobody chooses
MAX_COUNTED = 20_000_000  # tokens of the training text, likewise
MIN_IMPROVEMENT = 0.02  # of the nats of held-out text, for which n-grams are worth their time
NO_TOKENS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Run:
    """A trained model, its held-out text and its report.

    parts      held-out parts of the corpus, by name: `validation`, and perhaps `test`
    has_ends   whether the training text taught where a text ends
    report     report.png, or None without one
    train      the training part, or None where the folder has none
    imported   of a model that was trained elsewhere: where it came from
    """

    checkpoint: Checkpoint
    parts: dict[str, TokenFile]
    has_ends: bool
    report: bytes | None
    train: TokenFile | None = None
    imported: Mapping[str, Any] | None = None

    @property
    def held_out(self) -> Tokens:
        """Beginning of the validation text, int64 [num_tokens]; empty if the folder has none."""
        validation = self.parts.get("validation")
        return NO_TOKENS if validation is None else validation.ids[:MAX_HELD_OUT].astype(np.int64)


def read_run(folder: Path) -> Run:
    """Read a run folder (its best weights), or a checkpoint folder inside one.

    Raises CheckpointError or TokenFileError.
    """
    checkpoint = load_checkpoint(folder)
    run_folder = next(
        (place for place in (folder, folder.absolute().parent) if (place / "config.json").exists()), folder
    )
    paths = {part: current_folder(run_folder / "tokens") / f"{part}.tokens" for part in ("train", "validation", "test")}
    parts = {part: open_token_file(path) for part, path in paths.items() if path.exists()}
    train = parts.pop("train", None)
    report = run_folder / "report.png"
    taught = has_ends(folder, checkpoint.config.corpus.document)
    return Run(checkpoint, parts, taught, report.read_bytes() if report.exists() else None, train)


@dataclass(frozen=True)
class ExportedBundle:
    """A bundle on disk."""

    folder: Path
    description: Description
    num_bytes: int


@dataclass(frozen=True)
class NgramOptions:
    """Options of an n-gram model.

    order            tokens of the longest n-grams
    min_gain         nats of the training text that each one must gain; None: by the length of the text
    min_improvement  share of the nats of held-out text; an n-gram model that takes less off is left out
    """

    order: int
    min_gain: float | None = None
    min_improvement: float = -math.inf

    @property
    def is_optional(self) -> bool:
        """True if the bundle is written without n-grams where none can be counted or they take too little off."""
        return self.min_improvement > -math.inf


@dataclass(frozen=True)
class _CheckedGraphs:
    graphs: Graphs
    ngram: NgramWeights | None
    agreement: Agreement
    held_out: dict[str, HeldOutFigures]


def export_bundle(
    run_folder: Path,
    folder: Path,
    precision: Precision,
    *,
    ngram: NgramOptions | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> ExportedBundle:
    """Write a run's best weights as a bundle.

    ngram       mix in an n-gram model of the training text
    overwrite   replace an existing bundle
    tell        called with a line before each stage

    Raises BundleExists, CheckFailed and UnusableRun, or what `models` raises for a run that cannot be read or a
    folder that another export is writing. In all of these cases the folder is as it was.
    """
    check_target(folder.absolute(), overwrite=overwrite)
    tell(f"Reading {run_folder}")
    return write_bundle(read_run(run_folder), folder, precision, ngram=ngram, overwrite=overwrite, tell=tell)


def write_bundle(
    run: Run,
    folder: Path,
    precision: Precision,
    *,
    ngram: NgramOptions | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None],
) -> ExportedBundle:
    """Check a run that was read and write it as a bundle. Raises as `export_bundle`."""
    folder = folder.absolute()
    with locked_beside(folder):
        check_target(folder, overwrite=overwrite)  # another export may have finished meanwhile
        checked = _usable(run, precision, ngram, tell)
        tell("Writing the golden figures and the samples")
        description = _describe(folder.name, run, checked)
        return _write(folder, run, checked.graphs, description)


def export_smallest(
    run_folder: Path, folder: Path, *, overwrite: bool = False, tell: Callable[[str], None] = lambda _: None
) -> ExportedBundle:
    """Write a run as an int8 bundle, or in float32 if int8 fails its checks or the family has none.

    Raises as `export_bundle`.
    """
    check_target(folder.absolute(), overwrite=overwrite)
    tell(f"Reading {run_folder}")
    return write_smallest(read_run(run_folder), folder, overwrite=overwrite, tell=tell)


def write_smallest(
    run: Run, folder: Path, *, overwrite: bool = False, tell: Callable[[str], None] = lambda _: None
) -> ExportedBundle:
    """Write a run that was read, likewise, with n-grams where they are worth it."""
    ngram = _worthwhile(run)
    try:
        return write_bundle(run, folder, Precision.INT8, ngram=ngram, overwrite=overwrite, tell=tell)
    except (CheckFailed, UnusableRun) as error:
        tell(f"No int8 bundle: {error}")
    return write_bundle(run, folder, Precision.FP32, ngram=ngram, overwrite=overwrite, tell=tell)


def _worthwhile(run: Run) -> NgramOptions | None:
    """Return the n-grams to try where nobody has chosen; None for a run without text to count them in."""
    validation = run.parts.get("validation")
    if run.train is None or validation is None or validation.num_tokens < MIN_TOKENS:
        return None
    is_char = run.checkpoint.config.tokenizer.kind is TokenizerKind.CHAR
    order = CHARACTERS_IN_NGRAM if is_char else TOKENS_IN_NGRAM
    return NgramOptions(
        min(order, longest_order(run.checkpoint.model.vocabulary_size)), min_improvement=MIN_IMPROVEMENT
    )


def samples_of(run_folder: Path) -> list[str]:
    """Return what a run's float32 bundle without n-grams would have as samples.

    Raises CheckpointError, TokenFileError, UnusableRun.
    """
    run = read_run(run_folder)
    graphs = build_graphs(read_weights(run.checkpoint.model), Precision.FP32)
    return draw_samples(graphs, run.checkpoint.tokenizer)


def build_graphs(weights: ModelWeights, precision: Precision, ngram: NgramWeights | None = None) -> Graphs:
    """Build both graphs of a bundle, without checks."""
    return Graphs(precision, cell_graph(weights.cell, precision, ngram), output_graph(weights.output, precision, ngram))


def _usable(run: Run, precision: Precision, ngram: NgramOptions | None, tell: Callable[[str], None]) -> _CheckedGraphs:
    """Call `_build`. Raises UnusableRun for a run that fails a check because its training diverged."""
    model, figures = run.checkpoint.model, run.checkpoint.figures.get("validation", {})
    problem = worse_than_guessing(figures.get("nats_per_token", 0.0), model.vocabulary_size)
    if problem is not None:
        tell(f"Warning: {problem}")
    try:
        return _build(run, precision, ngram, tell)
    except (CheckFailed, UnusableRun, NotFinite) as error:
        if problem is None:
            raise
        raise UnusableRun(f"{problem}. Nothing was written: {str(error).removesuffix(TRY_FP32)}") from error


def _build(run: Run, precision: Precision, options: NgramOptions | None, tell: Callable[[str], None]) -> _CheckedGraphs:
    """Build the graphs and check them. The float32 graphs are the reference for the int8 ones."""
    weights = read_weights(run.checkpoint.model)
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is refused later, by the constant's name
        reference = build_graphs(weights, Precision.FP32)
    tell("Comparing the float32 graphs with torch")
    check_valid(reference)
    agreement = check_against_torch(reference, run.checkpoint.model, run.held_out)
    graphs = alone = reference
    if precision is Precision.INT8:
        graphs = alone = build_graphs(weights, precision)
        check_valid(graphs)
    ngram = None
    if options is not None:
        tell(f"Counting n-grams of up to {options.order} tokens")
        graphs, ngram = _with_ngrams(run, alone, weights, options, tell)
    tell("Comparing rows in batches of many sizes")
    check_isolation(graphs)
    if run.parts:
        tell("Measuring held-out text")
    held_out = {part: _measure(run, graphs, alone, tokens) for part, tokens in run.parts.items()}
    check_precision(precision, held_out.get("validation"))
    return _CheckedGraphs(graphs, ngram, agreement, held_out)


def _with_ngrams(
    run: Run, alone: Graphs, weights: ModelWeights, options: NgramOptions, tell: Callable[[str], None]
) -> tuple[Graphs, NgramWeights | None]:
    """Mix n-grams in, unless they improve too little. alone: graphs without n-grams, which are returned then."""
    validation = run.parts.get("validation")
    if run.train is None or validation is None or validation.num_tokens < MIN_TOKENS:
        raise UnusableRun(
            f"--ngram: got a run without its training text or with fewer than {MIN_TOKENS} held-out tokens, expected "
            "the run folder that holds tokens/"
        )
    ids = run.train.ids[: MAX_COUNTED if options.is_optional else None].astype(np.int64)
    masked = run.train.masked[run.train.masked < len(ids)]
    min_gain = options.min_gain
    if min_gain is None:
        min_gain = MIN_GAIN * max(1.0, len(ids) / TOKENS_FOR_MIN_GAIN)
    end_id, size = run.checkpoint.tokenizer.end_id, run.checkpoint.model.vocabulary_size
    try:
        counted = count_ngrams(ids, size, end_id, options.order, masked=masked, min_gain=min_gain)
    except UnusableRun as error:
        if not options.is_optional:
            raise
        tell(f"No n-grams: {error}")
        return alone, None
    sample = sampled(alone, validation, counted.order, counts_ends=run.has_ends)
    ngram, nats_per_token = fitted(replace(counted, knows_beginning=run.has_ends), sample)
    improvement = 1 - nats_per_token / sample.nats_per_token
    told = f"{sum(ngram.num_ngrams):,} n-grams take {improvement:.1%} off the nats of held-out text"
    if improvement < options.min_improvement:
        tell(f"{told}: they are left out")
        return alone, None
    tell(told)
    graphs = build_graphs(weights, alone.precision, ngram)
    check_valid(graphs)
    check_mixture(graphs, alone, ngram, run.held_out)
    return graphs, ngram


def _measure(run: Run, graphs: Graphs, alone: Graphs, tokens: TokenFile) -> HeldOutFigures:
    """Measure a part of the corpus. alone: the graphs without n-grams; the same ones where none are mixed in."""
    without = None
    if alone is graphs:
        served = measure_graphs(graphs, tokens, counts_ends=run.has_ends)
    else:
        served, without = measure_mixture(graphs, alone, tokens, counts_ends=run.has_ends)
    return HeldOutFigures(served, evaluate(run.checkpoint.model, tokens, counts_ends=run.has_ends), without)


def _describe(name: str, run: Run, checked: _CheckedGraphs) -> Description:
    return Description(
        name=name,
        precision=checked.graphs.precision,
        checkpoint=run.checkpoint,
        has_ends=run.has_ends,
        graphs=summarise(checked.graphs),
        ngram=checked.ngram,
        agreement=checked.agreement,
        held_out=checked.held_out,
        golden=make_golden(checked.graphs, run.held_out),
        samples=tuple(draw_samples(checked.graphs, run.checkpoint.tokenizer)),
        has_report=run.report is not None,
        imported=run.imported,
    )


def _write(folder: Path, run: Run, graphs: Graphs, description: Description) -> ExportedBundle:
    files = {
        CELL_GRAPH: graphs.cell,
        OUTPUT_GRAPH: graphs.output,
        GOLDEN: description.golden.content,
        "README.md": model_card(description).encode(),
    }
    if run.report is not None:
        files["report.png"] = run.report
    with replaced_folder(folder) as new:
        run.checkpoint.tokenizer.save(new / TOKENIZER)
        files[TOKENIZER] = (new / TOKENIZER).read_bytes()
        files[MANIFEST] = make_manifest(description, files).to_json()
        for name, content in files.items():
            (new / name).write_bytes(content)
    return ExportedBundle(folder, description, sum(map(len, files.values())))

"""`meari evaluate`: a run and held-out text → figures."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.cli._files import STREAMS, Use, check_apart
from meari.cli._options import Choice, PathType, complete_run, echo_json, json_option
from meari.cli._tables import Table, facts, show

if TYPE_CHECKING:
    from meari.models.checkpoint import Checkpoint
    from meari.models.text.token_file import TokenFile

PARTS = ("validation", "test")
FIGURES = (
    "nats_per_token",
    "perplexity",
    "nats_per_char",
    "bits_per_char",
    "bits_per_char_with_ends",
    "bits_per_byte",
)
COUNTS = ("num_tokens", "num_characters", "num_bytes", "num_ends", "num_documents", "num_unknown")


EXAMPLES = """\b
Examples:
  meari evaluate runs/my-model
  meari evaluate runs/my-model --part test --json
  meari evaluate runs/my-model --text chapter-1.txt chapter-2.txt
"""


@click.command("evaluate", short_help="Measure a trained model on held-out text.", epilog=EXAMPLES)
@click.argument("run", type=PathType(path_type=Path), shell_complete=complete_run)
@click.argument("more_files", metavar="", nargs=-1, type=PathType(path_type=Path))
@click.option("--part", type=Choice(PARTS), help="Part of the run's own corpus.  [validation]")
@click.option(
    "--text",
    "files",
    metavar="FILE…",
    multiple=True,
    type=PathType(path_type=Path),
    help="Measure this text instead.",
)
@json_option
def command(run: Path, more_files: tuple[Path, ...], part: str | None, files: tuple[Path, ...], as_json: bool) -> None:
    """Measure the best weights of RUN (or of a checkpoint folder) on held-out text.

    Text is run as it is served, in float32: lines and paragraphs each from the initial state, files as one stream.
    Characters and bytes are those of the text in NFC, as `meari score` counts them; bits_per_char_with_ends takes the
    end of each document for one character more. Ends count where the training text had some.
    Models with other tokenizers compare by bits a character or byte, but not a word model with unknown words, to
    which a word that it lacks is one token, whatever its letters.
    """
    if more_files and not files:
        raise click.UsageError(f"got {more_files[0]} after RUN, expected files after --text alone")
    if files and part:
        raise click.UsageError("--part and --text exclude each other")
    check_apart([Use("--text", file) for file in files + more_files], STREAMS)
    from meari.models.checkpoint_folder import find_checkpoint
    from meari.models.text.text_files import list_files

    find_checkpoint(run)  # before torch is imported
    list_files(files + more_files)
    from meari.models.checkpoint import load_checkpoint
    from meari.models.training.process import choose_device, fast_torch

    checkpoint = load_checkpoint(run)
    checkpoint.model.to(choose_device(checkpoint.config.training.device))
    with fast_torch(threads=0):
        measured = (
            _measure_files(checkpoint, run, files + more_files) if files else _measure_part(checkpoint, run, part)
        )
    if as_json:
        echo_json(measured)
    else:
        show(_table(measured))


def _measure_part(checkpoint: "Checkpoint", run: Path, part: str | None) -> dict[str, Any]:
    from meari.models.evaluation import open_part

    chosen = " (which also chose the step)" if part in (None, "validation") else ""
    return _measured(checkpoint, run, open_part(run, part or PARTS[0]), f"{part or PARTS[0]} part of {run}{chosen}")


def _measure_files(checkpoint: "Checkpoint", run: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    from meari.models.evaluation import encode_files

    unit = checkpoint.config.corpus.document
    with tempfile.TemporaryDirectory() as folder:
        tokens = encode_files(files, checkpoint.tokenizer, unit, Path(folder))
        return _measured(checkpoint, run, tokens, ", ".join(map(str, files)))


def _measured(checkpoint: "Checkpoint", run: Path, tokens: "TokenFile", text: str) -> dict[str, Any]:
    from meari.models.evaluation import evaluate, has_ends
    from meari.models.training.process import describe_machine

    described = {"name": checkpoint.config.name, "step": checkpoint.step, "text": text}
    counts = {"num_documents": tokens.num_documents, "num_unknown": tokens.num_unknown}
    counts_ends = has_ends(run, checkpoint.config.corpus.document)
    measured = evaluate(checkpoint.model, tokens, counts_ends=counts_ends).to_json()
    return described | measured | counts | {"machine": describe_machine(checkpoint.model.device)}


def _table(measured: dict[str, Any]) -> Table:
    from meari.models.figures import show_figure, show_perplexity

    shown = {name: show_figure(measured[name]) for name in FIGURES}
    shown["perplexity"] = show_perplexity(measured["perplexity"], 4)
    figures = [(name, f"{shown[name]:>12}") for name in FIGURES]
    counts = [(name, f"{measured[name]:>12,}") for name in COUNTS]
    machine = [("machine", measured["machine"])]
    return facts(f"{measured['name']}, step {measured['step']}, on {measured['text']}", [*figures, *counts, *machine])

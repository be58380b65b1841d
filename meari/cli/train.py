"""`meari train`: a TOML file → a run folder."""

import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._files import STREAMS, Use, check_apart, config_uses
from meari.cli._options import complete_config, echo_json, json_option

if TYPE_CHECKING:
    from meari.models.config import Config

RUNS = Path("runs")
MAX_BAD = 1_000
EXAMPLES = """\b
Examples:
  meari train my-model.toml
  meari train my-model.toml --resume                       # after Ctrl-C, SIGTERM or a power cut
  meari train my-model.toml --overwrite --json > figures.json
"""


@click.command("train", short_help="Train a model as a TOML file says.", epilog=EXAMPLES)
@click.argument("config_file", metavar="CONFIG.toml", type=click.Path(path_type=Path), shell_complete=complete_config)
@click.option("--run", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Run folder.  [runs/NAME]")
@click.option("--resume", is_flag=True, help="Continue the run in that folder.")
@click.option("--overwrite", is_flag=True, help="Replace the run in that folder.")
@click.option(
    "--tensorboard",
    "events",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for TensorBoard: losses, gradient norm, learning rate, tokens/s.",
)
@click.option("--skip-bad", is_flag=True, help="Read lines of the corpus that are not UTF-8 as blank lines.")
@click.option(
    "--max-bad",
    metavar="N",
    type=click.IntRange(0),
    help=f"The same, for at most N lines: corpus.max_bad.  [{MAX_BAD:,} with --skip-bad]",
)
@json_option
def command(
    config_file: Path,
    folder: Path | None,
    resume: bool,
    overwrite: bool,
    events: Path | None,
    skip_bad: bool,
    max_bad: int | None,
    as_json: bool,
) -> None:
    """Train a model as CONFIG.toml says and keep everything in a run folder.

    Ctrl-C or SIGTERM ends it after the current step; --resume goes on from there, bit for bit on a CPU.

    \b
    Several processes train one model together, each on its share of the batch (batch_size / N streams):
      torchrun --standalone --nproc-per-node N --no-python -- meari train CONFIG.toml
    They do what one process would, up to rounding, and any number of them can resume the run.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from rich.console import Console

    from meari.models.check import check_files
    from meari.models.files import locked
    from meari.models.training.display import NullDisplay, TensorBoardDisplay, make_display
    from meari.models.training.process import choose_device
    from meari.models.training.run import train
    from meari.models.training.run_folder import RunFolder, Start, claimed_run
    from meari.models.training.trainer import Ending
    from meari.models.training.workers import joined_workers

    limit = MAX_BAD if skip_bad and max_bad is None else max_bad
    config = _config(config_file, limit)
    start = Start.RESUME if resume else Start.OVERWRITE if overwrite else Start.FRESH
    run = RunFolder(folder or RUNS / config.name)
    events_use = [] if events is None else [Use("--tensorboard", events)]
    check_apart(config_uses(config_file, config), [Use("--run", run.path), *events_use, *STREAMS])
    again = ["meari", "train", str(config_file), *(["--run", str(folder)] if folder else []), "--resume"]
    again += [] if limit is None else ["--max-bad", str(limit)]
    device = choose_device(config.training.device)
    with ExitStack() as held, joined_workers(device, config.training.batch_size) as workers:
        display = make_display(Console(stderr=as_json)) if workers.is_first else NullDisplay()
        workers.first(lambda: check_files(config))
        workers.first(lambda: held.enter_context(claimed_run(run.path, config, start)))
        if events is not None and workers.is_first:
            held.enter_context(locked(events))
            display = TensorBoardDisplay(events, display)
        outcome = train(config, run, resume=resume, display=display, clock=time.monotonic, workers=workers)
        is_interrupted = outcome.ending is Ending.INTERRUPTED
        if is_interrupted and workers.is_first:
            click.echo(f"Interrupted after step {outcome.step}. Go on with:\n  {shlex.join(again)}", err=as_json)
        if as_json and workers.is_first:
            ended = {"name": config.name, "run": str(run.path), "ending": str(outcome.ending), "step": outcome.step}
            echo_json({**ended, "figures": outcome.figures})
        elif outcome.figures is not None:
            _show(run.path, str(outcome.ending), outcome.step, outcome.figures)
    if is_interrupted:
        sys.exit(128 + (outcome.stop.signal or signal.SIGINT))


def _config(file: Path, max_bad: int | None) -> "Config":
    """The config with what the options change in it. Raises ConfigError, and TrainingError for what no memory holds."""
    from meari.models.config import load_config
    from meari.models.memory import check_memory
    from meari.models.training.process import choose_device

    config = load_config(file)
    device = choose_device(config.training.device)
    check_memory(config, device, num_processes=int(os.environ.get("WORLD_SIZE", "1")))
    return config if max_bad is None else replace(config, corpus=replace(config.corpus, max_bad=max_bad))


def _show(run: Path, ending: str, step: int, figures: dict[str, dict[str, float]]) -> None:
    from meari.models.figures import show_figure, show_perplexity

    click.echo(f"Training {ending} after step {step}; run folder {run}")
    for part in ("validation", "test"):
        if part in figures:
            held_out = figures[part]
            shown = {name: show_figure(figure) for name, figure in held_out.items()}
            click.echo(
                f"{part}: {shown['nats_per_token']} nats/token, perplexity {show_perplexity(held_out['perplexity'])}, "
                f"{shown['nats_per_char']} nats/char, {shown['bits_per_char']} bits/char "
                f"({shown['bits_per_char_with_ends']} with ends), {shown['bits_per_byte']} bits/byte"
            )

"""`meari train`: a TOML file → a run folder."""

import shlex
import signal
import sys
import time
from pathlib import Path

import click

RUNS = Path("runs")


@click.command("train", short_help="Train a model as a TOML file says.")
@click.argument("config_file", metavar="CONFIG.toml", type=click.Path(path_type=Path))
@click.option("--run", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Run folder.  [runs/NAME]")
@click.option("--resume", is_flag=True, help="Go on with the run in that folder.")
@click.option("--overwrite", is_flag=True, help="Replace the run in that folder.")
def command(config_file: Path, folder: Path | None, resume: bool, overwrite: bool) -> None:
    """Train a model as CONFIG.toml says and keep everything in a run folder.

    Ctrl-C or SIGTERM ends it after the current step; --resume goes on from there, bit for bit on a CPU.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from rich.console import Console

    from models.config import load_config
    from models.training.display import make_display
    from models.training.run import train
    from models.training.run_folder import Start, open_run

    config = load_config(config_file)
    start = Start.RESUME if resume else Start.OVERWRITE if overwrite else Start.FRESH
    run = open_run(folder or RUNS / config.name, config, start)
    outcome = train(config, run, resume=resume, display=make_display(Console()), clock=time.monotonic)
    if outcome.figures is None:
        words = ["meari", "train", str(config_file), *(["--run", str(folder)] if folder else []), "--resume"]
        click.echo(f"Interrupted after step {outcome.step}. Go on with:\n  {shlex.join(words)}")
        sys.exit(128 + (outcome.stop.signal or signal.SIGINT))
    _show(run.path, str(outcome.ending), outcome.step, outcome.figures)


def _show(run: Path, ending: str, step: int, figures: dict[str, dict[str, float]]) -> None:
    click.echo(f"Training {ending} after step {step}; run folder {run}")
    for part in ("validation", "test"):
        if part in figures:
            held_out = figures[part]
            click.echo(
                f"{part}: {held_out['nats_per_token']:.4f} nats/token, perplexity {held_out['perplexity']:.2f}, "
                f"{held_out['nats_per_char']:.4f} nats/char, {held_out['bits_per_char']:.4f} bits/char, "
                f"{held_out['bits_per_byte']:.4f} bits/byte"
            )

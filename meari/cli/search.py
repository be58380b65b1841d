"""`meari search`: a TOML file → many short trainings, a table, and a picture of what mattered."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._files import STREAMS, Use, check_apart, config_uses
from meari.cli._options import FloatRange, PathType, complete_config, echo_json, json_option, program

if TYPE_CHECKING:
    from meari.models.search.journal import SearchResult

SEARCHES = Path("runs") / "search"
EXAMPLES = """\b
Examples:
  meari search my-model.toml --trials 20 --trial-minutes 2
  meari search my-model.toml --vary training.learning_rate=1e-3..1e-1 --vary model.hidden_size=128,256 --json
  meari search my-model.toml --resume
"""


@click.command("search", short_help="Find out which settings of a TOML file matter.", epilog=EXAMPLES)
@click.argument("config_file", metavar="CONFIG.toml", type=PathType(path_type=Path), shell_complete=complete_config)
@click.option("--vary", "varied", metavar="NAME=SPEC", multiple=True, help="Setting to vary; may be repeated.")
@click.option("--trials", type=click.IntRange(min=1), help="Number of trainings.  [20]")
@click.option("--trial-minutes", type=FloatRange(min=0), help="Time limit of one training; 0: no limit.  [2]")
@click.option("--minutes", type=FloatRange(min=0), help="Time limit of all trials together; 0: no limit.  [0]")
@click.option("--run", "folder", metavar="DIR", type=PathType(path_type=Path), help="Folder.  [runs/search/NAME]")
@click.option("--resume", is_flag=True, help="Continue the search in that folder.")
@click.option("--overwrite", is_flag=True, help="Replace the search in that folder.")
@json_option
def command(
    config_file: Path,
    varied: tuple[str, ...],
    trials: int | None,
    trial_minutes: float | None,
    minutes: float | None,
    folder: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train with settings drawn at random, measure each on validation text, and show which settings mattered.

    What varies: --vary, else [search.settings] of CONFIG.toml, else ranges that suit the family. SPEC is 1e-3..1e-1 for
    a range on a logarithmic scale, 0.0~0.5 for an even one, or a list like 128,256,512. In TOML:

    \b
      [search]
      trials = 20
      [search.settings]
      "model.hidden_size" = [128, 256, 512]
      "model.dropout" = {even = [0.0, 0.5]}
      "training.learning_rate" = {log = [1e-3, 1e-1]}

    Every trial has the steps of CONFIG.toml: a schedule that --trial-minutes cuts short says little. The test part is
    never looked at. Ctrl-C ends a search after the current step; --resume goes on after the last trial that ended.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from meari.models.check import check_files
    from meari.models.config import parse_config, read_toml

    tables = read_toml(config_file)
    config = parse_config(tables, str(config_file))
    check_apart(config_uses(config_file, config), [Use("--run", folder or SEARCHES / config.name), *STREAMS])
    check_files(config)
    from rich.console import Console

    from meari.models.search.options import read_options
    from meari.models.search.run import search
    from meari.models.search.space import make_space
    from meari.models.training.display import TrialDisplay
    from meari.models.training.run_folder import Start

    options = read_options(
        tables, str(config_file), config, varied, trials=trials, trial_minutes=trial_minutes, minutes=minutes
    )
    console = Console(stderr=True)
    found = search(
        make_space(config, options.settings),
        options.budget,
        folder or SEARCHES / config.name,
        Start.RESUME if resume else Start.OVERWRITE if overwrite else Start.FRESH,
        display_of=lambda number: TrialDisplay(console, number),
        tell=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        clock=time.monotonic,
    )
    _show(found, folder or SEARCHES / config.name, as_json=as_json)
    if found.signal is not None:
        _tell_how_to_resume([*sys.argv[2:], *([] if resume else ["--resume"])])
        sys.exit(128 + found.signal)


def _tell_how_to_resume(arguments: list[str]) -> None:
    words = [*program(), "search", *(word for word in arguments if word != "--overwrite")]
    click.echo(f"Interrupted. Go on with:\n  {shlex.join(words)}", err=True)


def _show(found: "SearchResult", folder: Path, *, as_json: bool) -> None:
    from rich.console import Console

    from meari.models.search.journal import as_json as json_of
    from meari.models.search.report import plain_table, rich_table
    from meari.models.search.run import BEST, PICTURE

    if as_json:
        echo_json(json_of(found))
    if as_json or not found.trials:
        return
    console = Console()
    if console.is_terminal:
        console.print(rich_table(found))
    else:
        click.echo(plain_table(found))
    click.echo(f"{folder / PICTURE}: each setting against the loss; {folder / BEST}: the best config")

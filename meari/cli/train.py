"""`meari train`: a TOML file → a run folder; texts → a config that suits them, a run folder and a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from meari.cli._options import PathType, complete_config, echo_json, json_option, packed
from meari.cli._training import (
    MAX_BAD,
    Training,
    TrainOptions,
    bundle_json,
    continue_option,
    end_if_interrupted,
    export,
    family_option,
    figures_json,
    minutes_option,
    name_option,
    overwrite_option,
    resume_option,
    set_option,
    show_bundle,
    show_figures,
    telling_how_to_resume,
    train_texts,
)

if TYPE_CHECKING:
    from meari.models.config import Config

EXAMPLES = """\b
Examples:
  meari train my-text.txt                                  # five minutes, then a bundle
  meari train my-text.txt --minutes 2 --name other --set training.epochs=3
  meari train my-model.toml
  meari train my-model.toml --resume                       # after Ctrl-C, SIGTERM or a power cut
  meari train my-model.toml --overwrite --json > figures.json
"""


@click.command("train", short_help="Train a model on texts, or as a TOML file says.", epilog=EXAMPLES)
@click.argument(
    "paths",
    metavar="TEXT…|CONFIG.toml",
    nargs=-1,
    required=True,
    type=PathType(path_type=Path),
    shell_complete=complete_config,
)
@packed(
    "options",
    TrainOptions,
    minutes_option,
    family_option,
    name_option,
    set_option,
    click.option("--run", "folder", metavar="DIR", type=PathType(path_type=Path), help="Run folder.  [runs/NAME]"),
    resume_option,
    continue_option,
    overwrite_option,
    click.option(
        "--tensorboard",
        "events",
        metavar="DIR",
        type=PathType(path_type=Path),
        help="Folder for TensorBoard: losses, gradient norm, learning rate, tokens/s.",
    ),
    click.option("--skip-bad", is_flag=True, help="Read lines of the corpus that are not UTF-8 as blank lines."),
    click.option(
        "--max-bad",
        metavar="N",
        type=click.IntRange(0),
        help=f"The same, for at most N lines: corpus.max_bad.  [{MAX_BAD:,} with --skip-bad]",
    ),
)
@json_option
def command(paths: tuple[Path, ...], options: TrainOptions, as_json: bool) -> None:
    """Train a model on texts, or as CONFIG.toml says, and keep everything in a run folder.

    For texts, files or folders, the config is chosen: by the text, by the speed of this machine, and so that planning,
    training and export take --minutes. It is printed and kept as config.toml in the run folder; the bundle is written
    into bundles/NAME.

    Ctrl-C or SIGTERM ends it after the current step; --resume goes on from there, bit for bit on a CPU.

    \b
    Several processes train one model together, each on its share of the batch (batch_size / N streams):
      torchrun --standalone --nproc-per-node N --no-python -- meari train CONFIG.toml
    They do what one process would, up to rounding, and any number of them can resume the run. On several hosts each
    has its own copy of the corpus, and its own run folder or one that all share: docs/several-hosts.md.
    """
    options.start  # noqa: B018 (refuses options that exclude each other before anything is imported)
    names = [str(path) for path in paths]
    if not any(_is_config(path, options) for path in paths):
        if options.go_on:
            raise click.UsageError("--continue: got texts, expected CONFIG.toml")
        _train_texts(names, options, as_json=as_json)
        return
    if len(paths) > 1:
        raise click.UsageError(f"got a config among {len(paths)} files, expected one CONFIG.toml, or texts alone")
    for option, value in (("--minutes", options.minutes), ("--family", options.family)):
        if value is not None:
            raise click.UsageError(f"{option}: got {value} for a config, expected texts; --set changes a setting")
    training = Training(_config(paths[0], options), options, "train", names, config_file=paths[0])
    training.check_apart()
    result = training.train(as_json=as_json)
    if result is not None and as_json:
        echo_json(figures_json(training, result))
    elif result is not None and result.figures is not None:
        show_figures(training, result)
    end_if_interrupted(result)


def _is_config(path: Path, options: TrainOptions) -> bool:
    """Return whether the file is a config: by its name, or a pipe without one, if no option is for texts alone."""
    is_for_texts = options.minutes is not None or options.family is not None
    is_pipe = path.is_fifo() and not path.suffix and not is_for_texts
    return is_pipe or (path.suffix.lower() == ".toml" and not path.is_dir())


def _train_texts(paths: list[str], options: TrainOptions, *, as_json: bool) -> None:
    training, result = train_texts(paths, options, verb="train", as_json=as_json)
    if as_json and result.figures is None:
        echo_json(figures_json(training, result))
    end_if_interrupted(result)
    with telling_how_to_resume(training, as_json=as_json):
        if not as_json:
            show_figures(training, result)
        exported = export(training, as_json=as_json)
    if as_json:
        echo_json(figures_json(training, result) | bundle_json(training, exported))
    else:
        show_bundle(training, exported)


def _config(file: Path, options: TrainOptions) -> "Config":
    """The config with what the options change in it. Raises ConfigError."""
    from meari.models.config import read_toml
    from meari.models.planning.planner import with_options

    return with_options(read_toml(file), options.own_settings(), str(file))

"""What `meari train` and `meari demo` share: options, a training in a run folder, and the way from texts to a bundle.

Input: files, options. Output: a run folder, a bundle, what was measured. Must not know: the verbs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meari.bundle_format.names import NAME_PATTERN
from meari.cli._files import STREAMS, Use, check_apart, config_uses
from meari.cli._options import Choice, FloatRange, program

if TYPE_CHECKING:
    from meari.bundle_format.names import Family
    from meari.export.bundle import ExportedBundle
    from meari.models.config import Config
    from meari.models.training.run import TrainingResult
    from meari.models.training.run_folder import RunFolder, Start

RUNS = Path("runs")
BUNDLES = Path("bundles")
MAX_BAD = 1_000

minutes_option = click.option(
    "--minutes", type=FloatRange(0, min_open=True), help="For texts: from here to the finished bundle.  [5]"
)
family_option = click.option(
    "--family", type=Choice(["rnn", "gru", "lstm", "esn"]), help="For texts: the kind of model.  [by the time]"
)
name_option = click.option("--name", help="Name of the run and the bundle.  [the first text's, or the config's]")
set_option = click.option(
    "--set", "settings", metavar="NAME=VALUE", multiple=True, help="A setting, as in TOML; may be repeated."
)
resume_option = click.option("--resume", is_flag=True, help="Continue the run in that folder.")
continue_option = click.option(
    "--continue", "go_on", is_flag=True, help="Continue the run of a config if there is one, else start it."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the run, and the bundle of a text.")


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training; None: not given."""

    minutes: float | None = None
    family: str | None = None
    name: str | None = None
    settings: tuple[str, ...] = ()
    resume: bool = False
    go_on: bool = False
    overwrite: bool = False
    folder: Path | None = None
    events: Path | None = None
    skip_bad: bool = False
    max_bad: int | None = None

    @property
    def start(self) -> Start:
        from meari.models.training.run_folder import Start

        if self.resume + self.go_on + self.overwrite > 1:
            raise click.UsageError("--resume, --continue and --overwrite exclude each other")
        if self.go_on:
            return Start.CONTINUE
        return Start.RESUME if self.resume else Start.OVERWRITE if self.overwrite else Start.FRESH

    def own_settings(self) -> dict[str, object]:
        """Return what --set, --name and --max-bad say, by the settings' names. Raises UsageError."""
        named = dict(_read_setting(text) for text in self.settings)
        if self.name is not None:
            named["name"] = _checked_name(self.name)
        limit = MAX_BAD if self.skip_bad and self.max_bad is None else self.max_bad
        return named if limit is None else named | {"corpus.max_bad": limit}

    def again(self, paths: list[str]) -> list[str]:
        """Return the arguments that resume the run on these files."""
        named = [
            ("--run", self.folder),
            ("--name", self.name),
            ("--max-bad", self.own_settings().get("corpus.max_bad")),
        ]
        words = [*paths, *(str(word) for option, value in named if value is not None for word in (option, value))]
        return [*words, *(word for text in self.settings for word in ("--set", text)), "--resume"]


def _checked_name(name: str) -> str:
    if re.fullmatch(NAME_PATTERN, name) is None:
        expected = "1 to 100 letters, digits, '.', '_' and '-', a letter or digit first, and not DEFAULT"
        raise click.BadParameter(f"got {name!r}, expected {expected}", param_hint="--name")
    return name


def _read_setting(text: str) -> tuple[str, object]:
    """Read NAME=VALUE, the value as in TOML; what TOML does not know is a string."""
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise click.UsageError(f"--set: got {text!r}, expected NAME=VALUE, as in training.learning_rate=1e-3")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


@dataclass(frozen=True)
class Training:
    """A training that is about to run.

    config_file   that was read, None for texts
    bundle        that is written afterwards, for texts
    toml          the config as a file of the run folder, for texts
    """

    config: Config
    options: TrainOptions
    verb: str
    paths: list[str]
    config_file: Path | None = None
    bundle: Path | None = None
    toml: str | None = None

    @property
    def run(self) -> RunFolder:
        from meari.models.training.run_folder import RunFolder

        return RunFolder(self.options.folder or RUNS / self.config.name)

    @property
    def is_own_config(self) -> bool:
        """True if the config is the one that the run folder keeps."""
        file, kept = self.config_file, self.run.toml
        return file is not None and file.exists() and kept.exists() and file.samefile(kept)

    def check_apart(self) -> None:
        """Raise UsageError if something is written that is read, or written twice."""
        reads = config_uses(None if self.is_own_config else self.config_file, self.config)
        events, bundle = self.options.events, self.bundle
        writes = [Use("--run", self.run.path)]
        writes += [] if events is None else [Use("--tensorboard", events)]
        writes += [] if bundle is None else [Use("the bundle", bundle)]
        check_apart(reads, [*writes, *STREAMS])

    def _check_start(self) -> None:
        """Raise what a missing text or a folder in use raises, before torch is imported."""
        from meari.models.check import check_files
        from meari.models.training.run_folder import check_startable

        if num_processes() == 1:  # of several the first one does it for all
            check_files(self.config)
            check_startable(self.run.path, self.options.start)

    def train(self, *, as_json: bool) -> TrainingResult | None:
        """Train, and tell how to resume if a signal interrupts it: then the process ends.

        Returns the result, None in all processes of torchrun but the first.
        """
        self._check_start()
        from rich.console import Console

        from meari.models.fields import to_toml
        from meari.models.training.display import NullDisplay, make_display
        from meari.models.training.process import choose_device
        from meari.models.training.run import train_in_folder
        from meari.models.training.trainer import Ending
        from meari.models.training.workers import joined_workers

        config, path, options = self.config, self.run.path, self.options
        toml = to_toml(config.to_tables()) if self.toml is None and self.is_own_config else self.toml
        device = choose_device(config.training.device)
        with joined_workers(device, config.training.batch_size) as workers:
            display = make_display(Console(stderr=as_json)) if workers.is_first else NullDisplay()
            result = train_in_folder(
                config, path, options.start, display=display, toml=toml, events=options.events, workers=workers
            )
            first_host = workers.sent(platform.node().encode(), 0).decode()
            if workers.owns_folder:
                click.echo(
                    f"process {workers.rank} of {workers.size} writes best/, last/ and the history to {path} as "
                    f"well; figures and report are on {first_host}, the host of the first process",
                    err=as_json,
                )
            if result.ending is Ending.INTERRUPTED and workers.is_first:
                click.echo(f"Interrupted after step {result.step}. Go on with:\n  {self.resuming}", err=as_json)
            return result if workers.is_first else None

    @property
    def resuming(self) -> str:
        """The command that goes on where this one was interrupted."""
        return shlex.join([*program(), self.verb, *self.options.again(self.paths)])


def train_texts(
    paths: list[str], options: TrainOptions, *, verb: str, as_json: bool
) -> tuple[Training, TrainingResult]:
    """Plan, say what was chosen, and train."""
    training = plan_of(paths, options, verb=verb, as_json=as_json)
    training.check_apart()
    result = training.train(as_json=as_json)
    assert result is not None, "texts are trained on in one process"
    return training, result


def end_if_interrupted(result: TrainingResult | None) -> None:
    """End the process with the code of the signal that interrupted the training."""
    if result is not None and result.figures is None:
        sys.exit(128 + (result.stop.signal or signal.SIGINT))


def plan_of(paths: list[str], options: TrainOptions, *, verb: str, as_json: bool) -> Training:
    """Plan the training of texts, or take the plan of the run that is resumed, and say what was chosen."""
    from meari.export.target import check_target
    from meari.models.planning.run import DEFAULT_MINUTES, plan_text, resumed_config, run_name, toml_of
    from meari.models.training.run_folder import RunFolder, check_startable

    if num_processes() > 1:
        raise click.UsageError(
            "torchrun: got texts, expected CONFIG.toml: train once without it, runs/NAME has a config"
        )
    settings = options.own_settings()
    name = run_name(paths, options.name, settings)
    run = RunFolder(options.folder or RUNS / name)
    family = None if options.family is None else _family(options.family)
    if options.resume:
        config = resumed_config(run, paths, settings, family)
        kept = "" if options.minutes is None else f": {config.training.max_minutes:g} minutes of training, whatever"
        click.echo(f"The run in {run.path} goes on as it was planned{kept and f'{kept} --minutes says'}", err=as_json)
        bundle = BUNDLES / config.name
        check_target(bundle, overwrite=True)
        return Training(config, options, verb, paths, bundle=bundle)
    bundle = BUNDLES / name
    check_target(bundle, overwrite=options.overwrite)
    check_startable(run.path, options.start)
    minutes = options.minutes or DEFAULT_MINUTES
    plan = plan_text(paths, minutes, name=name, family=family, settings=settings)
    toml = f"# Chosen by `meari {verb} {shlex.join(paths)}`.\n{toml_of(plan)}"
    for line in (*plan.reasons, plan.expectation):
        click.echo(line, err=as_json)
    click.echo(f"\n{toml}\nThis config is kept as {run.toml}; `meari train` takes it too.", err=as_json)
    return Training(plan.config, options, verb, paths, bundle=bundle, toml=toml)


def num_processes() -> int:
    """Return how many processes torchrun has started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _family(name: str) -> Family:
    from meari.bundle_format.names import Family

    return Family(name)


def export(training: Training, *, as_json: bool) -> ExportedBundle:
    """Write the bundle of a finished run: int8 where it passes."""
    from meari.export.bundle import export_smallest

    assert training.bundle is not None
    is_again = training.options.overwrite or training.options.resume
    return export_smallest(
        training.run.path, training.bundle, overwrite=is_again, tell=lambda line: click.echo(line, err=as_json)
    )


@contextlib.contextmanager
def telling_how_to_resume(training: Training, *, as_json: bool) -> Iterator[None]:
    """End the process if a signal interrupts the block, which follows the training: nothing half stays behind."""
    from meari.bulk.errors import Interrupted, interruptible

    try:
        with interruptible():
            yield
    except Interrupted as interrupted:
        said = f"Interrupted after the training, before {training.bundle} was written. Go on with:"
        click.echo(f"{said}\n  {training.resuming}", err=as_json)
        sys.exit(interrupted.exit_code)


def show_figures(training: Training, result: TrainingResult) -> None:
    """Print the held-out figures of a finished run."""
    from meari.models.figures import show_figure, show_perplexity

    assert result.figures is not None
    click.echo(f"Training {result.ending} after step {result.step}; run folder {training.run.path}")
    for part in ("validation", "test"):
        if part in result.figures:
            held_out = result.figures[part]
            shown = {name: show_figure(figure) for name, figure in held_out.items()}
            click.echo(
                f"{part}: {shown['nats_per_token']} nats/token, perplexity {show_perplexity(held_out['perplexity'])}, "
                f"{shown['nats_per_char']} nats/char, {shown['bits_per_char']} bits/char "
                f"({shown['bits_per_char_with_ends']} with ends), {shown['bits_per_byte']} bits/byte"
            )


def figures_json(training: Training, result: TrainingResult) -> dict[str, Any]:
    """Return the result of a run as JSON values."""
    ended = {"name": training.config.name, "run": str(training.run.path)}
    return {**ended, "ending": str(result.ending), "step": result.step, "figures": result.figures}


def serve_command(training: Training) -> list[str]:
    """Return the command that serves the bundle."""
    return [*program(), "serve", "--bundles", str(BUNDLES), "--default-model", training.config.name]


def show_bundle(training: Training, exported: ExportedBundle) -> None:
    """Print what the bundle writes, and the command that serves it."""
    for number, sample in enumerate(exported.description.samples, start=1):
        click.echo(f"\n--- sample {number}\n{sample.strip()}")
    size = f"{exported.num_bytes:,} bytes, {exported.description.precision}"
    click.echo(f"\n{training.bundle}: {size}. Serve it with:\n  {shlex.join(serve_command(training))}")


def bundle_json(training: Training, exported: ExportedBundle) -> dict[str, Any]:
    """Return the bundle as JSON values."""
    return {
        "bundle": str(training.bundle),
        "bytes": exported.num_bytes,
        "precision": str(exported.description.precision),
        "samples": list(exported.description.samples),
        "serve": shlex.join(serve_command(training)),
    }

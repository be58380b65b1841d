"""`meari demo`: texts → a model of them in the playground."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meari.cli import serve
from meari.cli._options import PathType, echo_json_line, json_option, packed
from meari.cli._training import (
    BUNDLES,
    TrainOptions,
    bundle_json,
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

EXAMPLES = """\b
Examples:
  meari demo my-text.txt
  meari demo letters/ diary.txt --minutes 2 --name family
  meari demo my-text.txt --overwrite --family lstm --port 8080
"""


@click.command("demo", short_help="Train on texts, then serve the model.", epilog=EXAMPLES)
@click.argument("paths", metavar="TEXT…", nargs=-1, required=True, type=PathType(path_type=Path))
@packed(
    "options",
    TrainOptions,
    minutes_option,
    family_option,
    name_option,
    set_option,
    resume_option,
    overwrite_option,
)
@click.option("--host", help="Address to listen on (MEARI_HOST).")
@click.option("--port", help="Port to listen on (MEARI_PORT).")
@json_option
def command(paths: tuple[Path, ...], options: TrainOptions, host: str | None, port: str | None, as_json: bool) -> None:
    """Train a model on texts as `meari train TEXT` does, then serve it and print the link to the playground.

    Ctrl-C while it trains ends it, and --resume goes on; afterwards Ctrl-C ends the service.
    """
    options.start  # noqa: B018 (refuses options that exclude each other before anything is imported)
    if any(path.suffix.lower() == ".toml" for path in paths):
        raise click.UsageError("got a config, expected texts; `meari train` takes a config")
    for name, value in (("MEARI_HOST", host), ("MEARI_PORT", port)):
        if value is not None:
            os.environ[name] = value
    link = serve.check_free_address()
    training, result = train_texts([str(path) for path in paths], options, verb="demo", as_json=as_json)
    end_if_interrupted(result)
    with telling_how_to_resume(training, as_json=as_json):
        if not as_json:
            show_figures(training, result)
        exported = export(training, as_json=as_json)
    if as_json:
        echo_json_line(figures_json(training, result) | bundle_json(training, exported))
    else:
        show_bundle(training, exported)
    click.echo(f"Serving it at {link}; Ctrl-C ends the service", err=as_json)
    os.environ |= {"MEARI_BUNDLES": str(BUNDLES), "MEARI_DEFAULT_MODEL": training.config.name}
    serve.start(as_json=as_json)

"""`meari export`: a run folder → a bundle."""

from pathlib import Path

import click

from meari.cli._files import Use, check_apart
from meari.cli._options import Choice, FloatRange, PathType, complete_run, echo_json, json_option

EXAMPLES = """\b
Examples:
  meari export runs/my-model bundles/my-model
  meari export runs/my-model bundles/my-model --precision int8 --overwrite
  meari export runs/my-model bundles/my-model-4 --ngram 4
  meari export runs/my-model bundles/my-model-fp32 --json
"""


@click.command("export", short_help="Turn a run into a bundle that can be served.", epilog=EXAMPLES)
@click.argument("run", metavar="RUN", type=PathType(path_type=Path), shell_complete=complete_run)
@click.argument("folder", metavar="bundles/NAME", type=PathType(path_type=Path))
@click.option("--precision", type=Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option(
    "--ngram",
    "order",
    metavar="N",
    type=click.IntRange(2, 8),
    help="Mix in an n-gram model of the training text, of up to N tokens: better figures, higher cost.",
)
@click.option(
    "--min-gain",
    metavar="NATS",
    type=FloatRange(0),
    help="Leave out n-grams that make the training text likelier by less.  [3, more from 2 million tokens on]",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle in that folder.")
@json_option
def command(
    run: Path,
    folder: Path,
    precision: str,
    order: int | None,
    min_gain: float | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the best weights of RUN as a bundle.

    The graphs are checked against torch first, and int8 ones against float32 ones on held-out text. Where a check
    fails nothing is written, and a bundle that was there stays as it is.
    """
    check_apart([Use("RUN", run)], [Use("bundles/NAME", folder)])
    if min_gain is not None and order is None:
        raise click.UsageError(f"--min-gain: got {min_gain:g} without --ngram, expected both")
    from meari.bundle_format.names import Precision
    from meari.export.target import check_target
    from meari.models.checkpoint_folder import find_checkpoint

    check_target(folder.absolute(), overwrite=overwrite)  # before torch is imported
    find_checkpoint(run)
    from meari.export.bundle import NgramOptions, export_bundle
    from meari.export.description import summary_table

    exported = export_bundle(
        run,
        folder,
        Precision(precision),
        ngram=None if order is None else NgramOptions(order, min_gain),
        overwrite=overwrite,
        tell=lambda line: click.echo(line, err=as_json),
    )
    description = exported.description
    if as_json:
        from meari.runtime.inspection import describe_folder

        echo_json({**describe_folder(folder), "folder": str(folder), "bytes": exported.num_bytes})
        return
    click.echo(summary_table(list(description.graphs.values())))
    difference = description.agreement.max_logprob_difference
    click.echo(f"fp32 against torch in float64: log-probabilities within {difference:.2g} nats, 1e-4 allowed")
    for part, found in description.held_out.items():
        click.echo(f"{part} text: {found.in_words(description.precision)}")
    click.echo(f"{folder}: {exported.num_bytes:,} bytes")

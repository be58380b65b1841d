"""`meari export`: a run folder → a bundle."""

from pathlib import Path

import click


@click.command("export", short_help="Turn a run into a bundle that can be served.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="bundles/NAME", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the bundle in that folder.")
def command(run: Path, folder: Path, precision: str, overwrite: bool) -> None:
    """Write the best weights of RUN as a bundle.

    The graphs are checked against torch first, and int8 ones against float32 ones on held-out text. Where a check
    fails nothing is written, and a bundle that was there stays as it is.
    """
    from export.bundle import export_bundle
    from export.graph_summary import summary_table
    from export.precision import Precision

    exported = export_bundle(run, folder, Precision(precision), overwrite=overwrite, tell=click.echo)
    description = exported.description
    click.echo(summary_table(list(description.graphs.values())))
    difference = description.agreement.max_logprob_difference
    click.echo(f"fp32 against torch in float64: log-probabilities within {difference:.2g} nats, 1e-4 allowed")
    if description.perplexity is not None:
        click.echo(f"held-out text: {description.perplexity.in_words(description.precision)}")
    click.echo(f"{folder}: {exported.num_bytes:,} bytes")

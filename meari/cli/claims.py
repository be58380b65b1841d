"""`meari claims`: text, or none → a folder with a page, pictures and numbers."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from meari.cli._files import STREAMS, Use, check_apart
from meari.cli._options import FloatRange, PathType, echo_json, json_option

NUM_CLAIMS = 7
MAX_THREADS = 1024  # as of training.threads
OUTPUT = Path("docs/claims")


def _numbers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of claims, several with commas in between."""
    entries = [entry for value in values for entry in value.split(",")]
    if not all(entry.isascii() and entry.isdigit() and 1 <= int(entry) <= NUM_CLAIMS for entry in entries):
        raise click.BadParameter(f"got {','.join(values)}, expected numbers 1 … {NUM_CLAIMS}, such as 1,3")
    return tuple(int(entry) for entry in entries)


EXAMPLES = """\b
Examples:
  meari claims --text my-text.txt --output my-claims
  meari claims --quick --only 1,2 --output my-claims --json
  meari claims --redraw --output my-claims
"""


@click.command("claims", short_help="Measure the lecture's claims about recurrent networks.", epilog=EXAMPLES)
@click.argument("more_files", metavar="", nargs=-1, type=PathType(path_type=Path))
@click.option(
    "--text",
    "files",
    metavar="FILE…",
    multiple=True,
    type=PathType(path_type=Path),
    help="Text to train and measure on.",
)
@click.option("--output", metavar="DIR", default=OUTPUT, show_default=True, type=PathType(path_type=Path))
@click.option("--minutes", default=30.0, show_default=True, type=FloatRange(min=0, min_open=True), help="Time budget.")
@click.option("--only", metavar="N,…", multiple=True, callback=_numbers, help="Claims to measure, such as 1,3.  [all]")
@click.option("--quick", is_flag=True, help="Small models and little text: a trial run, not a result.")
@click.option("--redraw", "is_redrawn", is_flag=True, help="Judge and draw results.json again; measure nothing.")
@click.option("--resume", "is_resumed", is_flag=True, help="Keep results in --output of the same text and sizes.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, MAX_THREADS), help="Threads of torch.")
@json_option
def command(
    more_files: tuple[Path, ...],
    files: tuple[Path, ...],
    output: Path,
    minutes: float,
    only: tuple[int, ...],
    quick: bool,
    is_redrawn: bool,
    is_resumed: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Measure the lecture's claims on small models trained here, and write a page with a picture for each.

    Without --text a text is made by a small grammar. Sizes follow from --minutes, up to 30; what the budget does not
    suffice for is left out, and the page says so. On a busy machine more minutes give the same sizes more time. Every
    claim is measured with three seeds and judged for each; a run below the sizes that the page names, such as --quick,
    is too small to judge and gets no verdicts. With --only, other claims that were measured before on the same text and
    sizes stay on the page.
    """
    if more_files and not files:
        raise click.UsageError(f"got {more_files[0]}, expected files after --text alone")
    check_apart([Use("--text", file) for file in files + more_files], [Use("--output", output), *STREAMS])
    from meari.models.text.text_files import list_files

    list_files(files + more_files)  # before torch is imported
    from meari.claims.run import Order, measure_claims, monotonic, redraw
    from meari.claims.sizes import sizes_for
    from meari.claims.text import read_text
    from meari.models.files import locked
    from meari.models.training.process import fast_torch

    if is_redrawn:
        with locked(output) if output.is_dir() else nullcontext():
            results = redraw(output)
    else:
        sizes = sizes_for(minutes, is_quick=quick)
        text = read_text(files + more_files, sizes.made_characters)
        with locked(output), fast_torch(threads):
            order = Order(output, minutes, only, is_resumed)
            results = measure_claims(text, sizes, order, monotonic, lambda line: click.echo(line, err=True))
    if as_json:
        claims = {number: asdict(claim) for number, claim in results.claims.items()}
        echo_json({"output": str(output), "skipped": results.skipped, "claims": claims})
        return
    for number, claim in sorted(results.claims.items()):
        if not only or int(number) in only:
            click.echo(f"{number}. {claim.title}: {claim.verdict}")
    click.echo(f"{output}/README.md")

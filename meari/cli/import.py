"""`meari import`: a PyTorch language model of others → a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from meari.bundle_format.naming import name_of_file
from meari.cli._files import Use, check_apart
from meari.cli._options import Choice, PathType, echo_json, json_option

if TYPE_CHECKING:
    from meari.importer.vocabulary import Units

EXAMPLES = """\b
Examples:
  meari import model.safetensors bundles/wiki --vocabulary words.txt
  meari import model.pt bundles/chars --vocabulary chars.json --boundary "\\n"
  meari import weights.pt --mapping names.toml --vocabulary words.txt --overwrite
"""
FILE = PathType(path_type=Path)


@click.command("import", short_help="Turn a PyTorch language model into a bundle.", epilog=EXAMPLES)
@click.argument("weights", metavar="WEIGHTS", type=FILE)
@click.argument("folder", metavar="[bundles/NAME]", type=FILE, required=False)
@click.option("--vocabulary", metavar="FILE", type=FILE, required=True, help="Tokens: one a line, or JSON.")
@click.option("--mapping", metavar="FILE.toml", type=FILE, help="Names of the weights, where they are not recognised.")
@click.option("--units", type=Choice(["words", "chars"]), help="Unit of a token; by the vocabulary.")
@click.option("--boundary", metavar="TOKEN", help="Token before and after every text; <eos> and the like are found.")
@click.option("--unknown", metavar="TOKEN", help="Token for all others; <unk> and the like are found.")
@click.option("--tied", is_flag=True, help="Embedding and output are one tensor, which the file has once.")
@click.option("--activation", type=Choice(["tanh", "relu"]), help="Of an nn.RNN; relu is refused.")
@click.option("--text", metavar="FILE", type=FILE, help="Held-out text: figures, and int8 if it passes on it.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle in that folder.")
@json_option
def command(
    weights: Path,
    folder: Path | None,
    vocabulary: Path,
    mapping: Path | None,
    units: str | None,
    boundary: str | None,
    unknown: str | None,
    tied: bool,
    activation: str | None,
    text: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the state dict of an nn.RNN, nn.GRU or nn.LSTM language model as a bundle.

    WEIGHTS are safetensors or a state dict of torch.save. The names of word_language_model, char-rnn.pytorch and
    AWD-LSTM are recognised; others are named in a mapping. The bundle has the model's log-probabilities. What it cannot
    represent is refused by name, and nothing is written. With held-out text, a line a text where texts have ends, it
    is int8 if that costs at most one per cent of the perplexity there.
    """
    folder = folder or Path("bundles") / name_of_file(weights.stem, "imported")
    reads = [Use("WEIGHTS", weights), Use("--vocabulary", vocabulary)]
    reads += [] if mapping is None else [Use("--mapping", mapping)]
    reads += [] if text is None else [Use("--text", text)]
    check_apart(reads, [Use("bundles/NAME", folder)])
    from meari.export.target import check_target
    from meari.importer.source import Source

    unit = cast("Units | None", units)
    source = Source(weights, vocabulary, mapping, unit, boundary, unknown, tied, activation, text)
    check_target(folder.absolute(), overwrite=overwrite)
    source.check()
    from meari.export.description import summary_table
    from meari.importer.bundle import import_model

    imported = import_model(source, folder, overwrite=overwrite, tell=lambda line: click.echo(line, err=as_json))
    if as_json:
        from meari.runtime.inspection import describe_folder

        echo_json({**describe_folder(folder), "folder": str(folder), "bytes": imported.num_bytes})
        return
    description = imported.description
    click.echo(summary_table(list(description.graphs.values())))
    difference = description.agreement.max_logprob_difference
    click.echo(f"fp32 against torch in float64: log-probabilities within {difference:.2g} nats, 1e-4 allowed")
    click.echo(f"{folder}: {imported.num_bytes:,} bytes")

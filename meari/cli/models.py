"""`meari models`: a folder of bundles, or a running service → what there is to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from meari.cli._options import echo_json, json_option, packed
from meari.cli._tables import Table, show, shown
from meari.cli._target import TARGET_OPTIONS, Target, bundles_folder, signing_keys

if TYPE_CHECKING:
    from meari.bundle_format.folders import Roots

EXAMPLES = """\b
Examples:
  meari models
  meari models --bundles bundles --json
  meari models --server http://localhost:8000
"""
NUMBERS = frozenset({"parameters", "perplexity", "bits/char"})


@click.command("models", short_help="List bundles, or the models of a running service.", epilog=EXAMPLES)
@packed("target", Target, *TARGET_OPTIONS)
@json_option
def command(target: Target, as_json: bool) -> None:
    """List the bundles of a folder, or with --server the models that a service answers for.

    Without options those of bundles/, then those of the user's data folder. The default one has a star. Figures are
    those of the bundle on held-out text: the test part of its corpus, or where there is none the validation part (val),
    which also chose the checkpoint. Bundles are not opened here: `meari inspect` does that. With --json: what GET
    /models says.
    """
    service = target.service()
    if service is None:
        folder, default = bundles_folder(target.bundles)
        found = _local(folder, default)
    else:
        from meari.client.service import all_models

        found = all_models(service)
    for name, problem in found.get("failed", {}).items():
        click.echo(f"meari: {name}: {problem}", err=True)
    if as_json:
        echo_json(found)
    else:
        show(_table(found))


def _local(folder: Roots, default: str | None) -> dict[str, Any]:
    """Return the answer of GET /models as far as no service is needed. Raises BundleError if there is no bundle."""
    from meari.bundle_format.folders import bundle_name, hiding_entry, printable
    from meari.bundle_format.lookup import default_bundle, find_bundle, list_bundles
    from meari.errors import BundleError
    from meari.runtime.inspection import describe_folder

    found = list_bundles(folder)
    for each in found.hidden:
        first = hiding_entry(folder, each)
        click.echo(f"meari: {printable(each)} is hidden by {printable(first)}, which comes first", err=True)
    keys, models, failed = signing_keys(), [], dict(found.failed)
    default_folder = find_bundle(folder, default) if default else default_bundle(folder, found, keys)
    for name, each in found.folders.items():
        try:
            models.append(describe_folder(each, keys))
        except BundleError as error:
            failed[name] = str(error)
    return {"models": models, "default": bundle_name(default_folder), "failed": failed}


def _table(found: dict[str, Any]) -> Table:
    columns = (
        "name",
        "family",
        "precision",
        "parameters",
        "tokenizer",
        "perplexity",
        "bits/char",
        "part",
        "corpus",
    )
    return Table("", columns, [_row(model, found["default"]) for model in found["models"]], NUMBERS)


def _row(model: dict[str, Any], default: str) -> tuple[str, ...]:
    from meari.models.figures import show_perplexity

    figures = model["figures"]
    part = figures.get("reported_part") or ("test" if "test" in figures else "validation")
    held_out = figures.get(part) or {}
    perplexity = held_out.get("perplexity")
    return (
        model["name"] + (" *" if model["name"] == default else ""),
        model["family"],
        model["precision"],
        f"{model['sizes'].get('parameters', 0):,}",
        f"{model['tokenizer']['kind']}, {model['tokenizer']['vocabulary_size']:,}",
        shown(perplexity) if perplexity is None else show_perplexity(perplexity, 4),
        shown(held_out.get("bits_per_char")),
        ("test" if part == "test" else "val") if held_out else "–",
        str(model["corpus"].get("name") or "–"),
    )

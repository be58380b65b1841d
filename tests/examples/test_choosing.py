"""Test docs/choosing.md: its tables match the bundles, the claims and the output of the script."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from examples import choosing
from tests.examples.pages import DOCS, ROOT, numbers, page, quoted, run_example

PAGE = page("choosing")
MEASURED = (
    ".venv/bin/python examples/choosing.py --text tinyshakespeare.txt "
    "--sizes 64 128 256 --steps 200 --precision fp32 int8"
)
FAMILIES = ("rnn", "gru", "lstm", "esn")


def test_script_compares_the_families(tmp_path: Path) -> None:
    printed = run_example("choosing.py", "--sizes", "32", "--steps", "60", folder=tmp_path)
    head, *rows = printed.splitlines()
    assert head == quoted("choosing", MEASURED).splitlines()[0]
    assert [row.split()[0] for row in rows] == list(FAMILIES)
    for row in rows:
        units, parameters, loss, cpu_seconds, _, at_1, at_64 = numbers(row)
        assert units == (32 * choosing.UNITS if row.startswith("esn") else 32)
        assert parameters > 5000
        assert loss < 4.2  # an untrained model has 4.8
        assert 0 < cpu_seconds < 100
        assert 0 < at_1 < at_64
    losses = {row.split()[0]: numbers(row)[2] for row in rows}
    assert losses["gru"] < losses["rnn"]


def test_measured_table_has_every_family_in_every_size() -> None:
    head, *rows = quoted("choosing", MEASURED).splitlines()
    assert head == choosing.HEAD
    assert sum("int8" in row for row in rows) == 9
    assert [row.split()[:2] for row in rows if "fp32" in row] == [
        [family, f"{size * (choosing.UNITS if family == 'esn' else 1)}"]
        for size in (64, 128, 256)
        for family in FAMILIES
    ]


@pytest.mark.parametrize("folder", sorted((ROOT / "bundles").glob("*/")), ids=lambda folder: folder.name)
def test_rows_of_the_bundles_match_their_manifests(folder: Path) -> None:
    assert bundle_row(json.loads((folder / "manifest.json").read_text("utf-8"))) in PAGE.splitlines()


def bundle_row(manifest: dict[str, Any]) -> str:
    """Return the expected table row of a bundle."""
    figures, sizes = manifest["figures"], manifest["sizes"]
    held_out = figures[figures["reported_part"]]["bits_per_char"]
    state = sum(4 * math.prod(tensor["shape"]) for tensor in manifest["state"]) / 1024
    graphs = sum(graph["bytes"] for graph in manifest["graphs"].values()) / 1e6
    is_int8 = manifest["precision"] == "int8"
    change = f"{100 * figures['precision_check']['relative_loss']:+.2f} %" if is_int8 else manifest["precision"]
    return (
        f"| `{manifest['name']}` | {manifest['family']} | {sizes['hidden']:,} | {sizes['vocabulary']:,} "
        f"| {sizes['trained_parameters']:,} | {held_out:.3f} | {figures['training_seconds'] / 60:.1f} min "
        f"| {state:g} KiB | {graphs:.2f} MB | {change} |"
    )


def test_page_quotes_the_figures_of_the_claims() -> None:
    claims = json.loads((DOCS / "claims" / "results.json").read_text("utf-8"))
    seeds = [numbers["learned"] for numbers in claims["claims"]["4"]["numbers"].values()]
    losses = {
        (rows[0]["family"], rows[0]["share"]): sum(row["loss"] for row in rows) / len(rows)
        for rows in zip(*seeds, strict=True)
    }
    units = dict(zip(FAMILIES, (model["hidden_size"] for model in claims["models"]), strict=True))
    for family in FAMILIES:
        [row] = re.findall(rf"^\| {family} \| (.*) \|$", PAGE, re.MULTILINE)
        assert numbers(row)[:3] == [units[family], round(losses[family, 0.01], 2), round(losses[family, 1.0], 2)]
    spread = r" \([^)]*\)"
    names = ("Elman", "GRU", "LSTM", "ESN")
    [used] = re.findall(", ".join(rf"{name} (\d+){spread}" for name in names) + " tokens", page("claims/README"))
    for family, context in zip(FAMILIES, used, strict=True):
        assert re.search(rf"^\| {family} \|.* {context}( characters)? \|$", PAGE, re.MULTILINE)

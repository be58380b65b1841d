"""What a shell may complete: names of bundles, configs, folders of runs. Reads folders alone, and quickly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
from click.shell_completion import CompletionItem

__all__ = ["complete_bundle", "complete_config", "complete_run"]

MAX_DEPTH = 3  # folders below the one that was typed
MAX_ITEMS = 200
RUNS = Path("runs")


def complete_bundle(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the folder of bundles; a path where one has been begun."""
    from meari.bundle_format.folders import find_bundles
    from meari.errors import BundleError

    folder = Path(ctx.params.get("bundles") or os.environ.get("MEARI_BUNDLES") or "bundles")
    try:
        names = list(find_bundles(folder).folders)
    except BundleError:
        names = []
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="dir")]


def complete_config(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """TOML files, also a few folders down."""
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    paths = islice(_files(folder, ".toml", MAX_DEPTH), MAX_ITEMS)
    found = [CompletionItem(str(path)) for path in sorted(paths) if str(path).startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run folders in runs/; a path where another one has been begun."""
    found = [path.parent for path in sorted(RUNS.glob("*/config.json"))]
    items = [CompletionItem(str(path)) for path in found if str(path).startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="dir")]


def _files(folder: Path, suffix: str, depth: int) -> Iterator[Path]:
    """Files below the folder, hidden ones and what cannot be read left out."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.suffix == suffix and entry.is_file():
            yield entry
        elif depth and entry.is_dir():
            yield from _files(entry, suffix, depth - 1)

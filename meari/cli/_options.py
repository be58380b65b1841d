"""The options that verbs share, and the names that a shell completes: bundles, configs, folders of runs.

Input: values of options, a name that is begun. Output: one value for several options, JSON on standard output, names.
Must not know: what a verb does. Completion reads folders alone, and quickly.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from meari.errors import did_you_mean
from meari.paths import expand_home

__all__ = [
    "Choice",
    "Decorator",
    "FloatRange",
    "PathType",
    "complete_bundle",
    "complete_config",
    "complete_run",
    "echo_json",
    "echo_json_line",
    "json_option",
    "packed",
    "program",
]

MAX_DEPTH = 3  # folders below the one that was typed
MAX_ITEMS = 200
RUNS = Path("runs")
Decorator = Callable[[Callable[..., None]], Callable[..., None]]

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output, everything else on standard error."
)


def program() -> list[str]:
    """Return the words that start this command as it was started, for commands that are printed: `meari` where a shell
    finds it under that name.
    """
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("meari", "__main__.py"):
        return [sys.executable, "-m", "meari"]
    found = shutil.which("meari")
    is_found = found is not None and called.exists() and Path(found).samefile(called)
    return ["meari"] if called.name != "meari" or is_found else [sys.argv[0]]


def packed(name: str, kind: type[Any], *options: Decorator) -> Decorator:
    """Add options to a command, which gets their values as one `kind`, a dataclass, in its parameter `name`."""
    names = [field.name for field in dataclasses.fields(kind)]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def decorated(**values: Any) -> None:
            own = {each: values.pop(each) for each in names if each in values}
            function(**values, **{name: kind(**own)})

        command: Callable[..., None] = decorated
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Choice(click.Choice[str]):
    """A choice of click's whose error suggests the nearest value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value. Raises BadParameter."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            message = error.message + did_you_mean(str(value), self.choices)
            raise click.BadParameter(message, ctx=ctx, param=param) from None


class FloatRange(click.FloatRange):
    """Numbers in a range; nan, which compares with nothing, and infinity are in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class PathType(click.Path):
    """A path of click's in which `~` at the beginning is the home folder."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path. Raises BadParameter."""
        return super().convert(expand_home(value), param, ctx)


def echo_json(document: object) -> None:
    """Print one document on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def echo_json_line(document: object) -> None:
    """Print one document on one line of standard output."""
    from meari.validation.parsing import escape_line_ends

    click.echo(escape_line_ends(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")))


def complete_bundle(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return names in the folder of bundles, or let the shell complete a path."""
    from meari.bundle_format.folders import find_bundles
    from meari.bundle_format.places import parse_roots, usual_roots
    from meari.errors import BundleError

    given = ctx.params.get("bundles") or os.environ.get("MEARI_BUNDLES")
    roots = parse_roots(given) if isinstance(given, str) else given or usual_roots()
    try:
        names = list(find_bundles(roots).folders)
    except BundleError:
        names = []
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="dir")]


def complete_config(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return TOML files, also a few folders down."""
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    paths = islice(_files(folder, ".toml", MAX_DEPTH), MAX_ITEMS)
    found = [CompletionItem(str(path)) for path in sorted(paths) if str(path).startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return run folders in runs/, or let the shell complete a path."""
    found = [path.parent for path in sorted(RUNS.glob("*/config.json"))]
    items = [CompletionItem(str(path)) for path in found if str(path).startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="dir")]


def _files(folder: Path, suffix: str, depth: int) -> Iterator[Path]:
    """Yield files below the folder, without those that are hidden or cannot be read."""
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

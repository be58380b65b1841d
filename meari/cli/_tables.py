"""Tables: with lines and colours on a terminal, in plain columns anywhere else. NO_COLOR leaves the colours out.

Input: cells as they are to be read. Output: standard output. Must not know: where the figures come from.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import click

__all__ = ["Table", "facts", "show", "shown"]

GAP = "  "


@dataclass(frozen=True)
class Table:
    """A table. `right` names the columns of numbers; a table of facts has no head."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset()
    has_head: bool = True


def facts(title: str, rows: list[tuple[str, object]]) -> Table:
    """Return a table of names with their values, without those that have none."""
    return Table(title, ("", " "), [(name, str(value)) for name, value in rows if value is not None], has_head=False)


def shown(figure: float | None) -> str:
    """Return a figure for reading, a dash if there is none."""
    if figure is None:
        return "–"
    if abs(figure) < 1e6:
        return f"{figure:,.4f}"
    return f"{figure:,.1f}" if abs(figure) < 1e15 else f"{figure:.2e}"


def show(*tables: Table) -> None:
    """Print tables on standard output."""
    if sys.stdout.isatty():
        _show_rich(tables)
    else:
        click.echo("\n\n".join(map(_plain, tables)))


def _show_rich(tables: tuple[Table, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(color_system=None) if os.environ.get("NO_COLOR") else Console()
    for table in tables:
        drawn = RichTable(
            title=Text(table.title) if table.title else None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD if table.has_head else box.SIMPLE,
            show_header=table.has_head,
            header_style="bold cyan",
        )
        for number, name in enumerate(table.columns):
            drawn.add_column(
                name,
                justify="right" if name in table.right else "left",
                style="green" if number == 0 else None,
                overflow="fold",
            )
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)


def _plain(table: Table) -> str:
    lines = [*([table.columns] if table.has_head else []), *table.rows]
    widths = [max(_width(line[number]) for line in lines) for number in range(len(table.columns))] if lines else []
    sides = ["right" if name in table.right else "left" for name in table.columns]
    aligned = [GAP.join(map(_padded, line, widths, sides)) for line in lines]
    if not table.title:
        return "\n".join(line.rstrip() for line in aligned)
    return "\n".join([table.title, *(GAP + line.rstrip() for line in aligned)])


def _padded(cell: str, width: int, side: str) -> str:
    padding = " " * (width - _width(cell))
    return padding + cell if side == "right" else cell + padding


def _width(cell: str) -> int:
    """Return the columns that a cell takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in cell)

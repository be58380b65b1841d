"""The table of a search: all trials, the best first, and under them how much each setting explained.

In: what was found. Out: a rich table for a terminal, or plain lines.
"""

from rich.table import Table

from meari.models.search.journal import Trial, ranked
from meari.models.search.run import Found, shown
from meari.models.shown import show_figure

FAILED = "failed"


def rich_table(found: Found) -> Table:
    """For a terminal."""
    head, rows, foot = _cells(found)
    table = Table(show_footer=True)
    for name, share in zip(head, foot, strict=True):
        table.add_column(name, footer=share, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def plain_table(found: Found) -> str:
    """For a file or a pipe: columns of equal width."""
    head, rows, foot = _cells(found)
    lines = [head, *rows, foot]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(found: Found) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads, rows and feet; the settings that explain most come first."""
    names = list(found.shares)
    short = [name.split(".")[1] for name in names]
    head = ["trial", "nats/char", "seconds", *(short if len(set(short)) == len(short) else names)]
    rows = [_row(trial, names) for trial in ranked(found.trials)]
    shares = ["" if found.shares[name] is None else f"{found.shares[name]:.0%}" for name in names]
    return head, rows, ["", "explains", "", *shares]


def _row(trial: Trial, names: list[str]) -> list[str]:
    loss = FAILED if trial.loss is None else show_figure(trial.loss)
    return [str(trial.number), loss, f"{trial.seconds:.0f}", *(shown(trial.settings[name]) for name in names)]

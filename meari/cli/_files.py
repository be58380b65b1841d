"""The check that a verb writes no file twice, and none that it reads, as an error of usage.

Input: the files that options name. Output: nothing, or a UsageError. Must not know: the work of a verb.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from meari.models import file_uses
from meari.models.errors import FileConflict
from meari.models.file_uses import STREAMS, Use, config_uses

__all__ = ["STREAMS", "Use", "check_apart", "config_uses"]


def check_apart(reads: Iterable[Use], writes: Sequence[Use]) -> None:
    """Call `file_uses.check_apart`. Raises UsageError in place of FileConflict."""
    try:
        file_uses.check_apart(reads, writes)
    except FileConflict as error:
        raise click.UsageError(str(error)) from None

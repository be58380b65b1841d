"""Whether what a verb writes is apart from all that it reads, and from whatever else it writes.

Input: what each option names, before anything is touched. Output: nothing, or a UsageError that names both options and
the file. Files are the same if they are one on the disk, by whatever names and links; pipes and devices may be shared.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meari.models.config import Config

__all__ = ["Use", "check_apart", "config_uses"]

FileKey = tuple[object, ...]


@dataclass(frozen=True)
class Use:
    """A file or folder, or an open file of this process, and what it is in a message."""

    option: str
    place: Path | int

    def key(self) -> FileKey | None:
        """What tells it from all other files, None for pipes and devices."""
        try:
            found = os.fstat(self.place) if isinstance(self.place, int) else self.place.stat()
        except OSError:
            return None if isinstance(self.place, int) else _key_of_missing(self.place)
        is_kept = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        return (found.st_dev, found.st_ino) if is_kept else None

    def __str__(self) -> str:
        if isinstance(self.place, int):
            return " standard input" if self.place == 0 else " a file"
        return f" {self.place}"


def check_apart(reads: Iterable[Use], writes: Sequence[Use]) -> None:
    """Raises UsageError for what is written twice or read as well, and for a written folder that holds what is read."""
    written = [(use, use.key()) for use in writes]
    for number, (use, key) in enumerate(written):
        for other, other_key in written[:number]:
            if key is not None and key == other_key:
                raise click.UsageError(
                    f"{use.option}: got{use}, which is written as well ({other.option}){_another(use)}"
                )
    for read in reads:
        keys = {key for key in (read.key(), *_folders_above(read)) if key is not None}
        for use, key in written:
            if key in keys:
                how = "which is" if key == read.key() else "which holds what is"
                raise click.UsageError(
                    f"{use.option}: got{use}, {how} read as well ({read.option}{read}){_another(use)}"
                )


def config_uses(file: Path, config: Config) -> list[Use]:
    """What a training reads: its config and every file or folder of its corpus."""
    corpus = config.corpus
    parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    named = [Use(f"corpus.{part}", Path(path)) for part, paths in parts.items() for path in paths]
    blocklist = [Use("corpus.blocklist", Path(corpus.blocklist))] if corpus.blocklist else []
    return [Use("CONFIG.toml", file), *named, *blocklist]


def _another(use: Use) -> str:
    kind = "folder" if isinstance(use.place, Path) and use.place.is_dir() else "file"
    return f", expected another {kind}; nothing was written"


def _folders_above(use: Use) -> list[FileKey | None]:
    if isinstance(use.place, int):
        return []
    return [Use(use.option, folder).key() for folder in Path(os.path.realpath(use.place)).parents]


def _key_of_missing(path: Path) -> FileKey:
    """Of a file that does not exist yet: by its name in the folder that it will be in."""
    real = Path(os.path.realpath(path))
    try:
        folder = real.parent.stat()
    except OSError:
        return (str(real),)
    return (folder.st_dev, folder.st_ino, real.name)

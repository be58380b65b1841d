"""A check that a command or a call writes no file twice, and none that it reads.

Input: the files that options name, before anything is touched. Output: nothing, or a FileConflict that names both
options and the file. Must not know: the command line, torch.

Files are the same if they are one on the disk, under any names and links; pipes and devices may be shared. Names of
files that do not exist yet and differ in case or Unicode form alone are tried, for file systems differ.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meari.models.errors import FileConflict
from meari.paths import expand_home

if TYPE_CHECKING:
    from meari.models.config import Config
    from meari.models.text.text_files import TextFolder

__all__ = ["STREAMS", "Use", "check_apart", "config_uses", "is_one_file"]

FileKey = tuple[object, ...]


@dataclass(frozen=True)
class Use:
    """A file or folder, or an open file of this process, and its name in a message."""

    option: str
    place: Path | int

    def key(self) -> FileKey | None:
        """Return what tells it from all other files, None for pipes and devices."""
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


STREAMS = (Use("standard output", 1), Use("standard error", 2))  # which may be one file


def check_apart(reads: Iterable[Use], writes: Sequence[Use]) -> None:
    """Raise FileConflict for a file that is written twice or also read, and for a written folder around a read file.

    Of a folder that is read, text files count: those in it, and those that would be once they are written.
    """
    written = [(use, use.key()) for use in writes]
    for number, (use, key) in enumerate(written):
        for other, other_key in written[:number]:
            if (use not in STREAMS or other not in STREAMS) and _are_one(key, other_key):
                raise FileConflict(f"{use.option}: got{use}, which is written as well ({other.option}){_another(use)}")
    for read in reads:
        _check_read(read, [(use, key) for use, key in written if key is not None])


def _check_read(read: Use, written: Iterable[tuple[Use, FileKey]]) -> None:
    folder = _text_folder(read)
    files = [] if folder is None else [Use(read.option, file).key() for file in folder.files]
    same, around = [read.key(), *files], _folders_above(read)
    for use, key in written:
        if key in same or key in around:
            how = "which is" if key in same else "which holds what is"
            raise FileConflict(f"{use.option}: got{use}, {how} read as well ({read.option}{read}){_another(use)}")
        if folder is not None and isinstance(use.place, Path) and _would_read(folder, use.place):
            raise FileConflict(
                f"{use.option}: got{use}, which the next run would read as well ({read.option}{read}), expected a "
                "place outside of that folder, or a name with another ending; nothing was written"
            )


def _would_read(folder: TextFolder, path: Path) -> bool:
    """Return whether a file written there would be read from the folder: text, or Parquet in a folder of Parquet."""
    if path.suffix.lower() != ".parquet":
        return folder.would_read(path)
    return any(other.suffix.lower() == ".parquet" for other in folder.others) and folder.would_read(
        path.with_suffix(".txt")
    )


def config_uses(file: Path | None, config: Config) -> list[Use]:
    """Return the files that a training reads: the file of its config and every file or folder of its corpus."""
    corpus = config.corpus
    parts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    named = [Use(f"corpus.{part}", Path(expand_home(path))) for part, paths in parts.items() for path in paths]
    lists = {"blocklist": corpus.blocklist, "loss_mask": corpus.loss_mask}
    named += [Use(f"corpus.{name}", Path(expand_home(path))) for name, path in lists.items() if path]
    return [*([] if file is None else [Use("CONFIG.toml", file)]), *named]


def _another(use: Use) -> str:
    kind = "folder" if isinstance(use.place, Path) and use.place.is_dir() else "file"
    return f", expected another {kind}; nothing was written"


def _folders_above(use: Use) -> list[FileKey | None]:
    if isinstance(use.place, int):
        return []
    return [Use(use.option, folder).key() for folder in Path(os.path.realpath(use.place)).parents]


def _text_folder(read: Use) -> TextFolder | None:
    if isinstance(read.place, int) or not read.place.is_dir():
        return None
    from meari.models.text.text_files import TextFolder

    return TextFolder.of(read.place)


def _are_one(key: FileKey | None, other: FileKey | None) -> bool:
    if key is None or other is None:
        return False
    if key[:3] == other[:3]:
        return True
    are_missing = len(key) == len(other) == 4
    if not are_missing or key[:2] != other[:2] or _folded(key) != _folded(other):
        return False
    return is_one_file(Path(str(key[3])), Path(str(other[3])))


def _folded(key: FileKey) -> str:
    return unicodedata.normalize("NFC", str(key[2])).casefold()


def is_one_file(path: Path, other: Path) -> bool:
    """Return whether two names are of one file; neither exists, so the first is made for a moment."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError:
        return False
    try:
        return other.exists() and other.samefile(path)
    finally:
        path.unlink()


def _key_of_missing(path: Path) -> FileKey:
    """Return folder, name and path of a file that does not exist yet."""
    real = Path(os.path.realpath(path))
    try:
        folder = real.parent.stat()
    except OSError:
        return (str(real),)
    return (folder.st_dev, folder.st_ino, real.name, str(real))

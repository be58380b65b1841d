"""Text files of a corpus: which files a path or a folder stands for.

Input: names of files and folders. Output: files in the order in which they are read. Must not know: documents,
encodings, tokenizers. Raises `UnreadableFile` and `BrokenText`, which name the file.

A folder stands for the files in it that end in .txt, .text or .gz, in any case, also in folders below and behind links,
each folder once. Names that begin with a dot are skipped, as are pipes, sockets and devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

from meari.file_kinds import OtherKind, kind_of_name
from meari.models.errors import BrokenText, UnreadableFile
from meari.models.fields import did_you_mean
from meari.paths import expand_home

_SUFFIXES = (".txt", ".text", ".gz")


@dataclass(frozen=True, slots=True)
class TextFolder:
    """Text files of a folder, and the places in which a new file would be read the next time.

    files    called as text files, sorted by name
    others   called otherwise
    folders  device and inode of the folder and of all that are looked into
    missing  where links lead that are called as text files and behind which nothing is
    """

    files: list[Path]
    others: list[Path]
    folders: set[tuple[int, int]]
    missing: set[str]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look into a folder. Raises UnreadableFile if it or one below it cannot be listed."""
        folders: set[tuple[int, int]] = set()
        found = list(_entries(folder, folders))
        called_text = {path: _is_called_text(path.name) for path in found}
        missing = {os.path.realpath(path) for path in found if called_text[path] and not path.exists()}
        files = [path for path in found if path.is_file()]
        return cls(
            sorted(path for path in files if called_text[path]),
            [path for path in files if not called_text[path]],
            folders,
            missing,
        )

    def would_read(self, path: Path) -> bool:
        """Return whether a file written there would be read, or refused, the next time."""
        real = Path(os.path.realpath(path))
        return str(real) in self.missing or any(self._takes(place) for place in (path, real))

    def _takes(self, path: Path) -> bool:
        try:
            status = path.absolute().parent.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self.folders and _is_called_text(path.name)


def list_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files themselves and, sorted by name, the text files anywhere in the folders.

    Raises UnreadableFile: a name that does not exist, a folder without text files or one that cannot be listed, a
    socket or device, a text file packed as nothing here unpacks it.
    """
    files: list[Path] = []
    for path in map(Path, map(expand_home, paths)):
        if path.is_dir():
            files += _files_below(path)
        elif kind := _unreadable_kind(path):
            hint = "" if path.exists() or path.is_symlink() else _near_name(path)
            raise UnreadableFile(f"got {kind}, expected a readable file or folder{hint}", source=str(path))
        else:
            files.append(path)
    return files


def list_once(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files as `list_files` does, each once under any names and links: of a corpus that is split, a file
    that came twice would be trained on and held out.
    """
    found: dict[tuple[int, int], Path] = {}
    for path in list_files(paths):
        status = path.stat()
        found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def _near_name(path: Path) -> str:
    """Return a hint at a file or folder of nearly that name, "" if there is none."""
    try:
        return did_you_mean(path.name, [each.name for each in path.parent.iterdir()])
    except OSError:
        return ""


def check_rereadable(path: Path) -> None:
    """Raise UnreadableFile for a pipe, which can be read only once."""
    if path.is_fifo():
        message = "got a pipe, expected a file: it is read several times, so write the text into a file first"
        raise UnreadableFile(message, source=str(path))


def is_packed(path: Path) -> bool:
    """Return whether a file's name says that it is gzip."""
    return path.suffix.lower() == ".gz"


def _unreadable_kind(path: Path) -> str:
    if not path.exists():
        return "a link to nothing" if path.is_symlink() else "no such file or folder"
    if path.is_socket():
        return "a socket"
    return "a device" if path.is_char_device() or path.is_block_device() else ""


def _files_below(folder: Path) -> list[Path]:
    found = TextFolder.of(folder)
    for path in found.files:
        refuse_kind(path, kind_of_name(path.name))
    if not found.files:
        others = sorted({path.suffix.lower() for path in found.others if kind_of_name(path.name)})
        hint = f"; unpack those that end in {', '.join(others)}" if others else ""
        raise UnreadableFile(f"got a folder without .txt, .text or .gz files, expected some{hint}", source=str(folder))
    return found.files


def _is_called_text(name: str) -> bool:
    """Return whether a file of that name in a folder is read, or refused because of its packing."""
    path = PurePath(name)
    if name.startswith("."):
        return False
    is_packed_text = kind_of_name(name) is not None and PurePath(path.stem).suffix.lower() in _SUFFIXES
    return is_packed_text or path.suffix.lower() in _SUFFIXES


def refuse_kind(path: Path, kind: OtherKind | None, *, is_gzip: bool = False) -> None:
    """Raise BrokenText for another encoding, UnreadableFile for another packing."""
    if kind is None:
        return
    message = kind.refusal(str(path), is_gzip=is_gzip)
    if kind.is_encoding:
        raise BrokenText(message, source=str(path), line=1)
    raise UnreadableFile(message, source=str(path))


def _entries(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files in a folder and below it, behind links too; no folder twice, no name that begins with a dot."""
    try:
        status = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UnreadableFile(
            f"got {error.strerror or error}, expected a readable folder", source=str(folder)
        ) from error
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _entries(path, visited)
        else:
            yield path

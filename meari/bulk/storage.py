"""Files at paths or URLs, and the output folder of a job: whatever fsspec reads and writes.

Input: names of files and folders. Output: their bytes; files that appear whole. Must not know: what stands in them.
fsspec (meari[ray]) is imported for URLs, and for folders.

A URL may be a chain of links: `zip://a.jsonl::https://host/b.zip` is a file in an archive of a server, and
`simplecache::https://host/a.jsonl` one that is copied before it is read.
"""

from __future__ import annotations

import functools
import os
import secrets
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

from meari.bulk.errors import BulkError
from meari.file_kinds import GZIP, HEAD_BYTES, kind_of_content

__all__ = ["Folder", "absolute", "content_name", "fs_of", "is_packed", "is_url", "join", "names_below", "open_file"]

LINK: Final = "::"
ARCHIVES: Final = ("zip://", "tar://", "libarchive://")
PACKINGS: Final = {"bzip2": "bz2", "xz": "xz", "Zstandard": "zstd", "lz4": "lz4"}  # as fsspec names them
DAMAGED: Final = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


def is_url(name: str) -> bool:
    """Return whether a name is a URL, and no path."""
    return "://" in name


def content_name(name: str) -> str:
    """Return the part of a path or URL that ends as its content does: of links the first that is a URL itself."""
    return next(filter(is_url, name.split(LINK)), name)


def is_packed(name: str) -> bool:
    """Return whether a URL is a file in an archive that unpacks all that is before a place to read there."""
    own = content_name(name)
    archive = name.rpartition(own)[2]
    return own.startswith(ARCHIVES) and not (own.startswith("tar://") and archive.lower().endswith(".tar"))


@contextmanager
def open_file(name: str) -> Iterator[IO[bytes]]:
    """Open a path or URL for reading. Raises BulkError, also for what is found to be damaged while it is read."""
    try:
        fs, opened = _opened(name)
    except (*DAMAGED, ValueError, RuntimeError) as error:  # RuntimeError: a password is needed
        raise BulkError(f"{name}: {_reason(error)}, expected a readable file") from None
    with opened:
        try:
            yield opened
        except DAMAGED as error:
            raise BulkError(f"{name}: {_reason(error)}, expected a readable file") from None
    del fs  # which an archive needs until here: it closes its files when nobody knows it any more


def _opened(name: str) -> tuple[Any, IO[bytes]]:
    """Return an open file and the file system that it needs, None for a path."""
    if not is_url(name):
        return None, Path(name).open("rb")
    fs, path = fs_of(name)
    return fs, fs.open(path, "rb")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "No such file or directory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def absolute(name: str) -> str:
    """Return a path or URL that means the same in any working folder."""
    return name if is_url(name) else str(Path(name).absolute())


def join(name: str, *below: str) -> str:
    """Return the path or URL of something in a folder, or that of the folder, without slashes at its end.

    The root of a file system keeps its own: `/`, `hdfs:///`, `memory://`.
    """
    scheme, separator, rest = name.rpartition("://")
    folder = scheme + separator + (rest.rstrip("/") or rest[:1])
    gap = "/" if below and folder and not folder.endswith("/") else ""
    return folder + gap + "/".join(below)


def names_below(name: str, fs: Any, path: str, found: Iterable[str]) -> list[str]:
    """Return the URLs of files that were found by a URL, with all that it says of their place: host, user, archive.

    name   URL of a folder or pattern, perhaps of links that `::` joins
    path   its name in the file system
    found  names of files in the file system
    """
    links = name.split(LINK)
    for number, link in enumerate(links):
        scheme, separator, _ = link.partition("://")
        before, _, after = link.rpartition(path) if path else (scheme + separator, "", "")
        if "://" in before and (not after.strip("/") or after.startswith("?")):
            return [
                LINK.join([*links[:number], before + one + after.strip("/"), *links[number + 1 :]]) for one in found
            ]
    return [fs.unstrip_protocol(one) for one in found]


def fs_of(name: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the name in it. Raises BulkError."""
    try:
        from fsspec.core import url_to_fs

        _tell_packing_by_content()
    except ImportError:
        raise BulkError("--engine ray: got an installation without fsspec, expected meari[ray]") from None
    try:
        found: tuple[Any, str] = url_to_fs(name)
    except (ImportError, ValueError, *DAMAGED) as error:
        raise BulkError(f"{name}: {_reason(error)}, expected a URL of a readable file or folder") from None
    return found


@functools.cache
def _tell_packing_by_content() -> None:
    """Let fsspec tell by its first bytes how a tar archive is packed: names end in .tgz, or with a number of a page."""
    import fsspec
    from fsspec.compression import compr
    from fsspec.implementations.tar import TarFileSystem

    class Tar(TarFileSystem):  # type: ignore[misc]
        """Files in a tar archive, plain or packed."""

        def __init__(self, fo: Any = "", *, target_options: Any = None, target_protocol: Any = None, **more: Any):
            self._opened = None
            if isinstance(fo, str):
                self._source = fsspec.open(fo, protocol=target_protocol, **(target_options or {}))
                self._opened = fo = self._source.open()
            head = fo.read(HEAD_BYTES)
            fo.seek(0)
            kind = kind_of_content("", head)
            packing = "gzip" if head.startswith(GZIP) else PACKINGS.get(kind.name) if kind is not None else None
            if packing is not None and packing not in compr:
                raise ValueError(f"got a tar archive in {packing}, which this installation cannot unpack")
            try:
                super().__init__(fo, **({} if packing is None else {"compression": packing}), **more)
            except tarfile.TarError as error:
                reason = f"{error}: no tar archive, plain or in gzip, bzip2 or xz"
                raise tarfile.ReadError(reason) from error

        def __del__(self) -> None:
            if self._opened is not None:
                self._opened.close()

    fsspec.register_implementation("tar", Tar, clobber=True)


class Folder:
    """The output of a job, a local folder or a URL."""

    def __init__(self, name: str) -> None:
        self.name = absolute(join(name))

    @cached_property
    def is_local(self) -> bool:
        """True if files can be renamed into place; elsewhere one appears whole when it is closed."""
        return type(fs_of(self.name)[0]).__name__ == "LocalFileSystem"

    def path(self, *names: str) -> str:
        """Return the path or URL of a file in it."""
        return join(self.name, *names)

    def clear(self, *below: str) -> None:
        """Remove a file or folder of it, or all of it."""
        fs, path = fs_of(self.path(*below))
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def names(self, *below: str) -> list[str]:
        """Return the names of files in a folder of it, none if there is no such folder."""
        fs, path = fs_of(self.path(*below))
        fs.invalidate_cache()
        return [one.rpartition("/")[2] for one in fs.ls(path, detail=False)] if fs.exists(path) else []

    def has(self, *names: str) -> bool:
        """Return whether there is such a file."""
        fs, path = fs_of(self.path(*names))
        return bool(fs.exists(path))

    def read(self, *names: str) -> bytes:
        """Return the bytes of a file. Raises BulkError."""
        with open_file(self.path(*names)) as file:
            return file.read()

    def write(self, data: bytes, *names: str) -> None:
        """Write a file, whole or not at all. Raises BulkError."""
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / "file"
            fresh.write_bytes(data)
            self.put(fresh, *names)

    def put(self, file: Path, *names: str) -> None:
        """Copy a local file to its place, whole or not at all. Raises BulkError."""
        fs, path = fs_of(self.path(*names))
        try:
            if not self.is_local:
                fs.put_file(str(file), path)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}.tmp")
            with file.open("rb") as source, fresh.open("wb") as target:
                while data := source.read(1 << 20):
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())
            fresh.replace(path)
        except OSError as error:
            raise BulkError(f"{path}: {error.strerror or error}, expected a place to write to") from None

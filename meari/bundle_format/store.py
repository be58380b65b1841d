"""A folder of bundles that grows and shrinks by whole bundles.

Input: a bundle as a folder or in a zip file, the folder to put it into. Output: a checked copy under its name, or a
BundleError; nothing half. Must not know: where a file came from.

A bundle is copied into a hidden folder beside its place, compared there with its manifest (and its signature, where
keys are given) and then renamed. Of a zip file only the manifest, the files that it lists and the signature are read,
each no further than its stated size. What a killed copy left is removed by the next one; a lock on it tells it from one
that is on its way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from meari.bundle_format.folders import MANIFEST, SIGNATURE, bundle_name, open_file, printable
from meari.bundle_format.manifest import Manifest
from meari.bundle_format.names import NAME_PATTERN
from meari.bundle_format.reader import MAX_MANIFEST_BYTES, read_files, read_manifest
from meari.bundle_format.signatures import MAX_BYTES as MAX_SIGNATURE_BYTES
from meari.bundle_format.signatures import PublicKey
from meari.errors import BundleError

__all__ = ["MAX_BUNDLE_BYTES", "Added", "add_folder", "add_zip", "new_folder", "remove_bundle"]

MAX_BUNDLE_BYTES: Final = 4 << 30  # of all its files together
MAX_MEMBERS: Final = 1000
MAX_DIRECTORY_BYTES: Final = 1 << 20
PREFIX: Final = ".meari-"  # hidden: no bundle for anybody who looks
SUFFIX: Final = ".part"
CHUNK_BYTES: Final = 1 << 20
END_OF_ZIP: Final = b"PK\x05\x06"
ZIP64: Final = b"PK\x06\x07"
END_BYTES: Final = 22

Open = Callable[[str], IO[bytes]]  # a file of the bundle by its name


@dataclass(frozen=True)
class Added:
    """Result of adding a bundle. `is_new` is false where the same bundle was there already."""

    name: str
    folder: Path
    bundle_hash: str
    is_new: bool


def add_folder(source: Path, root: Path, *, name: str | None = None, keys: Sequence[PublicKey] = ()) -> Added:
    """Copy a bundle's folder into `root`. Raises BundleError, OSError.

    name  in place of the folder's own
    keys  of which one must have signed it, if there are any
    """
    is_signed = os.path.lexists(source / SIGNATURE)
    return _add(lambda each: open_file(source / each), name or bundle_name(source), root, keys, is_signed=is_signed)


def add_zip(source: Path, root: Path, *, name: str | None = None, keys: Sequence[PublicKey] = ()) -> Added:
    """Unpack a bundle's zip file into `root`, with its files at the top or in one folder. Raises BundleError, OSError.

    name  in place of that folder's, or where there is none of the manifest's
    keys  of which one must have signed it, if there are any
    """
    with open_file(source, inside=False) as file:
        _check_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                inner = _inner_folder(members)

                def opened(each: str) -> IO[bytes]:
                    if inner + each not in members:
                        raise BundleError(f"{each}: missing in the zip file")
                    return archive.open(members[inner + each])

                is_signed = inner + SIGNATURE in members
                return _add(opened, name or inner.rstrip("/"), root, keys, is_signed=is_signed)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
            raise BundleError(f"the zip file is damaged: {error}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # not of the disk: a member begins before the file
                raise
            raise BundleError("the zip file is damaged: a member lies outside of it") from None


def remove_bundle(name: str, root: Path) -> None:
    """Remove a bundle; it is gone at once and as a whole. Raises BundleError, OSError."""
    _check_name(name)
    folder = root / name
    if not os.path.lexists(folder):
        raise BundleError(f"there is no bundle {name!r} in {printable(root)}")
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    with new_folder(root) as hidden:
        folder.rename(hidden / name)


def _add(opened: Open, name: str, root: Path, keys: Sequence[PublicKey], *, is_signed: bool) -> Added:
    with new_folder(root) as part:
        folder = part / "bundle"
        folder.mkdir()
        _copy(opened, MANIFEST, folder, MAX_MANIFEST_BYTES)
        if is_signed:
            _copy(opened, SIGNATURE, folder, MAX_SIGNATURE_BYTES)
        manifest, bundle_hash = read_manifest(folder, keys)
        _check_size(manifest)
        name = _check_name(name or manifest.name, "; --name gives another")
        for each, entry in manifest.files.items():
            _copy(opened, each, folder, entry.bytes)
        read_files(folder, manifest)
        is_new = _put(folder, root / name, bundle_hash)
    return Added(name, root / name, bundle_hash, is_new)


def _copy(opened: Open, name: str, folder: Path, max_bytes: int) -> None:
    """Copy one file, and no byte past its size. Raises BundleError."""
    with opened(name) as source, (folder / name).open("xb") as file:
        size = 0
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise BundleError(f"{name}: got more than {max_bytes:,} bytes, expected at most so many")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _check_size(manifest: Manifest) -> None:
    size = sum(entry.bytes for entry in manifest.files.values())
    if size > MAX_BUNDLE_BYTES:
        raise BundleError(f"{MANIFEST}: files: got {size:,} bytes together, expected at most {MAX_BUNDLE_BYTES:,}")


def _check_name(name: str, advice: str = "") -> str:
    if re.fullmatch(NAME_PATTERN, name) is None or name.endswith((".new", ".old", SUFFIX, ".partial", ".tmp")):
        expected = (
            "letters, digits, `.`, `_` and `-`, a letter or digit first, no ending of an unfinished file, not DEFAULT"
        )
        raise BundleError(f"name: got {printable(name[:200])!r}, expected at most 100 {expected}{advice}")
    return name


def _put(folder: Path, place: Path, bundle_hash: str) -> bool:
    """Rename a whole bundle to its place; return False if it is there already. Raises BundleError."""
    if not os.path.lexists(place):
        with contextlib.suppress(OSError):  # another may have come first
            folder.rename(place)
            _sync(place.parent)
            return True
    try:
        there, found = read_manifest(place)
        read_files(place, there)
    except BundleError:
        found = "another"
    if found != bundle_hash:
        advice = f"remove it first (meari bundles remove {place.name}), or give this one another --name"
        raise BundleError(f"name: {place.name}: there is another of this name in {printable(place.parent)}; {advice}")
    return False


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Make a hidden folder in `root` for the time of a block, and remove what killed processes left there.

    Makes `root` too where there is none. Raises BundleError if nothing can be written there.
    """
    for left in root.glob(f"{PREFIX}*{SUFFIX}"):
        _remove_left(left)
    while True:
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=root))
        except OSError as error:
            raise BundleError(f"{printable(root)}: cannot be changed: {error.strerror or error}") from None
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(number, fcntl.LOCK_EX)
        if folder.exists():  # otherwise another process has taken it for what a killed one left
            break
        os.close(number)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(number)


def _remove_left(folder: Path) -> None:
    """Remove a hidden folder that no living process holds."""
    with contextlib.suppress(OSError):  # in use, of another user, or just removed
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(number)


def _check_directory(file: IO[bytes]) -> None:
    """Check the size of a zip file's list of members before it is read into memory. Raises BundleError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES - (1 << 16)))
    tail = file.read()
    file.seek(0)
    place = tail.rfind(END_OF_ZIP)
    if place < 0 or len(tail) - place < END_BYTES:
        raise BundleError("got other than a whole zip file")
    num_members = int.from_bytes(tail[place + 10 : place + 12], "little")
    num_bytes = int.from_bytes(tail[place + 12 : place + 16], "little")
    is_large = ZIP64 in tail[max(0, place - 20) : place]
    if num_members > MAX_MEMBERS or num_bytes > MAX_DIRECTORY_BYTES or is_large:
        raise BundleError(f"the zip file: got {num_members:,} members or more, expected at most {MAX_MEMBERS:,}")


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a zip by their path. Raises BundleError for what no zip of a bundle has."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        problem = _member_problem(member)
        if member.filename in found:
            problem = "is there twice"
        if problem:
            raise BundleError(f"the zip file: {printable(member.filename[:200])!r} {problem}; nothing was unpacked")
        if not member.is_dir():
            found[member.filename] = member
    return found


def _member_problem(member: zipfile.ZipInfo) -> str:
    path, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in member.orig_filename or ":" in member.filename:
        return "leads out of its folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, expected a file"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type}, expected stored or deflated"
    return ""


def _inner_folder(members: dict[str, zipfile.ZipInfo]) -> str:
    """Return the folder in a zip that holds the bundle, with a slash at its end, or "". Raises BundleError."""
    places = [name.removesuffix(MANIFEST) for name in members if PurePosixPath(name).name == MANIFEST]
    if len(places) != 1 or places[0].count("/") > 1:
        came = f"a bundle in {printable(places[0])}" if len(places) == 1 else f"{len(places)} bundles"
        raise BundleError(f"the zip file: got {came}, expected one bundle, with {MANIFEST} at the top or in one folder")
    return places[0]

"""Changes of the bundles' folder while it is served.

Input: the folder, looked at again and again. Output: which bundles are due and which are gone; loaded bundles, or why
they cannot be. Must not know: requests, Flask, who else loads them.

The folder is polled: its entries and the sizes, times and numbers of their files, which works on every file system. A
bundle that a rename has put there is whole at once; one that is copied file by file is not. So a change counts once two
looks in a row find the same files and the manifest's files have arrived with their sizes; their hashes are checked at
the load. A bundle that is absent for a moment, between the two renames that replace it, is not gone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from meari.bundle_format.folders import BundleFolders, Roots, find_bundles, printable
from meari.bundle_format.reader import read_files, read_manifest
from meari.bundle_format.signatures import PublicKey
from meari.errors import BundleError, MeariError
from meari.runtime.engine import EngineLimits
from meari.runtime.engine.cache import CacheRoom
from meari.runtime.model import LoadedModel
from meari.service.ahead import AHEAD

__all__ = ["POLL_SECONDS", "BundleLoader", "Finding", "FolderWatch", "Load", "may_open_files"]

POLL_SECONDS: Final = 0.25
UNFINISHED_SECONDS: Final = 3.0  # without a change, then a bundle that cannot be loaded counts as broken
GONE_SECONDS: Final = 1.5  # of absence
Signature = tuple[tuple[object, ...], ...]
SigningKeys = Sequence[PublicKey]
Load = Callable[[Path, EngineLimits], LoadedModel]

log = logging.getLogger("meari.service.registry")  # as operators know it


@dataclass(frozen=True)
class Finding:
    """Result of one look at the folder.

    names    of all bundles that are there
    due      name -> folder of bundles that are new or have changed, and can be loaded
    gone     names of served bundles that are not there any more
    failed   name -> reason, for entries that cannot be a bundle
    default  the bundle that DEFAULT names, "" if it names none
    """

    names: frozenset[str] = frozenset()
    due: dict[str, Path] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    default: str = ""


@dataclass
class _Entry:
    """What is known of one bundle's folder.

    is_done     these files were loaded, or cannot be
    has_failed  they could not be, but may still be on their way
    """

    signature: Signature
    changed_at: float
    is_done: bool = False
    has_failed: bool = False


class FolderWatch:
    """Finds what has changed in a folder of bundles. For one thread."""

    def __init__(
        self, roots: Roots, signing_keys: SigningKeys = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._roots = roots
        self._signing_keys = signing_keys
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._absent_since: dict[str, float] = {}
        self._failed: dict[str, str] = {}  # at the last look
        self._devices: dict[Path, int] = {}  # of the folders that were there

    def first(self) -> Finding:
        """Return all bundles as due, to be loaded as they are. Raises BundleError."""
        found = find_bundles(self._roots)
        self._check_disks(found)
        self._failed = found.failed
        self._entries = {name: _Entry(_signature(folder), -math.inf) for name, folder in found.folders.items()}
        return Finding(frozenset(found.folders), found.folders, (), found.failed, found.default)

    def look(self, served: Collection[str], wanted: Collection[str] = ()) -> Finding:
        """Return what has changed. Raises BundleError if the folder cannot be read, or its disk is gone.

        served  names of bundles that are served now, and may be gone
        wanted  names of bundles that are due in any case, as they are
        """
        found = find_bundles(self._roots)
        self._check_disks(found)
        due = {name: path for name, path in found.folders.items() if self._is_due(name, path, is_wanted=name in wanted)}
        for name in self._entries.keys() - found.folders.keys():
            del self._entries[name]
        # Between two renames a folder is missing or half of a pair: what cannot be used is told when it is seen again.
        failed = {key: why for key, why in found.failed.items() if key in wanted or self._failed.get(key) == why}
        self._failed = found.failed
        return Finding(frozenset(found.folders), due, self._gone(served, found), failed, found.default)

    def done(self, name: str, folder: Path, *, is_good: bool) -> bool:
        """Note that a bundle was loaded, or could not be; returns False if its files may still be on their way."""
        entry = self._entries[name]
        is_settled = is_good or self._clock() - entry.changed_at >= UNFINISHED_SECONDS
        entry.is_done = is_settled and entry.signature == _signature(folder)
        entry.has_failed = not is_good
        return entry.is_done

    def _check_disks(self, found: BundleFolders) -> None:
        """A mount point is empty while nothing is mounted there: that removes no bundle. Nor does a missing folder."""
        for root in self._roots if isinstance(self._roots, tuple) else (self._roots,):
            before = self._devices.get(root)
            if before is None and not root.exists():
                continue
            try:
                device = root.stat().st_dev
            except FileNotFoundError:
                raise BundleError(f"there is no folder {printable(root)}") from None
            is_empty = not any(root in (path, path.parent) for path in (*found.folders.values(), *found.hidden))
            if is_empty and before not in (None, device):
                raise BundleError(
                    f"{printable(root)} is empty and on another file system than before: is its disk mounted?"
                )
            self._devices[root] = device

    def _is_due(self, name: str, folder: Path, *, is_wanted: bool) -> bool:
        signature, now = _signature(folder), self._clock()
        entry = self._entries.get(name)
        if is_wanted or entry is None or entry.signature != signature:
            self._entries[name] = _Entry(signature, -math.inf if is_wanted else now)
            return is_wanted
        if entry.is_done:
            return False
        is_settled = now - entry.changed_at >= UNFINISHED_SECONDS
        return is_settled or (not entry.has_failed and _is_whole(folder, self._signing_keys))

    def _gone(self, served: Collection[str], found: BundleFolders) -> tuple[str, ...]:
        """Return the names of served bundles that have been absent for long enough.

        A bundle whose export was stopped while it took the place of an old one is still there, as NAME.old.
        """
        now = self._clock()
        absent = {name for name in served if name not in found.folders and f"{name}.old" not in found.failed}
        self._absent_since = {name: self._absent_since.get(name, now) for name in absent}
        return tuple(sorted(name for name, since in self._absent_since.items() if now - since >= GONE_SECONDS))


def may_open_files() -> bool:
    """Tell whether the process may open some more files; without them a folder looks broken."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(4):
                opened.callback(os.close, os.open("/", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def _signature(folder: Path) -> Signature:
    """Return what tells one state of a folder's files from another, without reading them."""
    try:
        with os.scandir(folder) as entries:  # several times as fast as paths, four times a second
            return tuple(_file_signature(entry) for entry in sorted(entries, key=lambda entry: entry.name))
    except OSError as error:
        return ((error.errno,),)


def _file_signature(entry: os.DirEntry[str]) -> tuple[object, ...]:
    try:
        found = entry.stat()
    except OSError as error:
        return (entry.name, error.errno)
    return (entry.name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_whole(folder: Path, signing_keys: SigningKeys) -> bool:
    """Tell whether all files of a bundle have arrived, judged by their sizes; a wrong one is found at the load."""
    try:
        manifest, _ = read_manifest(folder, signing_keys)
        return all((folder / name).stat().st_size >= entry.bytes for name, entry in manifest.files.items())
    except (BundleError, OSError):
        return False


class BundleLoader:
    """Loads bundles, and keeps the reasons of those that could not be. For one thread.

    All engines share one cache of prefixes.
    """

    def __init__(
        self, watch: FolderWatch, limits: EngineLimits, signing_keys: SigningKeys, load: Load | None = None
    ) -> None:
        self._watch = watch
        self._limits = limits
        self._signing_keys = signing_keys
        self._load = load or functools.partial(AHEAD.load, signing_keys=signing_keys)
        self._room = CacheRoom(limits.cache_bytes)
        self.failed: dict[str, str] = {}  # name -> reason

    def load(self, name: str, folder: Path, served: LoadedModel | None) -> LoadedModel | None:
        """Return a bundle that is ready to be served.

        None if it cannot be, which the log says once, or if it is the same as the one that is served.
        """
        try:
            model = self._opened(folder, served)
        except MeariError as error:
            self._note(name, folder, str(error), error.__cause__, served)
        except Exception as error:  # noqa: BLE001 (logged there)
            self._note(name, folder, f"its engine could not be started: {type(error).__name__}", error, served)
        else:
            self._watch.done(name, folder, is_good=True)
            self.failed.pop(name, None)
            return model
        return None

    def forget_others(self, names: Collection[str]) -> None:
        """Forget the problems of all bundles but these."""
        self.failed = {name: problem for name, problem in self.failed.items() if name in names}

    def _opened(self, folder: Path, served: LoadedModel | None) -> LoadedModel | None:
        if served is not None:
            manifest, digest = read_manifest(folder, self._signing_keys)
            if digest == served.bundle.hash:
                read_files(folder, manifest)
                return None
        model = self._load(folder, self._limits)
        model.engine.share_cache(self._room)
        return model

    def _note(
        self, name: str, folder: Path, problem: str, cause: BaseException | None, served: LoadedModel | None
    ) -> None:
        """Keep the reason, unless the files have changed meanwhile: then they are still on their way."""
        if not self._watch.done(name, folder, is_good=False):
            return
        if self.failed.get(name) != problem:
            stays = "; the one before is still served" if served is not None else ""
            log.error("bundle %s cannot be served: %s%s", name, problem, stays, exc_info=cause)
        self.failed[name] = problem

"""Bundles that the master process opens before it forks the workers, which then share their memory.

Input: the folder of bundles. Output: opened bundles, each at most once in a process. Must not know: requests, who else
serves them.

An opened bundle has no threads: its graphs run in the thread that calls them. So it is the same on both sides of a
fork, bit for bit, and its weights stay the same pages as long as nobody writes to them, which nobody does. A worker
that takes one has only its engine to start: it is ready in a fraction of a second, and all workers together hold
weights, graphs and tokenizers once. A bundle that comes or changes later is opened by each worker for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from meari.bundle_format.folders import Roots, find_bundles
from meari.bundle_format.reader import read_files, read_manifest
from meari.bundle_format.signatures import PublicKey
from meari.runtime.bundle import Bundle
from meari.runtime.engine import EngineLimits
from meari.runtime.machine import freeze_objects, limit_arenas, map_large_pieces, release_free_memory
from meari.runtime.model import LoadedModel, open_for_engine, start_model
from meari.runtime.self_test import fixed_step_seconds

__all__ = ["AHEAD", "Ahead"]

log = logging.getLogger("meari.service.registry")  # as operators know it


class Ahead:
    """Opened bundles that wait to be served. Filled by the master, in one thread; each worker has a copy of its own.

    is_opening  True in a worker that was forked while the master opens them: it tells so until others can serve
    """

    def __init__(self) -> None:
        self.is_opening = False
        self._bundles: dict[Path, tuple[int, Bundle]] = {}  # folder -> slots that it was opened for

    def open_all(self, roots: Roots, limits: EngineLimits, signing_keys: Sequence[PublicKey] = ()) -> Iterator[None]:
        """Open every bundle, one for each `next`; one that cannot be is left to the workers, which tell the reason."""
        self.is_opening = True
        yield
        limit_arenas()
        map_large_pieces()
        try:
            folders = find_bundles(roots).folders
        except Exception:  # noqa: BLE001 (as below)
            folders = {}
        for name, folder in sorted(folders.items()):
            try:
                self._bundles[folder] = limits.max_slots, _opened(folder, limits, signing_keys)
            except Exception as error:  # noqa: BLE001 (each worker meets it, and logs it)
                log.debug("bundle %s is left to the workers: %s", name, type(error).__name__)
            yield
        release_free_memory()
        freeze_objects()
        self.is_opening = False

    def load(self, folder: Path, limits: EngineLimits, signing_keys: Sequence[PublicKey] = ()) -> LoadedModel:
        """Return a bundle with its running engine: one that waits, if its folder still has it, else opened now.

        Raises BundleError.
        """
        return start_model(self._take(folder, limits, signing_keys), limits)

    def _take(self, folder: Path, limits: EngineLimits, signing_keys: Sequence[PublicKey]) -> Bundle:
        max_slots, bundle = self._bundles.pop(folder, (0, None))
        if bundle is not None and max_slots == limits.max_slots:
            manifest, digest = read_manifest(folder, signing_keys)
            if digest == bundle.hash:
                read_files(folder, manifest)
                return bundle
        return _opened(folder, limits, signing_keys)


def _opened(folder: Path, limits: EngineLimits, signing_keys: Sequence[PublicKey]) -> Bundle:
    """Open a bundle, and measure what the number of requests under overload follows from."""
    bundle = open_for_engine(folder, limits, signing_keys)
    if bundle.self_test.rows_isolated:
        bundle.runner.fixed_step_seconds = fixed_step_seconds(bundle.runner, limits.max_slots)
    return bundle


AHEAD: Final = Ahead()  # of this process, and of those that it forks

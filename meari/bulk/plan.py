"""What a run is asked to do, and its result.

Input: options. Output: the settings on which an output depends, sums. Must not know: who does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from meari.bulk.errors import BulkError
from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.bulk.totals import GenerateTotals, ScoreTotals
from meari.bundle_format.reader import naming_folder, read_manifest
from meari.bundle_format.signatures import PublicKey

__all__ = ["SKIP_HINT", "RemoteBundle", "RunPlan", "RunResult", "settings_of", "totals_of"]

SKIP_HINT: Final = "--skip-bad writes an error record in its place and goes on"
AnyTotals = ScoreTotals | GenerateTotals


@dataclass(frozen=True)
class RemoteBundle:
    """The bundle of a service that does the work.

    hash       of the bundle, as a local one's would be
    read_hash  asks the service which bundle it has now. Raises RemoteError
    api_key    for the service
    """

    hash: str
    read_hash: Callable[[], str]
    api_key: str = field(default="", repr=False)

    def check_same(self) -> None:
        """Raise BulkError if the service has another bundle than at the start: results would be of both."""
        found = self.read_hash()
        if found != self.hash:
            raise BulkError(
                f"the service has replaced its bundle {self.hash[:12]} by {found[:12]} meanwhile: the last results may "
                "be of either; begin anew (--overwrite)"
            )


@dataclass(frozen=True)
class RunPlan:
    """The output of a run and its manner of working, beside its options.

    output       None is standard output
    num_workers  worker processes, or requests to a service at a time
    resume       continue where the output ends
    overwrite    replace the output of an interrupted run
    progress     draw a progress bar
    remote       the service's bundle, None for engines of our own
    max_bad      bad lines that are skipped, at most; the next one ends the run. None: the first one does
    signing_keys as in `Setup`
    """

    output: Path | None
    num_workers: int
    resume: bool = False
    overwrite: bool = False
    progress: bool = False
    remote: RemoteBundle | None = None
    max_bad: int | None = None
    signing_keys: tuple[PublicKey, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """The sums of a run. `seconds` are those of all runs that it took."""

    model: str
    totals: AnyTotals
    seconds: float


def totals_of(options: ScoreOptions | GenerateOptions, counts: dict[str, int]) -> AnyTotals:
    """Return sums by the names of their fields."""
    return ScoreTotals(**counts) if isinstance(options, ScoreOptions) else GenerateTotals(**counts)


def settings_of(options: ScoreOptions | GenerateOptions, remote: RemoteBundle | None) -> dict[str, Any]:
    """Return the options on which the output depends, flat: of the bundle its hash, not its folder."""
    settings: dict[str, Any] = msgspec.to_builtins(options)
    settings = {**settings.pop("request", {}), **settings}
    with naming_folder(Path(options.bundle)):
        settings["bundle"] = read_manifest(Path(options.bundle))[1] if remote is None else remote.hash
    del settings["server"]
    if options.format != "tsv":
        del settings["skip_bad"]  # good lines come out the same
    return settings

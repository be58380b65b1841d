"""The workers of a host as they are told: counted by state, with what each has loaded, and whether requests are taken.

Input: numbers and reports from the board. Output: values for probes, metrics and logs; the folders that workers share,
and the connections that the system grants them. Must not know: where the numbers are kept.
"""

from __future__ import annotations

import contextlib
import enum
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

__all__ = [
    "HostState",
    "Readiness",
    "Report",
    "WorkerState",
    "allowed_connections",
    "metrics_folder",
    "models_folder",
    "readiness",
]

OTHER_FILES: Final = 64  # of a worker: its log, its engines, and files that it reads now and then


class WorkerState(enum.IntEnum):
    """State of a worker; FREE where a slot belongs to none."""

    FREE = 0
    LOADING = 1
    READY = 2
    FAILED = 3  # it has loaded, but not what it needs to take requests; its report says why
    DRAINING = 4


@dataclass(frozen=True)
class HostState:
    """The workers of the host, counted by state.

    expected     workers that there should be
    is_draining  whether the whole host ends
    was_ready    whether any worker was ever ready
    starts       workers started so far
    deaths       workers that ended without having been told to
    """

    expected: int
    ready: int
    loading: int
    failed: int
    draining: int
    is_draining: bool
    was_ready: bool
    starts: int
    deaths: int


class Report(msgspec.Struct, frozen=True):
    """Result of a worker's loading, as the other workers read it.

    models   bundles that it serves
    failed   bundles that it could not load, and why
    problem  why it takes no requests; "" if it may
    signers  ids of the keys of which one must have signed each bundle
    """

    models: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    problem: str = ""
    signers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Readiness:
    """State of the host.

    reason  why it takes no requests; "" if it does
    models  bundles that are served
    failed  bundles that a worker could not load, and why
    host    its workers, counted
    """

    reason: str
    models: tuple[str, ...]
    failed: dict[str, str]
    host: HostState

    @property
    def ready(self) -> bool:
        """True while the host takes requests."""
        return not self.reason


def readiness(host: HostState, reports: Mapping[WorkerState, list[Report]]) -> Readiness:
    """Return the state of a host from its workers' counts and, by their states, their reports."""
    serving = [*reports[WorkerState.READY], *reports[WorkerState.DRAINING]]
    models = {name for report in serving for name in report.models}
    told = [*serving, *reports[WorkerState.FAILED]]
    failed = {name: reason for report in told for name, reason in report.failed.items()}
    return Readiness(_reason(host, told), tuple(sorted(models)), failed, host)


def _reason(host: HostState, reports: list[Report]) -> str:
    """Return why the host takes no requests; "" if it does."""
    if host.is_draining:
        return "the service is shutting down"
    if host.ready:
        return ""
    return next((report.problem for report in reports if report.problem), "the bundles are being loaded")


def metrics_folder(folder: Path) -> Path:
    """Return the folder of prometheus_client's values."""
    return folder / "metrics"


def models_folder(folder: Path) -> Path:
    """Return the folder of what admins have asked for, and of what each worker serves."""
    return folder / "models"


def allowed_connections(wanted: int) -> int:
    """Ask the system for room for `wanted` connections; return the number that it grants.

    Called in the master process, whose workers inherit the limit.
    """
    needed = wanted + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    with contextlib.suppress(OSError, ValueError):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)

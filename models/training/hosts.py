"""Run folders of a training on several hosts: one folder that all share, or one for each host.

Input: a run folder's path, the processes. Output: folders that are claimed, and the newest snapshot of all in each of
them. Must not know: the loop.

One process writes each folder, so no host is needed to go on from a snapshot. A run that is started again begins with
the newest one, which travels to the hosts that lack it: those that are new, have lost their disk or stopped earlier.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from meari.models.config import Config
from meari.models.files import LOCK, current_folder, replaced_folder, write_file
from meari.models.training.run_folder import RunFolder, Start, claimed_run
from meari.models.training.snapshot import PROGRESS
from meari.models.training.workers import Workers

RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # set by torchrun: how often it has started these processes again
RESUMING = (Start.RESUME, Start.CONTINUE)


@contextlib.contextmanager
def claimed_hosts(path: Path, config: Config, start: Start, workers: Workers) -> Iterator[bool]:
    """Claim the run's folder on every host within the block; returns whether there is a snapshot to resume.

    Processes that torchrun has started again continue the run, however it was started first. Raises CheckpointError,
    FolderInUse, ProcessFailed.
    """
    if workers.largest(int(os.environ.get(RESTARTS, "0"))):
        start = Start.CONTINUE
    with ExitStack() as held:
        workers.first(lambda: held.enter_context(claimed_run(path, config, start)))
        owns = workers.owns_folder = _has_own_folder(path, workers)
        own_start = Start.CONTINUE if start is Start.RESUME else start  # this host may be new
        workers.in_turn(lambda: held.enter_context(claimed_run(path, config, own_start)) if owns else None)
        yield start in RESUMING and _bring_snapshot(RunFolder(path), workers)


def _has_own_folder(path: Path, workers: Workers) -> bool:
    """Return whether this process has to write a folder that the first one does not see."""
    mark = _mark(path)
    is_shared = workers.sent(mark, 0) == mark
    return not is_shared and os.environ.get("LOCAL_RANK") == "0"


def _mark(path: Path) -> bytes:
    """Return what tells the lock of one folder from that of another."""
    try:
        lock = path / LOCK
        return f"{lock.stat().st_ino} {lock.read_text('utf-8')}".encode()
    except OSError:
        return b"no lock"


def _bring_snapshot(run: RunFolder, workers: Workers) -> bool:
    """Put the newest snapshot of all hosts into the folders that have another or none; return whether there is one."""
    progress = _progress(run)
    step = _step(progress) if run.has_snapshot() else -1
    newest = workers.largest(step)
    if newest < 0:
        return False
    source = workers.size - workers.largest(workers.size - workers.rank if step == newest else 0)
    lacks = workers.sent(progress, source) != progress
    if workers.largest(int(lacks)):
        _send_files(run, workers, source, writes=lacks and workers.writes)
    return True


def _send_files(run: RunFolder, workers: Workers, source: int, *, writes: bool) -> None:
    """Send history and checkpoints, `last/` at the end: with it the run counts as resumable."""
    is_source = workers.rank == source
    history = workers.sent(run.history.read_bytes() if is_source and run.history.exists() else b"", source)
    if writes:
        write_file(run.history, history)
    for folder in (run.best, run.last):
        there = current_folder(folder)
        names = sorted(path.name for path in there.iterdir()) if is_source and there.is_dir() else []
        names = json.loads(workers.sent(json.dumps(names).encode(), source))
        with ExitStack() as held:
            new = held.enter_context(replaced_folder(folder)) if writes and names else None
            for name in names:
                data = workers.sent((there / name).read_bytes() if is_source else b"", source)
                if new is not None:
                    (new / name).write_bytes(data)
    workers.largest(0)  # the other processes of a host read what one has written


def _progress(run: RunFolder) -> bytes:
    try:
        return (current_folder(run.last) / PROGRESS).read_bytes()
    except OSError:
        return b""


def _step(progress: bytes) -> int:
    """Return the step of a snapshot, 0 if it is damaged, which the load will say."""
    try:
        return int(json.loads(progress)["step"])
    except (ValueError, KeyError, TypeError):
        return 0

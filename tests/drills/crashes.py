"""Crashes of writers: `python -m tests.drills.crashes SEED FOLDER WRITER:MODE=COUNT …`.

Input: a seed, and how many crashes each writer suffers. Output: JSON with what came of them.

    kill    the process is killed by SIGKILL at a random moment, and the work is continued, again and again
    power   the power is cut: the disk keeps the operations up to a random one, and of each file the bytes that were
            flushed; whatever was written and not flushed is gone
    full    the disk is full (a small tmpfs), or may not be mounted and a file may not grow (RLIMIT_FSIZE); later there
            is room again

Everything heavy is imported once; each piece of work runs in a fork of this process, which starts no thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from meari.bulk.errors import BulkError
from meari.errors import MeariError
from meari.models.errors import ModelsError
from tests.drills.crash_writers import WRITERS, Writer
from tests.drills.power import Recorder, replay

EXPECTED: Final = (OSError, ModelsError, MeariError, BulkError)  # the command line prints them as one line
TMPFS_BYTES: Final = 1 << 20
Work = Callable[[], None]


@dataclass
class Outcome:
    """What came of the crashes of one writer."""

    num_crashes: int = 0
    num_finished: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """How a fork ended: `problem` is its error, `is_expected` whether it is one that a command prints as one line."""

    was_killed: bool
    problem: str = ""
    is_expected: bool = False


def forked(work: Work, kill_after: float | None = None) -> Ended:
    """Run work in a fork, which is killed after some seconds."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        os._exit(_child(work, writer))
    os.close(writer)
    descriptor = os.pidfd_open(pid)
    try:
        select.select([descriptor], [], [], kill_after)
        with contextlib.suppress(ProcessLookupError):
            if kill_after is not None:
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            problem = pipe.read()
    finally:
        os.close(descriptor)
    was_killed = os.WIFSIGNALED(status)
    if was_killed and kill_after is None:
        return Ended(was_killed=True, problem=f"it ended by signal {os.WTERMSIG(status)}")
    return Ended(was_killed, "" if was_killed else problem[1:], problem.startswith("1"))


def _child(work: Work, writer: int) -> int:
    try:
        work()
    except BaseException as error:
        text = "".join(traceback.format_exception(error, limit=-3))[-1500:]
        os.write(writer, f"{int(isinstance(error, EXPECTED))}{text}".encode())
        return 1
    return 0


def kill(writer: Writer, folder: Path, rng: random.Random, count: int, outcome: Outcome) -> None:
    """Kill the work at `count` random moments, each time on what the kill before has left."""
    place = folder / "0"
    writer.begin(place)
    started = time.monotonic()
    _expect(outcome, forked(partial(writer.write, place)), "undisturbed")
    _expect(outcome, forked(partial(writer.check_finished, place)), "undisturbed")
    duration = time.monotonic() - started
    shutil.rmtree(place)
    writer.begin(place)
    for number in range(1, count + 1):
        after = rng.uniform(0, duration) if rng.random() < 0.5 else rng.uniform(0, duration / 5)
        ended = forked(partial(writer.write, place), after)
        outcome.num_crashes += ended.was_killed
        what = f"kill {number} after {after:.4f} s"
        if ended.was_killed:
            _expect(outcome, forked(partial(writer.check, place)), what)
            continue
        _expect(outcome, ended, f"the work before {what}")
        _expect(outcome, forked(partial(writer.check_finished, place)), f"the end before {what}")
        outcome.num_finished += 1
        shutil.rmtree(place)
        place = folder / str(number)
        writer.begin(place)
    _expect(outcome, forked(partial(_recover, writer, place)), "the work after the last kill")


def _recover(writer: Writer, place: Path, make_room: Work | None = None) -> None:
    """Check what a crash has left, do the rest of the work, and check the end."""
    writer.check(place)
    if make_room is not None:
        make_room()
    writer.write(place)
    writer.check_finished(place)


def power(writer: Writer, folder: Path, rng: random.Random, count: int, outcome: Outcome) -> None:
    """Cut the power after each of the work's operations on the disk, or after `count` random ones."""
    before, place, tape = folder / "before", folder / "run", folder / "tape"
    writer.begin(before)
    begun = writer.acknowledged.get()
    shutil.copytree(before, place)
    recorder = Recorder(place, writer.acknowledged.get)
    _expect(outcome, forked(partial(recorder.record, partial(writer.write, place), tape)), "undisturbed")
    events = Recorder.load(tape)
    moments = sorted(rng.sample(range(len(events) + 1), min(count, len(events) + 1)))
    for moment in moments:
        shutil.rmtree(place)
        shutil.copytree(before, place)
        told = replay(events[:moment], place)
        writer.acknowledged.set(begun if told is None else told)
        outcome.num_crashes += 1
        what = f"power cut after operation {moment} of {len(events)}: {events[moment - 1].name if moment else ''}"
        _expect(outcome, forked(partial(_recover, writer, place)), what)
        outcome.num_finished += 1


def full(writer: Writer, folder: Path, rng: random.Random, count: int, outcome: Outcome) -> None:
    """Let the work meet a full disk at `count` random fillings, then make room and let it end."""
    start = folder / "start"
    writer.begin(start)
    begun = writer.acknowledged.get()
    for number in range(1, count + 1):
        with _small_disk(folder / "disk") as disk:
            place = disk.path / "place"
            shutil.copytree(start, place)
            writer.acknowledged.set(begun)
            room = rng.randrange(0, 1 << rng.randint(9, 18))
            ended = forked(partial(disk.leave, room, partial(writer.write, place)))
            outcome.num_crashes += bool(ended.problem)
            what = f"full disk {number} with room for {room} bytes"
            if ended.problem and not ended.is_expected:
                _expect(outcome, ended, what)
            _expect(outcome, forked(partial(_recover, writer, place, disk.empty)), what)
            outcome.num_finished += 1


@dataclass(frozen=True)
class Disk:
    """A small disk, or a folder of a large one."""

    path: Path
    is_small: bool

    def leave(self, num_bytes: int, work: Work) -> None:
        """Work while there is room for so many bytes more, on a large disk in one file."""
        if self.is_small:
            free = os.statvfs(self.path)
            ballast = max(0, free.f_bavail * free.f_frsize - num_bytes)
            with (self.path / "ballast").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, ballast))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
        work()

    def empty(self) -> None:
        """Make room."""
        (self.path / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Disk]:
    path.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(path)]
    is_mounted = not subprocess.run(words, capture_output=True, check=False).returncode
    try:
        yield Disk(path, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", str(path)], check=True)
        shutil.rmtree(path)


def _expect(outcome: Outcome, ended: Ended, what: str) -> None:
    if ended.problem and len(outcome.problems) < 5:
        outcome.problems.append(f"{what}: {ended.problem}")


MODES: Final = {"kill": kill, "power": power, "full": full}


def main(seed: int, folder: Path, counts: dict[str, int]) -> dict[str, object]:
    """Let each writer suffer its crashes."""
    found: dict[str, object] = {}
    writers: dict[str, Writer] = {}
    for each, count in counts.items():
        name, _, mode = each.partition(":")
        if name not in writers:
            (folder / name / "source").mkdir(parents=True)
            writers[name] = WRITERS[name](folder / name / "source")
        (folder / name / mode).mkdir()
        started, outcome = time.monotonic(), Outcome()
        MODES[mode](writers[name], folder / name / mode, random.Random(f"{seed}/{each}"), count, outcome)
        outcome.seconds = time.monotonic() - started
        found[each] = vars(outcome)
    return found


if __name__ == "__main__":
    pairs = (word.split("=") for word in sys.argv[3:])
    with contextlib.redirect_stdout(sys.stderr):
        everything = main(int(sys.argv[1]), Path(sys.argv[2]), {name: int(count) for name, count in pairs})
    sys.stdout.write(json.dumps(everything) + "\n")

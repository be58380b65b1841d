"""A worker process: frames on standard input → frames on standard output. One engine, one CPU.

A thread reads frames; the main thread parses, queues and writes; the engine's thread runs. Chunks are queued as they
come, so the engine has several of them, and their results leave in the order in which they came. How many there may be
is decided where they come from. The process ends with its input.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from meari.bulk.frames import (
    Bad,
    Done,
    Failed,
    Frames,
    FromWorker,
    Lines,
    Part,
    Ready,
    Setup,
    Took,
    ToWorker,
    frame,
    write_all,
)
from meari.bulk.options import GenerateOptions, ScoreOptions
from meari.runtime.machine import keep_freed_memory
from meari.runtime.text.json_lines import escape_line_ends

if TYPE_CHECKING:
    from meari.runtime.model import LoadedModel

READ_BYTES: Final = 1 << 18
MAX_SLOTS: Final = 128  # rows of a step: twice a server's, where every row waits for all others
MAX_WAITING: Final = 100_000  # every line may have a context of its own, and so a call

log = logging.getLogger(__name__)


class Begun(Protocol):
    """A chunk that the engine works on."""

    def messages(self) -> Iterator[Part | Bad | Done]:
        """Wait for it, then tell what came of it."""


class LongLine(Begun, Protocol):
    """A line that comes in pieces."""

    def feed(self, data: bytes, *, ends: bool) -> None:
        """Take a piece."""


class LineWork(Protocol):
    """What is done with the lines."""

    @property
    def head(self) -> bytes:
        """What stands before the first record of the output."""

    def begin(self, data: bytes, first_line: int, file: str = "") -> Begun:
        """Queue whole lines."""

    def begin_long(self, line: int, file: str = "") -> LongLine:
        """A long line whose pieces follow."""


def open_model(folder: str) -> LoadedModel:
    """The bundle in that folder. Raises BundleError."""
    from meari.runtime.engine import EngineLimits
    from meari.runtime.model import load_model

    return load_model(Path(folder), EngineLimits(MAX_SLOTS, MAX_WAITING, 0, offline=True))


def open_work(setup: Setup) -> tuple[str, LineWork]:
    """The model's name and what is done with it. Raises BundleError, InvalidRequest, RemoteError."""
    return _open_served(setup) if setup.options.server else _open_engine(setup.options)


def _open_engine(options: ScoreOptions | GenerateOptions) -> tuple[str, LineWork]:
    model = open_model(options.bundle)
    if isinstance(options, ScoreOptions):
        from meari.bulk.score import ScoreWork

        return model.name, ScoreWork(model, options)
    from meari.bulk.generate import GenerateWork

    return model.name, GenerateWork(model, options)


def _open_served(setup: Setup) -> tuple[str, LineWork]:
    from meari.bulk.served import Served

    options = setup.options
    served = Served.open(options.server, options.bundle, setup.api_key, setup.num_requests)
    if isinstance(options, ScoreOptions):
        from meari.bulk.served_score import ServedScoreWork

        return served.model, ServedScoreWork(served, options)
    from meari.bulk.served_generate import ServedGenerateWork

    return served.model, ServedGenerateWork(served, options)


class Worker:
    """The main thread's part."""

    def __init__(self, frames: queue.SimpleQueue[ToWorker | None], out: int) -> None:
        self._frames = frames
        self._out = out
        self._begun: deque[Begun] = deque()
        self._is_jsonl = False
        self._long: LongLine | None = None  # the last one begun, while pieces of it are still to come

    def run(self) -> None:
        """Work until the input ends. What goes wrong is told in a frame."""
        from meari.bulk.errors import BulkError
        from meari.client.errors import RemoteError
        from meari.errors import MeariError

        try:
            setup = self._frames.get()
            if not isinstance(setup, Setup):
                return
            self._is_jsonl = setup.options.format == "jsonl"
            model, work = open_work(setup)
            self._send(Ready(model, work.head))
            while self._turn(work):
                pass
        except BrokenPipeError:
            log.debug("nobody reads the results any more")
        except (BulkError, MeariError, RemoteError) as error:
            self._send(Failed(str(error)))

    def _turn(self, work: LineWork) -> bool:
        """Begin a chunk if one is there, else finish one; False at the end."""
        can_finish = bool(self._begun) and not (self._long is not None and self._begun[0] is self._long)
        if can_finish and self._frames.empty():
            for message in self._begun.popleft().messages():
                self._send(message)
            return True
        lines = self._frames.get()
        if isinstance(lines, Lines):
            self._take(lines, work)
            return True
        while self._begun and self._long is None:
            for message in self._begun.popleft().messages():
                self._send(message)
        return False

    def _take(self, lines: Lines, work: LineWork) -> None:
        if not lines.is_long:
            self._begun.append(work.begin(lines.data, lines.first_line, lines.file))
            return
        if self._long is None:
            self._long = work.begin_long(lines.first_line, lines.file)
            self._begun.append(self._long)
        self._long.feed(lines.data, ends=lines.ends)
        if lines.ends:
            self._long = None
        else:
            self._send(Took())

    def _send(self, message: FromWorker) -> None:
        if isinstance(message, Part) and self._is_jsonl:
            message = Part(escape_line_ends(message.data))
        write_all(self._out, frame(message))


def _read_frames(frames: queue.SimpleQueue[ToWorker | None]) -> None:
    decoder: Frames[ToWorker] = Frames(ToWorker)
    while data := os.read(0, READ_BYTES):
        for message in decoder.feed(data):
            frames.put(message)
    frames.put(None)


def main() -> None:
    """Run as `python -m meari.bulk.worker` at the other end of two pipes."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to handle
    out = os.dup(1)
    os.dup2(2, 1)  # nothing else may write between frames
    frames: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
    threading.Thread(target=_read_frames, args=(frames,), name="frames", daemon=True).start()
    code = 1
    try:
        Worker(frames, out).run()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)  # the engine's thread need not be waited for


if __name__ == "__main__":
    main()

"""A worker process: frames on standard input → frames on standard output. One backend, one CPU.

Input: `Setup`, then chunks of lines. Output: their results, in the order in which the chunks came. Must not know:
files, the other workers.

A thread reads frames; the main thread parses, queues and writes; the engine's thread runs. Chunks are queued as they
come, so the engine has several of them; the process that sends them decides how many. The worker ends with its input.
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
from pathlib import Path
from typing import Final

from meari.bulk.backends import Backend, open_local
from meari.bulk.errors import BulkError
from meari.bulk.frames import (
    Begun,
    Failed,
    Frames,
    FromWorker,
    Lines,
    LineWork,
    LongLine,
    Ready,
    Setup,
    Took,
    ToWorker,
    frame,
    write_all,
)
from meari.bulk.generate import GenerateWork
from meari.bulk.options import ScoreOptions
from meari.bulk.score import ScoreWork
from meari.client.errors import RemoteError
from meari.errors import MeariError
from meari.runtime.machine import freeze_objects, keep_freed_memory

__all__ = ["main", "open_backend", "open_work"]

READ_BYTES: Final = 1 << 18
log = logging.getLogger(__name__)


def open_backend(setup: Setup) -> Backend:
    """Open the bundle, or ask the service for its model. Raises BundleError, RemoteError."""
    options = setup.options
    if not options.server:
        return open_local(Path(options.bundle), setup.signing_keys)
    from meari.bulk.remote import open_remote
    from meari.client.service import RemoteService

    return open_remote(RemoteService(options.server, setup.api_key), options.bundle, setup.num_requests)


def open_work(backend: Backend, setup: Setup) -> LineWork:
    """Return the work that the options ask for. Raises InvalidRequest."""
    options = setup.options
    return ScoreWork(backend, options) if isinstance(options, ScoreOptions) else GenerateWork(backend, options)


class Worker:
    """The main thread's part."""

    def __init__(self, frames: queue.SimpleQueue[ToWorker | None], out: int) -> None:
        self._frames = frames
        self._out = out
        self._begun: deque[Begun] = deque()
        self._long: LongLine | None = None  # the last one begun, while pieces of it are still to come

    def run(self) -> None:
        """Work until the input ends, or an error does; the last frame reports the error."""
        try:
            setup = self._frames.get()
            if not isinstance(setup, Setup):
                return
            backend = open_backend(setup)
            work = open_work(backend, setup)
            freeze_objects()
            self._send(Ready(backend.name, work.head))
            while self._turn(work):
                pass
        except BrokenPipeError:
            log.debug("nobody reads the results any more")
        except (BulkError, MeariError, RemoteError) as error:
            self._send(Failed(str(error)))

    def _turn(self, work: LineWork) -> bool:
        """Begin a chunk if one is there, else finish one; return False at the end."""
        can_finish = bool(self._begun) and not (self._long is not None and self._begun[0] is self._long)
        if can_finish and self._frames.empty():
            self._finish_oldest()
            return True
        lines = self._frames.get()
        if isinstance(lines, Lines):
            self._take(lines, work)
            return True
        while self._begun and self._long is None:
            self._finish_oldest()
        return False

    def _finish_oldest(self) -> None:
        for message in self._begun.popleft().messages():
            self._send(message)

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
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

"""The worker processes of a run: they get chunks as they have room, and their results come in the order of the input.

Input: a source of chunks. Output: results, in order. Must not know: the work, where output goes.

Each worker answers its chunks in the order in which it got them, so the next result always comes from the worker that
got the oldest chunk. From a worker that is far ahead nothing is read until its turn comes: that bounds what is held.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from meari.bulk.errors import BulkError
from meari.bulk.frames import Bad, Done, Failed, Frames, FromWorker, Lines, Part, Ready, Setup, Took, frame, write_all
from meari.bulk.lines import Chunk
from meari.bulk.options import Share
from meari.bulk.source import Source

__all__ = ["Result", "WorkerPool"]

READ_BYTES: Final = 1 << 18
AHEAD_BYTES: Final = 1 << 23  # of results held for one worker whose turn has not come
PIECES_AHEAD: Final = 3  # of a long line, not taken by its worker yet
END_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Result:
    """Some output, or the problem of a bad line whose record comes next, or with `done` the end of a chunk."""

    chunk: Chunk
    data: bytes = b""
    problem: str = ""
    done: Done | None = None


@dataclass(eq=False)
class WorkerProxy:
    """A worker process as the pool sees it."""

    process: subprocess.Popen[bytes]
    frames: Frames[FromWorker] = field(default_factory=lambda: Frames(FromWorker))
    chunks: deque[Chunk] = field(default_factory=deque)  # handed out, not done; of a long line the last piece so far
    messages: deque[Part | Bad | Done] = field(default_factory=deque)
    held: deque[tuple[int, int]] = field(default_factory=deque)  # lines and bytes that count for each of `chunks`
    num_bytes: int = 0  # in `messages`
    lines_held: int = 0
    bytes_held: int = 0
    pieces_ahead: int = 0
    ready: Ready | None = None

    @property
    def stdin(self) -> int:
        """Descriptor of its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    @property
    def stdout(self) -> int:
        """Descriptor of its standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


class WorkerPool:
    """The workers of one run. A context manager: at its end no worker is left."""

    def __init__(self, num_workers: int, setup: Setup, share: Share) -> None:
        self._num_workers = num_workers
        self._setup = setup
        self._share = share
        self._workers: list[WorkerProxy] = []
        self._turns: deque[WorkerProxy] = deque()  # the worker of the next result first
        self._long: WorkerProxy | None = None  # gets the rest of the long line that is being cut

    def __enter__(self) -> Self:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        for _ in range(self._num_workers):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "meari.bulk.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": paths},
                process_group=0,  # Ctrl-C is for this process alone
            )
            worker = WorkerProxy(process)
            self._workers.append(worker)
            self._send(worker, self._setup)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            for pipe in (worker.process.stdin, worker.process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def wait_ready(self) -> Ready:
        """Wait until every worker has opened its backend. Raises BulkError with the reason if one cannot."""
        while waiting := [worker for worker in self._workers if worker.ready is None]:
            self._poll(waiting)
        ready = self._workers[0].ready
        assert ready is not None
        return ready

    def results(self, source: Source) -> Iterator[Result]:
        """Yield the results of all lines of `source`, in order. Raises BulkError."""
        while True:
            self._hand_out(source)
            if source.failure is not None and self._only_cut_line_left(source):
                raise source.failure
            if not self._turns and source.is_done:
                return
            self._wait(source)
            yield from self._due()

    def _only_cut_line_left(self, source: Source) -> bool:
        """Return whether all results have come but that of a long line whose end cannot be read."""
        if self._long is None:
            return not self._turns and source.is_broken_off
        return self._turns[0] is self._long and len(self._long.chunks) == 1 and not self._long.messages

    def _hand_out(self, source: Source) -> None:
        while (worker := self._free_worker()) is not None:
            while source.wants_more and source.is_readable():
                source.read()
            partial = not worker.chunks
            chunk = source.take(self._share.lines, self._chunk_bytes(source.num_left), partial=partial)
            if chunk is None:
                return
            self._give(worker, chunk, source.label(chunk.file))

    def _free_worker(self) -> WorkerProxy | None:
        """Return the worker that takes the next chunk: of those with room the one that holds least."""
        if self._long is not None:
            return self._long if self._long.pieces_ahead < PIECES_AHEAD else None
        share = self._share
        free = [w for w in self._workers if w.lines_held < share.lines_held and w.bytes_held < share.bytes_held]
        return min(free, key=lambda worker: worker.bytes_held, default=None)

    def _chunk_bytes(self, num_left: int | None) -> int:
        """Return the size of the next chunk: smaller towards the end, so that all workers end at the same time."""
        share = self._share
        if num_left is None:
            return share.max_bytes
        return max(share.min_bytes, min(share.max_bytes, num_left // (4 * self._num_workers)))

    def _give(self, worker: WorkerProxy, chunk: Chunk, file: str) -> None:
        continues = self._long is worker
        ends = chunk.num_lines > 0
        if continues:
            worker.chunks[-1] = chunk
        else:
            worker.chunks.append(chunk)
            self._turns.append(worker)
            worker.held.append((chunk.num_lines, len(chunk.data)))
            worker.lines_held += chunk.num_lines
            worker.bytes_held += len(chunk.data)
        self._long = worker if chunk.is_long and not ends else None
        worker.pieces_ahead += chunk.is_long and not ends
        self._send(worker, Lines(chunk.data, chunk.first_line, chunk.is_long, ends, file))

    def _wait(self, source: Source) -> None:
        """Wait until a worker has written or, if a worker has room, there is more to read."""
        workers = [w for w in self._workers if w.chunks and (w is self._turns[0] or w.num_bytes < AHEAD_BYTES)]
        free = self._free_worker()
        # A worker that has something to do can wait for a full chunk; its results come first.
        self._poll(workers, source if free is not None and source.wants_more else None)

    def _poll(self, workers: list[WorkerProxy], source: Source | None = None) -> None:
        poll = select.poll()
        by_fd = {worker.stdout: worker for worker in workers}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        if source is not None:
            poll.register(source.fd, select.POLLIN)
        for fd, _ in poll.poll():
            if fd in by_fd:
                self._receive(by_fd[fd])
            elif source is not None:
                source.read()

    def _receive(self, worker: WorkerProxy) -> None:
        data = os.read(worker.stdout, READ_BYTES)
        if not data:
            raise BulkError(_ended(worker.process))
        for message in worker.frames.feed(data):
            match message:
                case Ready():
                    worker.ready = message
                case Failed():
                    raise BulkError(message.message)
                case Took():
                    worker.pieces_ahead -= 1
                case Part() | Bad() | Done():
                    worker.messages.append(message)
                    worker.num_bytes += len(message.data) if isinstance(message, Part) else 0

    def _due(self) -> Iterator[Result]:
        """Yield the results that have come, as far as it is their turn."""
        while self._turns and (worker := self._turns[0]).messages:
            message = worker.messages.popleft()
            chunk = worker.chunks[0]
            if isinstance(message, Part):
                worker.num_bytes -= len(message.data)
                yield Result(chunk, data=message.data)
            elif isinstance(message, Bad):
                yield Result(chunk, problem=message.problem)
            else:
                self._turns.popleft()
                worker.chunks.popleft()
                num_lines, num_bytes = worker.held.popleft()
                worker.lines_held -= num_lines
                worker.bytes_held -= num_bytes
                yield Result(chunk, done=message)

    def _send(self, worker: WorkerProxy, message: Setup | Lines) -> None:
        try:
            write_all(worker.stdin, frame(message))
        except BrokenPipeError:
            self._receive_last(worker)

    def _receive_last(self, worker: WorkerProxy) -> None:
        """Read the reason from a worker that reads no more."""
        while True:
            self._receive(worker)


def _ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code < 0:
        return f"a worker process was ended by signal {-code}, perhaps for want of memory; see --jobs"
    return f"a worker process failed (exit code {code}); what it wrote above says why"

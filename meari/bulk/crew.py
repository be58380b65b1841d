"""The worker processes: hands chunks out as they have room, and gives results back in the order of the input.

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
from meari.bulk.source import Source

__all__ = ["Crew", "Result", "Share"]

READ_BYTES: Final = 1 << 18
AHEAD_BYTES: Final = 1 << 23  # of results held for one worker whose turn has not come
PIECES_AHEAD: Final = 3  # of a long line, not taken by its worker yet
END_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Share:
    """How much work a chunk is, and how much one worker holds at a time."""

    lines: int
    min_bytes: int
    max_bytes: int
    lines_held: int
    bytes_held: int


@dataclass(frozen=True, slots=True)
class Result:
    """Some output, or before that of a bad line what is wrong with it, or with `done` the end of a chunk."""

    chunk: Chunk
    data: bytes = b""
    problem: str = ""
    done: Done | None = None


@dataclass(eq=False)
class Hand:
    """One worker, seen from here."""

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
        """What it reads."""
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    @property
    def stdout(self) -> int:
        """What it writes."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


class Crew:
    """Use it as a context manager: at its end no worker is left."""

    def __init__(self, num_workers: int, setup: Setup, share: Share) -> None:
        self._num_workers = num_workers
        self._setup = setup
        self._share = share
        self._hands: list[Hand] = []
        self._turns: deque[Hand] = deque()  # whose result is next
        self._long: Hand | None = None  # who gets the rest of the line that is being cut

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
            hand = Hand(process)
            self._hands.append(hand)
            self._send(hand, self._setup)
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self._hands:
            for pipe in (hand.process.stdin, hand.process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            hand.process.terminate()
        for hand in self._hands:
            try:
                hand.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                hand.process.kill()
                hand.process.wait()

    def wait_ready(self) -> Ready:
        """Until every worker has opened the bundle. Raises BulkError with what went wrong."""
        while waiting := [hand for hand in self._hands if hand.ready is None]:
            self._poll(waiting)
        ready = self._hands[0].ready
        assert ready is not None
        return ready

    def results(self, source: Source) -> Iterator[Result]:
        """Everything that comes of the lines of `source`, in order. Raises BulkError."""
        while True:
            self._hand_out(source)
            if source.failure is not None and self._only_cut_line_left(source):
                raise source.failure
            if not self._turns and source.is_done:
                return
            self._wait(source)
            yield from self._due()

    def _only_cut_line_left(self, source: Source) -> bool:
        """Whether everything has come but a long line whose end cannot be read."""
        if self._long is None:
            return not self._turns and source.is_broken_off
        return self._turns[0] is self._long and len(self._long.chunks) == 1 and not self._long.messages

    def _hand_out(self, source: Source) -> None:
        while (hand := self._free_hand()) is not None:
            while source.wants_more and source.is_readable():
                source.read()
            partial = not hand.chunks
            chunk = source.take(self._share.lines, self._chunk_bytes(source.num_left), partial=partial)
            if chunk is None:
                return
            self._give(hand, chunk, source.label(chunk.file))

    def _free_hand(self) -> Hand | None:
        """Who takes the next chunk: of those with room, who has least."""
        if self._long is not None:
            return self._long if self._long.pieces_ahead < PIECES_AHEAD else None
        share = self._share
        free = [h for h in self._hands if h.lines_held < share.lines_held and h.bytes_held < share.bytes_held]
        return min(free, key=lambda hand: hand.bytes_held, default=None)

    def _chunk_bytes(self, num_left: int | None) -> int:
        """Smaller ones towards the end, so that all workers end at the same time."""
        share = self._share
        if num_left is None:
            return share.max_bytes
        return max(share.min_bytes, min(share.max_bytes, num_left // (4 * self._num_workers)))

    def _give(self, hand: Hand, chunk: Chunk, file: str) -> None:
        goes_on = self._long is hand
        ends = chunk.num_lines > 0
        if goes_on:
            hand.chunks[-1] = chunk
        else:
            hand.chunks.append(chunk)
            self._turns.append(hand)
            hand.held.append((chunk.num_lines, len(chunk.data)))
            hand.lines_held += chunk.num_lines
            hand.bytes_held += len(chunk.data)
        self._long = hand if chunk.is_long and not ends else None
        hand.pieces_ahead += chunk.is_long and not ends
        self._send(hand, Lines(chunk.data, chunk.first_line, chunk.is_long, ends, file))

    def _wait(self, source: Source) -> None:
        """Until a worker has written or, where somebody could take more, there is more to read."""
        hands = [h for h in self._hands if h.chunks and (h is self._turns[0] or h.num_bytes < AHEAD_BYTES)]
        free = self._free_hand()
        # A worker that has something to do can wait for a full chunk; its results come first.
        self._poll(hands, source if free is not None and source.wants_more else None)

    def _poll(self, hands: list[Hand], source: Source | None = None) -> None:
        poll = select.poll()
        by_fd = {hand.stdout: hand for hand in hands}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        if source is not None:
            poll.register(source.fd, select.POLLIN)
        for fd, _ in poll.poll():
            if fd in by_fd:
                self._receive(by_fd[fd])
            elif source is not None:
                source.read()

    def _receive(self, hand: Hand) -> None:
        data = os.read(hand.stdout, READ_BYTES)
        if not data:
            raise BulkError(_ended(hand.process))
        for message in hand.frames.feed(data):
            match message:
                case Ready():
                    hand.ready = message
                case Failed():
                    raise BulkError(message.message)
                case Took():
                    hand.pieces_ahead -= 1
                case Part() | Bad() | Done():
                    hand.messages.append(message)
                    hand.num_bytes += len(message.data) if isinstance(message, Part) else 0

    def _due(self) -> Iterator[Result]:
        """What has come and whose turn it is."""
        while self._turns and (hand := self._turns[0]).messages:
            message = hand.messages.popleft()
            chunk = hand.chunks[0]
            if isinstance(message, Part):
                hand.num_bytes -= len(message.data)
                yield Result(chunk, data=message.data)
            elif isinstance(message, Bad):
                yield Result(chunk, problem=message.problem)
            else:
                self._turns.popleft()
                hand.chunks.popleft()
                num_lines, num_bytes = hand.held.popleft()
                hand.lines_held -= num_lines
                hand.bytes_held -= num_bytes
                yield Result(chunk, done=message)

    def _send(self, hand: Hand, message: Setup | Lines) -> None:
        try:
            write_all(hand.stdin, frame(message))
        except BrokenPipeError:
            self._receive_last(hand)

    def _receive_last(self, hand: Hand) -> None:
        """A worker that reads no more has said why, or has ended."""
        while True:
            self._receive(hand)


def _ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code < 0:
        return f"a worker process was ended by signal {-code}, perhaps for want of memory; see --jobs"
    return f"a worker process failed (exit code {code}); what it wrote above says why"

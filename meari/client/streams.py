"""A text that comes piece by piece.

Input: a generator of choices. Output: an iterator that can be closed. Must not know: where the model runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self, TypeAlias

from meari.client.answers import Choice, Generation, Usage

__all__ = ["Pieces", "Stream", "StreamEnd"]

Pieces: TypeAlias = Generator[Choice, None, Generation | None]  # choices as they grow, then the answer without them


class StreamEnd:
    """The end of a stream.

    end    the answer without its choices once the stream has ended, None before
    """

    end: Generation | None = None

    @property
    def usage(self) -> Usage | None:
        """Tokens that were read and written, once the stream has ended."""
        return None if self.end is None else self.end.usage

    @property
    def seed(self) -> int | None:
        """Seed that repeats the text, once the stream has ended."""
        return None if self.end is None else self.end.seed


class Stream(StreamEnd):
    """Continuation of a prompt as it is written: an iterator of `Choice`, each with the text since the last one.

    `print(choice, end="")` writes that text. The last choice of a sample has `finish_reason`. A stream that is left
    early should be closed, or used in a `with` statement: the model then stops within a few tokens.

    Iterating raises what `generate` raises, `meari.RemoteError` if the stream of a service is cut off, and RuntimeError
    in a process that was forked since the stream began: it goes on in the one that began it.
    """

    def __init__(self, pieces: Pieces, cancel: Callable[[], None]) -> None:
        self._pieces = pieces
        self._cancel = cancel
        self._process = os.getpid()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Choice:
        if os.getpid() != self._process:
            raise RuntimeError("the stream goes on in the process that began it alone: begin another after the fork")
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.end = self.end or end.value
            raise StopIteration from None

    def close(self) -> None:
        """Stop writing; nothing in a process that was forked since the stream began."""
        if os.getpid() == self._process:
            self._pieces.close()
            self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

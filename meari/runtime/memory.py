"""What memory the process has, and what the C library's allocator keeps for itself, made small.

Without glibc nothing is made small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = ["keep_freed_memory", "limit_arenas", "release_free_memory", "resident_bytes"]

_M_TRIM_THRESHOLD: Final = -1  # as in malloc.h, like the next two
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
NUM_ARENAS: Final = 2
KEPT_BYTES: Final = 1 << 27
MAPPED_BYTES: Final = 1 << 25  # as much as glibc allows


def limit_arenas() -> None:
    """To be called before there are threads, which would have up to eight arenas a CPU.

    What is freed in one arena is of no use to the others. The threads here take turns at the interpreter in any case;
    the engine, while it runs a graph, has a second arena.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, NUM_ARENAS)


def keep_freed_memory() -> None:
    """For a process that takes large arrays over and over: what it frees it uses again, up to KEPT_BYTES.

    Else the C library gives them back to the system and has them anew page by page, which costs as much as a pass over
    them. There is one arena then: others are mapped and unmapped in pieces that large arrays do not fit into.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def resident_bytes() -> int:
    """Bytes of the process that are in memory, pages that it shares with others included."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def release_free_memory() -> None:
    """Give back what loading has left free in the heap."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)

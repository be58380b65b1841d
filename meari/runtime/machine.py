"""The machine under a process: the CPUs that it may use, their kind, and its memory.

Input: files of the Linux kernel (affinity, cgroup v1 or v2, /proc). Output: counts, names, bytes. Must not know: the
engine, the service. Without glibc the functions that tune the heap do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
from pathlib import Path
from typing import Final

__all__ = [
    "cpu_name",
    "freeze_objects",
    "granted_cpus",
    "granted_memory",
    "keep_freed_memory",
    "limit_arenas",
    "map_large_pieces",
    "release_free_memory",
    "resident_bytes",
]

_M_TRIM_THRESHOLD: Final = -1  # as in malloc.h, like the next two
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
NUM_ARENAS: Final = 1
KEPT_BYTES: Final = 1 << 27
MAPPED_BYTES: Final = 1 << 25  # as much as glibc allows
LARGE_BYTES: Final = 1 << 19
TOP_BYTES: Final = 1 << 23  # of freed memory at the end of the heap
CGROUPS: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
UNKNOWN_MEMORY: Final = 1 << 62  # where no file tells
# On them depend the last bits of products of matrices.
INSTRUCTIONS = frozenset(("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve"))


def cpu_name(description: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of CPU: what it is called, and the instructions that results depend on."""
    lines = reversed(_read(description).splitlines())
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    used = [each for each in (found.get("flags") or found.get("Features", "")).split() if each in INSTRUCTIONS]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(used)})" if used else name


def granted_cpus(cgroup_root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """CPUs of the affinity mask, or the cgroup's quota where that is less; a part of a CPU does not count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _folders("cpu", cgroup_root, membership) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *(int(quota) for quota in quotas)]))


def granted_memory(
    cgroup_root: Path = CGROUPS, membership: Path = MEMBERSHIP, described: Path = Path("/proc/meminfo")
) -> int:
    """Bytes of the machine's memory, or of the cgroup's limit where that is less."""
    total = next((line.split()[1] for line in _read(described).splitlines() if line.startswith("MemTotal:")), "")
    limits = [int(total) * 1024] if total.isdigit() else [UNKNOWN_MEMORY]
    for folder in _folders("memory", cgroup_root, membership):
        words = (_read(folder / name).strip() for name in ("memory.max", "memory.limit_in_bytes"))
        limits += [int(word) for word in words if word.isdigit()]  # "max": no limit of its own
    return min(limits)


def _folders(controller: str, root: Path, membership: Path) -> list[Path]:
    """Folders that may hold this process' limit: its own group and every group above it, in both versions.

    In a container its own group is often mounted as the root, while `membership` still names the host's path.
    """
    folders = [root, root / controller]
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / controllers
        group = mount / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return list(dict.fromkeys(folders))


def _quota(folder: Path) -> float | None:
    """CPUs that the group may use, None where it has no limit of its own."""
    both = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(),
        _read(folder / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = (float(value) for value in both)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


@functools.cache
def _libc() -> ctypes.CDLL:
    """Open the C library once: whatever is opened is part of a circle, which only a collection frees."""
    return ctypes.CDLL("libc.so.6")


def limit_arenas() -> None:
    """Limit malloc's arenas; call it before any thread starts, as glibc allows up to eight arenas per CPU.

    Memory freed in one arena cannot be reused by the others, so a busy worker with several keeps growing. The threads
    take turns at the interpreter anyway. An operator's own setting (MALLOC_ARENA_MAX, GLIBC_TUNABLES) is left as it is.
    """
    if "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(OSError, AttributeError):
        _libc().mallopt(_M_ARENA_MAX, NUM_ARENAS)


def map_large_pieces() -> None:
    """Give pieces of LARGE_BYTES and more to the system as soon as they are freed.

    By itself glibc puts ever larger ones on the heap, once one as large was freed. There each needs a hole of its size,
    which smaller pieces soon lie in, so that the heap of a busy worker keeps growing. An operator's own setting
    (MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES) is left as it is.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = _libc()
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, TOP_BYTES)


def keep_freed_memory() -> None:
    """Keep up to KEPT_BYTES of freed memory, for a process that allocates large arrays repeatedly.

    Otherwise the C library returns them to the system and maps them again page by page, which costs as much as a pass
    over them. One arena is used: secondary arenas grow in pieces that are too small for large arrays.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = _libc()
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def freeze_objects() -> None:
    """Leave all objects of now out of garbage collections, for a process that has opened what it works with.

    Many short-lived objects set off full collections, each of which would look at every object of every import.
    """
    gc.collect()
    gc.freeze()


def resident_bytes() -> int:
    """Bytes of the process that are in memory, pages shared with others included.

    The file stays open: a process that may open no more files still knows its memory.
    """
    return int(os.pread(_statm(os.getpid()), 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _statm(_pid: int) -> int:
    """Open the kernel's figures of this process; after a fork they are those of another one."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def release_free_memory() -> None:
    """Give back what loading has left free in the heap."""
    with contextlib.suppress(OSError, AttributeError):
        _libc().malloc_trim(0)

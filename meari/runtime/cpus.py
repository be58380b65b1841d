"""How many CPUs this process may really use: the scheduler's affinity and the container's quota, not the host's cores;
and what they are called.

Enters: files of the Linux kernel (cgroup v2 or v1). Leaves: a count of at least one, or a name. Knows nothing
of the service.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["cpu_name", "granted_cpus"]

# On them depend the last bits of products of matrices.
INSTRUCTIONS = frozenset(("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve"))


def cpu_name(description: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of CPU: what it is called, and the instructions that results depend on."""
    lines = reversed(_read(description).splitlines())
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    used = [each for each in (found.get("flags") or found.get("Features", "")).split() if each in INSTRUCTIONS]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(used)})" if used else name


def granted_cpus(cgroup_root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """CPUs of the affinity mask, or the cgroup's quota where that is less; a part of a CPU does not count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _folders(cgroup_root, membership) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *(int(quota) for quota in quotas)]))


def _folders(root: Path, membership: Path) -> list[Path]:
    """Folders that may hold this process' quota: its own group and every group above it, in both versions."""
    folders = [root, root / "cpu", root / "cpu,cpuacct"]
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mount = root if not controllers else root / controllers
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = mount / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if mount in parent.parents)]
    return folders


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

"""Machine of a run: the CPU, the system, and the versions of the measured packages.

Input: nothing. Output: plain values for the page. Must not know: figures.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "meari",
    "onnxruntime",
    "numpy",
    "flask",
    "gunicorn",
    "torch",
    "litserve",
    "mosec",
    "bentoml",
    "ray",
    "kenlm",
)
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "neon", "asimddp")


def describe() -> dict[str, Any]:
    """Return plain values for the page."""
    return {
        "cpu": _cpu(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    known = ", ".join(flag for flag in FLAGS if flag in flags)
    return f"{fields.get('model name', platform.machine())} ({known})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

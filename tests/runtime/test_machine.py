"""Test what a process learns of the machine: CPUs and memory as real trees of both versions of cgroups grant them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meari.runtime import machine
from meari.runtime.machine import granted_cpus, granted_memory

MIB = 1 << 20
NO_LIMIT = str((1 << 63) - 4096)  # as version 1 writes it
MEMINFO = "MemTotal:       24689664 kB\nMemFree:        18000000 kB\n"
HASH = "48c00e45cf54a3ca2d5bade99d67af009b2ef2a8e907b88418faa6e89f0b9dcf"


@dataclass(frozen=True)
class Tree:
    """Files below /sys/fs/cgroup, the content of /proc/self/cgroup, and what they grant.

    cpus    None: as many as the affinity mask has
    memory  MiB, None: the machine's
    """

    files: dict[str, str]
    membership: str
    cpus: int | None
    memory: int | None = field(default=None)


def v1(quota: str, limit: str, place: str = "", cpu: str = "cpu", period: str = "100000") -> dict[str, str]:
    """Return the files of one group of version 1."""
    return {
        f"{cpu}{place}/cpu.cfs_quota_us": f"{quota}\n",
        f"{cpu}{place}/cpu.cfs_period_us": f"{period}\n",
        f"memory{place}/memory.limit_in_bytes": f"{limit}\n",
    }


def v2(quota: str, limit: str, place: str = "") -> dict[str, str]:
    """Return the files of one group of version 2."""
    return {f"{place}cpu.max": f"{quota} 100000\n", f"{place}memory.max": f"{limit}\n"}


def lines(path: str, cpu: str = "cpu") -> str:
    """Return a membership of version 1 in the same group of each hierarchy."""
    return f"9:name=systemd:{path}\n4:memory:{path}\n3:cpuset:{path}\n2:{cpu}:{path}\n0::{path}\n"


POD = "/kubepods/burstable/pod7f1c/" + HASH
SLICE = f"kubepods.slice/kubepods-burstable.slice/kubepods-pod7f1c.slice/cri-{HASH}.scope/"
TREES = {
    "version 2, a container": Tree(v2("100000", str(512 * MIB)), "0::/\n", 1, 512),
    "version 2, no limits": Tree(v2("max", "max"), "0::/\n", None),
    "version 2, a part of a CPU": Tree(v2("50000", str(64 * MIB)), "0::/\n", 1, 64),
    "version 2, one and a half CPUs": Tree(v2("150000", "max"), "0::/\n", 1),
    "version 2, the host's view": Tree(v2("100000", str(256 * MIB), SLICE), f"0::/{SLICE.rstrip('/')}\n", 1, 256),
    "version 2, the pod has the limit": Tree(
        v2("max", "max", SLICE) | v2("100000", str(128 * MIB), SLICE.rsplit("/", 2)[0] + "/"),
        f"0::/{SLICE.rstrip('/')}\n",
        1,
        128,
    ),
    "version 2, the least limit counts": Tree(
        v2("max", str(512 * MIB), "a/b/") | v2("100000", str(900 * MIB), "a/"), "0::/a/b\n", 1, 512
    ),
    "version 2, a neighbour's limit": Tree(v2("100000", str(64 * MIB), "other/"), "0::/own\n", None),
    "version 2, another name space": Tree(v2("100000", str(96 * MIB)), "0::/../../other\n", 1, 96),
    "version 1, a container": Tree(v1("100000", str(512 * MIB)), lines(f"/docker/{HASH}"), 1, 512),
    "version 1, no limits": Tree(v1("-1", NO_LIMIT), lines(f"/docker/{HASH}"), None),
    "version 1, joined controllers": Tree(
        v1("100000", str(300 * MIB), cpu="cpu,cpuacct"), lines(f"/docker/{HASH}", "cpu,cpuacct"), 1, 300
    ),
    "version 1, joined the other way": Tree(
        v1("100000", str(300 * MIB), cpu="cpuacct,cpu"), lines(f"/docker/{HASH}", "cpuacct,cpu"), 1, 300
    ),
    "version 1, the host's view": Tree(v1("100000", str(200 * MIB), POD), lines(POD), 1, 200),
    "version 1, the pod has the limit": Tree(
        v1("-1", NO_LIMIT, POD) | v1("100000", str(100 * MIB), POD.rsplit("/", 1)[0]), lines(POD), 1, 100
    ),
    "version 1, another period": Tree(v1("10000", NO_LIMIT, period="20000"), lines("/"), 1),
    "both versions": Tree(
        v1("100000", str(150 * MIB)) | {"unified/cgroup.procs": ""}, lines(f"/docker/{HASH}"), 1, 150
    ),
    "no tree": Tree({}, "", None),
    "garbage": Tree({"cpu.max": "\x7f", "memory.max": "-1", "cpu/cpu.cfs_quota_us": "a lot"}, "::::\nx\n0::/\n", None),
}


@pytest.mark.parametrize("name", TREES)
def test_cpus_and_memory_are_those_that_the_cgroup_grants(tmp_path: Path, name: str) -> None:
    tree = TREES[name]
    for place, content in tree.files.items():
        (tmp_path / "root" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / place).write_text(content, "ascii")
    (tmp_path / "membership").write_text(tree.membership, "ascii")
    (tmp_path / "meminfo").write_text(MEMINFO, "ascii")
    places = (tmp_path / "root", tmp_path / "membership")
    unlimited = granted_cpus(tmp_path / "nothing", tmp_path / "nothing")
    assert granted_cpus(*places) == (tree.cpus or unlimited)
    expected = 24689664 * 1024 if tree.memory is None else tree.memory * MIB
    assert granted_memory(*places, tmp_path / "meminfo") == expected


def test_set_of_cpus_bounds_their_number(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert granted_cpus(tmp_path, tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_memory_is_unbounded_where_no_file_tells(tmp_path: Path) -> None:
    assert granted_memory(tmp_path, tmp_path, tmp_path / "nothing") == machine.UNKNOWN_MEMORY

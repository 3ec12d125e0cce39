"""
What a process may use of its machine: its control groups, and the CPUs that they and its affinity leave it.

    affinity: which CPUs ──┐
    quota: how much time ──┴──▶ the smaller one

Sources: the files of cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`, `cpu.cfs_period_us`) in the Linux kernel's
documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc.

Nothing here has state.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from os import PathLike
from typing import Final

_UNIFIED: Final = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
"""Where version 2 is mounted: alone, or beside version 1."""


def cpus(root: str | PathLike[str] = "/") -> int:
    """
    Count the CPUs that this process may use; at least 1.

    A quota of one and a half counts as two: what runs now and then is better stopped for a moment than never begun.

    Args:
        root: Where the system's files begin.
    """
    shares = [share for share in _shares(os.fspath(root)) if share > 0]
    return max(1, min([_affinity(), *(math.ceil(share) for share in shares)]))


def _affinity() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shares(root: str) -> Iterator[float]:
    """Yield the quotas of this process's control groups, and of those around them, in CPUs."""
    for version, group in control_groups("cpu", root):
        yield from _share_v2(group) if version == 2 else _share_v1(group)


def control_groups(controller: str, root: str) -> Iterator[tuple[int, str]]:
    """
    Yield the control groups of this process, and those around them: the version of each, and its folder.

    In a container, some of these folders may not be there.

    Args:
        controller: What they are to control: `cpu`, `memory`. (A group of version 2 may control anything.)
        root: Where the system's files begin.
    """
    for line in read(f"{root}/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for mount in _UNIFIED:
                yield from ((2, group) for group in _around(f"{root}/{mount}", path))
        elif controller in controllers.split(","):
            for name in dict.fromkeys((controller, controllers)):
                yield from ((1, group) for group in _around(f"{root}/sys/fs/cgroup/{name}", path))


def _around(mount: str, path: str) -> Iterator[str]:
    """Yield the folder of a group, and those of all around it."""
    group = path.strip("/")
    while group:
        yield f"{mount}/{group}"
        group = group.rpartition("/")[0]
    yield mount


def _share_v2(group: str) -> Iterator[float]:
    quota, _, period = read(f"{group}/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def _share_v1(group: str) -> Iterator[float]:
    quota, period = (read(f"{group}/{name}").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period):  # a quota of -1 is none
        yield int(quota) / int(period)


def read(path: str) -> str:
    """Read a file of the system; empty if there is none, or none that this process may read."""
    try:
        with open(path, encoding="utf-8") as file:  # without pathlib, which takes as long to load as ten of these
            return file.read()
    except OSError:
        return ""

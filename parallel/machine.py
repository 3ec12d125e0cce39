"""
What a process may use of its machine: the CPUs that its affinity and the quota of its control groups leave it.

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
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Final, TypeAlias

_UNIFIED: Final = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
"""Where version 2 is mounted: alone, or beside version 1."""

Share: TypeAlias = Callable[[str], Iterator[float]]
"""Yields the quota of the control group in a folder, if it has one."""


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
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for mount in _UNIFIED:
                yield from _each(f"{root}/{mount}", path, _share_v2)
        elif "cpu" in controllers.split(","):
            for name in dict.fromkeys(("cpu", controllers)):
                yield from _each(f"{root}/sys/fs/cgroup/{name}", path, _share_v1)


def _each(mount: str, path: str, share: Share) -> Iterator[float]:
    """Yield the quotas of a group and of all around it; in a container, some of the path may not be there."""
    group = path.strip("/")
    while group:
        yield from share(f"{mount}/{group}")
        group = group.rpartition("/")[0]
    yield from share(mount)


def _share_v2(group: str) -> Iterator[float]:
    quota, _, period = _read(f"{group}/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def _share_v1(group: str) -> Iterator[float]:
    quota, period = (_read(f"{group}/{name}").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period):  # a quota of -1 is none
        yield int(quota) / int(period)


def _read(path: str) -> str:
    """Read a file of the system; empty if there is none, or none that this process may read."""
    try:
        with open(path, encoding="utf-8") as file:  # without pathlib, which takes as long to load as ten of these
            return file.read()
    except OSError:
        return ""

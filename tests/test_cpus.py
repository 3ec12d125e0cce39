"""
The CPUs that a process may use: by its affinity, and by the quotas of its control groups.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parallel import machine
from parallel.machine import cpus


def system(root: Path, files: dict[str, str]) -> Path:
    """Lay files of the system out under *root*."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The affinity leaves sixteen CPUs."""
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr(machine.os, "process_cpu_count", lambda: 16)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


V2 = "0::/jobs/mine\n"
V1 = "3:cpuset:/\n2:cpu,cpuacct:/jobs/mine\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, 16),
        ({"proc/self/cgroup": V2}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "9900000 100000\n"}, 16),
        (  # that of the group around it is the smaller one
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/jobs/mine/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "300000 100000\n",
            },
            3,
        ),
        # In a container, the path may be the host's, and only its own group be there.
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/unified/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/jobs/mine/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/jobs/mine/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        ({"proc/self/cgroup": "nonsense\n\x00", "sys/fs/cgroup/cpu.max": "so much"}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "100000 0\n"}, 16),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/cpu.max": "0 100000\n"}, 16),
    ],
)
def test_the_smaller_one_counts(files: dict[str, str], found: int, tmp_path: Path) -> None:
    """Of affinity and quotas the smallest holds, rounded up; what can't be read holds nothing back."""
    assert cpus(system(tmp_path, files)) == found


def test_this_machine() -> None:
    """At least one CPU is there."""
    assert 1 <= cpus() <= 16

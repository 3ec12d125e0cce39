"""
The memory of this process: how much it has in use, and its limit.

Nothing here has state. A worker process loads this module: it stays light.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def can_limit_memory() -> bool:
    """Tell whether a process of this platform can limit its own memory."""
    try:
        import resource as resource  # not everywhere
    except ImportError:
        return False
    return True


def limit_memory(most: int) -> None:
    """
    Have allocations of this process, and of those that it starts, fail beyond so many bytes.

    On Linux, RLIMIT_DATA counts what is written privately: heaps, stacks, large arrays. RLIMIT_AS would also count what
    is only mapped: the code of libraries, and memory that is shared with other processes.
    """
    import resource  # not everywhere

    which = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    _, ceiling = resource.getrlimit(which)
    resource.setrlimit(which, (most if ceiling == resource.RLIM_INFINITY else min(most, ceiling), ceiling))


def resident() -> int:
    """Return the bytes of memory that this process has in use; where the system doesn't tell, the most it ever had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        import resource  # not everywhere; on Linux it isn't needed

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

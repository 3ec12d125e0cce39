"""
What the tests of how workers start send to them; some of it is imported by name only.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

PARENT = os.environ.get("START_JOBS_PARENT")  # read when this is loaded, as numerical libraries do
THREADS = os.environ.get("OMP_NUM_THREADS")
HERE = os.getcwd()


def variable(name: str) -> str | None:
    """The value of a variable of the environment."""
    return os.environ.get(name)


def when_loaded() -> tuple[str | None, str | None, str]:
    """What was there when this module was loaded: two variables, and the working directory."""
    return PARENT, THREADS, HERE


def is_loaded(name: str) -> bool:
    """Whether a module is loaded."""
    return name in sys.modules


def parent() -> int:
    """The process id of the parent."""
    return os.getppid()


def attribute(module: str, name: str) -> Any:
    """What a loaded module has under that name."""
    return getattr(sys.modules[module], name)


def allocate(size: int) -> int:
    """Take that much memory, and return how much it was."""
    return len(bytearray(size))


_kept: list[bytearray] = []


def keep(size: int) -> int:
    """Take that much memory for good, and tell who has done so."""
    _kept.append(bytearray(os.urandom(1) * size))
    return os.getpid()


def threads() -> list[str]:
    """The names of the threads."""
    return [thread.name for thread in threading.enumerate()]

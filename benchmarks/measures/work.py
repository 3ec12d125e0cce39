"""What is called: plain functions that do as little as can be, or take as long as they are told."""

from __future__ import annotations

import time
from collections.abc import Callable


def nothing() -> None:
    """Do nothing."""


def one() -> int:
    """Begin a chain."""
    return 1


def same(value: int) -> int:
    """Hand a value on."""
    return value


def one_more(value: int) -> int:
    """Add one."""
    return value + 1


async def same_later(value: int) -> int:
    """Hand a value on, as a coroutine function."""
    return value


def pause(seconds: float) -> None:
    """Take so long, and nothing of the CPU."""
    time.sleep(seconds)


def busy(seconds: float) -> None:
    """Take so long of the CPU."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(100))


def timed(fn: Callable[[float], None], seconds: float) -> float:
    """Call a function; return how many seconds that took."""
    start = time.perf_counter()
    fn(seconds)
    return time.perf_counter() - start

"""
Functions that are recorded.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from parallel import Retry, gather, parallel_map, task

heard: list[object] = []
"""What `hear` was told."""


def hear(event: object) -> None:
    """Keep an event; what a configuration names."""
    heard.append(event)


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def fail(number: int) -> int:
    """Raise."""
    raise ValueError(f"no {number}")


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def nap(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


async def later_nap(seconds: float) -> None:
    """Sleep."""
    await asyncio.sleep(seconds)


def total(numbers: list[int | None]) -> int:
    """Add those that are there."""
    return sum(number or 0 for number in numbers)


async def later(number: int) -> int:
    """Return the number, a little later."""
    await asyncio.sleep(0.01)
    return number


@task(pool="threads")
def on_thread(number: int) -> int:
    """Run on a thread."""
    return double(number)


@task(pool="processes")
def in_process(number: int) -> int:
    """Run in a process."""
    return double(number)


@task(pool="threads")
def outer(number: int) -> int:
    """Make two calls, and wait for them."""
    return sum(gather(on_thread(number), in_process(number)).result())


@task(pool="threads", retry=Retry(on=OSError, attempts=3, wait_initial=0.001))
def flaky() -> None:
    """Fail each time."""
    raise OSError("not yet")


@parallel_map(pool="processes")
def mapped(number: int) -> int:
    """Run for each item."""
    return double(number)

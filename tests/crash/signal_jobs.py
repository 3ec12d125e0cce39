"""
What the programs of `test_signals` run in workers.
"""

from __future__ import annotations

import asyncio
import os
import time

import parallel
from parallel import Registry


def say(text: str) -> None:
    """Print a line, in one step."""
    os.write(1, f"{text}\n".encode())


def pause(text: str = "in") -> None:
    """Take very long, but stop when asked to."""
    say(text)
    parallel.sleep(600)


def hold(text: str = "in") -> None:
    """Take very long, whatever is asked."""
    say(text)
    time.sleep(600)


async def pause_on_loop(text: str = "in") -> None:
    """Take very long, but can be cancelled."""
    say(text)
    await asyncio.sleep(600)


def ran(number: int = 0) -> None:
    """Tell that this was run, which takes some time."""
    say(f"ran {number}")
    time.sleep(0.05)


async def ran_on_loop(number: int = 0) -> None:
    """Tell that this was run."""
    say(f"ran {number}")
    await asyncio.sleep(0.05)


LONG = {"thread": pause, "process": hold, "loop": pause_on_loop}
"""A call of each kind that takes very long, and that a Ctrl-C ends."""

QUEUED = {"thread": ran, "process": ran, "loop": ran_on_loop}
"""One that must not be run."""


def registry_of(kind: str) -> Registry:
    """Make a registry whose pool `here` has one worker of that kind."""
    return Registry({"pools": {"here": {"kind": kind, "max_workers": 1}}})


def same(value: object) -> object:
    """Return it."""
    return value


async def same_on_loop(value: object) -> object:
    """Return it."""
    return value


QUICK = {"thread": same, "process": same, "loop": same_on_loop}
"""A call of each kind that takes no time."""

"""
Whether the machine is short of memory: how much of it is free, and whether one more call may start.

    MemAvailable of the machine ───────┐
    room left in the control groups ───┴──▶ the smaller one ──▶ Shortage.holds_back() ◀── an engine, before each start

Who wants 2 GiB to be free expects a call to take about so much, and it has not taken it when it starts. So each call
that was begun since the reading before last, and still runs, counts as if it were to take that much: a hundred calls
that have waited don't all start on the first good reading. Where there is plenty this holds nothing back.

A pool of which nothing runs may always start one call: the shortage may be somebody else's and last for ever.

Sources: the Linux kernel's documentation, filesystems/proc (MemAvailable), admin-guide/cgroup-v2 (`memory.max`,
`memory.current`, `memory.stat`) and cgroup-v1/memory (`memory.limit_in_bytes`, `memory.usage_in_bytes`).

State: that of a `Shortage`, guarded by the lock of the engine that it belongs to, or its thread's own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib import import_module
from math import inf
from os import PathLike
from time import monotonic
from typing import Any, Final

from parallel.machine import control_groups, read
from parallel.sizes import Size, size, sized

LOGGER = logging.getLogger("parallel")

FRESH: Final = 0.05
"""Seconds for which a reading is used: one takes 50 to 250 µs, half a percent of that. The longer, the staler."""

UNLIMITED: Final = 2**60
"""Bytes from which on a limit is none: where version 1 has none, it says the most that a signed word can."""

LOOK: Final = 0.25
"""Seconds between two looks while calls wait. The more, the later they start again; the ends of calls are looks too."""

UNTOLD: Final = "expected nothing, as this system doesn't tell how much memory is free; psutil does, if it is installed"

SAME: Final = 10.0
"""Seconds within which a shortage that comes back is the same one, of which has been told: it often wavers."""


def free_memory(root: str | PathLike[str] = "/") -> int | None:
    """
    Return the bytes that processes may still take, before the machine swaps or their control groups' limits are hit.

    None if the system doesn't tell: it has no such files, and psutil isn't installed.

    Args:
        root: Where the system's files begin.
    """
    root = os.fspath(root)
    found = _number_of("MemAvailable:", f"{root}/proc/meminfo")
    if found is None:
        return _asked_of_psutil()
    return max(0, min([found * 1024, *_rooms(root)]))


def _rooms(root: str) -> Iterator[int]:
    """Yield what is left in this process's control groups, and in those around them, in bytes."""
    for version, group in control_groups("memory", root):
        if version == 2:
            yield from _room(group, "memory.max", "memory.current", "inactive_file")
        else:
            yield from _room(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _room(group: str, limit: str, used: str, cached: str) -> Iterator[int]:
    """Yield what is left in a group, if it has a limit; what it has only cached of files counts as free."""
    most = read(f"{group}/{limit}").strip()
    if not most.isdigit() or int(most) >= UNLIMITED:
        return
    now = read(f"{group}/{used}").strip()
    if now.isdigit():
        yield int(most) - int(now) + (_number_of(cached, f"{group}/memory.stat") or 0)


def _number_of(name: str, path: str) -> int | None:
    """Return the number behind *name* in a file of such lines."""
    for line in read(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def _asked_of_psutil() -> int | None:
    try:
        psutil: Any = import_module("psutil")  # not everywhere, and needed only where the files are not
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def check_memory_free(value: Size | None) -> int | None:
    """
    Return the memory that a pool is to leave free, in bytes; None: any.

    Raises:
        TypeError: *value* is no size, by its type.
        ValueError: It is none, or this system doesn't tell how much is free.
    """
    if value is None:
        return None
    try:
        least = size(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"memory_free: {error}") from None
    if free_memory() is None:
        raise ValueError(f"memory_free: {UNTOLD}")
    return least


def _free_memory_or(last: int) -> int:
    """Return how much is free; if that can't be read now, as there is no descriptor or no memory for it, *last*."""
    try:
        found = free_memory()
    except Exception:  # a worker that waits must not lose its step; and psutil may raise what it likes
        return last
    return last if found is None else found


class Shortage:
    """Says whether one more call of a pool may start."""

    def __init__(self, label: str, least: int) -> None:
        """
        Make one for an engine.

        Args:
            label: What messages call its pool.
            least: Bytes that have to be free where a call starts.
        """
        self._label = label
        self._least = least
        self._free = 0
        self._read_at = -inf
        self._begun = 0  # calls started since the last reading,
        self._begun_before = 0  # and between the one before and that
        self._short_at = -inf  # when it was short the last time
        self._news = ""  # what is to be logged, where no lock is held

    def holds_back(self, running: int) -> bool:
        """
        Tell whether the next call is to wait; if not, it is taken to start now.

        Args:
            running: Calls of this pool that run already, and don't wait for others.
        """
        short = self.is_short()
        young = min(self._begun + self._begun_before, running)
        if running and self._free < self._least * (young + 1):
            return True
        if short:
            self._note_lone_start()
        self._begun += 1
        return False

    def is_short(self) -> bool:
        """Tell whether less is free than has to be, by a reading that is not old."""
        now = monotonic()
        age = now - self._read_at
        if age >= FRESH:
            self._free = _free_memory_or(self._free)
            self._begun_before = self._begun if age < 2 * FRESH else 0
            self._begun = 0
            self._read_at = now
        return self._free < self._least

    def _note_lone_start(self) -> None:
        """Note that a call starts though memory is short, as nothing else runs; the first of a shortage is news."""
        now = monotonic()
        if now - self._short_at > SAME:
            free, least = sized(self._free - self._free % 10**6), sized(self._least)
            self._news = (
                f"{self._label}: {free} of memory are free, and {least} should be (memory_free): "
                "its calls are run one at a time until there is more"
            )
        self._short_at = now

    def tell(self) -> None:
        """Log what there is to be told: for where no lock is held, as handlers of the program run."""
        if self._news:
            news, self._news = self._news, ""
            LOGGER.warning("%s", news)

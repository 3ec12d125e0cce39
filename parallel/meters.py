"""
How far a map is: what has ended, how fast, how long it will take, and how that is written for people.

    add(), once per chunk ──▶ counts ──▶ at most ten times a second: a sample, and what a display shows

State: the counts and the samples of a `Meter` are changed by the one thread that calls `add`, and may be read by any:
each is read once, and one that is a moment old is as good.
"""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, cast

from parallel.checks import described
from parallel.context import era
from parallel.pools.base import Counts

INTERVAL: Final = 0.1
"""Seconds between two looks at the clock that have consequences; people don't see more, and each costs a little."""

SHARE: Final = 20
"""What a display may take of the time of the thread that adds: one part of so many. One that is slow is shown less."""

SAMPLES: Final = 100
"""How many are kept: the rate is that of the last ten seconds, or of the last hundred chunks if they take longer."""


class Progress(NamedTuple):
    """
    How far a map is.

    Attributes:
        done: The items that have ended, those that have failed among them.
        failed: The items that have failed.
        total: All items, as far as is known; None: nobody knows.
        elapsed: Seconds since its beginning.
        rate: Items a second, of late; 0.0 before the first has ended.
        left: Seconds that it will take still, at that rate; None: that can't be told.
        workers: Its workers that are alive.
        dashboard_link: Where the cluster that they belong to shows what it does; empty: there is none, or no such page.
    """

    done: int
    failed: int
    total: int | None
    elapsed: float
    rate: float
    left: float | None
    workers: int
    dashboard_link: str = ""


def total_of(iterables: Sequence[Iterable[object]], total: int | None) -> int | None:
    """
    Tell how many items a map has, as far as that can be known before: the shortest of its iterables ends it.

    Args:
        iterables: Those. What knows its length, or has a hint, is asked for it.
        total: What the program says; it counts more. None: nothing.

    Returns:
        The number, which may be wrong as hints may; None: nobody knows.

    Raises:
        TypeError: *total* is no integer.
        ValueError: It is less than 0.
    """
    if total is None:
        return min((length for each in iterables if (length := _length_of(each)) is not None), default=None)
    if not isinstance(cast("object", total), int) or isinstance(total, bool):
        raise TypeError(f"total: expected an integer of at least 0, found {described(total)}")
    if total < 0:
        raise ValueError(f"total: expected an integer of at least 0, found {described(total)}")
    return total


def _length_of(iterable: Iterable[object]) -> int | None:
    try:
        length = operator.length_hint(iterable, -1)
    except Exception:  # it is too long for `len`, or its own fails: that may not keep it from being iterated
        return None
    return None if length < 0 else length


class Meter:
    """
    Counts what has ended; the base of all displays.

    Args:
        total: How many items there are; None: nobody knows.
        stats: Tells what the pool does now. It is called from the thread that adds, and of a bar from the one
            that draws.
    """

    def __init__(self, total: int | None, stats: Callable[[], Counts]) -> None:
        self._total = total
        self._stats = stats
        self._done = self._failed = 0
        self._began = self._next = time.monotonic()
        self._samples = deque([(self._began, 0)], SAMPLES)
        self._era = era()
        self._closed = False

    def add(self, done: int, failed: int = 0) -> None:
        """
        Note that items have ended.

        Args:
            done: So many more, the failed ones among them.
            failed: So many of these have failed.
        """
        self._done += done
        self._failed += failed
        now = time.monotonic()
        if now >= self._next and self._is_here() and not self._closed:
            self._samples.append((now, self._done))
            self._show()
            self._next = max(now + INTERVAL, now + SHARE * (time.monotonic() - now))

    def close(self, *, interrupted: bool = False) -> None:
        """Note that the map has ended; a second time, nothing."""
        if not self._closed and self._is_here():
            self._closed = True
            self._end(interrupted)

    def progress(self) -> Progress:
        """Return how far it is."""
        now = time.monotonic()
        done, (since, before) = self._done, self._samples[0]
        total = self._total if self._total is not None and done <= self._total else None  # a hint may be wrong
        rate = (done - before) / (now - since) if now > since else 0.0
        left = (total - done) / rate if total is not None and rate > 0 else None
        pool = self._stats()
        return Progress(done, self._failed, total, now - self._began, rate, left, pool.workers, pool.dashboard_link)

    def _show(self) -> None:
        """Show how far it is, if that is due."""

    def _end(self, interrupted: bool) -> None:
        """Show how it ended."""

    def _is_here(self) -> bool:
        """Tell whether this is the process of the map: a forked child has no display."""
        return self._era == era()


class Words(NamedTuple):
    """
    How far a map is, in words; one that is empty has nothing to say.

    Attributes:
        items: `1,234/10,000`, or `1,234`.
        percent: `12%`: 100 only when all have ended.
        rate: `103/s`.
        time: `1:25 left`, `in 1:37`, or `interrupted after 0:12`.
        failed: `3 failed`.
        workers: `8 workers`.
        dashboard: The address of the page of its cluster.
    """

    items: str
    percent: str
    rate: str
    time: str
    failed: str
    workers: str
    dashboard: str


def in_words(now: Progress, ended: str = "") -> Words:
    """
    Write how far a map is.

    Args:
        now: That.
        ended: What to say before the time that it took: `in`, `interrupted after`; empty: it goes on.
    """
    total, rate = now.total, now.rate
    if ended:
        rate = now.done / now.elapsed if now.elapsed > 0 else 0.0
    return Words(
        items=f"{now.done:,}" if total is None else f"{now.done:,}/{total:,}",
        percent=f"{100 * now.done // total}%" if total else "",
        rate=how_often(rate) if now.done else "",
        time=_time_of(now, ended),
        failed=f"{now.failed:,} failed" if now.failed else "",
        workers="" if ended else f"{now.workers} worker{'' if now.workers == 1 else 's'}",
        dashboard="" if ended else now.dashboard_link,
    )


def _time_of(now: Progress, ended: str) -> str:
    if ended:
        return f"{ended} {clock(now.elapsed)}"
    return "" if now.left is None else f"{clock(now.left)} left"


def how_often(rate: float) -> str:
    """
    Write a rate, which is more than 0, in a few characters.

    >>> how_often(103.4), how_often(4.25), how_often(0.5), how_often(0.001), how_often(1_234_567)
    ('103/s', '4.2/s', '30/min', '3.6/h', '1.2M/s')
    """
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 1 or unit == "h":
            return f"{_short(rate * seconds)}/{unit}"
    raise AssertionError("an hour is always good enough")


def _short(number: float) -> str:
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * (10 if letter == "k" else 1):
            return f"{number / size:,.0f}{letter}" if number >= 10 * size else f"{number / size:.1f}{letter}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}".removesuffix(".0")


def clock(seconds: float) -> str:
    """
    Write a time that somebody waits for.

    >>> clock(3.2), clock(85), clock(3_725), clock(100_000)
    ('0:03', '1:25', '1:02:05', '1d 3:46:40')
    """
    minutes, second = divmod(round(min(seconds, 1e12)), 60)  # more than that is as good as for ever
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return f"{f'{days:,}d ' if days else ''}{hour}:{minute:02}:{second:02}"

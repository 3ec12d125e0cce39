"""
When deaths of workers are too many: one costs a call, a crash loop ends the pool.

A death counts if no worker of the pool has answered a call since the one before it. So a pool whose calls crash now and
then goes on for ever, however many do; and one in which nothing but deaths happens comes to an end, however long its
queue is. Deaths that cost no call are no fault of any: few of them are enough. One that costs a call may be just that
call's fault, and the calls behind it are innocent: of these it takes many.

Not counted are the workers that the pool kills itself, and those that die before they are ready: see `listening`.

State: the reader's own.
"""

from __future__ import annotations

from collections import deque
from typing import Final

IDLE_DEATHS: Final = 10
"""Deaths in a row that cost no call: so often no stranger kills an idle worker."""

DEATHS: Final = 1000
"""Deaths in a row, with those that cost a call. A tenth would be a bad batch of input; ten times as many, minutes."""

PERIOD: Final = 60.0
"""Seconds in which that many are a loop. Where a worker lives longer than they allow, it takes no harm to go on."""


class Crashes:
    """The deaths in a row."""

    def __init__(self) -> None:
        self._answered = 0  # calls, at the last death
        self._deaths: deque[float] = deque(maxlen=DEATHS)  # when they were
        self._idle_deaths: deque[float] = deque(maxlen=IDLE_DEATHS)

    def count(self, now: float, answered: int, *, cost_a_call: bool) -> int:
        """
        Count a death.

        Args:
            now: When it was, in seconds of any clock.
            answered: How many calls the workers of the pool have answered so far.
            cost_a_call: Whether it was in one.

        Returns:
            How many in a row are too many; 0 if it can go on.
        """
        if answered != self._answered:
            self._answered = answered
            self._deaths.clear()
            self._idle_deaths.clear()
        rows = [self._deaths] if cost_a_call else [self._idle_deaths, self._deaths]
        for row in rows:
            row.append(now)
            if len(row) == row.maxlen and now - row[0] < PERIOD:
                return len(row)
        return 0

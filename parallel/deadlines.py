"""
Deadlines: the moment at which a call has to have ended, and all calls that are made in it.

A deadline is shared by a call and those that its function makes: none of them outlives it, and the timer has one entry
for all.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from parallel.context import era
from parallel.timer import TIMER, Entry


class Bounded(Protocol):
    """A call, for its deadline."""

    def overdue(self, deadline: Deadline, /) -> None:
        """End now, as the deadline is over. Must not run user code, nor wait."""
        ...


class Deadline:
    """
    The moment at which calls have to have ended.

    Args:
        seconds: From now on.

    Attributes:
        at: The moment, on the clock of `time.monotonic`.
        seconds: As given.
    """

    __slots__ = ("_calls", "_entry", "_era", "_lock", "at", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds
        self._begin()

    def _begin(self) -> None:
        self._era = era()
        self._lock = threading.RLock()
        self._calls: dict[Bounded, None] = {}  # those that have not ended; guarded by the lock, as is
        self._entry: Entry | None = None  # the timer's, while there are any

    def left(self) -> float:
        """Return the seconds that are left; negative ones if it is over."""
        return self.at - time.monotonic()

    def add(self, call: Bounded) -> None:
        """
        See to it that *call* ends in time.

        Raises:
            RuntimeError: No thread can be started that would.
        """
        if self._era != era():
            self._begin()  # in a forked child: the calls are the parent's, as whoever may have held the lock was
        with self._lock:
            self._calls[call] = None
            if self._entry is None:
                self._entry = TIMER.call_at(self.at, self._over)

    def discard(self, call: Bounded) -> None:
        """Forget *call*, which has ended."""
        if self._era != era():
            return
        with self._lock:
            self._calls.pop(call, None)
            if not self._calls and self._entry is not None:
                self._entry.cancel()
                self._entry = None

    def _over(self) -> None:
        with self._lock:
            late = list(self._calls)
            self._entry = None
        for call in late:
            call.overdue(self)

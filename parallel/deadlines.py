"""
Deadlines: the moment at which a call has to have ended, and all calls that are made in it.

A deadline is shared by a call and those that its function makes: none of them outlives it, and the timer watches it
once for all.

    the first call comes ──▶ with the deadline: its lane, two steps of a dict ──┐
                        └──▶ later: one entry of the timer ─────────────────────┴──▶ over: the calls that are left end

Most deadlines are never met, and are made for the call that comes with them: equal ones share a lane of the timer.

State: `_calls` and `_watch`, guarded by `_lock`, which is re-entrant: a destructor may cancel a call while it is held.
The timer's lock may be taken under it; it is held while no call is told.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from parallel.context import era
from parallel.lanes import Lane
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
        lane: The timer's of so many seconds, if the first call is added at once; None: it may come later.

    Attributes:
        at: The moment, on the clock of `time.monotonic`.
        seconds: As given.
    """

    __slots__ = ("_calls", "_era", "_lane", "_lock", "_watch", "at", "seconds")

    def __init__(self, seconds: float, lane: Lane | None = None) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds
        self._begin(lane)

    def _begin(self, lane: Lane | None = None) -> None:
        self._era = era()
        self._lock = threading.RLock()
        self._calls: dict[Bounded, None] = {}  # those that have not ended
        self._lane = lane  # for the first call only: a lane counts from the moment in which something starts in it
        self._watch: Lane | Entry | None = None  # what of the timer has it, while there are any

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
            if self._watch is None:
                self._be_watched()

    def _be_watched(self) -> None:
        """Under the lock: have the timer call `expire` when it is over."""
        lane, self._lane = self._lane, None
        if lane is None:
            self._watch = TIMER.call_at(self.at, self.expire)
        else:
            lane.start(self)
            self._watch = lane

    def discard(self, call: Bounded) -> None:
        """Forget *call*, which has ended."""
        if self._era != era():
            return
        with self._lock:
            self._calls.pop(call, None)
            if self._calls or self._watch is None:
                return
            watch, self._watch = self._watch, None
            if isinstance(watch, Entry):
                watch.cancel()
            else:
                watch.stop(self)

    def expire(self) -> None:
        """End the calls that are left. Runs on the timer's thread."""
        with self._lock:
            late = list(self._calls)
            self._watch = None
        for call in late:
            call.overdue(self)

"""
How many calls of a task, or of a group, run at a time and start in a period: those over it wait, holding no worker.

    enter() ──▶ there is a place ──▶ True: the call goes on
           └──▶ there is none ─────▶ False: it waits ──▶ leave(), or the timer ──▶ call.admitted()

A place is held until the body of the call has ended. But a body that waits for a future lends its place to what that
hangs on, and to nothing else: so a task with `limit=1` may call itself, and no two bodies are ever at work.

Guarantees:
- Calls go on by priority, then in the order in which they came.
- Of a rate, no more calls go on to their pool in any period of that length.

State: that of a `Limits`, guarded by its `_lock`, which is re-entrant: a destructor may cancel a call while it is held.
No user code runs while it is.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol

from parallel.context import era
from parallel.states import hangs_on
from parallel.timer import TIMER, Entry

if TYPE_CHECKING:
    from parallel.durations import Rate


class Limited(Protocol):
    """A call, for what limits it."""

    priority: int

    def is_parked(self) -> bool:
        """Tell whether it still waits here: it may have been cancelled."""
        ...

    def admitted(self) -> None:
        """Go on, as there is a place now. Must not run user code, nor wait."""
        ...


class Body(Protocol):
    """The run of a call that holds a place."""

    @property
    def awaited(self) -> Sequence[Any]:
        """The futures that it waits for now; None among them: nobody knows what."""
        ...


class Limits:
    """
    The places of one task, or of one group, and its rate.

    Args:
        limit: Calls at a time; None: any number.
        rate: Calls that start in a period; None: any number.
    """

    def __init__(self, limit: int | None = None, rate: Rate | None = None) -> None:
        self.limit = limit
        self.rate = rate
        self._begin()

    def _begin(self) -> None:
        self._era = era()
        self._lock = RLock()
        self._held = 0  # places taken; more than `limit` only while a body goes on whose place is lent
        self._waiting: list[tuple[int, int, Limited]] = []  # a heap
        self._numbers = itertools.count()
        self._starts: deque[float] = deque()  # of the last period
        self._entry: Entry | None = None  # the timer's, for the next start that the rate allows
        self._lenders: dict[Body, Limited | None] = {}  # waiting bodies, and to whom each has lent its place
        self._borrowed: dict[Limited, Body] = {}  # the same, the other way round

    def enter(self, call: Limited) -> bool:
        """Take a place for *call*, or have it wait for one; True if it has one."""
        if self._era != era():
            self._begin()  # in a forked child: the places are the parent's, as whoever may have held the lock was
        with self._lock:
            heapq.heappush(self._waiting, (-call.priority, next(self._numbers), call))
            admitted = self._admit()
        return self._tell(admitted, call)

    def leave(self, call: Limited) -> None:
        """Give the place of *call* back, as its body has ended."""
        if self._era != era():
            return  # taken in the parent of this forked process
        with self._lock:
            lender = self._borrowed.pop(call, None)
            if lender is None:
                self._held = max(self._held - 1, 0)  # less only in a forked child, by a call of the parent
            else:
                self._lenders[lender] = None
            admitted = self._admit()
        self._tell(admitted)

    def lend(self, body: Body) -> None:
        """Lend the place of *body*, which waits, to what it waits for."""
        with self._lock:
            self._lenders.setdefault(body, None)
            admitted = self._admit()
        self._tell(admitted)

    def unlend(self, body: Body) -> None:
        """Take it back at once; whoever still has it goes on with a place of its own, even if that is one too many."""
        with self._lock:
            borrower = self._lenders.pop(body, None)
            if borrower is not None:
                del self._borrowed[borrower]
                self._held += 1

    def look(self) -> None:
        """Look again who may go on: somebody waits for something new."""
        with self._lock:
            admitted = self._admit()
        self._tell(admitted)

    def _tell(self, admitted: list[Limited], present: Limited | None = None) -> bool:
        """Have the admitted calls go on; True if *present*, which is told by that, is one of them."""
        for call in admitted:
            if call is not present:
                call.admitted()
        return present is not None and any(call is present for call in admitted)

    def _admit(self) -> list[Limited]:
        """Under the lock: take places for those who may go on now, and return them."""
        admitted: list[Limited] = []
        while self._waiting and self._may_start():
            call = self._next()
            if call is None:
                break
            if self.rate is not None:
                self._starts.append(time.monotonic())
            admitted.append(call)
        return admitted

    def _next(self) -> Limited | None:
        """Under the lock: take the next call that gets a place; None if none gets one."""
        while self._waiting:
            if self.limit is not None and self._held >= self.limit:
                return self._next_borrower()
            call = heapq.heappop(self._waiting)[2]
            if call.is_parked():
                self._held += 1
                return call
        return None

    def _next_borrower(self) -> Limited | None:
        """Under the lock: take the first call that one of the waiting bodies hangs on."""
        for body, borrower in self._lenders.items():
            if borrower is not None:
                continue
            wanted = _wanted_by(body)
            for place in sorted(self._waiting):
                call = place[2]
                if (wanted is None or call in wanted) and call.is_parked():
                    self._waiting.remove(place)
                    heapq.heapify(self._waiting)
                    self._lenders[body] = call
                    self._borrowed[call] = body
                    return call
        return None

    # -- the rate -----------------------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        """Under the lock: tell whether the rate allows one more start; if not, the timer looks again when it does."""
        rate = self.rate
        if rate is None:
            return True
        now = time.monotonic()
        while self._starts and self._starts[0] + rate.period <= now:
            self._starts.popleft()
        if len(self._starts) < rate.calls:
            return True
        if self._entry is None:
            self._entry = TIMER.call_at(self._starts[0] + rate.period, self._period_over)
        return False

    def _period_over(self) -> None:
        with self._lock:
            self._entry = None
        self.look()


def _wanted_by(body: Body) -> set[Any] | None:
    """Return all that has to end before *body* goes on, through what other bodies wait for; None: perhaps anything."""
    awaited = body.awaited
    if any(future is None for future in awaited):
        return None
    return set(hangs_on(*awaited, through_bodies=True))

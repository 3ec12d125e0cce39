"""
How many calls of a task, or of a group, run at a time and start in a period: those over it wait, holding no worker.

    enter() ──▶ there is a place ──▶ True: the call goes on
           └──▶ there is none ─────▶ False: it waits ──▶ leave(), or the timer ──▶ call.admitted()

A place is held until the body of the call has ended. But a body that waits for a future lends its place to what that
hangs on, and to nothing else: so a task with `limit=1` may call itself, and no two bodies are ever at work.

What waits for a place hangs on those that hold them, once these only wait themselves: for futures, or for a place of
another limit. So no ring of calls, each with a place that the next one wants, lasts.

Guarantees:
- Calls go on by priority, then in the order in which they came.
- Of a rate, no more calls start in any period of that length. What has gone on to its pool counts as well: it may start
  at any moment. So behind a busy pool there may be fewer starts than the rate allows.
- A call costs the same however many wait; one that somebody waits for costs a look at each body that may lend.

To whom a body may lend is looked for when it begins to wait or has its place back; when somebody begins to wait for a
call that waits here (`look`); and when the last holder that was at work begins to wait (`look_behind`).

State: that of a `Limits`, guarded by its `_lock`, which is re-entrant: a destructor may cancel a call while it is held.
No user code runs while it is. The timer's lock may be taken under it, and no other. What `blockers` reads without it is
written before those look who make it matter: see there.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from parallel.context import era
from parallel.states import hangs_on
from parallel.timer import TIMER, Entry, Timer
from parallel.weak import WeakSet

if TYPE_CHECKING:
    from parallel.rates import Rate

_SPARE: Final = 16
"""Turns that nobody waits for any more, and that may lie in the heap all the same; fewer: more tidying."""


class Limited(Protocol):
    """A call, for what limits it."""

    priority: int

    def is_parked(self) -> bool:
        """Tell whether it still waits here: it may have been cancelled."""
        ...

    def is_waiting(self) -> bool:
        """Tell whether it waits with its place in hand: for another place; or its body, for a future."""
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

    @property
    def has_started(self) -> bool:
        """Whether its start has been told by `started`."""
        ...


_Turn: TypeAlias = tuple[int, int]
"""When a call has its turn: its priority, negative, and a number that no other turn has."""


_all: WeakSet[Limits] = WeakSet()


def are_asked_here() -> bool:
    """Tell whether this thread is in the middle of asking for a place, or giving one back: a signal handler may ask."""
    return any(limits._lock._is_owned() for limits in _all)  # type: ignore[attr-defined]


class Limits:
    """
    The places of one task, or of one group, and its rate.

    Args:
        limit: Calls at a time; None: any number.
        rate: Calls that start in a period; None: any number.
        timer: Whose clock the rate goes by.
    """

    def __init__(self, limit: int | None = None, rate: Rate | None = None, timer: Timer = TIMER) -> None:
        self.limit = limit
        self.rate = rate
        self._timer = timer
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._era = era()
        self._lock = RLock()
        self._held = 0  # places taken; more than `limit` only while a body goes on whose place is lent
        self._holders: dict[Limited, int] = {}  # who has one, its own or a lent one; two of them if an attempt overruns
        self._waiting: dict[Limited, _Turn] = {}
        self._whose: dict[_Turn, Limited] = {}  # the same, the other way round
        self._turns: list[_Turn] = []  # a heap of these, and of some that nobody waits for any more
        self._sought: dict[Limited, None] = {}  # those of `_waiting` that somebody waits for
        self._numbers = itertools.count()
        self._ready: deque[Limited] = deque()  # admitted, to be told
        self._is_telling = False
        self._stranded: set[Body] = set()  # holders that have overrun their time: nobody knows when they end
        self._lenders: dict[Body, Limited | None] = {}  # waiting bodies, and to whom each has lent its place
        self._borrowed: dict[Limited, Body] = {}  # the same, the other way round
        self._unlent: dict[Body, bool] = {}  # those that have lent it to nobody; and whether anybody may have it
        self._starts: deque[float] = deque()  # of the last period
        self._due: set[Limited] = set()  # those that have gone on, and not started
        self._entry: Entry | None = None  # the timer's, for the next start that the rate allows

    # -- places -------------------------------------------------------------------------------------------------------

    def enter(self, call: Limited) -> bool:
        """Take a place for *call*, or have it wait for one; True if it has one."""
        if self._era != era():
            self._begin()  # in a forked child: the places are the parent's, as whoever may have held the lock was
        with self._lock:
            if not self._waiting and self._has_room() and self._may_start():
                self._held += 1
                self._note(call)
                return True
            turn = self._waiting[call] = (-call.priority, next(self._numbers))
            self._whose[turn] = call
            heapq.heappush(self._turns, turn)
            admitted = self._admit()
            if call in self._waiting and True in self._unlent.values():
                admitted += self._lend(body for body, to_anybody in list(self._unlent.items()) if to_anybody)
        return self._tell(admitted, call)

    def leave(self, call: Limited, body: Body | None = None) -> None:
        """Give the place of *call* back, as its *body* has ended, or before it has begun (None)."""
        if self._era != era():
            return  # taken in the parent of this forked process
        with self._lock:
            self._strike_off(call, body)
            borrower = None
            if body is not None:
                borrower = self._lenders.pop(body, None)
                self._unlent.pop(body, None)
            lender = self._borrowed.pop(call, None)
            if borrower is not None:  # it goes on when its lender has ended: the place is its own from now on
                del self._borrowed[borrower]
                self._pass_on(lender, borrower)
            elif lender is not None:
                self._lenders[lender] = None
                self._unlent[lender] = _may_wait_for_any(lender)
            else:
                self._held -= 1
            admitted = self._admit()
            if lender is not None:
                admitted += self._lend([lender])
        self._tell(admitted)

    def _strike_off(self, call: Limited, body: Body | None) -> None:
        """Under the lock: note that *call* has one place less, and that its *body* has ended."""
        count = self._holders.get(call, 0)
        if count > 1:
            self._holders[call] = count - 1
        else:
            self._holders.pop(call, None)
        if body is None or not body.has_started:
            self._due.discard(call)
        if body is not None:
            self._stranded.discard(body)

    def _pass_on(self, lender: Body | None, borrower: Limited) -> None:
        """Under the lock: have *borrower* hold the place of one that has ended, which may have been a borrower, too."""
        if lender is not None:
            self._borrowed[borrower] = lender
            self._lenders[lender] = borrower

    def forget(self, call: Limited) -> None:
        """Note that *call*, if it waited here, has been cancelled."""
        if self._era != era():
            return
        with self._lock:
            self._take_out(call)
            if len(self._turns) > 2 * len(self._waiting) + _SPARE:  # so each costs little
                self._turns = list(self._waiting.values())
                heapq.heapify(self._turns)

    def strand(self, body: Body) -> None:
        """Note that *body*, which holds a place, has overrun its time: it may never end."""
        with self._lock:
            self._stranded.add(body)

    @property
    def is_stuck(self) -> bool:
        """Whether all places are held by bodies that may never end."""
        with self._lock:
            return self.limit is not None and 0 < self._held <= len(self._stranded)

    # -- lending ------------------------------------------------------------------------------------------------------

    def lend(self, body: Body) -> None:
        """Lend the place of *body*, which waits, to what it waits for."""
        if self._era != era():
            return
        with self._lock:
            if self._lenders.setdefault(body, None) is None:
                self._unlent[body] = _may_wait_for_any(body)
            admitted = self._lend([body])
        self._tell(admitted)
        self.look_behind()

    def unlend(self, body: Body) -> None:
        """Take it back at once; whoever still has it goes on with a place of its own, even if that is one too many."""
        if self._era != era():
            return
        with self._lock:
            borrower = self._lenders.pop(body, None)
            self._unlent.pop(body, None)
            if borrower is not None:
                del self._borrowed[borrower]
                self._held += 1

    def look(self, call: Limited) -> None:
        """Look whether *call*, if it waits here, may go on: somebody waits for it now."""
        if self._era != era():
            return
        with self._lock:
            admitted: list[Limited] = []
            if call in self._waiting:
                self._sought[call] = None
                admitted = self._lend(list(self._unlent), call)
        self._tell(admitted)

    def look_behind(self) -> None:
        """Have all looked at for which the holders wait, as one more of them waits; for those that wait for a place."""
        if self._sought and self._era == era():
            for part in hangs_on(*self.blockers(), through_bodies=True):
                part.look()

    def blockers(self) -> list[Any]:
        """
        Return the holders of the places, for which those hang that wait here; none if time, or one at work, helps them.

        Takes no lock, as another limit may ask in the middle of a walk. A holder has noted what it waits for before it
        looks who is sought here; who is sought here has been noted before the holders are looked at. So whichever is
        first, the other one sees it.
        """
        if self.limit is None or self._held < self.limit:
            return []
        holders = list(self._holders)
        return holders if all(holder.is_waiting() for holder in holders) else []

    def _lend(self, bodies: Iterable[Body], only: Limited | None = None) -> list[Limited]:
        """Under the lock: take the places of waiting *bodies* for what they wait for, or *only* for that call."""
        admitted: list[Limited] = []
        if not self._waiting or self._has_room():  # then who waits here waits for the rate
            return admitted
        for body in bodies:
            call = self._sought_by(body, only) if body in self._unlent else None
            if call is None:
                continue
            if not self._may_start():
                break
            self._take_out(call)
            self._lenders[body] = call
            self._borrowed[call] = body
            self._unlent.pop(body, None)
            self._note(call)
            admitted.append(call)
            if call is only:
                break
        return admitted

    def _sought_by(self, body: Body, only: Limited | None) -> Limited | None:
        """Under the lock: return the first call that waits here and for which *body* does; or *only* that call."""
        if only is not None and not self._may_borrow(only):
            return None
        if _may_wait_for_any(body):
            parts = list(self._waiting) if only is None else [only]
        else:
            parts = cast("list[Limited]", list(hangs_on(*body.awaited, through_bodies=True)))
        if only is not None:
            return only if only in parts else None
        turns = [self._waiting[part] for part in parts if self._may_borrow(part)]
        return self._whose[min(turns)] if turns else None

    def _may_borrow(self, call: Limited) -> bool:
        """Under the lock: tell whether *call* waits here, and no earlier attempt of it has a lent place still."""
        return call in self._waiting and call not in self._borrowed and call.is_parked()

    # -- who goes on --------------------------------------------------------------------------------------------------

    def _admit(self) -> list[Limited]:
        """Under the lock: take free places for those whose turn it is, and return them."""
        admitted: list[Limited] = []
        while self._waiting and self._has_room() and self._may_start():
            call = self._next()
            if call is None:
                break
            self._held += 1
            self._note(call)
            admitted.append(call)
        return admitted

    def _has_room(self) -> bool:
        return self.limit is None or self._held < self.limit

    def _next(self) -> Limited | None:
        """Under the lock: take the call out whose turn it is; None if none is left."""
        while self._turns:
            call = self._whose.get(heapq.heappop(self._turns))
            if call is not None:
                self._take_out(call)
                if call.is_parked():
                    return call
        return None

    def _take_out(self, call: Limited) -> None:
        """Under the lock: note that *call* doesn't wait here any more; its turn in the heap is passed over."""
        turn = self._waiting.pop(call, None)
        if turn is not None:
            del self._whose[turn]
        self._sought.pop(call, None)

    def _note(self, call: Limited) -> None:
        """Under the lock: note that *call* has got a place."""
        self._holders[call] = self._holders.get(call, 0) + 1
        if self.rate is not None:
            self._due.add(call)

    def _tell(self, admitted: list[Limited], present: Limited | None = None) -> bool:
        """
        Have the admitted calls go on; True if *present*, which is told by that, is one of them.

        One thread at a time tells all: a call that can't go on gives its place back, which admits the next, and so on.
        """
        if not admitted and not self._ready:
            return False
        with self._lock:
            self._ready.extend(call for call in admitted if call is not present)
            if not self._is_telling and self._ready:
                self._is_telling = True
                tells = True
            else:
                tells = False
        if tells:
            self._tell_ready()
        return present is not None and any(call is present for call in admitted)

    def _tell_ready(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._ready:
                        self._is_telling = False
                        return
                    call = self._ready.popleft()
                call.admitted()
        except BaseException:  # a Ctrl-C: whoever comes next tells the rest
            self._is_telling = False
            raise

    # -- the rate -----------------------------------------------------------------------------------------------------

    def started(self, call: Limited) -> None:
        """Note that *call*, which has a place, starts now: the rate counts it from here on for one period."""
        if self.rate is None or self._era != era():
            return
        with self._lock:
            self._due.discard(call)
            self._starts.append(self._timer.now())
            admitted = self._admit()
        self._tell(admitted)

    def _may_start(self) -> bool:
        """Under the lock: tell whether the rate allows one more start; if not, the timer looks again when it does."""
        rate = self.rate
        if rate is None:
            return True
        now = self._timer.now()
        while self._starts and self._starts[0] + rate.period <= now:
            self._starts.popleft()
        if len(self._starts) + len(self._due) < rate.calls:
            return True
        if self._entry is None and self._starts:  # else the first of those that are due looks, when it starts
            self._entry = self._timer.call_at(self._starts[0] + rate.period, self._period_over)
        return False

    def _period_over(self) -> None:
        with self._lock:
            self._entry = None
            admitted = self._admit()
            admitted += self._lend(list(self._unlent))
        self._tell(admitted)


def _may_wait_for_any(body: Body) -> bool:
    """Tell whether nobody knows for what *body* waits: perhaps for a promise, which any call may end."""
    awaited = body.awaited
    return None in awaited or any(part.is_promise() for part in hangs_on(*awaited))

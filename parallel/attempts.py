"""
One attempt of a call, and the places that it holds: ended once, by its body, its timeout, or the deadline.

    call.begin() ──▶ Attempt ──▶ start() ──▶ finish(): what the body brings ────────┐
                                     ├──▶ expire(): the timer was faster ───────────┼──▶ whoever claims it ends it
                                     └──▶ give_up(): the deadline, or a cancel ─────┘

What its body brings after that is dropped. The places of an attempt are given back when its body has ended, however the
attempt has: until then a body that has overrun its time is at work.

State: an attempt's fields are changed by whoever has claimed it; its places, and `_away`, by single atomic steps of a
list. Those of a `Tried` by whoever has its work.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from threading import Lock
from typing import Any, Final, TypeAlias, cast
from weakref import ref

from parallel import trail
from parallel.context import Dispatcher, Waiter
from parallel.deadlines import Deadline
from parallel.delivery import INLINE, settle
from parallel.errors import TaskTimeoutError
from parallel.gates import GatedFuture
from parallel.limits import Limits
from parallel.outcomes import CANCELLED, Outcome, Work
from parallel.runs import Asked, Run, strike_off
from parallel.states import hangs_on
from parallel.terms import Terms

Places: TypeAlias = list[Limits]
"""Places that are held, by whose limits they are; whoever pops one gives it back."""

_NO_PLACES: Final[Places] = []
"""Those of an attempt that takes none; never changed."""

_OVERRUN: Final = -1
"""Stands for the attempt at the desk while a call that has overrun its time is neither running nor ended."""


class Tried(GatedFuture):
    """
    A future that attempts bring about, each with a place under all of its limits. `Call` says what is abstract here.

    Attributes:
        terms: Its terms.
        attempts: How many have been begun.
        deadline: When it has to have ended; None: at any time.
        late: The error that it ends with, as its deadline is over; set if its own caller has to end it.
    """

    terms: Terms
    attempts: int = 0
    deadline: Deadline | None = None
    late: TaskTimeoutError | None = None
    _is_sought = False  # a body waits for it, or has; see `State.look`
    _stage = 0  # how many of its limits it has passed
    _limits: tuple[Limits, ...] = ()
    _places: Places = _NO_PLACES  # those that it holds, until an attempt takes them over

    def limit_by(self, limits: tuple[Limits, ...]) -> None:
        """Say whose places it needs, before it is submitted."""
        self._limits = limits
        self._places = []

    def is_parked(self) -> bool:
        """Tell whether it still waits: it has not been cancelled."""
        return "_work" in self.__dict__

    def leave(self, places: Places, body: Attempt | None = None) -> None:
        """Give *places* back, which it holds, or that attempt."""
        while places:
            try:
                limits = places.pop()
            except IndexError:  # somebody else does the same
                return
            limits.leave(self, body)

    def awaited(self) -> list[Any]:
        """Return what its body waits for, or whose place it waits for itself; see `State.awaited`."""
        limits = self._wants_place_of()
        if limits is not None:
            return limits.blockers()
        run = self.__dict__.get("_run")
        return list(run.awaited) if isinstance(run, Attempt) else []

    def is_waiting(self) -> bool:
        """Tell whether it waits with a place in hand: for another one; or its body, for a future."""
        if self._wants_place_of() is not None:
            return True
        run = self.__dict__.get("_run")
        return isinstance(run, Attempt) and bool(run.awaited)

    def is_stuck(self) -> bool:
        """Tell whether it waits for a place that may never come: bodies that have overrun their time hold all."""
        limits = self._wants_place_of()
        return limits is not None and limits.is_stuck

    def cancels_at_exit(self) -> bool:
        """Tell whether it is cancelled when the program ends, as its pool says."""
        return self.terms.pool.cancels_at_exit

    def look(self) -> None:
        """See whether the one who waits for it lends it a place; see `State.look`."""
        self._is_sought = True  # before the limits are asked: who enters one does it the other way round
        limits = self._wants_place_of()
        if limits is not None:
            limits.look(self)

    def _wants_place_of(self) -> Limits | None:
        """Return the limit for a place of which it waits, or is about to; None: for none."""
        stage = self._stage
        return self._limits[stage] if stage < len(self._limits) and self.is_parked() else None

    def _look_ahead(self) -> None:
        """Have all looked at that it hangs on, as it waits for a place now, perhaps with others in hand."""
        if self._is_sought:
            for part in hangs_on(self, through_bodies=True):
                part.look()
        for limits in list(self._places):
            limits.look_behind()

    @abstractmethod
    def admitted(self) -> None:
        """Go on with a place that another call has given back."""

    @abstractmethod
    def conclude(self, outcome: Outcome, here: Dispatcher | None, *, may_block: bool) -> None:
        """After an attempt: end, or begin another one."""

    @abstractmethod
    def let_go(self) -> None:
        """Let go of what it needs only until it ends. For whoever has ended it."""


class Attempt(Run):
    """
    One attempt of a call.

    Args:
        call: The call.
        work: What is to be run.
        worker: The worker on whose thread it runs; None: it runs elsewhere, or on its caller's.

    Attributes:
        awaited: The futures that its body waits for now; None among them: nobody knows what.
        places: Those that it holds, until its body has ended.
        has_started: Its time counts.
    """

    # What few attempts have is not made for each: these defaults hide the base's slots, and attributes hide them.
    stop: Callable[[], object] | None = None
    kill: Callable[[], object] | None = None
    cancel_requested = False
    has_started = False
    _is_rewound = False
    awaited: list[Any] | tuple[()] = ()
    places: Places = _NO_PLACES
    _asked: Asked | None = None
    _late: TaskTimeoutError | None = None  # what an inline one ends with that has overrun
    _was_given_up = False
    _is_over = False
    _away: tuple[()] | list[Waiter] = ()  # the worker, once it has been replaced, until it is back

    def __init__(self, call: Tried, work: Work, worker: Waiter | None) -> None:
        self._future = ref(call)
        self.work = work
        self.number = call.attempts
        self._worker = worker
        self._lane = call.terms.lane
        self._claim = Lock()

    def claim(self) -> bool:
        """Decide how it ends; True for the first who asks."""
        return self._claim.acquire(False)

    @property
    def is_over(self) -> bool:
        """Whether its end has been decided; see `Run.is_over`."""
        return self._claim.locked()

    @property
    def given(self) -> Run:
        """The attempt: another one of the same call may be in another worker; see `Run.given`."""
        return self

    def start(self) -> None:
        """From now on its time counts; see `Run.start`."""
        if trail.current is not None:
            self.note_start(trail.current)
        if not self.has_started:  # else its worker died before it had read the call: another one has it now
            self.has_started = True
            for limits in list(self.places):
                limits.started(cast("Tried", self._future()))
            if self._lane is not None:
                self._lane.start(self)
        elif self._is_rewound and self._lane is not None:
            self._is_rewound = False
            self._lane.start(self)
        if self._was_given_up:
            self._stop()  # who gave it up may have been too early to do so
        elif self.cancel_requested and self.stop is not None:
            self.stop()  # as well; but nobody has asked for it to be killed

    def rewind(self) -> None:
        """See that its time begins anew when another worker starts it; see `Run.rewind`."""
        if self._lane is not None and self._lane.stop(self):  # else it is too late for that
            self._is_rewound = True

    def finish(self, outcome: Outcome, here: Dispatcher | None = None, *, may_block: bool = True) -> None:
        """Note that the body has ended; see `Run.finish`."""
        call = cast("Tried", self._future())  # who runs it holds it
        if trail.current is not None:
            self.note_stop(trail.current, outcome)
        mine = self._claim.acquire(False)
        if self.stop is not None or self.kill is not None:
            self.stop = self.kill = None  # they refer to this attempt
        if self.places:
            call.leave(self.places, self)
        if not mine:
            self._is_over = True
            self._come_back()
            return
        if self._lane is not None:
            self._lane.stop(self)
        if outcome[1] is None and self._late is None and call.late is None:
            # Nobody else can end it with this very outcome: if that is there, nobody has looked at the call so far.
            if call.__dict__.setdefault("_end", outcome) is not outcome or "_first" in call.__dict__:
                settle(call, outcome, here, may_block=may_block)
            elif call.deadline is not None or call.terms.retry is not None:
                call.let_go()
        else:
            self._conclude(call, outcome, here, may_block)
        del self, call, outcome  # an error of what follows refers to this frame: break the cycle

    def _conclude(self, call: Tried, outcome: Outcome, here: Dispatcher | None, may_block: bool) -> None:
        if call.late is not None:
            settle(call, (None, call.late, None), here, may_block=may_block)
        else:
            outcome = self.told(outcome) if self._late is None else (None, self._late, None)
            call.conclude(outcome, here, may_block=may_block)
        del self, call, outcome  # as in `finish`

    # -- too late -----------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Fail, as the timeout is over. Runs on the timer's thread."""
        call = cast("Tried | None", self.future_if_any())
        if call is None:
            return
        terms = call.terms
        assert terms.lane is not None, "that is where it was"
        error = TaskTimeoutError(terms.name, terms.lane.seconds, "timeout")
        if call.dispatcher is INLINE:
            self._late = error  # its caller ends it, when the body has ended
            self.ask()
        elif self.claim():
            terms.desk.add(call, _OVERRUN)  # its worker counts it as ended from `give_up` on
            stopped = self.give_up()
            try:
                if stopped or terms.retries_overruns:
                    call.conclude((None, error, None), None, may_block=False)
                else:
                    settle(call, (None, error, None), may_block=False)
            finally:
                terms.desk.discard(call, _OVERRUN)

    def give_up(self) -> bool:
        """After `claim`: stop the body if the engine can, else replace its worker; True if it is being stopped."""
        self.ask()
        self._was_given_up = True  # before `stop` is read: see `start`
        if self._lane is not None:
            self._lane.stop(self)
        worker = self._worker
        if worker is None:
            return self._stop()
        if self.places:
            for limits in list(self.places):
                limits.strand(self)
            cast("Tried", self._future()).terms.desk.look()
        worker.replace()
        self._away = [worker]
        if self._is_over:
            self._come_back()
        return False

    def _stop(self) -> bool:
        stop = self.kill or self.stop
        if stop is None:
            self.pass_on()  # in another process nothing is seen of `ask`
            return False
        stop()
        return True

    def _come_back(self) -> None:
        """See that the worker gets its place back, once: the body may end in the moment in which it is given up."""
        try:
            worker = cast("list[Waiter]", self._away).pop()
        except (AttributeError, IndexError):
            return
        worker.come_back()

    def cancel(self, *, kill: bool = False) -> bool:
        """Ask the function to stop; see `Run.cancel`."""
        self.cancel_requested = True  # before `stop` is read: see `start`
        if not (kill and self.kill) and self.stop is None:
            self.ask()
            self.pass_on()
            return False
        if not self.claim():
            return False
        self.give_up()
        return settle(self.future, (None, CANCELLED, None))

    # -- its places ---------------------------------------------------------------------------------------------------

    def lend(self, awaited: Any) -> None:
        """Lend its places to *awaited*; see `Run.lend`."""
        self.awaited = [*self.awaited, awaited]
        for limits in list(self.places):
            limits.lend(self)

    def unlend(self) -> None:
        """Take them back."""
        strike_off(cast("list[Any]", self.awaited))
        if not self.awaited:
            for limits in list(self.places):
                limits.unlend(self)

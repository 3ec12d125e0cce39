"""
One call under its terms: places, attempts, timeout, deadline, cancellation.

    submit() ──▶ gate ──▶ a place under each limit ──▶ pool ──▶ Attempt ──▶ value or error: the end
                              ▲                          ▲         ├──▶ failed: back-off ──┐
                              └── waits, in no worker    │         └──▶ overran: replaced ─┤
                                                         └───────── places again ◀─────────┘

A call without terms is a plain future, and passes none of this.

Guarantees:
- An attempt is ended once: by its body, its timeout or the deadline, whoever claims it first. What a body brings after
  that is dropped; the places that it holds are given back then, not before.
- Nothing waits in a worker: not for a place, nor for a back-off.
- A call that waits for a place or a back-off is counted by the desk of its registry, for which a shutdown waits.

- An inline call is ended by its caller's thread, and waits on it: what follows it runs where it ends, which must not be
  the timer's thread.

State: a call's fields are changed by whoever has taken its work, or claimed its attempt; places, and `_away` of an
attempt, by single atomic steps of a list.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from math import inf
from threading import Lock
from types import CodeType, MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, cast
from weakref import ref

from parallel.context import Dispatcher, Waiter, this
from parallel.deadlines import Deadline
from parallel.delivery import INLINE, cancel_sources, settle
from parallel.durations import written
from parallel.errors import PoolFullError, TaskTimeoutError
from parallel.futures import Future
from parallel.gates import Gate, GatedFuture
from parallel.limits import Limits
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.retries import Retry
from parallel.runs import Run, current_run, strike_off
from parallel.states import BARE, hangs_on
from parallel.timer import TIMER, Entry

LOGGER = logging.getLogger("parallel")

Places: TypeAlias = list[Limits]
"""Places that are held, by whose limits they are; whoever pops one gives it back."""

_NO_PLACES: Final[Places] = []
"""Those of an attempt that takes none; never changed."""


_OVERRUN: Final = -1
"""Stands for the attempt at the desk while a call that has overrun its time is neither running nor ended."""


class About(NamedTuple):
    """What messages call a task, and the pool that it runs in."""

    name: str
    pool: str


Site: TypeAlias = tuple[About, CodeType, int]
"""Where a call was made: of which task, and the caller's code and place in that; read only for messages."""


class Launcher(Protocol):
    """What a call needs of a pool."""

    @property
    def label(self) -> str:
        """What messages call it."""
        ...

    launches_here: ClassVar[bool]
    """Whether launching runs code of the user's, or the call itself: not for a timer's or a loop's thread."""
    has_threads: ClassVar[bool]
    """Whether its workers are threads, which take the future itself and run it by `run_on`."""

    @property
    def gate(self) -> Gate | None:
        """What bounds the calls that wait in it, if anything does."""
        ...

    @property
    def callbacks(self) -> Dispatcher:
        """Who runs what its own threads can't."""
        ...

    @property
    def follower(self) -> Dispatcher:
        """Who runs what follows its calls."""
        ...

    def launch(self, future: Future[Any], /) -> None:
        """
        Queue a future that holds its work.

        Raises:
            PoolShutdownError, PoolBrokenError: It takes no calls any more.
        """
        ...


class Desk(Protocol):
    """
    Where those calls are counted that are in no pool: they wait for a place, or for their next attempt.

    A call comes once before each attempt. It may come for the next one before it is counted out for the last.
    """

    def add(self, call: Call, attempt: int, /) -> None:
        """Count *call* in, which waits since that many attempts have been begun."""
        ...

    def discard(self, call: Call, attempt: int, /) -> None:
        """Count it out, if it was in."""
        ...

    def look(self) -> None:
        """See whether some of its calls wait in vain now."""
        ...


class Terms:
    """
    Under what terms the calls of one task are run in one registry.

    Args:
        name: The task's.
        pool: Where they are run.
        desk: Where those are counted that are in no pool.
        limits: What bounds them at a time and in time; None: nothing.
        timeout: Seconds that an attempt may run; None, or infinite: any.
        deadline: Seconds that a call may take; None, or infinite: any.
        retry: What is tried again; None: nothing.
        priority: Those with a higher one start first.
        on_success: Called with each value.
        on_failure: Called with each error.
    """

    def __init__(
        self,
        name: str,
        pool: Launcher,
        desk: Desk,
        *,
        limits: Limits | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        retry: Retry | None = None,
        priority: int = 0,
        on_success: Callable[[Any], object] | None = None,
        on_failure: Callable[[BaseException], object] | None = None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.desk = desk
        self.limits = () if limits is None else (limits,)
        self.lane = None if timeout is None or timeout == inf else TIMER.lane(timeout)
        self.deadline_lane = None if deadline is None or deadline == inf else TIMER.lane(deadline)
        self.retry = None if retry is None else retry.resolved()
        self.priority = priority
        self.on_success = on_success
        self.on_failure = on_failure
        on: object = None if self.retry is None else self.retry.on
        self.asks = callable(on) and not isinstance(on, type)
        """Whether a function of the user's says what is tried again."""
        self.retries_overruns = self.asks or _names(on, TaskTimeoutError)
        """Whether an attempt is tried again whose body may still be running."""
        others = (limits, self.deadline_lane, on_success, on_failure)
        self.only_bounds_attempts = all(one is None for one in others)
        """Whether all that is said is how long an attempt may run, its priority, and what is tried again."""


def _names(on: object, kind: type[BaseException]) -> bool:
    """Tell whether *on*, one type or several, has *kind* or a type derived from it."""
    kinds = cast("tuple[object, ...]", on if isinstance(on, tuple) else (on,))
    return any(isinstance(one, type) and issubclass(one, kind) for one in kinds)


class Call(GatedFuture):
    """
    The future of a call that has terms, or is made in a group or under a deadline.

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
    _again: Work | None = None  # what the next attempt does
    _began: float | None = None  # when the first attempt did
    _entry: Entry | None = None  # the timer's, during a back-off
    _is_queued = False  # in its pool
    _pause: float | None = None  # before the next attempt of an inline call
    _runs_here = False  # its caller runs it, as the pool is full
    _is_sought = False  # a body waits for it, or has; see `State.look`
    _stage = 0  # how many of its limits it has passed
    _failures: Mapping[str, int] = MappingProxyType({})  # of earlier attempts: how many of each kind
    _turn: threading.Event | None = None  # wakes the caller that waits to run it

    _limits: tuple[Limits, ...] = ()
    _places: Places = _NO_PLACES  # those that it holds, until an attempt takes them over

    def __init__(self, terms: Terms, site: Site, work: object = BARE, dispatcher: Dispatcher | None = None) -> None:
        # As the base does, without the call: this is the path of every call with a timeout.
        fields = self.__dict__
        fields["_work"] = work
        if dispatcher is not None:
            fields["dispatcher"] = dispatcher
        fields["_made"] = site
        fields["terms"] = terms
        if terms.priority:
            self.priority = terms.priority

    def limit_by(self, limits: tuple[Limits, ...]) -> None:
        """Say whose places it needs, before it is submitted."""
        self._limits = limits
        self._places = []

    # -- on the way to a worker -------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """
        Send it on its way.

        Raises:
            PoolShutdownError, PoolBrokenError, PoolFullError: The pool doesn't take it.
        """
        fields = self.__dict__
        if fields.pop("_work", None) is None:
            return  # cancelled, or overdue
        fields["_work"] = work  # who cancels in between asks the run: see `begin`
        gate = self.terms.pool.gate
        if gate is None or self._pass(gate):
            self.go_on()

    def _pass(self, gate: Gate) -> bool:
        """Pass the gate of the pool; False if the deadline came first."""
        deadline = self.deadline
        try:
            self._runs_here = not self.pass_gate(gate, None if deadline is None else deadline.at)
        except PoolFullError:
            if deadline is None or deadline.left() > 0:
                raise
            self.overdue(deadline)
            return False
        return True

    def go_on(self) -> None:
        """Take the places that are left to be taken, then go to the pool."""
        if not self._limits and not self.attempts and not self._runs_here:
            self._is_queued = True
            self.terms.pool.launch(self)
            return
        desk, attempt = self.terms.desk, self.attempts
        desk.add(self, attempt)
        try:
            if not self._take_places():
                return
            if self._runs_here:
                self._runs_here = False
                self.run_here()
            else:
                self._is_queued = True
                self.terms.pool.launch(self)
        finally:
            if attempt != self.attempts or self._is_queued or not self.is_parked():
                desk.discard(self, attempt)

    def _take_places(self) -> bool:
        """Take the places that are left to be taken; False if `admitted` goes on, or it has ended."""
        while self._stage < len(self._limits):
            limits = self._limits[self._stage]
            if self._runs_here or self.dispatcher is INLINE:
                if not self._wait_for_place(limits):
                    return False
            elif not limits.enter(self):
                self._look_ahead()
                return False
            elif not self._has_place():
                return False
        return True

    def _look_ahead(self) -> None:
        """Have all looked at that it hangs on, as it waits for a place now, perhaps with others in hand."""
        if self._is_sought:
            for part in hangs_on(self, through_bodies=True):
                part.look()
        for limits in list(self._places):
            limits.look_behind()

    def _wait_for_place(self, limits: Limits) -> bool:
        """Have the caller, who is to run it, wait for a place; False if the call has ended meanwhile."""
        turn = self._turn = threading.Event()
        if limits.enter(self):
            self._has_place()
        else:
            worker = this.worker
            if worker is not None:
                worker.lend(self)
            self._look_ahead()
            try:
                turn.wait()
            finally:
                if worker is not None:
                    worker.unlend()
        return self._is_still_on()

    def _is_still_on(self) -> bool:
        """Tell, after its caller has waited, whether it is still to be run; if it is overdue, it is ended here."""
        self._turn = None  # (*) before it is asked whether it is parked
        if self.is_parked():
            return True
        if self.late is not None:
            settle(self, (None, self.late, None), self.dispatcher)
        return False

    def _has_place(self) -> bool:
        """Note the place just taken; False, and it is given back, if the call has been cancelled meanwhile."""
        self._places.append(self._limits[self._stage])
        self._stage += 1
        if self.is_parked():
            return True
        self.leave(self._places)  # who cancelled it may have been too early to see this place
        return False

    def is_parked(self) -> bool:
        """Tell whether it still waits: it has not been cancelled."""
        return "_work" in self.__dict__

    def admitted(self) -> None:
        """Go on with a place that another call has given back."""
        turn = self._turn
        if self._has_place() and turn is None:
            self._resume()
        elif turn is not None:
            turn.set()

    def _resume(self) -> None:
        """Go on, on whatever thread this is."""
        if self.terms.pool.launches_here:
            try:
                self.terms.pool.callbacks.dispatch(_Resumption(self))
            except Exception as error:
                self.refuse(error)
        else:
            self.resume()

    def resume(self) -> None:
        """Go on; what goes wrong is the end of the call."""
        attempts = self.attempts
        try:
            self.go_on()
        except Exception as error:
            if self.attempts == attempts:  # else it has been started all the same
                self.refuse(error)

    def refuse(self, error: BaseException) -> None:
        """End it as it can't be started; a pool that refused it may have dropped its work already."""
        self.take_work()
        settle(self, failure(error), may_block=False)

    # -- its work ---------------------------------------------------------------------------------------------------

    def begin(self, worker: Waiter | None = None) -> Attempt | None:
        """Start an attempt; see `GatedFuture.begin`."""
        fields = self.__dict__
        work: Work | None = fields.pop("_work", None)
        if work is None:
            return None
        if self._is_queued:
            self._is_queued = False
        fields["attempts"] = self.attempts + 1
        before: Run | None = fields.get("_run")
        run = fields["_run"] = Attempt(self, work, worker)
        if self._places:
            run.places, self._places = self._places, []
        if self.terms.retry is not None:
            self._again = work
            if type(work) is tuple:  # and not pickled: each attempt sees the variables as they were at the submission
                run.work = (*work[:3], work[3].copy())
            if self._began is None:
                self._began = time.monotonic()
        if (before is not None and before.cancel_requested) or (self.deadline is not None and self.done()):
            # It was cancelled, or overdue, in a moment in which its work was in nobody's hands.
            run.finish((None, CANCELLED, None), may_block=False)
            return None
        return run

    def take_work(self) -> Any:
        """Drop it before it has been started; see `State.take_work`."""
        work: object = super().take_work()
        if work is not None:
            self.leave(self._places)
            if self._stage < len(self._limits):
                self._limits[self._stage].forget(self)
            if self._limits or self.attempts:
                self.terms.desk.discard(self, self.attempts)
            turn = self._turn  # (*) after the work was taken: if its caller still waits, it will see that
            if turn is not None:
                turn.set()
        return work

    def leave(self, places: Places, body: Attempt | None = None) -> None:
        """Give *places* back, which it holds, or that attempt."""
        while places:
            try:
                limits = places.pop()
            except IndexError:  # somebody else does the same
                return
            limits.leave(self, body)

    def is_queued_at(self, dispatcher: Dispatcher) -> bool:
        """Tell whether a waiter may run it: not if it may overrun a time that isn't the waiter's own as well."""
        if not self._is_queued or self.terms.lane is not None or not super().is_queued_at(dispatcher):
            return False
        if self.deadline is None:
            return True
        waiter = current_run()
        return waiter is not None and getattr(waiter.future, "deadline", None) is self.deadline

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

    # -- its end ----------------------------------------------------------------------------------------------------

    def end_with(self, outcome: Outcome) -> list[Any] | None:
        """Publish *outcome*; see `State.end_with`."""
        entries = super().end_with(outcome)
        if entries is not None:
            self.let_go()
        return entries

    def let_go(self) -> None:
        """Let go of what a call needs only until it ends. For whoever has ended it."""
        if self.deadline is not None:
            self.deadline.discard(self)
        if self._began is not None:
            self._again = None
            entry, self._entry = self._entry, None
            if entry is not None:
                entry.cancel()

    def overdue(self, deadline: Deadline) -> None:
        """End it, wherever it is, as *deadline* is over. Runs on the timer's thread, or the caller's."""
        error = TaskTimeoutError(self.terms.name, deadline.seconds, "deadline")
        is_inline = self.dispatcher is INLINE
        if is_inline:
            self.late = error
        if self.take_work() is None:
            run = self.__dict__.get("_run")
            if is_inline or (isinstance(run, Attempt) and not run.claim()):
                if isinstance(run, Attempt):
                    run.ask()
                return
            if isinstance(run, Attempt):
                run.give_up()
        elif is_inline:
            if self._turn is None:
                self._end_elsewhere((None, error, None))
            return
        feeds, self.feeds = self.feeds, ()
        if settle(self, (None, error, None), may_block=False):
            cancel_sources(feeds)

    def _end_elsewhere(self, outcome: Outcome) -> None:
        """End an inline call that its caller has left, on a callback thread: what follows it runs where it ends."""
        feeds, self.feeds = self.feeds, ()
        try:
            self.terms.pool.callbacks.dispatch(_End(self, outcome))
        except Exception:
            LOGGER.exception("no callback thread could be had to end %r", self)
        cancel_sources(feeds)

    def conclude(self, outcome: Outcome, here: Dispatcher | None, *, may_block: bool) -> None:
        """After an attempt: end, or begin another one."""
        if self.terms.retry is None or outcome[1] is None or outcome[1] is CANCELLED:
            settle(self, outcome, here, may_block=may_block)
        elif may_block or not self.terms.asks:
            self.decide(outcome, here, may_block=may_block)
        else:
            try:
                self.terms.pool.callbacks.dispatch(_Decision(self, outcome))
            except Exception:  # nobody is left who could be asked
                settle(self, outcome, may_block=False)

    def decide(self, outcome: Outcome, here: Dispatcher | None, *, may_block: bool) -> None:
        """Ask what is to be tried again, and do so."""
        try:
            pause = self._pause_after(cast(BaseException, outcome[1]))
        except BaseException as error:  # of the function that was asked
            if error is not outcome[1]:
                BaseException.__setattr__(error, "__context__", outcome[1])  # as the exception may be frozen
            pause, outcome = None, failure(error)
        if pause is None or self.done():
            settle(self, outcome, here, may_block=may_block)
        else:
            self._try_again(pause)

    def _pause_after(self, error: BaseException) -> float | None:
        """Return the seconds until the next attempt; None if there is to be none."""
        retry = self.terms.retry
        assert retry is not None and self._began is not None
        verdict = retry.verdict(error)
        pause = retry.wait(self.attempts, random.random) if isinstance(verdict, bool) else verdict
        then = time.monotonic() + pause
        if verdict is False or (retry.attempts is not None and self.attempts >= retry.attempts):
            why = ""
        elif retry.timeout is not None and then > self._began + retry.timeout:
            why = f"; the retry's timeout of {written(retry.timeout)} leaves no time for another"
        elif self.deadline is not None and then > self.deadline.at:
            why = f"; the deadline of {written(self.deadline.seconds)} leaves no time for another"
        else:
            kind = type(error).__name__
            self._failures = {**self._failures, kind: self._failures.get(kind, 0) + 1}
            return pause
        if self.attempts > 1 or why:
            _add_note(error, self._story(why))
        return None

    def _story(self, why: str) -> str:
        """Tell of the attempts that were made."""
        made = f"{self.attempts} attempt{'' if self.attempts == 1 else 's'} of {self.terms.name}"
        before = ", ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in self._failures.items())
        return f"{made}{f'; before this: {before}' if before else ''}{why}"

    def _try_again(self, pause: float) -> None:
        """Begin the next attempt after *pause* seconds."""
        again = self._again
        if again is None:
            return  # it has ended meanwhile
        self._stage = 0
        self.terms.desk.add(self, self.attempts)
        self.__dict__["_work"] = again  # from here on it can be cancelled as if it had not begun
        run = self.__dict__["_run"]
        if self.done() or run.cancel_requested:
            self.cancel()
        elif self.dispatcher is INLINE:
            self._pause = pause
        elif pause > 0:
            self._wait_outside(pause)
        else:
            self._resume()

    def _wait_outside(self, pause: float) -> None:
        """Go on after *pause* seconds."""
        try:
            self._entry = TIMER.call_later(pause, self._pause_over)
        except RuntimeError as error:  # no thread can be started
            self.refuse(error)
        if self.done() and self._entry is not None:
            self._entry.cancel()

    def comes_again(self) -> bool:
        """For whoever runs it inline: wait for the next attempt; False if there is to be none."""
        pause, self._pause = self._pause, None
        if pause is None:
            return False
        turn = self._turn = threading.Event()
        if self.is_parked():
            turn.wait(pause)
        attempt = self.attempts
        try:
            return self._is_still_on() and self._take_places()
        finally:
            self.terms.desk.discard(self, attempt)

    def _pause_over(self) -> None:
        if self.is_parked():
            self._resume()


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
    awaited: list[Any] | tuple[()] = ()
    places: Places = _NO_PLACES
    _asked: threading.Event | None = None
    _late: TaskTimeoutError | None = None  # what an inline one ends with that has overrun
    _was_given_up = False
    _is_over = False
    _away: tuple[()] | list[Waiter] = ()  # the worker, once it has been replaced, until it is back

    def __init__(self, call: Call, work: Work, worker: Waiter | None) -> None:
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

    def start(self) -> None:
        """From now on its time counts; see `Run.start`."""
        if not self.has_started:  # else its worker died before it had read the call: another one has it now
            self.has_started = True
            for limits in list(self.places):
                limits.started(cast("Call", self._future()))
            if self._lane is not None:
                self._lane.start(self)
        if self.cancel_requested or self._was_given_up:
            self._stop()  # who gave it up may have been too early to do so

    def finish(self, outcome: Outcome, here: Dispatcher | None = None, *, may_block: bool = True) -> None:
        """Note that the body has ended; see `Run.finish`."""
        call = cast("Call", self._future())  # who runs it holds it
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
            if call.__dict__.setdefault("_end", outcome) is not outcome:
                settle(call, outcome, here, may_block=may_block)
            elif call.deadline is not None or call.terms.retry is not None:
                call.let_go()
        else:
            self._conclude(call, outcome, here, may_block)
        del self, call, outcome  # an error of what follows refers to this frame: break the cycle

    def _conclude(self, call: Call, outcome: Outcome, here: Dispatcher | None, may_block: bool) -> None:
        if call.late is not None:
            settle(call, (None, call.late, None), here, may_block=may_block)
        else:
            outcome = self.told(outcome) if self._late is None else (None, self._late, None)
            call.conclude(outcome, here, may_block=may_block)
        del self, call, outcome  # as in `finish`

    # -- too late -----------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Fail, as the timeout is over. Runs on the timer's thread."""
        call = cast("Call | None", self.future_if_any())
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
            cast("Call", self._future()).terms.desk.look()
        worker.replace()
        self._away = [worker]
        if self._is_over:
            self._come_back()
        return False

    def _stop(self) -> bool:
        stop = self.kill or self.stop
        if stop is not None:
            stop()
        return stop is not None

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


class _Resumption:
    """A call on its way to a thread where it may go on."""

    __slots__ = ("_call",)
    priority = 0

    def __init__(self, call: Call) -> None:
        self._call = call

    def run_on(self, here: Dispatcher) -> None:
        self._call.resume()


class _Decision:
    """A call on its way to a thread where the user may be asked what to try again."""

    __slots__ = ("_call", "_outcome")
    priority = 0

    def __init__(self, call: Call, outcome: Outcome) -> None:
        self._call = call
        self._outcome = outcome

    def run_on(self, here: Dispatcher) -> None:
        self._call.decide(self._outcome, here, may_block=True)
        del self  # an error refers to this frame: break the cycle


class _End:
    """A call on its way to a thread where it may end."""

    __slots__ = ("_call", "_outcome")
    priority = 0

    def __init__(self, call: Call, outcome: Outcome) -> None:
        self._call = call
        self._outcome = outcome

    def run_on(self, here: Dispatcher) -> None:
        settle(self._call, self._outcome, here)


def _add_note(error: BaseException, text: str) -> None:
    """Add a note by the base's own methods: the exception's may run code of the user's, and it may be frozen."""
    before: object = BaseException.__getattribute__(error, "__dict__").get("__notes__")
    notes = [*cast("list[str]", before), text] if isinstance(before, list) else [text]
    BaseException.__setattr__(error, "__notes__", notes)

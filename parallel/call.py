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

State: a call's fields are changed by whoever has taken its work, or claimed its attempt; `_places` by single atomic
steps of a list.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from math import inf
from types import CodeType
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, cast

from parallel.context import WITHIN, Dispatcher, this
from parallel.deadlines import Deadline
from parallel.delivery import INLINE, cancel_sources, settle
from parallel.durations import written
from parallel.errors import PoolFullError, TaskTimeoutError
from parallel.futures import Future
from parallel.gates import Gate, GatedFuture
from parallel.limits import Limits
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.retries import Retry
from parallel.runs import Run
from parallel.states import BARE
from parallel.timer import TIMER, Entry


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
    """Where those calls are counted that are in no pool: they wait for a place, or for their next attempt."""

    def add(self, call: Call, /) -> None:
        """Count *call* in."""
        ...

    def discard(self, call: Call, /) -> None:
        """Count it out, if it was in."""
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
        self.deadline = None if deadline == inf else deadline
        self.retry = None if retry is None else retry.resolved()
        self.priority = priority
        self.on_success = on_success
        self.on_failure = on_failure
        on: object = None if self.retry is None else self.retry.on
        self.asks = callable(on) and not isinstance(on, type)
        """Whether a function of the user's says what is tried again."""
        self.retries_overruns = self.asks or _names(on, TaskTimeoutError)
        """Whether an attempt is tried again whose body may still be running."""


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
    """

    attempts: int = 0
    deadline: Deadline | None = None
    _again: Work | None = None  # what the next attempt does
    _began: float | None = None  # when the first attempt did
    _entry: Entry | None = None  # the timer's, during a back-off
    _is_queued = False  # in its pool
    _pause: float | None = None  # before the next attempt of an inline call
    _runs_here = False  # its caller runs it, as the pool is full
    _stage = 0  # how many of its limits it has passed

    def __init__(self, terms: Terms, site: Site, limits: tuple[Limits, ...]) -> None:
        super().__init__(BARE, terms.pool.follower)
        self.__dict__["_made"] = site
        self.terms = terms
        self._limits = limits
        self._places: list[Limits] = []  # those that it holds; whoever pops one gives it back
        self._failures: list[BaseException] = []  # of earlier attempts
        if terms.priority:
            self.priority = terms.priority

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
        desk = self.terms.desk
        while self._stage < len(self._limits):
            desk.add(self)
            if not self._limits[self._stage].enter(self):
                if not self.is_parked():
                    desk.discard(self)  # who cancelled it may have been too early to do so
                return  # `admitted` goes on, perhaps it has already
            if not self._has_place():
                return
        if self._runs_here:
            self._runs_here = False
            self.run_on(None)
        else:
            self._is_queued = True
            self.terms.pool.launch(self)
        desk.discard(self)

    def _has_place(self) -> bool:
        """Note the place just taken; False, and it is given back, if the call has been cancelled meanwhile."""
        self._places.append(self._limits[self._stage])
        self._stage += 1
        if self.is_parked():
            return True
        self._leave()  # who cancelled it may have been too early to see this place
        self.terms.desk.discard(self)
        return False

    def is_parked(self) -> bool:
        """Tell whether it still waits: it has not been cancelled."""
        return "_work" in self.__dict__

    def admitted(self) -> None:
        """Go on with a place that another call has given back."""
        if self._has_place():
            self._resume()

    def _resume(self) -> None:
        """Go on, on whatever thread this is."""
        if self.terms.pool.launches_here:
            try:
                self.terms.pool.callbacks.dispatch(_Resumption(self))
            except Exception as error:
                self._fail(error)
        else:
            self.resume()

    def resume(self) -> None:
        """Go on; what goes wrong is the end of the call."""
        try:
            self.go_on()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End it before it has been started."""
        if self.take_work() is not None:
            settle(self, failure(error), may_block=False)

    # -- its work ---------------------------------------------------------------------------------------------------

    def begin(self) -> Attempt | None:
        """Start an attempt; see `Future.begin`."""
        work: Work | None = super().take_work()
        if work is None:
            return None
        terms, fields = self.terms, self.__dict__
        self._is_queued = False
        self.attempts += 1
        before: Run | None = fields.get("_run")
        run = fields["_run"] = Attempt(self, work)
        if terms.retry is not None:
            self._again = work
            if self._began is None:
                self._began = time.monotonic()
        if type(before) is Run and before.asked:  # cancelled in the moment in which it was neither here nor there
            run.finish((None, CANCELLED, None), may_block=False)
            return None
        if terms.lane is not None:
            terms.lane.start(run)
        return run

    def take_work(self) -> Any:
        """Drop it before it has been started; see `State.take_work`."""
        work: object = super().take_work()
        if work is not None:
            self._leave()
            self.terms.desk.discard(self)
        return work

    def _leave(self) -> None:
        """Give back the places that it holds."""
        while self._places:
            try:
                limits = self._places.pop()
            except IndexError:  # somebody else does the same
                return
            limits.leave(self)

    def is_queued_at(self, dispatcher: Dispatcher) -> bool:
        """Tell whether a waiter may run it: not if it may overrun a time that isn't the waiter's own as well."""
        if not self._is_queued or self.terms.lane is not None:
            return False
        within = WITHIN.get()
        mine = None if within is None else within.deadline
        return (self.deadline is None or self.deadline is mine) and super().is_queued_at(dispatcher)

    def awaited(self) -> list[Any]:
        """Return what its body waits for; see `State.awaited`."""
        run = self.__dict__.get("_run")
        return run.awaited if isinstance(run, Attempt) else []

    def look(self) -> None:
        """See whether the one who waits for it lends it a place; see `State.look`."""
        if self._stage < len(self._limits) and self.is_parked():
            self._limits[self._stage].look()

    # -- its end ----------------------------------------------------------------------------------------------------

    def end_with(self, outcome: Outcome) -> list[Any] | None:
        """Publish *outcome*; see `State.end_with`."""
        entries = super().end_with(outcome)
        if entries is not None:
            self._again = None
            self._failures = []
            if self.deadline is not None:
                self.deadline.discard(self)
            entry, self._entry = self._entry, None
            if entry is not None:
                entry.cancel()
        return entries

    def overdue(self, deadline: Deadline) -> None:
        """End it, wherever it is, as *deadline* is over. Runs on the timer's thread, or the caller's."""
        if self.take_work() is None:
            run = self.__dict__.get("_run")
            if isinstance(run, Attempt) and run.claim():
                run.give_up()
        error = TaskTimeoutError(self.terms.name, deadline.seconds, "deadline")
        feeds, self.feeds = self.feeds, ()
        if settle(self, (None, error, None), may_block=False):
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
            self._failures.append(error)
            return pause
        if self.attempts > 1 or why:
            with suppress(Exception):  # it may be frozen
                error.add_note(self._story(why))
        return None

    def _story(self, why: str) -> str:
        """Tell of the attempts that were made."""
        made = f"{self.attempts} attempt{'' if self.attempts == 1 else 's'} of {self.terms.name}"
        kinds = Counter(type(error).__name__ for error in self._failures)
        before = ", ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in kinds.items())
        return f"{made}{f'; before this: {before}' if before else ''}{why}"

    def _try_again(self, pause: float) -> None:
        """Begin the next attempt after *pause* seconds."""
        self._stage = 0
        self.terms.desk.add(self)
        self.__dict__["_work"] = self._again  # from here on it can be cancelled as if it had not begun
        run = self.__dict__["_run"]
        if self.done() or run.cancel_requested:
            self.cancel()
        elif self.dispatcher is INLINE:
            self._pause = pause
        elif pause > 0:
            self._entry = TIMER.call_later(pause, self._pause_over)
            if self.done():
                self._entry.cancel()
        else:
            self._resume()

    def pause_before_next(self) -> float | None:
        """For whoever runs it inline: how many seconds to wait before it is to be run again; None: it is not."""
        pause, self._pause = self._pause, None
        return pause

    def _pause_over(self) -> None:
        if self.is_parked():
            self._resume()


class Attempt(Run):
    """
    One attempt of a call.

    Attributes:
        awaited: The futures that its body waits for now; None among them: nobody knows what.
        cancel_requested: Somebody wants the call cancelled, not only this attempt.
    """

    __slots__ = ("_claim", "_replaced", "_worker", "awaited", "cancel_requested")

    def __init__(self, call: Call, work: Work) -> None:
        super().__init__(call, work, call.attempts)
        self.awaited: list[Any] = []
        self.cancel_requested = False
        self._claim = threading.Lock()
        self._worker = this.worker
        self._replaced = False

    @property
    def call(self) -> Call:
        """The call."""
        return cast(Call, self.future)

    def claim(self) -> bool:
        """Decide how it ends; True for the first who asks."""
        return self._claim.acquire(blocking=False)

    def finish(self, outcome: Outcome, here: Dispatcher | None = None, *, may_block: bool = True) -> None:
        """Note that the body has ended; see `Run.finish`."""
        call = self.call
        self.stop = self.kill = None  # they refer to this attempt
        mine = self.claim()
        lane = call.terms.lane
        if mine and lane is not None:
            lane.stop(self)
        if call._places:  # pyright: ignore[reportPrivateUsage]  # same module
            call._leave()  # pyright: ignore[reportPrivateUsage]  # same module
        if mine:
            call.conclude(self.told(outcome), here, may_block=may_block)
        elif self._replaced and self._worker is not None:
            self._worker.come_back()

    def expire(self) -> None:
        """Fail, as the timeout is over. Runs on the timer's thread."""
        call = cast("Call | None", self.future_if_any())
        if call is None or not self.claim():
            return
        stopped = self.give_up()
        lane = call.terms.lane
        assert lane is not None, "that is where it was"
        outcome = (None, TaskTimeoutError(call.terms.name, lane.seconds, "timeout"), None)
        if stopped or call.terms.retries_overruns:
            call.conclude(outcome, None, may_block=False)
        else:
            settle(call, outcome, may_block=False)

    def give_up(self) -> bool:
        """Stop the body if the engine can, else replace its worker; True if it is being stopped. After `claim`."""
        self.ask()
        stop = self.kill or self.stop
        if stop is not None:
            stop()
        elif self._worker is not None:
            self._replaced = True
            self._worker.replace()
        return stop is not None

    def cancel(self, *, kill: bool = False) -> bool:
        """Ask the function to stop; see `Run.cancel`."""
        self.cancel_requested = True
        if not (kill and self.kill) and self.stop is None:
            self.ask()
            return False
        if not self.claim():
            return False
        self.give_up()
        return settle(self.future, (None, CANCELLED, None))

    def lend(self, awaited: Any) -> None:
        """Lend its places to *awaited*; see `Run.lend`."""
        self.awaited.append(awaited)
        for limits in list(self.call._places):  # pyright: ignore[reportPrivateUsage]  # same module
            limits.lend(self)

    def unlend(self) -> None:
        """Take them back."""
        self.awaited.pop()
        if not self.awaited:
            for limits in list(self.call._places):  # pyright: ignore[reportPrivateUsage]  # same module
                limits.unlend(self)


class _Resumption:
    """A call on its way to a thread where it may go on."""

    __slots__ = ("_call",)
    priority: Final = 0

    def __init__(self, call: Call) -> None:
        self._call = call

    def run_on(self, here: Dispatcher) -> None:
        self._call.resume()


class _Decision:
    """A call on its way to a thread where the user may be asked what to try again."""

    __slots__ = ("_call", "_outcome")
    priority: Final = 0

    def __init__(self, call: Call, outcome: Outcome) -> None:
        self._call = call
        self._outcome = outcome

    def run_on(self, here: Dispatcher) -> None:
        self._call.decide(self._outcome, here, may_block=True)
        del self  # an error refers to this frame: break the cycle

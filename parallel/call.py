"""
One call under its terms: places, attempts, timeout, deadline, cancellation.

    submit() ──▶ gate ──▶ a place under each limit ──▶ pool ──▶ Attempt ──▶ value or error: the end
                              ▲                          ▲         ├──▶ failed: back-off ──┐
                              └── waits, in no worker    │         └──▶ overran: replaced ─┤
                                                         └───────── places again ◀─────────┘

A call without terms is a plain future, and passes none of this.

Guarantees:
- Nothing waits in a worker: not for a place, nor for a back-off.
- A call that waits for a place or a back-off is counted by the desk of its registry, for which a shutdown waits.
- An inline call is ended by its caller's thread, and waits on it: what follows it runs where it ends, which must not be
  the timer's thread.

State: a call's fields are changed by whoever has taken its work, or claimed its attempt (see `attempts`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from parallel import trail
from parallel.attempts import Attempt, Tried
from parallel.chains import add_note
from parallel.context import WITHIN, Dispatcher, Home, Waiter, Within, this
from parallel.deadlines import Deadline
from parallel.delivery import INLINE, Errand, cancel_sources, settle
from parallel.durations import written
from parallel.errors import PoolFullError, TaskTimeoutError
from parallel.events import CallRetried
from parallel.gates import Gate
from parallel.limits import Limits
from parallel.naps import until_set
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.runs import Run, current_run
from parallel.states import BARE, share_keys
from parallel.terms import Site, Terms
from parallel.timer import TIMER, Entry

LOGGER = logging.getLogger("parallel")


class Call(Tried):
    """The future of a call that has terms, or is made in a group or under a deadline."""

    _again: Work | None = None  # what the next attempt does
    _began: float | None = None  # when the first attempt did
    _entry: Entry | None = None  # the timer's, during a back-off
    _is_queued = False  # in its pool
    _pause: float | None = None  # before the next attempt of an inline call
    _runs_here = False  # its caller runs it, as the pool is full
    _failures: Mapping[str, int] = MappingProxyType({})  # of earlier attempts: how many of each kind
    _turn: threading.Event | None = None  # wakes the caller that waits to run it

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
        if terms.idempotent:
            self.idempotent = True

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
        try:
            if gate is None or self._pass(gate):
                self.go_on()
        finally:
            del self, work, fields  # an error of a call that was run here refers to this frame: see `failure`

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
            self._note_queued()
            try:
                self.terms.pool.launch(self)
            finally:
                del self  # as in `submit`
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
                self._note_queued()
                self.terms.pool.launch(self)
        finally:
            if attempt != self.attempts or self._is_queued or not self.is_parked():
                desk.discard(self, attempt)
            del self  # as in `submit`

    def _note_queued(self) -> None:
        noting = trail.current
        if noting is not None and "_id" in self.__dict__:
            noting.note((trail.QUEUED, trail.clock(), self.__dict__["_id"]))

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
                until_set(turn)
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
                self.terms.pool.callbacks.dispatch(Errand(lambda _: self.resume()))
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

    def is_queued_at(self, dispatcher: Dispatcher) -> bool:
        """
        Tell whether a waiter may run it: not if it may overrun a time that isn't the waiter's own as well.

        Nor if it may be tried again: its place in the queue stays there, and would begin the next attempt.
        """
        if not self._is_queued or self.terms.lane is not None or self.terms.retry is not None:
            return False
        if not super().is_queued_at(dispatcher):
            return False
        if self.deadline is None:
            return True
        waiter = current_run()
        return waiter is not None and getattr(waiter.future, "deadline", None) is self.deadline

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
            self.terms.pool.callbacks.dispatch(Errand(lambda here: settle(self, outcome, here)))
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
                self.terms.pool.callbacks.dispatch(Errand(lambda here: self.decide(outcome, here, may_block=True)))
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
            noting = trail.current
            if noting is not None and "_id" in self.__dict__:
                noting.note((trail.RETRIED, trail.clock(), self.__dict__["_id"], self.attempts, pause, error))
            hooks = self.terms.hooks
            if hooks is not None:
                event = CallRetried(
                    self.terms.pool.name, self.terms.name, error, self.attempts, pause, call_id=trail.id_of(self)
                )
                hooks.tell(event, self._registry())
            return pause
        if self.attempts > 1 or why:
            add_note(error, self._story(why))
        return None

    def _registry(self) -> Home | None:
        """Return the registry that it was made in; None: the default one."""
        again = self._again
        within: Within | None = None
        if again is not None:  # packed, it has no context any more
            within = again[3].get(WITHIN) if type(again) is tuple else self.__dict__.get("_within")
        return None if within is None else within.registry

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


share_keys(Call, "_made", "terms", "attempts", "_run", "_is_queued", "deadline", "_limits", "_places", "_stage")

"""
Back-pressure: how many calls may wait in one pool, and what becomes of those that come when it is full.

    submit() from outside ──▶ Gate.enter() ──▶ queued ──▶ started or cancelled ──▶ Gate.leave()
                                  └──▶ full: wait, raise, or run it on the spot

What the pool's own program adds, workers, continuations, retries and timers, always gets in: none of them may wait.

State: `_inside`, guarded by `_lock`, which is re-entrant: a signal handler may submit while it is held. As what it
submits may go to any pool, no lock of an engine is held while `_lock` is taken.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Literal, TypeAlias

from parallel.context import Dispatcher, Waiter, era, this
from parallel.coroutines import runs_a_loop
from parallel.errors import PoolFullError
from parallel.futures import Future
from parallel.outcomes import Work, attempt
from parallel.runs import Run, raise_interrupt, run_by_caller

OnFull: TypeAlias = Literal["block", "raise", "run"]
"""What becomes of a call for which there is no room: its caller waits, gets an error, or runs it."""


class Gate:
    """
    Bounds the calls that wait in one pool.

    Args:
        label: What messages call the pool.
        max_pending: Calls that may wait.
        on_full: What becomes of one more.
    """

    def __init__(self, label: str, max_pending: int, on_full: OnFull) -> None:
        self._label = label
        self._most = max_pending
        self._on_full = on_full
        self._begin()

    def _begin(self) -> None:
        self._era = era()
        self._inside = 0
        self._lock = threading.RLock()  # entered itself: in `with condition` a Ctrl-C can leave the lock held
        self._room = threading.Condition(self._lock)

    def enter(self, until: float | None = None) -> bool:
        """
        Count a call in, after waiting for room if need be. A Ctrl-C ends the waiting.

        Args:
            until: When the waiting has to end, on the clock of `time.monotonic`; None: never.

        Returns:
            False if the caller is to run it instead.

        Raises:
            PoolFullError: There is no room; or not in time; or this thread must not wait for it.
        """
        self._look_for_fork()
        with self._lock:
            if self._inside >= self._most and this.worker is None:
                if self._on_full == "run":
                    return False
                self._wait(until)
            self._inside += 1
            return True

    def _wait(self, until: float | None) -> None:
        if self._on_full == "raise":
            raise PoolFullError(self._label, self._most)
        if runs_a_loop():
            raise PoolFullError(self._label, self._most, may_wait=False)
        try:
            while self._inside >= self._most:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise PoolFullError(self._label, self._most)
                self._room.wait(left)
        except BaseException:
            self._room.notify()  # it may have been told of room that it doesn't take now
            raise

    def leave(self) -> None:
        """Count a call out: it has been started, or cancelled."""
        self._look_for_fork()
        with self._lock:
            self._inside = max(self._inside - 1, 0)  # less only in a forked child, by calls of the parent
            self._room.notify()

    def is_owned(self) -> bool:
        """Tell whether this thread is in the middle of entering or leaving: a signal handler may ask."""
        return self._room._is_owned()  # type: ignore[attr-defined, no-any-return]

    def _look_for_fork(self) -> None:
        """In a forked child, begin anew: the calls inside are the parent's, as whoever may have held the lock was."""
        if self._era != era():
            self._begin()


class GatedFuture(Future[Any]):
    """A future whose engine is told where it starts and where it ends; it takes a place in a gate until it starts."""

    gate: Gate | None = None

    def pass_gate(self, gate: Gate, until: float | None = None) -> bool:
        """Take a place in *gate*; see `Gate.enter`."""
        if not gate.enter(until):
            return False
        self.gate = gate
        if self.ended() is not None:
            self.leave_gate()  # its deadline came meanwhile, and found no gate to leave
        return True

    def take_work(self) -> Any:
        """Start the call, or drop it; see `State.take_work`."""
        work: object = super().take_work()
        if work is not None:
            self.leave_gate()
        return work

    def leave_gate(self) -> None:
        """Give the place in the gate back, if it has one. For whoever has taken the work."""
        gate: Gate | None = self.__dict__.pop("gate", None)  # whoever pops it leaves it
        if gate is not None:
            gate.leave()

    def begin(self, worker: Waiter | None = None) -> Run | None:
        """
        Start the call; see `Future.begin`.

        Who begins it calls `leave_gate` then, whatever came out, when he holds no lock.

        Args:
            worker: The worker on whose thread it runs, if it does.
        """
        fields = self.__dict__
        gate: Gate | None = fields.pop("gate", None)
        try:
            return super().begin()
        finally:
            if gate is not None:
                fields["gate"] = gate

    def run_here(self) -> None:
        """
        Run the call on the thread that makes it, as its pool is full.

        Raises:
            KeyboardInterrupt: The call, on the main thread, was ended by a Ctrl-C: that is for the program, too.
        """
        with run_by_caller(self):
            self.run_on(None)
        raise_interrupt(self)

    def run_on(self, here: Dispatcher | None, *, may_block: bool = True) -> None:
        """Run the call on this thread; see `Future.run_on`."""
        worker = this.worker
        run = self.begin(worker)
        if self.gate is not None:
            self.leave_gate()
        if run is None:
            return
        before: Any = None
        if worker is not None:
            before, worker.running = worker.running, run
        work: Work | None = run.work
        run.work = None
        assert work is not None, "a run is begun with its work"
        try:
            run.start()
            outcome = attempt(work)
        except BaseException as error:  # not even that could be done: its time can't be watched, or the stack is full
            outcome = (None, error, None)
        del work  # what follows may take long: don't keep the arguments alive
        if worker is not None:
            worker.running = before
        run.finish(outcome, here, may_block=may_block)
        del self, run, outcome, before  # an error refers to this frame: break the cycle

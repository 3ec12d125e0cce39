"""
A crew that starts nothing while memory is short.

    take(), next_step() ──▶ a token for the best step ──▶ may it start? ──▶ the worker runs the best step there is then
                                                               └──▶ no: the worker waits, with the token in hand

All steps are ranked, as they are where calls have priorities: the steps themselves wait in `_ranked`, where they keep
their order and can be cancelled, whoever has the tokens.

One of the workers that wait looks again every `LOOK` seconds. A worker that runs dry, waits inside its call, or has
started a step tells the next one to look at once: so what may start does, one after the other.

A worker that runs what it waits for itself (helping) doesn't ask: its own call holds its memory until that has ended.

State: `_held`, `_has_lookout` and `_shortage`, guarded by the crew's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from parallel.context import Step, this
from parallel.futures import Future
from parallel.pools.base import Counts
from parallel.pools.crew import Crew
from parallel.pools.intake import is_call
from parallel.pools.workers import GoHome, Worker
from parallel.shortage import LOOK, Shortage


class SparingCrew(Crew):
    """The engine of a thread pool that leaves memory free."""

    def __init__(
        self,
        memory_free: int,
        label: str,
        max_workers: int,
        prefix: str,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        helping: bool = True,
    ) -> None:
        super().__init__(label, max_workers, prefix, initializer, initargs, helping=helping)
        self._shortage = Shortage(label, memory_free)
        self._enough = threading.Condition(self._lock)
        self._held = 0  # workers that wait for memory
        self._has_lookout = False  # one of them looks again in a moment
        self._get = self.take
        self.take = self._take
        self.rank()

    def _take(self) -> Step:
        return self._when_enough(self._get())

    def next_step(self) -> Step:
        """Wait for something to do, and for memory."""
        self._have_looked()  # this worker runs nothing any more
        return self._when_enough(super().next_step())

    def _when_enough(self, step: Step) -> Step:
        """Wait until there is memory for one more step; what sends a worker home needs none."""
        if isinstance(step, GoHome):
            return step
        with self._lock:
            self._wait_for_memory()
            worker = this.worker
            if isinstance(worker, Worker):
                worker.running = step  # before anybody else looks
        self._have_looked()
        self._shortage.tell()
        return step

    def _wait_for_memory(self) -> None:
        """Under the lock, which is let go of meanwhile: wait until a step may start, or all have been cancelled."""
        while self._ranked and self._shortage.holds_back(self._running()):
            looks = not self._has_lookout
            self._has_lookout = True
            self._held += 1
            try:
                self._enough.wait(LOOK if looks else None)
            finally:
                self._held -= 1
                if looks:
                    self._has_lookout = False

    def _running(self) -> int:
        """Under the lock: count the workers that run something, and don't wait in it."""
        return sum(worker.running is not None and not worker.is_away for worker in self._workers)

    def _have_looked(self) -> None:
        """Have the next worker that waits for memory look whether there is some now."""
        if self._held:
            with self._lock:
                self._enough.notify()

    def _hire_spare(self) -> None:
        """Start a spare worker if need be: one has gone away inside its call, which doesn't run meanwhile."""
        super()._hire_spare()
        self._have_looked()

    def _end_queued(self, end: Callable[[Future[Any]], object]) -> None:
        """Take the calls out of the queue and end them, also those whose tokens workers have in hand."""
        with ExitStack() as stack:  # all of it is done, whatever ending one of them raises
            stack.callback(self._dismiss_held)
            stack.callback(self._end_ranked, end)
            stack.callback(super()._end_queued, end)

    def _end_ranked(self, end: Callable[[Future[Any]], object]) -> None:
        """End the calls that are left; they stay where they are, without their work, for the workers to come upon."""
        with self._lock:
            left = [step for step in self._ranked or () if is_call(step)]
        with ExitStack() as stack:
            for future in reversed(left):
                stack.callback(future.take_work)
                stack.callback(end, future)

    def _dismiss_held(self) -> None:
        """Have all that wait for memory look: there may be nothing left that needs it."""
        if self._held:
            with self._lock:
                self._enough.notify_all()

    def counts(self) -> Counts:
        """Count the workers and the calls; what workers wait for memory with is queued."""
        with self._lock:
            counts = super().counts()
            held = min(self._held, counts.running)
            return counts._replace(queued=counts.queued + held, running=counts.running - held)

    def abandon(self) -> None:
        """In a forked child: the workers that wait for memory are the parent's."""
        self._held = 0
        super().abandon()
        self._enough = threading.Condition(self._lock)

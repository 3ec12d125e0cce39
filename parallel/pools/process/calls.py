"""
The calls of a process pool that no worker has: those that wait for one, and those that have ended.

    queue() ──▶ next() ──▶ (a worker) ──▶ end() ──▶ settle_all() ──▶ what follows: callback threads
       │          ▲            │ died before it had read the call
       │          └────────────┴ give_back()
       └──▶ drop() ──▶ end(), or end_here()

Guarantees:
- Calls come out in the order in which they went in; one that was given back comes first. Cancelled ones never do.
- A call counts as unended until everything that follows it has been handed on.

State: `queued`, `_returned` and `done` are changed under the pool's lock, by single steps: a signal handler may submit
between any two of them. `_endings` is emptied by the reader. `_dropped` is changed by single atomic steps.
Under that lock a call is begun, which takes no other, but never ended: that may give places back and start others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Any, cast

from parallel.delivery import settle
from parallel.futures import Future
from parallel.gates import GatedFuture
from parallel.outcomes import CANCELLED, Outcome
from parallel.pools.backlog import Backlog
from parallel.pools.process.peer import Call, Given
from parallel.runs import Run

LOGGER = logging.getLogger("parallel")


class Calls:
    """
    The calls without a worker.

    Attributes:
        queued: Those that wait, cancelled ones too.
        done: How many have ended.
    """

    kill: Callable[[Given], object]
    """How the worker is ended that has a call; set by the engine."""

    wake: Callable[[], object]
    """How the reader is told to settle what has ended; set by the books."""

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self.queued: Backlog[Future[Any]] = Backlog()
        self._returned: deque[Given] = deque()  # started, but their worker died before it had read them
        self._endings: deque[tuple[Callable[[Outcome], object], Callable[[], Outcome]]] = deque()  # the first is at it
        self._dropped: dict[int, Future[Any]] = {}
        self.done = 0

    def waiting(self) -> int:
        """Count the calls that wait for a worker."""
        return len(self.queued) + len(self._returned)

    def all_ended(self) -> bool:
        """Tell whether no call is here, waiting or about to end."""
        return not (self.queued or self._returned or self._endings or self._dropped)

    def give_back(self, given: Given) -> None:
        """Under the lock: queue again what a worker can't have started."""
        self._returned.append(given)

    def next(self) -> Given | None:
        """Under the lock: start the next call; None if there is none."""
        while self._returned:
            given = self._returned.popleft()
            if not given.run.is_over:
                return given
            self._end_later(partial(_finish, given))  # that gives its places back
        while True:
            try:
                future = self.queued.popleft()
            except IndexError:
                return None
            if _is_called_off(future):
                self._end_later(partial(_end_called_off, future))
                continue
            run = future.begin()
            if run is not None:
                call, run.work = cast(Call, run.work), None
                call.sent_before = False  # in this attempt
                given = Given(future, call, run)
                run.kill = partial(self.kill, given)
                return given
            self.done += 1

    def _end_later(self, finish: Callable[[Outcome], object]) -> None:
        """Under the lock, under which no other is taken: have the reader end a call that has been cancelled."""
        self._endings.append((finish, lambda: (None, CANCELLED, None)))
        self.wake()

    def drop(self) -> list[Future[Any]]:
        """Under the lock: take all that wait; the caller ends each of them, by `end_dropped` or `end_here`."""
        dropped = [given.future for given in self._returned]
        self._returned.clear()
        while self.queued:
            dropped.append(self.queued.popleft())  # its work is taken as it ends: that gives places back
        self._dropped.update((id(future), future) for future in dropped)
        return dropped

    def clear(self) -> None:
        """In a forked child: forget the calls, which are the parent's."""
        self.queued.clear()
        self._returned.clear()

    def end(self, given: Given, outcome: Callable[[], Outcome]) -> None:
        """On the reader: have `settle_all` end a call with what *outcome* returns, which may run user code."""
        self._endings.append((partial(_finish, given), outcome))

    def end_dropped(self, future: Future[Any], outcome: Callable[[], Outcome]) -> None:
        """On the reader: have `settle_all` end a dropped call."""
        self._endings.append((partial(_end_unread, future, may_block=False), outcome))
        self._dropped.pop(id(future), None)

    def end_here(self, future: Future[Any], outcome: Outcome) -> None:
        """End a dropped call on this thread, where callbacks may block."""
        try:
            _end_unread(future, outcome, may_block=True)
        finally:
            with self._lock:
                self._dropped.pop(id(future), None)
                self.done += 1

    def count_stillborn(self) -> None:
        """Count a call that ended where it was made."""
        with self._lock:
            self.done += 1

    def settle_all(self) -> None:
        """On the reader: settle what has ended."""
        while self._endings:
            try:
                finish, outcome = self._endings[0]
                finish(outcome())
            except Exception:  # nothing that follows one call may cost another its end
                LOGGER.exception("a process pool could not hand on what follows a call")
            finally:
                with self._lock:
                    self.done += 1
                self._endings.popleft()


def _finish(given: Given, outcome: Outcome) -> None:
    given.run.finish(outcome, may_block=False)


def _is_called_off(future: Future[Any]) -> bool:
    """Tell whether a queued call has ended, or was cancelled, in a moment in which its work was in nobody's hands."""
    run: Run | None = future.__dict__.get("_run")
    return "_work" in future.__dict__ and (future.done() or (run is not None and run.cancel_requested))


def _end_called_off(future: Future[Any], outcome: Outcome) -> None:
    run = future.begin()
    if isinstance(future, GatedFuture):
        future.leave_gate()
    if run is not None:
        run.finish(outcome, may_block=False)


def _end_unread(future: Future[Any], outcome: Outcome, *, may_block: bool) -> None:
    """End a call that no worker has read, though it may have been started: given to one that died before that."""
    settle(future, outcome, may_block=may_block)
    run: Run | None = future.__dict__.get("_run")
    if run is not None:
        run.finish(outcome, may_block=may_block)

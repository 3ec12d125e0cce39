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
between any two of them. `_endings` is the reader's. `_dropped` is changed by single atomic steps.
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
            given.run.finish((None, CANCELLED, None), may_block=False)  # it has ended: that gives its places back
            self.done += 1
        while True:
            try:
                future = self.queued.popleft()
            except IndexError:
                return None
            run = future.begin()
            if run is not None:
                call, run.work = cast(Call, run.work), None
                given = Given(future, call, run)
                run.kill = partial(self.kill, given)
                return given
            self.done += 1

    def drop(self) -> list[Future[Any]]:
        """Under the lock: take all that wait; the caller ends each of them, by `end_dropped` or `end_here`."""
        dropped = [given.future for given in self._returned]
        self._returned.clear()
        while self.queued:
            future = self.queued.popleft()
            if future.take_work() is None:
                self.done += 1  # it was cancelled
            else:
                dropped.append(future)
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


def _end_unread(future: Future[Any], outcome: Outcome, *, may_block: bool) -> None:
    """End a call that no worker has read, though it may have been started: given to one that died before that."""
    settle(future, outcome, may_block=may_block)
    run: Run | None = future.__dict__.get("_run")
    if run is not None:
        run.finish(outcome, may_block=may_block)

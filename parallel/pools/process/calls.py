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
from threading import RLock
from typing import Any

from parallel.delivery import settle
from parallel.futures import Future
from parallel.outcomes import Outcome
from parallel.pools.process.peer import Call, Given

LOGGER = logging.getLogger("parallel")


class Calls:
    """
    The calls without a worker.

    Attributes:
        queued: Those that wait, cancelled ones too.
        done: How many have ended.
    """

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self.queued: deque[Future[Any]] = deque()
        self._returned: deque[Given] = deque()  # started, but their worker died before it had read them
        self._endings: deque[tuple[Future[Any], Callable[[], Outcome]]] = deque()  # the first is being settled
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
        if self._returned:
            return self._returned.popleft()
        while True:
            try:
                future = self.queued.popleft()
            except IndexError:
                return None
            call: Call | None = future.take_work()
            if call is not None:
                return Given(future, call)
            self.done += 1

    def drop(self) -> list[Future[Any]]:
        """Under the lock: take all that wait; the caller ends each of them, by `end` or `end_here`."""
        dropped: list[Future[Any]] = []
        while (given := self.next()) is not None:
            self._dropped[id(given.future)] = given.future
            dropped.append(given.future)
        return dropped

    def clear(self) -> None:
        """In a forked child: forget the calls, which are the parent's."""
        self.queued.clear()
        self._returned.clear()

    def end(self, future: Future[Any], outcome: Callable[[], Outcome]) -> None:
        """On the reader: have `settle_all` end *future* with what *outcome* returns, which may run user code."""
        self._endings.append((future, outcome))
        self._dropped.pop(id(future), None)

    def end_here(self, future: Future[Any], outcome: Outcome) -> None:
        """End a dropped call on this thread, where callbacks may block."""
        try:
            settle(future, outcome)
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
                self._settle(*self._endings[0])
            except Exception:  # nothing that follows one call may cost another its end
                LOGGER.exception("a process pool could not hand on what follows a call")
            finally:
                with self._lock:
                    self.done += 1
                self._endings.popleft()

    def _settle(self, future: Future[Any], outcome: Callable[[], Outcome]) -> None:
        settle(future, outcome(), may_block=False)

"""
The calls of a process pool that no worker has: those that wait for one, and those that have ended.

    queue(), returned ──▶ take() ──▶ (a worker) ──▶ settled by `listening`, or by who waits for it
       │          ▲         └── it was cancelled, or its worker died ──▶ end() ──▶ settle_all()
       │          └── put_back(), give_back(): its worker died, or was not to begin it
       └──▶ drop() ──▶ end_dropped(), or end_here()

Guarantees:
- Calls come out by priority, and of one priority in the order in which they went in; those that were put back come
  before their like, and those that a worker had for itself before all. Cancelled ones never do.
- A call counts as unended until everything that follows it has been handed on.

State: the four queues are appended to by anybody, and taken from under the gate: each step is atomic. The
counts of what has ended each have one writer, or a lock, as said there. `_endings` is emptied by the reader. `_dropped`
is changed by single atomic steps.
Under the gate a call is begun, which takes no other lock, but never ended: that may give places back and start others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from threading import RLock
from typing import Any, TypeAlias, cast

from parallel.delivery import settle
from parallel.futures import Future
from parallel.gates import GatedFuture
from parallel.outcomes import CANCELLED, Outcome
from parallel.pools.backlog import Backlog
from parallel.pools.process.packing import Packed
from parallel.pools.process.peer import Given
from parallel.runs import Run

LOGGER = logging.getLogger("parallel")

Waiting: TypeAlias = Future[Any] | Given
"""A call that waits: pending; or begun, but its worker died before it had read it."""


class Calls:
    """
    The calls without a worker.

    Attributes:
        urgent: Those that wait, cancelled ones too, and have a priority above the usual one;
        plain: the usual one;
        lesser: one below it.
        returned: Those that had a worker for themselves, and were given back: before all others.
        settled: How many calls the reader has settled.
        tidied: How many have been settled by those who waited for them, or cancelled. Changed under the gate.
        settling: The reader is about to settle calls that no worker has any more.
    """

    wake: Callable[[], object]
    """How the reader is told to settle what has ended; set by the books."""

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self.urgent: Backlog[Future[Any]] = Backlog()
        self.plain: deque[Future[Any]] = deque()
        self.lesser: Backlog[Future[Any]] = Backlog()
        self.returned: deque[Waiting] = deque()
        self.settled = 0
        self.tidied = 0
        self.settling = False
        self._endings: deque[tuple[Callable[[Outcome], object], Callable[[], Outcome]]] = deque()  # the first is at it
        self._dropped: dict[int, Future[Any]] = {}
        self._done_here = 0  # by others; under the lock

    @property
    def done(self) -> int:
        """How many have ended."""
        return self.settled + self.tidied + self._done_here

    def waiting(self) -> int:
        """Count the calls that wait for a worker."""
        return len(self.plain) + len(self.returned) + len(self.urgent) + len(self.lesser)

    def queue(self, future: Future[Any]) -> None:
        """Queue a call, from any thread: one step, and no lock."""
        priority = future.priority
        (self.urgent if priority > 0 else self.lesser if priority else self.plain).append(future)

    def put_back(self, call: Waiting) -> None:
        """Under the gate: queue again, before its like, a call that was taken."""
        if isinstance(call, Given):
            self.returned.appendleft(call)
            return
        priority = call.priority
        (self.urgent if priority > 0 else self.lesser if priority else self.plain).appendleft(call)

    def all_ended(self) -> bool:
        """Tell whether no call is here, waiting or about to end."""
        return not (self.waiting() or self._endings or self._dropped or self.settling)

    def take(self) -> Waiting | None:
        """Under the gate: take the next call; None if there is none."""
        return next(self.stream(), None)

    def stream(self) -> Iterator[Waiting]:
        """Under the gate: take the calls one after the other, until there is none."""
        returned, urgent, plain, lesser = self.returned, self.urgent, self.plain, self.lesser
        while True:
            if returned:
                yield returned.popleft()
            elif urgent:
                yield urgent.popleft()
            elif plain:
                yield plain.popleft()
            elif lesser:
                yield lesser.popleft()
            else:
                return

    def begin(self, call: Waiting) -> Given | Packed | None:
        """
        Under the gate: begin a call that was taken, and is not a plain one (see `Dispatching`).

        Returns:
            Where it may travel with others, what is to be sent; else a `Given` of which only the number is missing;
            None if it was cancelled.
        """
        if isinstance(call, Given):
            if call.run is not None and call.run.is_over:
                self._end_later(partial(_finish, call.run))  # that gives its places back
                return None
            return call
        if is_called_off(call):
            self._end_later(partial(end_called_off, call))
            return None
        run = call.begin()
        if run is None:
            self.settled_elsewhere()
            return None
        work: Any = run.work
        run.work = None
        if type(call) is Future:
            return cast(Packed, work)
        call.__dict__.pop("_unread", None)  # that was in another attempt
        return Given(0, call, work[0], work[1], run)

    def settled_elsewhere(self) -> None:
        """Under the gate: count a call that was cancelled while it waited."""
        self.tidied += 1

    def _end_later(self, finish: Callable[[Outcome], object]) -> None:
        """Under the gate, under which none is ended: have the reader end a call that has been cancelled."""
        self._endings.append((finish, lambda: (None, CANCELLED, None)))
        self.wake()

    def give_back(self, given: Given) -> None:
        """Under the gate: queue again, before its like, what a worker has not begun; a pending call is one again."""
        if given.run is not None:
            self.put_back(given)
            return
        given.future.__dict__["_work"] = Packed((given.known, given.item))
        self.put_back(given.future)

    def drop(self) -> list[Future[Any]]:
        """Under the gate: take all that wait; the caller ends each of what `dropped` returns then."""
        queues: tuple[Any, ...] = (self.returned, self.urgent, self.plain, self.lesser)
        for queue in queues:
            waiting: list[Waiting] = [*queue]
            for call in waiting:  # noted before it is taken: an interrupt may come in between
                future = call.future if isinstance(call, Given) else call  # its work is taken as it ends
                self._dropped[id(future)] = future
            for _ in waiting:
                queue.popleft()
        return self.dropped()

    def dropped(self) -> list[Future[Any]]:
        """Return what was dropped, and has not been ended: by `end_dropped`, or `end_here`."""
        return list(self._dropped.values())

    def drop_ended(self) -> None:
        """Under the gate: forget those at the head of the queue that were cancelled."""
        while (call := self.take()) is not None:
            if isinstance(call, Given) or "_work" in call.__dict__:
                self.put_back(call)
                return
            self.settled_elsewhere()

    def clear(self) -> None:
        """In a forked child: forget the calls, which are the parent's."""
        self.urgent.clear()
        self.plain.clear()
        self.lesser.clear()
        self.returned.clear()

    def end(self, given: Given, outcome: Callable[[], Outcome]) -> None:
        """On the reader: have `settle_all` end a call with what *outcome* returns, which may run user code."""
        finish = partial(settle, given.future, may_block=False) if given.run is None else partial(_finish, given.run)
        self._endings.append((finish, outcome))

    def end_dropped(self, future: Future[Any], outcome: Callable[[], Outcome]) -> None:
        """On the reader: have `settle_all` end a dropped call."""
        if self._dropped.get(id(future)) is not None:
            self._endings.append((partial(_end_unread, future, may_block=False), outcome))
            self._dropped.pop(id(future), None)

    def end_here(self, future: Future[Any], outcome: Outcome) -> None:
        """End a dropped call on this thread, where callbacks may block."""
        _end_unread(future, outcome, may_block=True)
        with self._lock:  # after it: what an interrupt leaves half done is done again by the reader
            if self._dropped.pop(id(future), None) is not None:
                self._done_here += 1

    def count_stillborn(self) -> None:
        """Count a call that ended where it was made."""
        with self._lock:
            self._done_here += 1

    def settle_all(self) -> None:
        """On the reader: settle what has ended."""
        while self._endings:
            try:
                finish, outcome = self._endings[0]
                finish(outcome())
            except Exception:  # nothing that follows one call may cost another its end
                LOGGER.exception("a process pool could not hand on what follows a call")
            finally:
                self.settled += 1
                self._endings.popleft()


def _finish(run: Run, outcome: Outcome) -> None:
    run.finish(outcome, may_block=False)


def is_called_off(future: Future[Any]) -> bool:
    """Tell whether a queued call has ended, or was cancelled, in a moment in which its work was in nobody's hands."""
    run: Run | None = future.__dict__.get("_run")
    return "_work" in future.__dict__ and (future.done() or (run is not None and run.cancel_requested))


def end_called_off(future: Future[Any], outcome: Outcome) -> None:
    """End such a one, on a thread where no code of the user's may run."""
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

"""
The intake of a crew: the one queue in which its steps wait, by priority if there is one, and how many there have been.

    accept() ──▶ _queue (FIFO) ──▶ take()

    from the first priority on: accept() ──▶ _ranked, and _NEXT into _queue ──▶ who takes that gets the best of them

Guarantees:
- Steps of one priority come out in the order in which they came.
- A Ctrl-C leaves no number without its step.

State: `_ranked`, `_looks` and `_left_done` are changed under `_lock`, which is re-entrant: a signal handler or a
`__del__` may submit while it is held. `_queue` guards itself, `_numbers` is taken from by single atomic steps.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, cast

from parallel.context import Dispatcher, Step, this
from parallel.futures import Future
from parallel.pools.backlog import Backlog
from parallel.pools.base import Engine
from parallel.pools.workers import GoHome

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class Intake(Engine):
    """The engine of a thread pool as far as its queue goes."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Step] = SimpleQueue()
        self._put: Final[Callable[[Step], object]] = self._queue.put
        self.take = self._queue.get_nowait
        self._ranked: Backlog[Step] | None = None  # from the first priority on; as many _NEXT are in `_queue`
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        # Accepted steps are numbered, so that `idle` can compare them with the ended ones; looking takes a number too.
        # A number without its step would have `idle` wait for ever. It is taken by `for _ in self._numbers: break`: as
        # CPython looks for signals after calls, and that is none, no Ctrl-C comes between it and the `put` behind it.
        self._numbers = itertools.count()
        self._looks = 0
        self._left_done: int = 0  # steps ended by workers that have left, or dropped
        super().__init__()

    @property
    def is_ranked(self) -> bool:
        """Whether calls come out of the queue by priority."""
        return self._ranked is not None

    def rank(self) -> None:
        """From now on, calls come out of the queue by priority."""
        with self._lock:
            if self._ranked is not None:
                return
            self._ranked = Backlog()
            steps: list[Step] = []
            try:
                with suppress(Empty):
                    steps.extend(iter(self._queue.get_nowait, None))
            finally:  # not before all are out: each comes in again as a token
                for step in steps:
                    self._put_back(step)

    def _enqueue(self, step: Step) -> None:
        """Number *step* and queue it."""
        if self._ranked is None:
            for _ in self._numbers:
                break
            self._put(step)
        else:
            self._put_ranked(step)

    def _put_ranked(self, step: Step) -> None:
        """As `_enqueue`, by priority."""
        with self._lock:
            assert self._ranked is not None
            try:
                self._ranked.append(step)
            finally:  # a Ctrl-C in there may come before or after it is in: the token may stand for nothing
                for _ in self._numbers:
                    break
                self._put(_NEXT)

    def _put_back(self, step: Step) -> None:
        """Queue what was taken out again; it has its number."""
        if self._ranked is None or step is _NEXT or isinstance(step, GoHome):
            self._put(step)
            return
        with self._lock:
            self._ranked.append(step)
            self._put(_NEXT)

    def best(self) -> Step:
        """Take the step that a token from the queue stands for."""
        with self._lock:
            assert self._ranked is not None
            try:
                return self._ranked.popleft()
            except IndexError:
                return _NOTHING

    def step_at_hand(self) -> Step | None:
        """Return something to do, None if there is nothing."""
        try:
            step = self._queue.get_nowait()
        except Empty:
            return None
        return self.best() if step is _NEXT else step

    def _accepted(self) -> int:
        with self._lock:
            for number in self._numbers:
                self._looks += 1  # no call comes before this: see `_numbers`
                return number + 1 - self._looks
        raise AssertionError("numbers have no end")

    def _end_queued(self, end: Callable[[Future[Any]], object]) -> None:
        """
        Take the calls out of the queue and end them; what follows other calls stays in.

        What *end* raises is raised when all have been ended. After a Ctrl-C in between, the rest is still queued.
        """
        calls: deque[Future[Any]] = deque()
        problem: BaseException | None = None
        try:
            self._take_calls(calls)
            while calls:
                try:
                    end(calls[0])
                except BaseException as error:
                    problem = problem or error
                with self._lock:
                    self._left_done += 1
                    calls.popleft()
                    self._quiet.notify_all()
        finally:
            with self._lock:
                for left in calls:
                    self._put_back(left)
        if problem is not None:
            raise problem

    def _take_calls(self, calls: deque[Future[Any]]) -> None:
        """Take the calls out of the queue; what else is there goes back before a worker can find the queue empty."""
        with self._lock:
            others: list[Step] = []
            step: Step | None = None  # in hand: taken, and neither among the calls nor the others
            try:
                # No call takes it, so that no Ctrl-C comes between taking it and having it in hand: see `_numbers`.
                for step in iter(self._queue.get_nowait, None):
                    if step is _NEXT:
                        step = self.best()
                    if is_call(step):
                        calls += [step]
                    else:
                        others += [step]
                    step = None
            except Empty:
                step = None
            finally:
                for left in others if step is None else [*others, step]:
                    self._put_back(left)


def is_call(step: Step) -> TypeIs[Future[Any]]:
    """Tell a queued call from what follows one."""
    return isinstance(step, Future)


class _Next:
    """Stands in the queue for the step that is the best when it is taken."""

    priority = 0

    def run_on(self, here: Dispatcher) -> None:
        """Run that step."""
        intake = cast(Intake, here)
        step = intake.best()
        worker = this.worker
        if worker is not None:
            worker.running = step
        try:
            step.run_on(here)
        finally:
            del step  # an error refers to this frame: break the cycle


class _Nothing:
    """Stands for a step that never came."""

    priority = 0

    def run_on(self, here: Dispatcher) -> None:
        """Do nothing."""


_NEXT: Final = _Next()
_NOTHING: Final = _Nothing()

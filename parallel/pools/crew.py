"""
A crew: one queue, and the threads that take from it; the engine of a thread pool, and the callback threads.

    accept() ──▶ _queue (FIFO) ──▶ worker thread ──▶ Future: value or error ──▶ what follows, on the same thread

    a worker that waits for a future ──▶ runs it itself if it is queued here (helping)
                                     └─▶ else lends its place to a spare worker until it goes on

Guarantees:
- Calls start in submission order and finish in any order. A thread is started only when no worker is idle.
- A running call is never killed.
- Waiting inside a call can't starve the pool: it helps or lends, up to `MAX_LENT`, then raises.
- `shutdown()` may be called twice, and from a worker; with wait=True every other worker has exited on return.

State: `_workers`, `_lent`, `_closed`, `_broken` are changed under `_lock`, which is re-entrant: a signal handler or a
`__del__` may submit while it is held. `_queue` guards itself, `_asleep` is changed by single atomic steps. User code
never runs while `_lock` is held.

Source: the idea of the worker loop, CPython 3.11 `concurrent/futures/thread.py`; lending a place, Java's
`ForkJoinPool.ManagedBlocker`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from parallel.context import Dispatcher, Step, this
from parallel.coroutines import close_loop
from parallel.delivery import settle
from parallel.errors import PoolBrokenError, PoolShutdownError, StarvationError
from parallel.futures import Future
from parallel.pools.base import Engine, PoolStats, is_draining

if TYPE_CHECKING:
    from typing_extensions import TypeIs

LOGGER = logging.getLogger("parallel")

MAX_LENT: Final = 256
"""Spare workers at a time. A thread costs some 100 KB; who waits deeper than this has a runaway recursion."""

MAX_HELP: Final = 16
"""How deep a worker runs awaited calls on its own stack: each level takes some of Python's 1,000 frames."""


_STARTING: Final = 1.0
"""Seconds that a thread gets to begin after a Ctrl-C came while it was started; most take a tenth of a millisecond."""


class Crew(Engine):
    """The engine of a thread pool: one queue, and the workers that take from it. A `Dispatcher` too."""

    def __init__(
        self,
        label: str,
        max_workers: int,
        prefix: str,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        self.label = label
        self.initializer = initializer
        self.initargs = initargs
        self._prefix = prefix
        self._limit = max_workers
        self._queue: SimpleQueue[Step] = SimpleQueue()
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._workers: dict[Worker, None] = {}  # by age
        self._leaving: list[threading.Thread] = []  # out of `_workers`, perhaps not yet ended
        self._asleep: list[None] = []  # one item a worker that waits for the queue
        self._starting = 0  # workers whose thread is being started
        self._lent = 0  # workers that wait inside a call, and may be replaced
        self._closed = False
        self._refuses = False  # closed or broken
        self._sending_home = False  # _GO_HOME is in the queue, or in a worker's hands
        self._broken: BaseException | None = None  # what the initializer raised
        self._names = itertools.count()
        # Accepted steps are numbered, so that `idle` can compare them with the ended ones; looking takes a number too.
        self._number = itertools.count().__next__
        self._looks = 0
        self._left_done = 0  # steps ended by workers that have left, or dropped
        self._watchers = 0  # threads in `idle`, to be told when a worker runs dry
        super().__init__()

    # -- taking calls -------------------------------------------------------------------------------------------------

    def accept(self, future: Future[Any]) -> None:
        """
        Queue a call.

        Raises:
            PoolShutdownError: The pool has been shut down.
            PoolBrokenError: Its initializer failed.
        """
        if self._refuses:
            raise self._refusal()
        self._number()
        self._queue.put(future)
        try:
            self._wake()
        except BaseException:
            future.take_work()  # no thread could be started: nobody may come upon it later
            raise
        if self._refuses_now() and future.take_work() is not None:
            raise self._refusal()  # closed meanwhile, and perhaps no worker will come for it

    def dispatch(self, step: Step) -> None:
        """Queue what follows a call; taken after `close` too, as long as a worker is there."""
        with self._lock:
            if (self._closed and not self._workers) or self._broken is not None:
                raise PoolShutdownError(self.label)
            self._number()
            self._queue.put(step)
        self._wake()

    def _refuses_now(self) -> bool:
        return self._refuses

    def _refusal(self) -> Exception:
        if self._broken is None:
            return PoolShutdownError(self.label)
        return self._broken_error()

    def _broken_error(self) -> PoolBrokenError:
        error = PoolBrokenError(self.label, f"its initializer raised {self._broken!r}")
        error.__cause__ = self._broken
        return error

    def _wake(self) -> None:
        """See that somebody comes for what was just queued: a sleeping worker does by itself."""
        if self._queue.qsize() > len(self._asleep) and len(self._workers) < self._limit + self._lent:
            self._hire()

    def _hire(self) -> None:
        """Start a worker if there is room for one."""
        with self._lock:
            if len(self._workers) >= self._limit + self._lent:
                return
            worker = Worker(self)
            thread = threading.Thread(target=worker.run, name=f"{self._prefix}_{next(self._names)}")
            self._workers[worker] = None
            worker.thread = thread
            self._starting += 1
            try:
                thread.start()
            except BaseException as error:
                # A Ctrl-C may have interrupted only the waiting for a thread that does start.
                if isinstance(error, Exception) or not worker.begun.wait(_STARTING):
                    self._workers.pop(worker, None)
                if is_draining() and isinstance(error, RuntimeError):
                    return  # CPython 3.12.0 and 3.12.1 start none any more: see `work_off`
                if not self._workers or not isinstance(error, RuntimeError | MemoryError):
                    raise
                LOGGER.warning("%s could not start one more thread; it goes on with %d", self.label, len(self._workers))
                return
            finally:
                self._starting -= 1
            if self._closed:
                self._send_home()

    # -- what workers ask ---------------------------------------------------------------------------------------------

    def next_step(self) -> Step:
        """Wait for something to do."""
        queue = self._queue
        while True:
            if queue.empty():
                if self._watchers:
                    self._tell_watchers()
                self._asleep.append(None)
                try:
                    step = queue.get()
                finally:
                    self._asleep.pop()
                if not queue.empty():
                    self._wake()  # somebody may have counted on this worker for the next step, too
                return step
            try:
                return queue.get_nowait()
            except Empty:
                continue  # another worker was faster

    def step_at_hand(self) -> Step | None:
        """Return something to do, None if there is nothing."""
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def leave(self, worker: Worker, *, if_surplus: bool = False) -> bool:
        """Strike *worker* off, if it has nothing left to do; True if it is to end."""
        with self._lock:
            if if_surplus:
                if len(self._workers) <= self._limit + self._lent:
                    return False
            elif not self._queue.empty():
                self._queue.put(_GO_HOME)  # behind the calls that are left
                return False
            self._strike_off(worker)
            if not if_surplus:
                self._sending_home = False
            if self._closed and self._workers:
                self._send_home()
            self._quiet.notify_all()
        return True

    def _send_home(self) -> None:
        """Have the workers end, one after the other. One token goes round: two would chase each other for ever."""
        if not self._sending_home:
            self._sending_home = True
            self._queue.put(_GO_HOME)

    def _strike_off(self, worker: Worker) -> None:
        self._workers.pop(worker, None)
        self._left_done += worker.done
        self._leaving = [thread for thread in self._leaving if thread.is_alive()]
        if worker.thread is not None:
            self._leaving.append(worker.thread)

    def lose(self, worker: Worker) -> None:
        """Strike off a worker that ends without having been sent home: something killed its thread."""
        with self._lock:
            if worker not in self._workers:
                return
            self._strike_off(worker)
            self._sending_home = False
            if self._closed and self._workers:
                self._send_home()
            self._quiet.notify_all()
        if not self._queue.empty():
            self._wake()

    def lend(self) -> None:
        """
        Make room for a spare worker, as one is about to wait inside a call.

        Raises:
            StarvationError: There are too many spare workers already.
        """
        with self._lock:
            if self._lent >= MAX_LENT:
                raise StarvationError(self.label, self._lent)
            self._lent += 1
        if not self._queue.empty():
            self._wake()

    def unlend(self) -> None:
        """Take the place back; a worker too many leaves when it is idle."""
        with self._lock:
            self._lent -= 1
            if len(self._workers) > self._limit + self._lent:
                self._queue.put(_GO_HOME_IF_SURPLUS)

    def break_down(self, error: BaseException) -> None:
        """Refuse and fail everything, as the initializer raised *error*."""
        with self._lock:
            if self._broken is None:
                self._broken = error
            self._refuses = True
        self._end_queued(lambda future: settle(future, (None, self._broken_error(), None), self))

    def _end_queued(self, end: Callable[[Future[Any]], object]) -> None:
        """
        Take the calls out of the queue and end them; what follows other calls stays in.

        What *end* raises is raised when all have been ended. After a Ctrl-C in between, the rest is still queued.
        """
        others: list[Step] = []
        step: Step | None = None
        problem: BaseException | None = None
        try:
            while True:
                step = self._queue.get_nowait()
                if not is_call(step):
                    others.append(step)
                    continue
                try:
                    end(step)
                except BaseException as error:
                    problem = problem or error
                with self._lock:
                    self._left_done += 1
                    self._quiet.notify_all()
                step = None
        except Empty:
            step = None
        finally:
            for left in [*others, *([step] if step is not None and step not in others else [])]:
                self._queue.put(left)
        if problem is not None:
            raise problem

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        with self._lock:
            self._closed = self._refuses = True
            if self._workers:
                self._send_home()
        if cancel_futures:
            self._end_queued(lambda future: future.cancel())

    def join(self) -> None:
        with self._quiet:
            # A signal handler that shuts down can't wait for the thread whose start it interrupted.
            while len(self._workers) > self._starting:
                self._quiet.wait()
            leaving = list(self._leaving)
        for thread in leaving:
            thread.join()

    def idle(self) -> int:
        with self._quiet:
            self._watchers += 1
            try:
                while True:
                    # In this order: if the two are equal, there was nothing to do when the first was read.
                    done = self._done()
                    if done == self._accepted() or len(self._workers) <= self._starting:
                        return done
                    self._quiet.wait()
            finally:
                self._watchers -= 1

    def _tell_watchers(self) -> None:
        with self._quiet:
            self._quiet.notify_all()

    def _done(self) -> int:
        with self._lock:
            return self._left_done + sum(worker.done for worker in self._workers)

    def _accepted(self) -> int:
        with self._lock:
            number = self._number() - self._looks
            self._looks += 1
            return number

    def stats(self) -> PoolStats:
        with self._lock:
            done = self._done()
            queued = min(self._queue.qsize(), max(self._accepted() - done, 0))
            return PoolStats(
                workers=len(self._workers), queued=queued, running=max(self._accepted() - done - queued, 0), done=done
            )

    def owns_this_thread(self) -> bool:
        worker = this.worker
        return isinstance(worker, Worker) and worker.crew is self

    def work_off(self) -> None:
        with self._lock:
            if self._workers or self._queue.empty():
                return
            worker = Worker(self)
            self._workers[worker] = None
        worker.work_off()

    def abandon(self) -> None:
        """In a forked child: a worker that forked inside a call must not go on with the parent's queue."""
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._closed = True
        self._end_queued(lambda future: future.take_work())
        self._sending_home = False
        self._send_home()


class Worker:
    """
    One thread of a crew, and how it waits.

    Attributes:
        done: Steps that it has ended; written by itself alone.
    """

    __slots__ = ("_depth", "_lent", "begun", "crew", "done", "thread")

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.done = 0
        self.begun = threading.Event()
        self.thread: threading.Thread | None = None
        self._depth = 0  # awaited calls on its stack
        self._lent = 0  # waits that lend its place

    def run(self) -> None:
        """Take steps and run them until sent home."""
        this.worker = self
        crew = self.crew
        self.begun.set()
        try:
            self._initialize()
            while not self._serve():
                continue
        finally:
            close_loop()
            crew.lose(self)

    def work_off(self) -> None:
        """Run on this thread, which isn't the crew's, what is queued; until nothing is."""
        before, this.worker = this.worker, self
        crew = self.crew
        try:
            self._initialize()
            while (step := crew.step_at_hand()) is not None:
                step.run_on(crew)
                self.done += 1
        finally:
            this.worker = before
            crew.lose(self)

    def _initialize(self) -> None:
        crew = self.crew
        try:
            if crew.initializer is not None:
                crew.initializer(*crew.initargs)
        except BaseException as error:
            crew.break_down(error)

    def _serve(self) -> bool:
        """Run steps until sent home (True), or until one gets out of hand (False)."""
        crew = self.crew
        try:
            while True:
                step = crew.next_step()
                if isinstance(step, _GoHome):
                    if crew.leave(self, if_surplus=step.if_surplus):
                        return True
                    continue
                step.run_on(crew)
                del step  # a call must not live until the next one comes
                self.done += 1
        except BaseException:
            LOGGER.exception("%s: a step got out of hand; the worker goes on", crew.label)
            self.done += 1
            return False

    def wait(self, future: Future[Any], timeout: float | None) -> bool:
        """Wait for *future*: run it if it is queued here, else lend this place; see `Waiter`."""
        crew = self.crew
        if timeout is None and self._depth < MAX_HELP and future.is_queued_at(crew):
            self._depth += 1
            try:
                # What follows it goes to the queue: here it might want a lock that the waiting call holds.
                future.run_on(None, may_block=False)
            finally:
                self._depth -= 1
            if future.done():
                return True
        self.lend()
        try:
            return future.sleep(timeout)
        finally:
            self.unlend()

    def lend(self) -> None:
        """Give this place to a spare worker; see `Waiter`. It is one place, however many coroutines wait on it."""
        if self._lent == 0:
            self.crew.lend()
        self._lent += 1

    def unlend(self) -> None:
        """Take the place back."""
        self._lent -= 1
        if self._lent == 0:
            self.crew.unlend()


def is_call(step: Step) -> TypeIs[Future[Any]]:
    """Tell a queued call from what follows one."""
    return isinstance(step, Future)


class _GoHome:
    """Tells a worker to end."""

    __slots__ = ("if_surplus",)

    def __init__(self, *, if_surplus: bool) -> None:
        self.if_surplus = if_surplus

    def run_on(self, here: Dispatcher) -> None:
        """Nothing is left to run for a worker that has gone."""


_GO_HOME: Final = _GoHome(if_surplus=False)
_GO_HOME_IF_SURPLUS: Final = _GoHome(if_surplus=True)

"""
A crew: one queue, and the threads that take from it; the engine of a thread pool, and the callback threads.

    call(), accept() ──▶ the queue (`intake`) ──▶ worker thread ──▶ Future: value or error ──▶ what follows, there

    a worker that waits, or whose call overran its timeout ──▶ its place goes to a spare worker, until it comes back

Guarantees:
- Calls of one priority start in submission order, and finish in any order. A thread is started only when no worker is
  idle.
- A running call is never killed. One that overruns its timeout costs no place: its worker is replaced at once.
- Waiting inside a call can't starve the pool: the worker helps or lends (see `workers`), up to `MAX_LENT`, then raises.
- `shutdown()` may be called twice, and from a worker; with wait=True every other worker has exited on return, but for
  stragglers: those whose calls have overrun.

State: `_workers`, `_spare`, `_full`, `_closed`, `_broken` are changed under `_lock`, that of the intake. `_asleep` is
changed by single atomic steps. User code never runs while `_lock` is held.

Source: the idea of the worker loop, CPython 3.11 `concurrent/futures/thread.py`; lending a place, Java's
`ForkJoinPool.ManagedBlocker`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from parallel.context import Dispatcher, Step, this
from parallel.delivery import settle
from parallel.errors import PoolBrokenError, PoolShutdownError, StarvationError
from parallel.futures import Future
from parallel.naps import join, nap_on
from parallel.outcomes import Work, contexts
from parallel.pools.base import AtWork, Counts, is_draining
from parallel.pools.intake import Intake
from parallel.pools.leftovers import calls_left, thread_at_work, threads_left, waiting_left
from parallel.pools.workers import GoHome, Worker
from parallel.runs import ask_to_stop

LOGGER = logging.getLogger("parallel")

_new_future: Final[Callable[[object], Future[Any]]] = object.__new__  # type: ignore[assignment]  # of types alone
"""Make a future without its constructor."""

MAX_LENT: Final = 256
"""Spare workers at a time. A thread costs some 100 KB; who waits deeper than this has a runaway recursion."""

_DEEP: Final = 32
"""
Waiting workers from which on calls that a worker makes start no thread at once: they nest, and a new thread would be
faster than the waiter that could help, again and again, until all are lent. Fewer, and calls made aside start later.
"""

MAX_STRAGGLERS: Final = 256
"""Calls at a time that have overrun their timeout and still run. More are a leak of threads: the pool breaks."""

_STARTING: Final = 0.25
"""
Seconds that a thread gets to begin after a Ctrl-C came while it was started; most take a tenth of a millisecond. If the
Ctrl-C came before there was a thread, all of them go by, and it is to end the wait within half a second.
"""


class Crew(Intake):
    """The engine of a thread pool: one queue, and the workers that take from it. A `Dispatcher` too."""

    def __init__(
        self,
        label: str,
        max_workers: int,
        prefix: str,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        helping: bool = True,
    ) -> None:
        self.label = label
        self.initializer = initializer
        self.initargs = initargs
        self.helping = helping
        self._prefix = prefix
        self._limit = max_workers
        self._workers: dict[Worker, None] = {}  # by age
        self._leaving: list[threading.Thread] = []  # out of `_workers`, perhaps not yet ended
        self._asleep: list[None] = []  # one item a worker that waits for the queue
        self._starting = 0  # workers whose thread is being started
        self._lent = 0  # workers that wait inside a call
        self._stragglers = 0  # workers whose call has overrun its timeout
        self._spare = 0  # workers that may be there beyond the limit: one for each that is lent, or a straggler
        self._full = False  # all the workers are there that may be: `_wake` would start none
        self._closed = False
        self._refuses: object = False  # closed or broken; no bool, for which checkers take two looks to be one
        self._sending_home = False  # _GO_HOME is in the queue, or in a worker's hands
        self._broken: tuple[str, BaseException | None] | None = None  # why, and what was raised
        self._names = itertools.count()
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
        # As `_enqueue` does, written out: this is the path of every call.
        if self._ranked is None:
            for _ in self._numbers:
                break
            self._put(future)
        else:
            self._put_ranked(future)
        if not self._full:
            self._wake_for(future)
        if self._refuses and future.take_work() is not None:
            raise self._refusal()  # closed meanwhile, and perhaps no worker will come for it

    def call(self, work: Work) -> Future[Any]:
        """
        Queue the call of *work* and return its future; see `accept`.

        It is `accept(Future(work, self))`, written out: two calls less are a tenth of what a call costs.
        """
        if self._refuses:
            raise self._refusal()
        future = _new_future(Future)
        fields = future.__dict__  # asked for here, before a second thread can: see `State.__init__`
        fields["_work"] = work
        fields["dispatcher"] = self
        if self._ranked is None:
            for _ in self._numbers:
                break
            self._put(future)
        else:
            self._put_ranked(future)
        if not self._full:
            self._wake_for(future)
        if self._refuses and future.take_work() is not None:
            raise self._refusal()
        return future

    def dispatch(self, step: Step) -> None:
        """Queue what follows a call; taken after `close` too, as long as a worker is there."""
        with self._lock:
            if (self._closed and not self._workers) or self._broken is not None:
                raise PoolShutdownError(self.label)
            self._enqueue(step)
        self._wake()

    def fuses(self, link: Any, dispatcher: Dispatcher) -> bool:
        """Tell whether a link that is *dispatcher*'s to run may run on the thread at hand; see `Dispatcher`."""
        return dispatcher is self

    def _refusal(self) -> Exception:
        if self._broken is None:
            return PoolShutdownError(self.label)
        return self._broken_error()

    def _broken_error(self) -> PoolBrokenError:
        assert self._broken is not None
        reason, cause = self._broken
        error = PoolBrokenError(self.label, reason)
        error.__cause__ = cause
        return error

    def _wake(self) -> None:
        """See that somebody comes for what was just queued: a sleeping worker does by itself."""
        if not self._full and self._queue.qsize() > len(self._asleep):
            self._hire()

    def _wake_for(self, future: Future[Any]) -> None:
        """See that somebody comes for *future*, just queued."""
        if self._lent >= _DEEP and self._runs_here():
            return  # who waits for it runs it itself, or lends its place then
        try:
            self._wake()
        except BaseException:
            future.take_work()  # no thread could be started: nobody may come upon it later
            raise

    def _recount(self) -> None:
        """Under the lock, after a change of `_workers` or `_spare`: there may be room now, or none any more."""
        self._full = len(self._workers) >= self._limit + self._spare

    def _hire(self) -> None:
        """Start a worker if there is room for one."""
        with self._lock:
            if self._full:
                return
            worker = Worker(self)
            # A daemon: the exit waits for it in `_at_exit` of `base`, but not for a straggler.
            thread = threading.Thread(target=worker.run, name=f"{self._prefix}_{next(self._names)}", daemon=True)
            self._starting += 1
            try:
                self._workers[worker] = None
                self._recount()
                worker.thread = thread
                thread.start()
            except BaseException as error:
                interrupt = _interrupt_in(error)
                # That may have interrupted only the waiting for a thread that does start.
                if interrupt is None or not worker.begun.wait(_STARTING):
                    self._workers.pop(worker, None)
                    self._recount()
                if interrupt is not None:
                    raise interrupt from None
                if is_draining() and isinstance(error, RuntimeError):
                    return  # CPython 3.12.0 and 3.12.1 start none any more: see `work_off`
                if not self._workers:
                    raise
                LOGGER.warning("%s could not start one more thread; it goes on with %d", self.label, len(self._workers))
                return
            finally:
                self._starting -= 1
            if self._closed:
                self._send_home()

    # -- what workers ask ---------------------------------------------------------------------------------------------

    def next_step(self) -> Step:
        """Wait for something to do, after `take` has found nothing."""
        if self._watchers:
            self._tell_watchers()
        self._asleep.append(None)
        try:
            step = self._queue.get()
        finally:
            self._asleep.pop()
        if not self._queue.empty():
            self._wake()  # somebody may have counted on this worker for the next step, too
        return step

    def leave(self, worker: Worker, *, if_surplus: bool = False) -> bool:
        """Strike *worker* off, if it has nothing left to do; True if it is to end."""
        with self._lock:
            if if_surplus:
                if len(self._workers) <= self._limit + self._spare:
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
        self._recount()
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

    # -- places -------------------------------------------------------------------------------------------------------

    def lend(self, worker: Worker) -> None:
        """
        Give the place of *worker* to a spare one, as it is about to wait inside a call.

        Raises:
            StarvationError: There are too many spare workers already.
        """
        with self._lock:
            if worker.lent == 0:
                if self._lent >= MAX_LENT:
                    raise StarvationError(self.label, self._lent)
                self._lent += 1
            was_away = worker.is_away
            worker.lent += 1
            self._see_to_place(worker, was_away)
        self._hire_spare()

    def unlend(self, worker: Worker) -> None:
        """Take the place back; a worker too many leaves when it is idle."""
        with self._lock:
            was_away = worker.is_away
            worker.lent -= 1
            self._see_to_place(worker, was_away)
            if worker.lent == 0:
                self._lent -= 1

    def replace(self, worker: Worker) -> None:
        """Give the place of *worker* away, as its call has overrun its timeout; it counts as ended from now on."""
        with self._lock:
            was_away = worker.is_away
            worker.straggling += 1
            self._see_to_place(worker, was_away)
            if worker.straggling == 1:  # a call that it helps with may be late as well, and isn't counted by it
                self._stragglers += 1
                self._left_done += 1
            overrun = self._stragglers > MAX_STRAGGLERS
            self._quiet.notify_all()
        if overrun:
            self.break_down(f"{MAX_STRAGGLERS} calls have overrun their timeouts and still run", None)
        try:
            self._hire_spare()
        except (RuntimeError, MemoryError):
            LOGGER.exception("%s could not replace a worker whose call has overrun its timeout", self.label)

    def come_back(self, worker: Worker) -> None:
        """Take the place back, as the call has ended now; that may be told before `replace` is."""
        with self._lock:
            was_away = worker.is_away
            worker.straggling -= 1
            self._see_to_place(worker, was_away)
            if worker.straggling == 0:
                self._stragglers -= 1
                self._left_done -= 1

    def _see_to_place(self, worker: Worker, was_away: bool) -> None:
        """Under the lock, after its marks have changed: while *worker* is away, there is room for a spare one."""
        if worker.is_away == was_away:
            return
        self._spare += 1 if worker.is_away else -1
        self._recount()
        if len(self._workers) > self._limit + self._spare:
            self._queue.put(_GO_HOME_IF_SURPLUS)

    def _hire_spare(self) -> None:
        if not self._queue.empty():
            self._wake()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def break_down(self, reason: str, cause: BaseException | None) -> None:
        """Refuse and fail everything from now on. Runs no code of the user's: that is not for the timer's thread."""
        with self._lock:
            if self._broken is None:
                self._broken = (reason, cause)
            self._refuses = True
        self._end_queued(lambda future: settle(future, (None, self._broken_error(), None), may_block=False))

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        with self._lock:
            self._closed = self._refuses = True
            if self._workers:
                self._send_home()
        if not cancel_futures:
            return
        try:
            self._end_queued(lambda future: future.cancel())
        finally:
            if not self._workers:  # the last may have left before a Ctrl-C had some of them put back
                self._hire_spare()

    def interrupt(self) -> None:
        """Ask the bodies that run to stop: those that look, or sleep by `parallel.sleep`, do."""
        with self._lock:
            running = [worker.running for worker in self._workers]
        for one in running:
            ask_to_stop(one)

    def forsake(self) -> None:
        """Count as stragglers the workers that run something: neither `join` nor the exit waits for these."""
        with self._lock:
            busy = [worker for worker in self._workers if worker.running is not None and not worker.straggling]
        for worker in busy:
            self.replace(worker)

    def remains(self) -> list[str]:
        with self._lock:
            workers, leaving = list(self._workers), list(self._leaving)
        threads = [*(worker.thread for worker in workers if worker.running is not None or self._closed), *leaving]
        return [
            *calls_left([worker.running for worker in workers], self.label),
            *waiting_left(self.counts().queued, self.label),
            *threads_left(threads, self.label),
        ]

    def at_work(self) -> list[AtWork]:
        with self._lock:
            workers = list(self._workers)
        return [thread_at_work(worker.thread, worker.running, worker.since) for worker in workers]

    def join(self) -> None:
        with self._lock:
            # A signal handler that shuts down can't wait for the thread whose start it interrupted.
            while self._present() > self._starting:
                nap_on(self._quiet)
            leaving = list(self._leaving)
        for thread in leaving:
            join(thread)

    def idle(self) -> int:
        with self._lock:
            self._watchers += 1
            try:
                while True:
                    # In this order: if the two are equal, there was nothing to do when the first was read.
                    done = self._done()
                    if done == self._accepted() or self._present() <= self._starting:
                        return done
                    nap_on(self._quiet)
            finally:
                self._watchers -= 1

    def _present(self) -> int:
        """Under the lock: count the workers that can be waited for. A straggler may never end."""
        return len(self._workers) - sum(worker.straggling > 0 for worker in self._workers)

    def _tell_watchers(self) -> None:
        with self._lock:
            self._quiet.notify_all()

    def _done(self) -> int:
        with self._lock:
            return self._left_done + sum(worker.done for worker in self._workers)

    def counts(self) -> Counts:
        with self._lock:
            done = self._done()
            queued = min(self._queue.qsize(), max(self._accepted() - done, 0))
            return Counts(
                workers=len(self._workers),
                queued=queued,
                running=max(self._accepted() - done - queued, 0),
                done=done,
                stragglers=self._stragglers,
            )

    def owns_this_thread(self) -> bool:
        """Tell whether this thread can't wait: it is a worker's, or a signal handler's in the middle of a submit."""
        return self._runs_here() or self._lock._is_owned()  # type: ignore[attr-defined]  # as Condition does

    def _runs_here(self) -> bool:
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


def _interrupt_in(error: BaseException) -> BaseException | None:
    """Return what a signal handler has raised while a thread was started; None: it could not be started."""
    if not isinstance(error, RuntimeError | MemoryError):
        return error
    # Where a Ctrl-C comes as `threading` lets go of a lock, it raises a RuntimeError of its own.
    return next((one for one in contexts(error) if isinstance(one, KeyboardInterrupt)), None)


_GO_HOME: Final = GoHome(if_surplus=False)
_GO_HOME_IF_SURPLUS: Final = GoHome(if_surplus=True)

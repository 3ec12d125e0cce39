"""
An engine that sees to its calls on an asyncio loop, on a thread of its own.

    accept() ──▶ _waiting (backlog) ──▶ loop thread: _start_call(), as long as there is room
                                        └──▶ _ended() ──▶ the next one; when it is closed and none is left: _leave()

Guarantees:
- Calls of one priority start in submission order, on the loop's thread.
- The loop goes on whoever else stops it. If it fails, so do the calls that are left, and every later one.
- What follows a call runs on callback threads, never on the loop's; `join` waits for it.

State: `_waiting`, `_open`, `_loop`, `_thread`, `_woken`, `_closed`, `_broken` and `_done`, guarded by `_lock`, which is
re-entrant: a signal handler or a `__del__` may submit while it is held. `_finished` belongs to the loop's thread. No
user code runs while the lock is held.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import abstractmethod
from contextlib import ExitStack
from contextvars import Context
from typing import Any

from parallel.context import era
from parallel.delivery import settle
from parallel.errors import PoolBrokenError, PoolShutdownError
from parallel.futures import Future
from parallel.kept import close_kept
from parallel.naps import join, nap_on
from parallel.outcomes import Outcome
from parallel.pools.backlog import Backlog
from parallel.pools.base import Counts, Engine, is_draining
from parallel.pools.handing import Tally
from parallel.pools.leftovers import calls_left, threads_left, waiting_left
from parallel.runs import Run
from parallel.trail import clock

LOGGER = logging.getLogger("parallel")


class LoopingEngine(Engine):
    """
    The queue, and the thread on which the loop runs.

    Args:
        label: What messages call its pool.
        thread_name: The name of the thread.

    Attributes:
        handed: Counts what follows its calls, on the callback threads.
    """

    def __init__(self, label: str, thread_name: str) -> None:
        self.label = label
        self.handed = Tally()
        self._thread_name = thread_name
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._waiting: Backlog[Future[Any]] = Backlog()
        self._open: dict[Future[Any], int] = {}  # accepted, not ended: when each was started; 0: not yet
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first call until it is about to close
        self._thread: threading.Thread | None = None
        self._woken = False  # the loop is going to call `_start_waiting`
        self._closed = False
        self._broken: BaseException | None = None  # why it can't go on
        self._finished = False  # closed, and all calls have ended; or broken
        self._done: int = 0
        super().__init__()

    @abstractmethod
    def _has_room(self) -> bool:
        """On the loop's thread: tell whether one more call may start."""

    @abstractmethod
    def _start_call(self, future: Future[Any], /) -> None:
        """On the loop's thread: start a call, unless it has been cancelled; `_ended` is called for each, once."""

    def accept(self, future: Future[Any]) -> None:
        """
        Queue a call, and start the loop if it is not there yet.

        Raises:
            PoolShutdownError: The pool has been shut down.
            PoolBrokenError: Its loop has failed.
        """
        with self._lock:
            self.check_open()
            if self._loop is None:
                Context().run(self._start)  # loops and threads keep the context they are made in: not a caller's
            try:
                self._open[future] = 0
                self._waiting.append(future)
                self._wake()
            except BaseException:  # a Ctrl-C: nobody gets this call, and nobody may wait for it
                future.take_work()
                self._open.pop(future, None)
                self._quiet.notify_all()
                raise

    def check_open(self) -> None:
        """
        See that calls are taken.

        Raises:
            PoolShutdownError, PoolBrokenError: They aren't; see `accept`.
        """
        if self._broken is not None:
            raise self._broken_error()
        if self._closed:
            raise PoolShutdownError(self.label)

    def _start(self) -> None:
        loop = asyncio.new_event_loop()
        # A daemon: the exit waits for it in `_at_exit` of `base`, but not after a second Ctrl-C.
        thread = threading.Thread(target=self._run, args=(loop,), name=self._thread_name, daemon=True)
        self._loop = loop
        try:
            thread.start()
        except BaseException as error:
            self._loop = None
            if isinstance(error, RuntimeError | MemoryError):
                loop.close()  # else, after a Ctrl-C, the thread may be there all the same, and closes it itself
            raise
        self._thread = thread

    def _wake(self) -> None:
        """Have the loop look at the queue, unless it is going to."""
        with self._lock:
            if not self._woken and self._loop is not None:
                self._loop.call_soon_threadsafe(self._start_waiting)
                self._woken = True  # not before: an interrupt in between would leave it asleep

    # -- on the loop's thread -----------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:  # which `accept` holds until this thread has been started in peace
            if self._loop is not loop:
                return loop.close()
        try:
            self._enter()
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                self._run_loop(runner.get_loop())
        except BaseException as error:  # of a task that a call left behind, as it is cancelled
            self._finish(error)
        self._end_left()
        close_kept()

    def _enter(self) -> None:
        """Prepare the thread."""

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run *loop* until the engine has finished, whoever else stops it."""
        while not self._finished:
            try:
                loop.run_forever()
            except Exception as error:  # asyncio catches what tasks and callbacks raise: its selector has failed
                self._finish(error)
            except BaseException:  # SystemExit, of a task that a call left behind
                LOGGER.exception("%s was interrupted: running calls are cancelled, and it goes on", self.label)
                self._cancel_all()

    def _cancel_all(self) -> None:
        """Cancel what runs, as far as that can be."""

    def _finish(self, error: BaseException | None = None) -> None:
        """Have the loop end, and nobody use it from now on; *error* is what came out of it."""
        if error is not None:
            LOGGER.error("%s: its loop has failed", self.label, exc_info=error)
        with self._lock:
            if not self._finished and error is not None:
                self._broken = error
            self._closed = self._finished = True
            self._loop = None

    def _start_waiting(self) -> None:
        """Start queued calls as far as there is room; leave if it is closed and all have ended."""
        with self._lock:
            self._woken = False
        while self._waiting and self._has_room():
            future = self._waiting.popleft()
            self._open[future] = clock()
            self._start_call(future)
        with self._lock:
            if self._closed and not self._open and self._loop is not None:
                self._leave(self._loop)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Under the lock: nothing is left to do. Perhaps called again before the loop has ended."""
        loop.stop()
        self._finish()

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.pop(future, None)
            self._done += 1
            if not self._open:
                self._quiet.notify_all()
            if self._waiting or self._closed:
                self._wake()

    def _end_left(self) -> None:
        """Nearly the last deed of the thread: fail what a broken loop has left."""
        self._waiting.clear()
        for future in list(self._open):
            broken: Outcome = (None, self._broken_error(), None)
            settle(future, broken, may_block=False)
            run: Run | None = future.__dict__.get("_run")
            if run is not None:
                run.finish(broken, may_block=False)  # that gives back what it holds
            self._ended(future)

    def _broken_error(self) -> PoolBrokenError:
        error = PoolBrokenError(self.label, f"its loop raised {self._broken!r}")
        error.__cause__ = self._broken
        return error

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        if self.era != era():
            return
        with self._lock:
            self._closed = True
            waiting = list(self._waiting) if cancel_futures else []
        with ExitStack() as stack:  # each is cancelled, and the loop woken, whatever a callback of another raises
            stack.callback(self._wake)
            for future in reversed(waiting):
                stack.callback(future.cancel)

    def remains(self) -> list[str]:
        with self._lock:
            running = [future for future in self._open if future.running()]
            waiting, thread = len(self._waiting), self._thread if running or self._closed else None
        return [
            *calls_left(running, self.label),
            *waiting_left(waiting, self.label),
            *threads_left([thread], self.label),
        ]

    def join(self) -> None:
        thread = self._thread
        if thread is not None:
            join(thread)
        self.handed.wait()

    def idle(self) -> int:
        with self._lock:
            while self._open:
                nap_on(self._quiet)
            done = self._done
        if is_draining():
            return done  # what follows is waited for, or done, in its turn: see `Engine.work_off`
        return done + self.handed.wait()

    def counts(self) -> Counts:
        with self._lock:
            return Counts(
                workers=int(self._loop is not None),
                queued=len(self._waiting),
                running=len(self._open) - len(self._waiting),
                done=self._done,
            )

    def owns_this_thread(self) -> bool:
        """Tell whether this is the loop's thread, or a signal handler in the middle of a submit."""
        if threading.current_thread() is self._thread or self.handed.is_owned():
            return True
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # as Condition does

    def abandon(self) -> None:
        # The loop's descriptors are shared with the parent: closing its selector here would not harm it, but its
        # registrations would; so it is left alone. So are its tasks: dropping them would run code of theirs.
        self._lock = threading.RLock()  # a thread that is no more may have held the old one
        self._quiet = threading.Condition(self._lock)
        self.handed.renew()
        self._closed = True
        self._loop = None
        self._thread = None
        self._waiting = Backlog()
        self._open = {}

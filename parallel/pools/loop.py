"""
Kind `loop`: runs coroutines on one asyncio loop, which has a thread of its own.

    submit() ──▶ _waiting (FIFO) ──▶ loop thread: a task per call, at most `max_workers` at a time
                                        └──▶ the task is done ──▶ Future ──▶ what follows: callback threads

Guarantees:
- Calls start in submission order, on the loop's thread.
- Every accepted call ends, however its task does: cancelled by others before its first step, or as the loop closes.
- A task that a call left behind, or a call that stops the loop, does not end it: it goes on.
- What follows a call runs on callback threads, never on the loop's; `shutdown(wait=True)` waits for it.
- Waiting on the loop's thread for a call of that loop raises instead of hanging.

State: `_waiting`, `_open`, `_loop`, `_thread`, `_woken`, `_closed`, `_broken` and `_done`, guarded by `_lock`, which is
re-entrant: a signal handler or a `__del__` may submit while it is held. `_in_flight`, `_tasks` and `_finished` belong
to the loop's thread. No user code runs while the lock is held.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from contextvars import Context, copy_context
from functools import partial
from types import FunctionType
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, cast, overload

from parallel.context import Dispatcher, era, name_of, plain_function, this
from parallel.delivery import settle
from parallel.errors import DeadlockError, PoolBrokenError, PoolShutdownError, UnsuitableFunctionError
from parallel.futures import Future
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.pools.base import Engine, Pool, PoolStats, check_workers
from parallel.pools.handing import Handing, Tally
from parallel.states import State, is_ours

P = ParamSpec("P")
T = TypeVar("T")

LOGGER = logging.getLogger("parallel")

_UNBOUNDED: Final = 1 << 62
"""`max_workers` of a loop when none is given: coroutines are cheap, what they use is theirs to bound."""


class LoopPool(Pool):
    """
    A pool that runs `async def` functions on one asyncio loop.

    Args:
        max_workers: Calls in flight at most; None: no limit.
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call; None: the registry's callback threads.
    """

    kind: ClassVar[str] = "loop"

    def __init__(self, max_workers: int | None = None, *, name: str = "", callbacks: Dispatcher | None = None) -> None:
        self._max_workers = check_workers(max_workers, _UNBOUNDED)
        super().__init__(name, callbacks)

    def _new_engine(self) -> LoopEngine:
        self._loop = LoopEngine(self.label, self._max_workers, f"parallel-{self.name or 'loop'}")
        self._handing: Handing | None = None
        return self._loop

    @overload
    def submit(self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """
        Run the coroutine that `fn(*args, **kwargs)` makes; see `Pool.submit`.

        Raises:
            UnsuitableFunctionError: *fn* is no coroutine function.
        """
        fn = plain_function(fn)
        check_coroutine_function(fn)
        future: Future[Any] = Future((fn, args, kwargs, copy_context()), self._dispatcher())
        self._loop.accept(future)
        return future

    def _dispatcher(self) -> Handing:
        """Return the dispatcher of this pool's futures; one for all, unless the current registry changes."""
        callbacks = self.callbacks
        handing = self._handing
        if handing is None or handing.callbacks is not callbacks:
            handing = self._handing = Handing(callbacks, self._loop.handed)
        return handing


def check_coroutine_function(fn: Callable[..., Any]) -> None:
    """Refuse a plain function: it would block the loop."""
    if type(fn) is FunctionType and fn.__code__.co_flags & inspect.CO_COROUTINE:
        return
    if not makes_coroutines(fn):
        raise UnsuitableFunctionError(
            name_of(fn), "is no coroutine function, and would block the loop: make it `async def`, or use a thread pool"
        )


def makes_coroutines(fn: Callable[..., Any]) -> bool:
    """Tell whether calling *fn* makes a coroutine: an `async def`, a partial of one, an object that is called so."""
    while isinstance(fn, partial):
        fn = cast("partial[Any]", fn).func
    # By the type, as the interpreter calls it: calling a class that has such a method makes no coroutine.
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))


class LoopEngine(Engine):
    """
    The engine of a loop pool: the queue, and the thread on which the loop runs.

    Attributes:
        handed: Counts what follows its calls, on the callback threads.
    """

    def __init__(self, label: str, max_workers: int, thread_name: str) -> None:
        self.label = label
        self.handed = Tally()
        self._limit = max_workers
        self._thread_name = thread_name
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._waiting: deque[Future[Any]] = deque()
        self._open: set[Future[Any]] = set()  # accepted, not ended
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first call until it is about to close
        self._thread: threading.Thread | None = None
        self._woken = False  # the loop is going to call `_start_waiting`
        self._closed = False
        self._broken: Exception | None = None  # what came out of asyncio's loop
        self._finished = False  # closed, and all calls have ended; or broken
        self._done = 0
        super().__init__()

    def accept(self, future: Future[Any]) -> None:
        """
        Queue a call, and start the loop if it is not there yet.

        Raises:
            PoolShutdownError: The pool has been shut down.
            PoolBrokenError: Its loop has failed.
        """
        with self._lock:
            if self._broken is not None:
                raise self._broken_error()
            if self._closed:
                raise PoolShutdownError(self.label)
            if self._loop is None:
                # Both the loop and, from Python 3.14 on, the thread keep the context that they are made in: not the
                # first caller's, with all that is in it.
                Context().run(self._start)
            self._open.add(future)
            self._waiting.append(future)
            self._wake()

    def _start(self) -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name=self._thread_name)
        self._loop = loop
        try:
            thread.start()
        except BaseException as error:
            self._loop = None
            if isinstance(error, RuntimeError | MemoryError):
                loop.close()  # else, after a Ctrl-C, the thread may be there: it closes the loop itself
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
        this.worker = _LoopThread(self)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                self._run_loop(runner.get_loop())
        except BaseException:  # of a task that a call left behind, as it is cancelled
            LOGGER.exception("%s: its loop could not be closed in peace", self.label)
        finally:
            self._end_left(loop)

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run *loop* until the engine has finished, whoever else stops it."""
        while not self._finished and self._loop is loop:
            try:
                loop.run_forever()
            except Exception as error:  # asyncio catches what tasks and callbacks raise: its selector has failed
                LOGGER.exception("%s: its loop has failed", self.label)
                with self._lock:
                    self._broken = error
                    self._finish()
            except BaseException:  # of a task that a call left behind, such as SystemExit
                LOGGER.exception("%s was interrupted; it goes on", self.label)

    def _finish(self) -> None:
        """Have the loop end. Under the lock: who sees `_loop` may still call it."""
        self._closed = self._finished = True
        self._loop = None

    def _start_waiting(self) -> None:
        """Start queued calls as far as there is room; stop the loop if it is closed and all have ended."""
        with self._lock:
            self._woken = False
        while self._in_flight < self._limit and (future := self._next_waiting()) is not None:
            self._start_call(future)
        with self._lock:
            if self._closed and not self._open and self._loop is not None:
                self._loop.stop()
                self._finish()

    def _next_waiting(self) -> Future[Any] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _start_call(self, future: Future[Any]) -> None:
        work: Work | None = future.take_work()
        if work is None:
            self._ended(future)
            return
        ends: list[Outcome] = []
        call, context = _drive(work, ends), work[3]
        try:
            task = asyncio.get_running_loop().create_task(call, context=context)
        except BaseException as error:  # a task factory of the user's
            call.close()
            settle(future, failure(error), may_block=False)
            self._ended(future)
            return
        self._in_flight += 1
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_ended, future, ends), context=context)

    def _task_ended(self, future: Future[Any], ends: list[Outcome], task: asyncio.Task[None]) -> None:
        """End a call, in whatever way its task has ended."""
        self._in_flight -= 1
        self._tasks.discard(task)
        # Nothing is in there if the task was cancelled before its first step.
        outcome = ends.pop() if ends else (None, CANCELLED if task.cancelled() else task.exception(), None)
        try:
            settle(future, outcome, may_block=False)
        finally:
            self._ended(future)

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.discard(future)
            self._done += 1
            if not self._open:
                self._quiet.notify_all()
            if self._waiting or self._closed:
                self._wake()

    def _end_left(self, loop: asyncio.AbstractEventLoop) -> None:
        """The last deed of the thread: fail what a broken loop has left."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return loop.close()  # its start was interrupted, and it was given up; another one may be there
            self._waiting.clear()
            left = list(self._open)
        for future in left:
            settle(future, (None, self._broken_error(), None), may_block=False)
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

    def interrupt(self) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def join(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join()
        self.handed.wait()

    def idle(self) -> int:
        with self._quiet:
            while self._open:
                self._quiet.wait()
            done = self._done
        return done + self.handed.wait()

    def stats(self) -> PoolStats:
        with self._lock:
            return PoolStats(
                workers=int(self._loop is not None),
                queued=len(self._waiting),
                running=len(self._open) - len(self._waiting),
                done=self._done,
            )

    def owns_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def abandon(self) -> None:
        # The loop's descriptors are shared with the parent: closing its selector here would not harm it, but its
        # registrations would; so it is left alone. So are its tasks: dropping them would run code of theirs.
        self._lock = threading.RLock()  # a thread that is no more may have held the old one
        self._quiet = threading.Condition(self._lock)
        self.handed.renew()
        self._closed = True
        self._loop = None
        self._thread = None
        self._waiting = deque()
        self._open = set()

    def brings(self, future: State[Any]) -> bool:
        """Tell whether the end of *future* hangs on a call of this loop, perhaps among others."""
        ahead: list[State[Any]] = [future]
        seen: set[State[Any]] = set()
        while ahead:
            one = ahead.pop()
            if one in seen or one.done():
                continue
            if one in self._open:
                return True
            seen.add(one)
            ahead += [feed.source for feed in one.feeds if is_ours(feed.source)]
        return False


async def _drive(work: Work, ends: list[Outcome]) -> None:
    """
    Run one call to its end, and put that into *ends*.

    It does not become the value of the task: a frame of the user's that knows its task would keep its own error alive.
    """
    fn, args, kwargs, _ = work
    try:
        ends.append((await fn(*args, **kwargs), None, None))
    except asyncio.CancelledError:
        ends.append((None, CANCELLED, None))
    except BaseException as error:
        ends.append(failure(error))


class _LoopThread:
    """How the thread of a loop waits: not for what only it can bring."""

    __slots__ = ("_engine",)

    def __init__(self, engine: LoopEngine) -> None:
        self._engine = engine

    def wait(self, future: State[Any], timeout: float | None) -> bool:
        """Block the loop until *future* has ended, if another thread can bring it there; see `Waiter`."""
        if self._engine.brings(future):
            raise DeadlockError(f"the thread of {self._engine.label}")
        return future.sleep(timeout)

    def lend(self) -> None:
        """Nothing can take the place of a loop's thread."""

    def unlend(self) -> None:
        """Nothing was lent."""

"""
Kind `loop`: runs coroutines on one asyncio loop, which has a thread of its own.

    submit() ──▶ _waiting (backlog) ──▶ loop thread: a task per call, at most `max_workers` at a time
                                        └──▶ the task is done ──▶ Future ──▶ what follows: callback threads

Guarantees:
- Calls of one priority start in submission order, on the loop's thread.
- Every accepted call ends, however its task does: cancelled by others before its first step, or as the loop closes.
- The loop goes on when a call stops it, and when a task that a call left behind raises `SystemExit`; that cancels the
  calls that run, as it does in `asyncio.run`.
- What follows a call runs on callback threads, never on the loop's; `shutdown(wait=True)` waits for it.
- Waiting on the loop's thread for a call of that loop raises instead of hanging. A call that awaits one lends it its
  place, so that a bounded pool doesn't starve.

State: `_waiting`, `_open`, `_loop`, `_thread`, `_woken`, `_closed`, `_broken` and `_done`, guarded by `_lock`, which is
re-entrant: a signal handler or a `__del__` may submit while it is held. `_in_flight`, `_waits`, `_tasks`,
`_shortage`, `_looks` and `_finished` belong to the loop's thread. No user code runs while the lock is held.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from contextvars import Context
from functools import partial
from types import FunctionType
from typing import Any, ClassVar, Final, Literal, ParamSpec, TypeAlias, TypeVar, cast, get_args, overload

from parallel.context import RUNNING, Dispatcher, era, name_of, this
from parallel.delivery import settle
from parallel.errors import PoolBrokenError, PoolShutdownError, UnsuitableFunctionError
from parallel.futures import Future
from parallel.gates import GatedFuture
from parallel.kept import close_kept
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.pools.backlog import Backlog
from parallel.pools.base import Engine, OnExit, PoolStats, check_workers, is_draining
from parallel.pools.blocking import LoopThread
from parallel.pools.handing import HandingPool, Tally
from parallel.pools.leftovers import calls_left, threads_left, waiting_left
from parallel.runs import Run
from parallel.shortage import LOOK, Shortage, check_memory_free
from parallel.sizes import Size

P = ParamSpec("P")
T = TypeVar("T")

LOGGER = logging.getLogger("parallel")

_OnFull: TypeAlias = Literal["block", "raise"]

_UNBOUNDED: Final = 1 << 62
"""`max_workers` of a loop when none is given: coroutines are cheap, what they use is theirs to bound."""


class LoopPool(HandingPool):
    """
    A pool that runs `async def` functions on one asyncio loop.

    Args:
        max_workers: Calls in flight at most; None: no limit.
        max_pending: Calls from outside that may wait for their turn; None: any number.
        on_full: What becomes of one more: its caller waits (`block`), or gets a `PoolFullError` (`raise`).
        memory_free: Bytes, or a string such as `"2GiB"`, that have to be free on the machine where a call starts,
            unless nothing of this pool runs; the others wait for it. None: any amount.
        on_exit: What becomes of what it has accepted when the program ends: all is run (`wait`), or what waits is
            cancelled, and what runs is asked to end, as after a Ctrl-C (`cancel`).
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call; None: the registry's callback threads.
    """

    kind: ClassVar[str] = "loop"

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        max_pending: int | None = None,
        on_full: Literal["block", "raise"] = "block",
        memory_free: Size | None = None,
        on_exit: OnExit = "wait",
        name: str = "",
        callbacks: Dispatcher | None = None,
    ) -> None:
        if on_full not in get_args(_OnFull):
            raise ValueError(f"on_full must be one of {', '.join(get_args(_OnFull))}; found {on_full!r}")
        self._max_workers = check_workers(max_workers, _UNBOUNDED)
        self._memory_free = check_memory_free(memory_free)
        super().__init__(name, callbacks, max_pending, on_full, on_exit)

    @property
    def capacity(self) -> int:
        """How many calls it runs at a time, at most."""
        return self._max_workers

    def _new_engine(self) -> LoopEngine:
        shortage = None if self._memory_free is None else Shortage(self.label, self._memory_free)
        self._loop = LoopEngine(self.label, self._max_workers, f"parallel-{self.name or 'loop'}", shortage)
        return self._loop

    @property
    def follower(self) -> Dispatcher:
        """The callback threads."""
        return self.handing(self._loop.handed)

    def launch(self, future: Future[Any], /) -> None:
        """Queue a call; see `Pool.launch`."""
        future.dispatcher = self.follower
        self._loop.accept(future)

    def check(self, fn: Callable[..., Any]) -> None:
        """Refuse a plain function: it would block the loop."""
        check_coroutine_function(fn)

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
        return super().submit(fn, *args, **kwargs)


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
        fn = fn.func
    # Looked up as the interpreter does, in the type: to call a class that has such a method makes no coroutine.
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004


class LoopEngine(Engine):
    """
    The engine of a loop pool: the queue, and the thread on which the loop runs.

    Attributes:
        handed: Counts what follows its calls, on the callback threads.
    """

    def __init__(self, label: str, max_workers: int, thread_name: str, shortage: Shortage | None = None) -> None:
        self.label = label
        self.handed = Tally()
        self._limit = max_workers
        self._thread_name = thread_name
        self._shortage = shortage
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._waiting: Backlog[Future[Any]] = Backlog()
        self._open: set[Future[Any]] = set()  # accepted, not ended
        self._in_flight = 0  # calls that hold one of the places: those that wait have lent theirs
        self._waits: dict[Run, int] = {}  # the runs that have not ended, and how many of their coroutines wait
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first call until it is about to close
        self._thread: threading.Thread | None = None
        self._woken = False  # the loop is going to call `_start_waiting`
        self._looks = False  # so it is in a moment, to look whether there is memory by then
        self._closed = False
        self._broken: BaseException | None = None  # what came out of asyncio's loop
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
                Context().run(self._start)  # loops and threads keep the context they are made in: not a caller's
            try:
                self._open.add(future)
                self._waiting.append(future)
                self._wake()
            except BaseException:  # a Ctrl-C: nobody gets this call, and nobody may wait for it
                future.take_work()
                self._open.discard(future)
                self._quiet.notify_all()
                raise

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
        this.worker = LoopThread(self, self._open)
        with self._lock:  # which `accept` holds until this thread has been started in peace
            if self._loop is not loop:
                return loop.close()
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                self._run_loop(runner.get_loop())
        except BaseException as error:  # of a task that a call left behind, as it is cancelled
            self._finish(error)
        self._end_left()
        close_kept()

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run *loop* until the engine has finished, whoever else stops it."""
        while not self._finished:
            try:
                loop.run_forever()
            except Exception as error:  # asyncio catches what tasks and callbacks raise: its selector has failed
                self._finish(error)
            except BaseException:  # SystemExit, of a task that a call left behind
                LOGGER.exception("%s was interrupted: running calls are cancelled, and it goes on", self.label)
                self._cancel_tasks()

    def _finish(self, error: BaseException | None = None) -> None:
        """Have the loop end, and nobody use it from now on; *error* is what came out of it."""
        if error is not None:
            LOGGER.error("%s: its loop has failed", self.label, exc_info=error)
        with self._lock:
            if not self._finished:
                self._broken = error
            self._closed = self._finished = True
            self._loop = None

    def _start_waiting(self) -> None:
        """Start queued calls as far as there is room; stop the loop if it is closed and all have ended."""
        with self._lock:
            self._woken = False
        while self._waiting and self._in_flight < self._limit:
            if self._shortage is not None and self._is_held(self._shortage):
                break
            self._start_call(self._waiting.popleft())
        with self._lock:
            if self._closed and not self._open and self._loop is not None:
                self._loop.stop()
                self._finish()

    def _is_held(self, shortage: Shortage) -> bool:
        """Tell whether the next call is to wait for memory; each end of a call is a look, and so is the timer's."""
        held = shortage.holds_back(self._in_flight)
        shortage.tell()
        if held and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(LOOK, self._look_again)
        return held

    def _look_again(self) -> None:
        self._looks = False
        self._start_waiting()

    def _start_call(self, future: Future[Any]) -> None:
        run = future.begin()
        if isinstance(future, GatedFuture):
            future.leave_gate()
        if run is None:
            self._ended(future)
            return
        work, run.work = cast(Work, run.work), None
        ends: list[Outcome] = []
        call, context = _drive(work, ends), work[3]
        context.run(RUNNING.set, run)
        self._in_flight += 1
        self._waits[run] = 0
        try:
            task = asyncio.get_running_loop().create_task(call, context=context)
        except BaseException as error:  # of a task factory that a call has set
            call.close()
            self._in_flight -= 1
            self._waits.pop(run, None)
            run.finish(failure(error), may_block=False)
            self._ended(future)
            return
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_ended, future, run, ends), context=context)
        run.stop = partial(self._stop, task)
        try:
            run.start()
        except Exception as error:  # its time can't be watched
            task.cancel()
            run.finish(failure(error), may_block=False)

    def lend(self, run: Run | None) -> None:
        """Give the place of a call to another one, as it waits for a future; it is one, however many wait in it."""
        waits = None if run is None else self._waits.get(run)
        if run is not None and waits is not None:
            self._waits[run] = waits + 1
            if waits == 0:
                self._in_flight -= 1
                if self._waiting:
                    self._wake()

    def unlend(self, run: Run | None) -> None:
        """Take the place back at once, even if that is one too many."""
        waits = None if run is None else self._waits.get(run)
        if run is not None and waits:
            self._waits[run] = waits - 1
            if waits == 1:
                self._in_flight += 1

    def _stop(self, task: asyncio.Task[None]) -> None:
        """Cancel a task, from any thread."""
        with self._lock:
            if self._loop is not None:  # else it ends with its loop
                self._loop.call_soon_threadsafe(task.cancel)

    def _task_ended(self, future: Future[Any], run: Run, ends: list[Outcome], task: asyncio.Task[None]) -> None:
        """End a call, in whatever way its task has ended."""
        if not self._waits.pop(run, 0):
            self._in_flight -= 1
        self._tasks.discard(task)
        # Nothing is in there if the task was cancelled before its first step.
        outcome = ends.pop() if ends else (None, CANCELLED if task.cancelled() else task.exception(), None)
        try:
            run.finish(outcome, may_block=False)
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

    def _end_left(self) -> None:
        """The last deed of the thread: fail what a broken loop has left."""
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

    def interrupt(self) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

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
            thread.join()
        self.handed.wait()

    def idle(self) -> int:
        with self._quiet:
            while self._open:
                self._quiet.wait()
            done = self._done
        if is_draining():
            return done  # what follows is waited for, or done, in its turn: see `Engine.work_off`
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
        self._open = set()


async def _drive(work: Work, ends: list[Outcome]) -> None:
    """
    Run one call to its end, and put that into *ends*.

    It does not become the value of the task: a frame of the user's that knows its task would keep its own error alive.
    """
    fn, args, kwargs, _ = work
    try:
        ends.append((await fn(*args, **(kwargs or {})), None, None))
    except asyncio.CancelledError:
        ends.append((None, CANCELLED, None))
    except BaseException as error:
        ends.append(failure(error))

"""
Kind `loop`: runs coroutines on one asyncio loop, which has a thread of its own.

    submit() ──▶ the queue (`looping`) ──▶ loop thread: a task per call, at most `max_workers` at a time
                                           └──▶ the task is done ──▶ Future ──▶ what follows: callback threads

Guarantees:
- Calls of one priority start in submission order, on the loop's thread.
- Every accepted call ends, however its task does: cancelled by others before its first step, or as the loop closes.
- The loop goes on when a call stops it, and when a task that a call left behind raises `SystemExit`; that cancels the
  calls that run, as it does in `asyncio.run`.
- What follows a call runs on callback threads, never on the loop's; `shutdown(wait=True)` waits for it.
- Waiting on the loop's thread for a call of that loop raises instead of hanging. A call that awaits one lends it its
  place, so that a bounded pool doesn't starve.

State: `_in_flight`, `_waits`, `_tasks`, `_shortage` and `_looks` belong to the loop's thread; the rest is `looping`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from types import FunctionType
from typing import Any, ClassVar, Final, Literal, ParamSpec, TypeAlias, TypeVar, cast, get_args, overload

from parallel.context import RUNNING, Dispatcher, name_of, this
from parallel.errors import UnsuitableFunctionError
from parallel.futures import Future
from parallel.gates import GatedFuture
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.pools.base import AtWork, OnExit, check_workers
from parallel.pools.blocking import LoopThread
from parallel.pools.handing import HandingPool
from parallel.pools.leftovers import thread_at_work
from parallel.pools.looping import LoopingEngine
from parallel.runs import Run
from parallel.shortage import LOOK, Shortage, check_memory_free
from parallel.sizes import Size
from parallel.trail import note_thread

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


class LoopEngine(LoopingEngine):
    """
    The engine of a loop pool: a task for each call.

    Args:
        label: What messages call the pool.
        max_workers: Calls in flight at most.
        thread_name: The name of the loop's thread.
        shortage: What holds calls back while there is too little memory; None: nothing.
    """

    def __init__(self, label: str, max_workers: int, thread_name: str, shortage: Shortage | None = None) -> None:
        self._limit = max_workers
        self._shortage = shortage
        self._in_flight = 0  # calls that hold one of the places: those that wait have lent theirs
        self._waits: dict[Run, int] = {}  # the runs that have not ended, and how many of their coroutines wait
        self._tasks: dict[asyncio.Task[None], Future[Any]] = {}  # asyncio itself holds them weakly
        self._looks = False  # the loop is going to call `_start_waiting`, to look whether there is memory by then
        super().__init__(label, thread_name)

    def _enter(self) -> None:
        this.worker = LoopThread(self, self._open)
        note_thread(self.number)

    def _end_left(self) -> None:
        super()._end_left()
        note_thread(self.number, is_over=True)

    def _has_room(self) -> bool:
        if self._in_flight >= self._limit:
            return False
        return self._shortage is None or not self._is_held(self._shortage)

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
        self._tasks[task] = future
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
        self._tasks.pop(task, None)
        # Nothing is in there if the task was cancelled before its first step.
        outcome = ends.pop() if ends else (None, CANCELLED if task.cancelled() else task.exception(), None)
        try:
            run.finish(outcome, may_block=False)
        finally:
            self._ended(future)

    def at_work(self) -> list[AtWork]:
        with self._lock:
            thread, tasks, begun = self._thread, list(self._tasks.items()), self._open.copy()
        if thread is None:
            return []
        if not tasks:
            return [thread_at_work(thread, None, 0)._replace(thread=None)]
        return [
            thread_at_work(thread, future, begun.get(future, 0))._replace(thread=None, coroutine=task.get_coro())
            for task, future in tasks
        ]

    def interrupt(self) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()


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

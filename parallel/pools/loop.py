"""
Kind `loop`: runs coroutines on one asyncio loop, which has a thread of its own.

    submit() ──▶ _waiting (FIFO) ──▶ loop thread: a task per call, at most `max_workers` at a time ──▶ Future

Guarantees:
- Calls start in submission order, on the loop's thread.
- What follows a call runs on callback threads, never on the loop's.
- Waiting on the loop's thread for a call of that loop raises instead of hanging.

State: `_waiting`, `_open`, `_woken`, `_closed`, `_finished` and `_done`, guarded by `_lock`; `_in_flight` and `_tasks`
belong to the loop's thread. No user code runs while the lock is held.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from types import FunctionType
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, overload

from parallel.context import Dispatcher, name_of, plain_function, this
from parallel.delivery import settle
from parallel.errors import DeadlockError, PoolShutdownError, UnsuitableFunctionError
from parallel.futures import Future
from parallel.outcomes import CANCELLED, Outcome, Work, failure
from parallel.pools.base import Engine, Pool, PoolStats, check_workers
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
        future: Future[Any] = Future((fn, args, kwargs, copy_context()), self.callbacks)
        self._loop.accept(future)
        return future


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
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


class LoopEngine(Engine):
    """The engine of a loop pool: the queue, and the thread on which the loop runs."""

    def __init__(self, label: str, max_workers: int, thread_name: str) -> None:
        self.label = label
        self._limit = max_workers
        self._thread_name = thread_name
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._waiting: deque[Future[Any]] = deque()
        self._open: set[Future[Any]] = set()  # accepted, not ended
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._woken = False  # the loop is going to call `_start_waiting`
        self._closed = False
        self._finished = False  # closed, and all calls have ended
        self._done = 0
        super().__init__()

    def accept(self, future: Future[Any]) -> None:
        """Queue a call, and start the loop if it is not there yet."""
        with self._lock:
            if self._closed:
                raise PoolShutdownError(self.label)
            if self._thread is None:
                self._start()
            self._open.add(future)
            self._waiting.append(future)
        self._wake()

    def _start(self) -> None:
        self._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name=self._thread_name)
        try:
            thread.start()
        except BaseException:
            self._loop = None
            loop.close()
            raise
        self._thread = thread

    def _wake(self) -> None:
        """Have the loop look at the queue, unless it is going to."""
        with self._lock:
            if self._woken or self._loop is None:
                return
            self._woken = True
            self._loop.call_soon_threadsafe(self._start_waiting)

    # -- on the loop's thread -----------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        this.worker = _LoopThread(self)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            while not self._finished:
                try:
                    runner.get_loop().run_forever()
                except BaseException:  # of a task that a call left behind, such as SystemExit
                    LOGGER.exception("%s was interrupted; it goes on", self.label)
        with self._lock:
            self._loop = None
            self._quiet.notify_all()

    def _start_waiting(self) -> None:
        """Start queued calls as far as there is room; stop the loop if it is closed and all have ended."""
        with self._lock:
            self._woken = False
        while self._waiting and self._in_flight < self._limit:
            self._start_call(self._waiting.popleft())
        with self._lock:
            if self._closed and not self._open and self._loop is not None:
                self._finished = True
                self._loop.stop()

    def _start_call(self, future: Future[Any]) -> None:
        work: Work | None = future.take_work()
        if work is None:
            self._ended(future)
            return
        context = work[3]
        task = asyncio.get_running_loop().create_task(self._drive(future, work), context=context)
        self._in_flight += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drive(self, future: Future[Any], work: Work) -> None:
        """Run one call to its end."""
        fn, args, kwargs, _ = work
        outcome: Outcome
        try:
            outcome = (await fn(*args, **kwargs), None, None)
        except asyncio.CancelledError:
            outcome = (None, CANCELLED, None)
        except BaseException as error:
            outcome = failure(error)
        del fn, args, kwargs, work
        self._in_flight -= 1
        settle(future, outcome, may_block=False)
        self._ended(future)
        del future, outcome  # an error refers to this frame: break the cycle

    def _ended(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.discard(future)
            self._done += 1
            if not self._open:
                self._quiet.notify_all()
            look = bool(self._waiting) or self._closed
        if look:
            self._wake()

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        with self._lock:
            self._closed = True
            waiting = list(self._waiting) if cancel_futures else []
        for future in waiting:
            future.cancel()
        self._wake()

    def join(self) -> None:
        with self._quiet:
            while self._loop is not None:
                self._quiet.wait()
            thread = self._thread
        if thread is not None:
            thread.join()

    def idle(self) -> int:
        with self._quiet:
            while self._open:
                self._quiet.wait()
            return self._done

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
        # registrations would; so it is left alone.
        self._loop = None
        self._thread = None

    def brings(self, future: State[Any]) -> bool:
        """Tell whether the end of *future* hangs on a call of this loop."""
        ahead: list[State[Any]] = [future]
        while ahead:
            one = ahead.pop()
            if one in self._open:
                return True
            ahead += [feed.source for feed in one.feeds if is_ours(feed.source)]
        return False


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

"""
Kind `thread`: runs calls in this process, on at most `max_workers` threads; how is told in `crew`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from types import FunctionType
from typing import Any, ClassVar, ParamSpec, TypeVar

from parallel import trail
from parallel.context import Dispatcher, plain_function
from parallel.futures import Future
from parallel.gates import OnFull
from parallel.machine import cpus
from parallel.pools.base import OnExit, Pool, check_initializer, check_workers
from parallel.pools.crew import Crew
from parallel.pools.sparing import SparingCrew
from parallel.shortage import check_memory_free
from parallel.sizes import Size

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPool(Pool):
    """
    A pool of threads; an `Executor` as `concurrent.futures.ThreadPoolExecutor` is, and with its arguments.

    Args:
        max_workers: Threads at most; None: 4 more than the CPUs that the process may use, 32 at most.
        thread_name_prefix: What the threads are called; empty: after the pool.
        initializer: Called at the start of each worker thread. If it raises, the pool is broken.
        initargs: What it is called with.
        max_pending: Calls from outside that may wait for a worker; None: any number.
        on_full: What becomes of one more: its caller waits (`block`), gets a `PoolFullError` (`raise`) or runs it
            itself (`run`).
        helping: Whether a worker that waits for a call runs it itself if it is queued here. That call sees the
            thread-locals and the re-entrant locks of the one that waits.
        memory_free: Bytes, or a string such as `"2GiB"`, that have to be free on the machine where a call starts, or
            what follows one, unless nothing of this pool runs; the others wait for it. None: any amount. A call that
            its waiter runs, as of a pool that is full, doesn't wait.
        on_exit: What becomes of what it has accepted when the program ends: all is run (`wait`), or what waits is
            cancelled, and what runs is asked to end, as after a Ctrl-C (`cancel`).
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call where the workers can't; None: the registry's callback threads.
    """

    kind: ClassVar[str] = "thread"
    has_threads: ClassVar[bool] = True

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_pending: int | None = None,
        on_full: OnFull = "block",
        helping: bool = True,
        memory_free: Size | None = None,
        on_exit: OnExit = "wait",
        name: str = "",
        callbacks: Dispatcher | None = None,
    ) -> None:
        check_initializer(initializer)
        self._max_workers = check_workers(max_workers, min(32, cpus() + 4))
        self._prefix = thread_name_prefix or f"parallel-{name or 'thread'}"
        self._initializer = (initializer, initargs)
        self._helping = helping
        self._memory_free = check_memory_free(memory_free)
        super().__init__(name, callbacks, max_pending, on_full, on_exit)

    @property
    def capacity(self) -> int:
        """How many calls it runs at a time, at most."""
        return self._max_workers

    def _new_engine(self) -> Crew:
        args = (self.label, self._max_workers, self._prefix, *self._initializer)
        least = self._memory_free
        self._crew = (
            Crew(*args, helping=self._helping) if least is None else SparingCrew(least, *args, helping=self._helping)
        )
        return self._crew

    @property
    def follower(self) -> Dispatcher:
        """Its own workers."""
        return self._crew

    def launch(self, future: Future[Any], /) -> None:
        """Queue a call; see `Pool.launch`."""
        crew = self._crew
        future.__dict__["dispatcher"] = crew
        if future.priority and not crew.is_ranked:
            crew.rank()
        crew.accept(future)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` on a worker thread; see `Pool.submit`."""
        if self.gate is not None or trail.current is not None:
            return super().submit(fn, *args, **kwargs)
        plain = fn if type(fn) is FunctionType else plain_function(fn)
        return self._crew.call((plain, args, kwargs or None, copy_context()))

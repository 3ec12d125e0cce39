"""
Kind `inline`: the caller runs the call, at once. For tests and debuggers.

The future that `submit` returns has ended; what is chained to it runs inline as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import ClassVar, ParamSpec, TypeVar

from parallel.context import Dispatcher, plain_function
from parallel.delivery import INLINE
from parallel.errors import PoolShutdownError
from parallel.futures import Future
from parallel.pools.base import Pool, PoolStats

P = ParamSpec("P")
T = TypeVar("T")


class InlinePool(Pool):
    """
    A pool without workers: `submit` runs the call itself and returns its ended future.

    A KeyboardInterrupt in a call on the main thread ends the future and is raised by `submit` as well: a Ctrl-C is for
    the program.
    """

    kind: ClassVar[str] = "inline"

    def __init__(self, *, name: str = "", callbacks: Dispatcher | None = None) -> None:
        super().__init__(name, callbacks)
        self._running = 0
        self._done = 0

    def _new_engine(self) -> None:
        return None

    @property
    def callbacks(self) -> Dispatcher:
        """What follows an inline call runs inline."""
        return INLINE

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` here and now; see `Pool.submit`."""
        if self._closed:
            raise PoolShutdownError(self.label)
        future: Future[T] = Future((plain_function(fn), args, kwargs, copy_context()), INLINE)
        self._running += 1
        try:
            future.run_on(INLINE)
        finally:
            self._running -= 1
            self._done += 1
        error = future.outcome()[1]  # not by exception(): this is no look at it
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error  # a Ctrl-C is for the program, not only for the call that it happened to hit
        try:
            return future
        finally:
            del future  # an error refers to this frame: break the cycle

    def stats(self) -> PoolStats:
        """Return what the pool does at this moment."""
        return PoolStats(workers=0, queued=0, running=self._running, done=self._done)

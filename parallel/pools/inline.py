"""
Kind `inline`: the caller runs the call, at once. For tests and debuggers.

The future that `submit` returns has ended; what is chained to it runs inline as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

from parallel.call import Call
from parallel.context import Dispatcher, this
from parallel.coroutines import close_loop
from parallel.delivery import INLINE
from parallel.errors import PoolShutdownError
from parallel.futures import Future
from parallel.outcomes import NOTHING
from parallel.pools.base import Pool, PoolStats
from parallel.runs import begin_waiting, end_waiting
from parallel.states import State


class InlinePool(Pool):
    """
    A pool without workers: `submit` runs the call itself and returns its ended future.

    A KeyboardInterrupt in a call on the main thread ends the future and is raised by `submit` as well: a Ctrl-C is for
    the program.
    """

    kind: ClassVar[str] = "inline"

    launches_here: ClassVar[bool] = True

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

    @property
    def follower(self) -> Dispatcher:
        """The caller."""
        return INLINE

    def launch(self, future: Future[Any], /) -> None:
        """Run a call, here and now, and as often as is said; see `Pool.launch`."""
        if self._closed:
            raise PoolShutdownError(self.label)
        future.dispatcher = INLINE
        self._running += 1
        try:
            with _at(future):
                future.run_on(INLINE)
                while isinstance(future, Call) and (pause := future.pause_before_next()) is not None:
                    time.sleep(pause)
                    future.run_on(INLINE)
        finally:
            self._running -= 1
            self._done += 1
        error = (future.ended() or NOTHING)[1]
        try:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise error  # a Ctrl-C is for the program, not only for the call that it happened to hit
        finally:
            del future, error  # an error refers to this frame: break the cycle

    def stats(self) -> PoolStats:
        """Return what the pool does at this moment."""
        return PoolStats(workers=0, queued=0, running=self._running, done=self._done)


class _Caller:
    """How a thread waits that is no worker, and runs an inline call: it sleeps."""

    running: Any = None

    def wait(self, future: State[Any], timeout: float | None) -> bool:
        """Sleep; see `Waiter`."""
        self.lend(future)
        try:
            return future.sleep(timeout)
        finally:
            self.unlend()

    def lend(self, awaited: Any = None) -> None:
        """Note what the call at hand waits for."""
        begin_waiting(self.running, awaited)

    def unlend(self) -> None:
        """Note that it goes on."""
        end_waiting(self.running)

    def replace(self) -> None:
        """Nobody can take the place of the caller."""

    def come_back(self) -> None:
        """It has not been replaced."""


@contextmanager
def _at(future: Future[Any]) -> Generator[None]:
    """Note that this thread runs the call of *future* now."""
    outer = this.worker
    worker = this.worker = outer or _Caller()
    before, worker.running = worker.running, future
    try:
        yield
    finally:
        worker.running = before
        this.worker = outer
        if outer is None:
            close_loop()

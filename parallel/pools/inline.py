"""
Kind `inline`: the caller runs the call, at once. For tests and debuggers.

The future that `submit` returns has ended; what is chained to it runs inline as well.
"""

from __future__ import annotations

from typing import Any, ClassVar

from parallel.call import Call
from parallel.context import Dispatcher
from parallel.delivery import INLINE
from parallel.errors import PoolShutdownError
from parallel.futures import Future
from parallel.pools.base import Pool, PoolStats
from parallel.runs import raise_interrupt, run_by_caller


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
            with run_by_caller(future):
                future.run_on(INLINE)
                while isinstance(future, Call) and future.comes_again():
                    future.run_on(INLINE)
        finally:
            self._running -= 1
            self._done += 1
        try:
            raise_interrupt(future)
        finally:
            del future  # an error's traceback leads here, by way of the frames that called

    def stats(self) -> PoolStats:
        """Return what the pool does at this moment."""
        return PoolStats(workers=0, queued=0, running=self._running, done=self._done)

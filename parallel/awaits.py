"""
`await future`: wait on an event loop of asyncio for a future that ends on another thread.

    future ends ──▶ _Alarm ──▶ loop.call_soon_threadsafe ──▶ the waiting coroutine goes on and asks for the result

The error goes from our future to the coroutine without a stop in one of asyncio's, which would keep it alive.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from parallel.context import this
from parallel.delivery import Feed
from parallel.outcomes import Outcome
from parallel.states import State

if TYPE_CHECKING:
    import asyncio


class _Alarm(Feed):
    """Wakes a coroutine when its source has ended. It ends no future of ours."""

    __slots__ = ("_loop", "_waiter")
    adopts = False

    def __init__(self, source: State[Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(source, source)
        self._loop = loop
        self._waiter: asyncio.Future[None] = loop.create_future()

    def pass_on(self, outcome: Outcome) -> None:
        """Have the loop wake the coroutine; a loop that was closed has nothing left to wake."""
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise

    def _wake(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self._waiter.__await__()


def wait_on_loop(future: State[Any]) -> Generator[Any, None, None]:
    """
    Wait until *future* has ended. Cancelling the waiting coroutine cancels it, unless it runs already.

    Raises:
        asyncio.CancelledError: The coroutine, or the future, was cancelled.
    """
    import asyncio  # heavy, and most programs never await

    if future.ended() is None:
        alarm = _Alarm(future, asyncio.get_running_loop())
        if future.add(alarm):
            worker = this.worker
            if worker is not None:
                worker.lend(future)
            try:
                yield from alarm.__await__()
            except asyncio.CancelledError:
                future.remove(alarm)
                future.cancel()
                raise
            finally:
                if worker is not None:
                    worker.unlend()
    if future.cancelled():
        raise asyncio.CancelledError

"""
How the thread of an asyncio loop waits in a blocking call: not for what only that loop can bring.

    result() on the loop's thread ──▶ LoopThread.wait ──▶ hangs on an open call of the loop: DeadlockError
                                                     └──▶ another thread brings it: the loop blocks until then

What a future hangs on is told by its `feeds`: the ties through which others end it.

Nothing here has state of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterable
from typing import Any, Final, Protocol

from parallel.call import Call
from parallel.chains import name_of_chain
from parallel.context import RUNNING
from parallel.errors import DeadlockError
from parallel.pools.handing import Handing, Tally
from parallel.runs import Run, begin_waiting, end_waiting
from parallel.states import State, hangs_on

_LOOK: Final = 0.1
"""Seconds between two looks at what a blocking wait hangs on. A loop that waits so long is blocked anyway."""


class Loop(Protocol):
    """What the thread of a loop needs of its engine."""

    label: str
    handed: Tally
    """Counts what follows its calls; those that have not come to the loop yet are known by it."""

    def lend(self, run: Run | None) -> None:
        """Give the place of a call to another one."""
        ...

    def unlend(self, run: Run | None) -> None:
        """Take it back."""
        ...


class LoopThread:
    """
    The `Waiter` of a loop's thread.

    Args:
        loop: The engine.
        open_calls: Its calls that have not ended, kept up to date by it.
    """

    running: Any = None  # many calls at a time: `RUNNING` tells which

    def __init__(self, loop: Loop, open_calls: Container[State[Any]]) -> None:
        self._loop = loop
        self._open = open_calls

    def wait(self, future: State[Any], timeout: float | None) -> bool:
        """
        Block the loop until *future* has ended; see `Waiter`.

        What it hangs on may change meanwhile: a thread may begin to wait for a call of this loop. So it looks again
        now and then, as nobody else could end this wait.

        Raises:
            DeadlockError: It would never end, or not before the timeout: the loop can't run what it hangs on.
        """
        run = RUNNING.get()
        begin_waiting(run, future)
        try:
            return self._block(future, math.inf if timeout is None else timeout)
        finally:
            end_waiting(run)

    def _block(self, future: State[Any], left: float) -> bool:
        end = time.monotonic() + left
        while True:
            if left > 0:
                self.check([future])
            if future.sleep(min(max(left, 0), _LOOK)):
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False

    def check(self, futures: Iterable[State[Any]], /) -> None:
        """See that none of *futures* hangs on a call of this loop, perhaps among others; see `Waiter`."""
        if self.brings(*futures):
            awaited = ", ".join(name_of_chain(future.__dict__) for future in futures)
            raise DeadlockError(
                f"the thread of the {self._loop.label}",
                f"wait for {awaited}, which only it can bring to its end",
                "use `await`, `async for` or `async with` instead of what blocks, such as result()",
            )

    def brings(self, *futures: State[Any]) -> bool:
        """Tell whether the end of one of *futures* hangs on a call of this loop, perhaps among others."""
        return any(one in self._open or self._comes_here(one) for one in hangs_on(*futures, through_bodies=True))

    def _comes_here(self, one: State[Any]) -> bool:
        """Tell whether *one* is a call that waits for a place, its next attempt or its arguments, and will come."""
        return (
            isinstance(one, Call) and isinstance(one.dispatcher, Handing) and one.dispatcher.tally is self._loop.handed
        )

    def lend(self, awaited: Any = None) -> None:
        """Note what the coroutine at hand waits for, and give its call's place to another one."""
        run = RUNNING.get()
        begin_waiting(run, awaited)
        self._loop.lend(run)

    def unlend(self) -> None:
        """Note that it goes on."""
        run = RUNNING.get()
        self._loop.unlend(run)
        end_waiting(run)

    def replace(self) -> None:
        """Nothing can take the place of a loop's thread; its coroutines can be stopped."""

    def come_back(self) -> None:
        """It has not been replaced."""

"""
How the thread of an asyncio loop waits in a blocking call: not for what only that loop can bring.

    result() on the loop's thread ──▶ LoopThread.wait ──▶ hangs on an open call of the loop: DeadlockError
                                                     └──▶ another thread brings it: the loop blocks until then

What a future hangs on is told by its `feeds`: the ties through which others end it.

Nothing here has state of its own.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from parallel.context import RUNNING
from parallel.errors import DeadlockError
from parallel.runs import begin_waiting, end_waiting
from parallel.states import State, hangs_on


class LoopThread:
    """
    The `Waiter` of a loop's thread.

    Args:
        label: What messages call the pool.
        open_calls: The calls of the loop that have not ended, kept up to date by the engine.
    """

    running: Any = None  # many calls at a time: `RUNNING` tells which

    def __init__(self, label: str, open_calls: Container[State[Any]]) -> None:
        self._label = label
        self._open = open_calls

    def wait(self, future: State[Any], timeout: float | None) -> bool:
        """
        Block the loop until *future* has ended; see `Waiter`.

        Raises:
            DeadlockError: It would never end, or not before the timeout: the loop can't run what it hangs on.
        """
        if self.brings(future):
            raise DeadlockError(f"the thread of {self._label}")
        return future.sleep(timeout)

    def brings(self, future: State[Any]) -> bool:
        """Tell whether the end of *future* hangs on a call of this loop, perhaps among others."""
        return any(one in self._open for one in hangs_on(future))

    def lend(self, awaited: Any = None) -> None:
        """Note what the coroutine at hand waits for. Nothing can take the place of a loop's thread."""
        begin_waiting(RUNNING.get(), awaited)

    def unlend(self) -> None:
        """Note that it goes on."""
        end_waiting(RUNNING.get())

    def replace(self) -> None:
        """Nothing can take the place of a loop's thread; its coroutines can be stopped."""

    def come_back(self) -> None:
        """It has not been replaced."""

"""
What a function can ask about the call that it runs in: `current_task()`, `checkpoint()`, `sleep()`.
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from typing import Any

from parallel.context import RUNNING
from parallel.coroutines import runs_a_loop
from parallel.durations import Duration, pause
from parallel.errors import DeadlockError, NoTaskError
from parallel.runs import Run, current_run
from parallel.states import State
from parallel.trail import id_of


class CurrentTask:
    """
    The call that the current function runs in, as it is at this moment.
    """

    __slots__ = ("_future", "_run")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._future: State[Any] = run.future

    @property
    def name(self) -> str:
        """
        The task's `module:qualname`.

        Of a function that was submitted to a pool as it is: empty; but in a worker process, the function's.
        """
        made = self._future.__dict__.get("_made")
        return "" if made is None else str(made[0].name)

    @property
    def id(self) -> int:
        """A number that no other call of this process has; the attempts of one call share it."""
        return id_of(self._future)

    @property
    def attempt(self) -> int:
        """Which attempt this is; the first is 1."""
        return self._run.number

    @property
    def pool(self) -> str:
        """What messages call its pool: `thread pool 'io'`."""
        made = self._future.__dict__.get("_made")
        return str(getattr(self._future.dispatcher, "label", "") if made is None else made[0].pool)

    @property
    def deadline(self) -> float | None:
        """Seconds until the call, or the one that it was made in, has to have ended; None: it has no deadline."""
        deadline = getattr(self._future, "deadline", None)
        return None if deadline is None else deadline.left()

    @property
    def cancelled(self) -> bool:
        """Whether it is to stop: somebody cancelled it, or its time is over. What it returns won't be used."""
        return self._run.asked

    def __repr__(self) -> str:
        name = self.name or "a call"
        return f"<CurrentTask {name} in {self.pool}, attempt {self.attempt}{', cancelled' if self.cancelled else ''}>"


def current_task() -> CurrentTask:
    """
    Return the call that this function runs in.

    Raises:
        NoTaskError: It runs in none.
    """
    run = current_run()
    if run is None:
        raise NoTaskError
    return CurrentTask(run)


def checkpoint() -> None:
    """
    Stop here if the call is to stop; to be called now and then by a function that takes long.

    Outside of calls it does nothing.

    Raises:
        CancelledError: The call was cancelled, or its time is over.
    """
    run = current_run()
    if run is not None and run.asked:
        raise CancelledError


def sleep(seconds: Duration) -> None:
    """
    Sleep, but not longer than the call goes on.

    A worker that sleeps keeps its place. Outside of calls, as in a notebook's cell, it is `time.sleep`.

    Args:
        seconds: How long: seconds, a `timedelta`, or a string such as `250ms`.

    Raises:
        CancelledError: The call was cancelled, or its time is over.
        DeadlockError: This is a coroutine of a pool's event loop: use the loop's own sleep.
    """
    how_long = pause(seconds)
    run = current_run()
    if run is not None and run is RUNNING.get() and runs_a_loop():
        raise DeadlockError(
            "the thread of an event loop",
            f"sleep({seconds!r}), which would hold up all that runs there",
            "use `await asyncio.sleep(...)`",
        )
    if run is None:
        time.sleep(how_long)
    elif run.pause(how_long):
        raise CancelledError

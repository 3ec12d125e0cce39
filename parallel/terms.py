"""
Under what terms the calls of one task are run in one registry, and what these need of a pool and of the desk.

Nothing here changes once it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import CodeType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, cast

from parallel.context import Dispatcher
from parallel.errors import TaskTimeoutError
from parallel.futures import Future
from parallel.gates import Gate
from parallel.hooks import Hooks
from parallel.lanes import Lane
from parallel.limits import Limits
from parallel.retries import Retry
from parallel.timer import TIMER


class About(NamedTuple):
    """What messages call a task, and the pool that it runs in."""

    name: str
    pool: str


Site: TypeAlias = tuple[About, CodeType, int]
"""Where a call was made: of which task, and the caller's code and place in that; read only for messages."""


class Launcher(Protocol):
    """What a call needs of a pool."""

    @property
    def label(self) -> str:
        """What messages call it."""
        ...

    @property
    def name(self) -> str:
        """What a configuration calls it."""
        ...

    cancels_at_exit: bool
    """Whether what waits at the program's end is cancelled."""

    launches_here: ClassVar[bool]
    """Whether launching runs code of the user's, or the call itself: not for a timer's or a loop's thread."""
    number: int
    """Which pool of this process it is."""
    tells_times: ClassVar[bool]
    """Whether its workers tell by themselves when calls begin and end; else who runs them notes it."""
    has_threads: ClassVar[bool]
    """Whether its workers are threads, which take the future itself and run it by `run_on`."""

    @property
    def gate(self) -> Gate | None:
        """What bounds the calls that wait in it, if anything does."""
        ...

    @property
    def callbacks(self) -> Dispatcher:
        """Who runs what its own threads can't."""
        ...

    @property
    def follower(self) -> Dispatcher:
        """Who runs what follows its calls."""
        ...

    def launch(self, future: Future[Any], /) -> None:
        """
        Queue a future that holds its work.

        Raises:
            PoolShutdownError, PoolBrokenError: It takes no calls any more.
        """
        ...


class Parked(Protocol):
    """A call that is in no pool."""

    def cancel(self) -> bool:
        """End it."""
        ...

    def is_stuck(self) -> bool:
        """Tell whether it may wait for ever."""
        ...

    def cancels_at_exit(self) -> bool:
        """Tell whether it is cancelled when the program ends."""
        ...


class Desk(Protocol):
    """
    Where those calls are counted that are in no pool: they wait for a place, or for their next attempt.

    A call comes once before each attempt. It may come for the next one before it is counted out for the last.
    """

    def add(self, call: Parked, attempt: int, /) -> None:
        """Count *call* in, which waits since that many attempts have been begun."""
        ...

    def discard(self, call: Parked, attempt: int, /) -> None:
        """Count it out, if it was in."""
        ...

    def look(self) -> None:
        """See whether some of its calls wait in vain now."""
        ...


class Terms:
    """
    Under what terms the calls of one task are run in one registry.

    Args:
        name: The task's.
        pool: Where they are run.
        desk: Where those are counted that are in no pool.
        limits: What bounds them at a time and in time, in the order in which places are taken.
        timeout: Seconds that an attempt may run, or the lane of attempts that says so; None, or infinite: any.
        deadline: Seconds that a call may take; None, or infinite: any.
        retry: What is tried again; None: nothing.
        priority: Those with a higher one start first.
        idempotent: One whose worker died in it may be run again.
        on_success: Called with each value.
        on_failure: Called with each error.
        hooks: The registry's, if there are some for calls.
    """

    def __init__(
        self,
        name: str,
        pool: Launcher,
        desk: Desk,
        *,
        limits: tuple[Limits, ...] = (),
        timeout: float | Lane | None = None,
        deadline: float | None = None,
        retry: Retry | None = None,
        priority: int = 0,
        idempotent: bool = False,
        on_success: Callable[[Any], object] | None = None,
        on_failure: Callable[[BaseException], object] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.desk = desk
        self.limits = limits
        self.lane = timeout if isinstance(timeout, Lane) else _lane(timeout)
        self.deadline_lane = _lane(deadline)
        self.retry = None if retry is None else retry.resolved()
        self.priority = priority
        self.idempotent = idempotent
        self.on_success = on_success
        self.on_failure = on_failure
        self.hooks = hooks
        on: object = None if self.retry is None else self.retry.on
        self.asks = callable(on) and not isinstance(on, type)
        """Whether a function of the user's says what is tried again."""
        self.retries_overruns = self.asks or _names(on, TaskTimeoutError)
        """Whether an attempt is tried again whose body may still be running."""
        others = (self.deadline_lane, on_success, on_failure, hooks)
        self.only_bounds_attempts = not limits and all(one is None for one in others)
        """Whether all that is said is how long an attempt may run, its priority, and what is tried again."""


def _lane(seconds: float | None) -> Lane | None:
    """Return the timer's lane of so many seconds; None if there is no bound."""
    return None if seconds is None or seconds == inf else TIMER.lane(seconds)


def _names(on: object, kind: type[BaseException]) -> bool:
    """Tell whether *on*, one type or several, has *kind* or a type derived from it."""
    kinds = cast("tuple[object, ...]", on if isinstance(on, tuple) else (on,))
    return any(isinstance(one, type) and issubclass(one, kind) for one in kinds)

"""
What a bridge needs of somebody else's engine, and that of the bridge: `Driver`, `Events`.

State: `_used_in`, changed by single atomic steps.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future as StandardFuture
from typing import Final, NamedTuple, Protocol, TypeVar

from parallel.context import era
from parallel.pools.distant.packets import Answer, Packet, Supply
from parallel.pools.distant.telling import Line

T = TypeVar("T")


class Events(Protocol):
    """What a driver tells of the calls that it was given; on the loop's thread."""

    def began(self, number: int, item: int = 0, size: int = 0, /) -> None:
        """A call runs; of a chunk, in that item for a while now: see `telling.News`."""
        ...

    def answered(self, number: int, answer: Answer, /) -> None:
        """A call has been answered."""
        ...

    def lost(self, number: int, loss: Loss, /) -> None:
        """The worker of a call is no more, or what it had returned is."""
        ...

    def failed(self, number: int, error: BaseException, /) -> None:
        """The engine could not run a call."""
        ...

    def withdrawn(self, number: int, /) -> None:
        """A call has been dropped, as was asked; it has not begun."""
        ...

    def has_room(self) -> None:
        """More calls may be sent than before."""
        ...

    def broke(self, reason: str, cause: BaseException | None, /) -> None:
        """The engine can't go on, for ever."""
        ...


class Loss(NamedTuple):
    """
    How a call was lost.

    Attributes:
        begun: Whether it had begun, as far as the engine can tell; None: it can't.
        worker: What the engine calls the worker; empty if it doesn't say.
        cause: What the engine raised; None: nothing.
    """

    begun: bool | None = None
    worker: str = ""
    cause: BaseException | None = None


class Driver(ABC):
    """
    How calls get to the workers of one engine, and back. All of it happens on the loop's thread.

    Attributes:
        kills: Whether it can end a call that runs by force.
        has_stragglers: Some of its calls have overrun their time, and run on: closing it doesn't wait for them.
        line: By which workers tell what they run, as a `telling.Line`; None: by none.
    """

    kills: bool = False
    has_stragglers: bool = False
    line: Line | None = None

    @abstractmethod
    async def open(self, events: Events) -> None:
        """
        Connect to the engine, or start it. What it raises breaks the pool.

        Args:
            events: Is told what becomes of the calls.
        """

    @property
    @abstractmethod
    def window(self) -> int:
        """How many calls may be with the engine at a time; more wait here."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many calls its workers run at a time, now."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many workers there are, now."""

    @abstractmethod
    def send(self, packet: Packet, supplies: tuple[Supply, ...], priority: int, /) -> None:
        """
        Give a call to the engine. What it raises is the end of that call.

        Args:
            packet: The call.
            supplies: What is to go with it.
            priority: Of calls that wait there, those of a higher one run first, where the engine can do that.
        """

    @abstractmethod
    def withdraw(self, number: int, /) -> None:
        """Have a call dropped that has not begun, as far as anybody knows; `withdrawn` says that it is, if it is."""

    def kill(self, number: int, /) -> None:  # noqa: B027  # most can't
        """End a call that runs by force, and what it runs in; then it is `lost`."""

    def ask(self, number: int, /) -> None:  # noqa: B027  # most can't
        """Have the function of a call told that it is to stop."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the engine, with no call left; one that was started for this pool is ended."""

    def abandon(self) -> None:  # noqa: B027  # most have nothing that a child could harm
        """In a forked child: let go of what belongs to the parent. Never waits."""

    @property
    def dashboard_link(self) -> str:
        """Where the engine shows what it does; empty: nowhere."""
        return ""


_used_in: Final[dict[str, int]] = {}
"""The `era()` in which an engine was used first, by its name."""


def refuse_in_forks(engine: str) -> None:
    """
    Note that an engine is used in this process, whose client has threads.

    Raises:
        RuntimeError: It was used before this process was forked.
    """
    if _used_in.setdefault(engine, era()) != era():
        raise RuntimeError(
            f"{engine} was used before this process was forked, and its threads have stayed in the parent; "
            "start the process in another way, such as by multiprocessing's 'spawn' or 'forkserver'"
        )


async def aside(fn: Callable[[], T]) -> T:
    """
    Call *fn*, which may block, on a thread of its own; where none can be started any more, here.

    `asyncio.to_thread` leaves threads behind, for whose end a loop waits by one more: CPython 3.12.0 and 3.12.1 start
    none at the exit of the program.
    """
    ended: StandardFuture[T] = StandardFuture()
    ended.set_running_or_notify_cancel()  # who waits may be cancelled: it runs to its end all the same

    def call() -> None:
        try:
            ended.set_result(fn())
        except BaseException as error:
            ended.set_exception(error)

    try:
        threading.Thread(target=call, name="parallel-aside", daemon=True).start()
    except RuntimeError:
        return fn()
    return await asyncio.wrap_future(ended)

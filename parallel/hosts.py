"""
Hosts: the coroutine that an `async with` block runs in, under asyncio or trio.

    somebody's thread ──▶ host.interrupt() ──▶ the event loop ──▶ the body of the block, unless it has ended
                               the block's end ──▶ host.end_body(error) ──▶ what of the error is not of our making

State: a host's, which belongs to the thread of its loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from parallel.awaits import trio_here, until_ended
from parallel.states import State

if TYPE_CHECKING:
    import asyncio

Turn: TypeAlias = Callable[[Callable[[], object]], object]
"""Has a function called by an event loop, from any thread, once its present turn is over."""


class Host(Protocol):
    """What a block needs of the coroutine that it is in."""

    def enter(self) -> None:
        """Begin the body."""
        ...

    def interrupt(self) -> None:
        """Cancel the body, unless it has ended. From any thread; at most once."""
        ...

    def end_body(self, error: BaseException | None, *, cancelled: bool) -> BaseException | None:
        """
        Note that the body has ended.

        Args:
            error: What it raised.
            cancelled: Its group has been cancelled.

        Returns:
            What is left of the error without the cancellation that the group itself has caused.
        """
        ...

    async def wait(self, bell: State[None], *, shielded: bool) -> None:
        """Wait for *bell*; with *shielded*, a cancellation that has been raised before is not raised again."""
        ...

    def keep(self, interruption: BaseException) -> list[BaseException]:
        """See that a cancellation from outside is not lost to the errors raised instead; return what to add to them."""
        ...

    def cancellation(self) -> BaseException:
        """Make what a cancelled coroutine raises."""
        ...


class AsyncioHost:
    """A task of asyncio; its cancellations are counted, as `asyncio.TaskGroup` does it."""

    def __init__(self) -> None:
        import asyncio  # it runs, so this costs nothing

        task: asyncio.Task[Any] | None = asyncio.current_task()
        if task is None:
            raise RuntimeError("`async with TaskGroup()` must be inside a task of asyncio")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._in_body = False
        self._interrupted = False

    def enter(self) -> None:
        self._in_body = True

    def interrupt(self) -> None:
        # Always by way of the loop: then the body is at an `await`, and the cancellation is raised there.
        try:
            self._loop.call_soon_threadsafe(self._interrupt)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _interrupt(self) -> None:
        if self._in_body and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def end_body(self, error: BaseException | None, *, cancelled: bool) -> BaseException | None:
        self._in_body = False
        others = self._task.uncancel() if self._interrupted else self._task.cancelling()
        ours = self._interrupted or cancelled
        return None if error is not None and is_cancellation(error) and ours and not others else error

    async def wait(self, bell: State[None], *, shielded: bool) -> None:
        await until_ended(bell, None)

    def keep(self, interruption: BaseException) -> list[BaseException]:
        if self._task.cancelling():
            self._task.uncancel()  # the count stays as it is
            self._task.cancel()
        return []

    def cancellation(self) -> BaseException:
        import asyncio  # it runs, so this costs nothing

        return asyncio.CancelledError()


class TrioHost:
    """A task of trio: the body is in a cancel scope of its own."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio  # of no type: it may not be there for a type checker
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()

    def enter(self) -> None:
        self._scope.__enter__()

    def interrupt(self) -> None:
        with suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)

    def end_body(self, error: BaseException | None, *, cancelled: bool) -> BaseException | None:
        try:
            if self._scope.__exit__(type(error), error, None if error is None else error.__traceback__):
                return None
        except BaseException as left:  # a group of errors, without the cancellations of this scope
            return left
        ours = cancelled and isinstance(error, CancelledError)  # of a call that the body waited for
        return None if ours else error

    async def wait(self, bell: State[None], *, shielded: bool) -> None:
        with self._trio.CancelScope(shield=shielded):
            await until_ended(bell, None)

    def keep(self, interruption: BaseException) -> list[BaseException]:
        return [interruption]  # the scope that it belongs to takes it out of the group of errors

    def cancellation(self) -> BaseException:
        return CancelledError()  # trio alone can make its own


def host_here() -> Host:
    """
    Return the host of a block in the present coroutine.

    Raises:
        RuntimeError: Neither asyncio nor trio runs it.
    """
    trio = trio_here()
    return AsyncioHost() if trio is None else TrioHost(trio)


def turn_here() -> Turn | None:
    """Return the turns of the event loop that runs on this thread, None if there is none."""
    if "asyncio" not in sys.modules and "trio" not in sys.modules:
        return None
    try:
        trio = trio_here()
    except RuntimeError:
        return None
    if trio is not None:
        token: Any = trio.lowlevel.current_trio_token()
        turn: Turn = token.run_sync_soon
        return turn
    import asyncio  # it runs, so this costs nothing

    return asyncio.get_running_loop().call_soon_threadsafe


def is_cancellation(error: BaseException) -> bool:
    """Tell whether *error* says that something was cancelled, in the words of the standard library."""
    # By the types alone, as `except` does: isinstance() may run code of the user's.
    kinds = type(error).__mro__
    return CancelledError in kinds or _is_named(kinds, "asyncio", "CancelledError")


def is_of_call(error: BaseException) -> bool:
    """Tell whether *error* comes from a call that was cancelled, not from the cancelling of the present coroutine."""
    if CancelledError in type(error).__mro__:
        return True
    if not is_cancellation(error):
        return False
    import asyncio  # it is one of its errors

    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return True
    return task is None or not task.cancelling()


def is_interruption(error: BaseException) -> bool:
    """Tell whether *error* ends more than one block: it is raised itself, never in a group."""
    kinds = type(error).__mro__
    return (
        any(kind in kinds for kind in (KeyboardInterrupt, SystemExit, GeneratorExit))
        or _is_named(kinds, "asyncio", "CancelledError")
        or _is_named(kinds, "trio", "Cancelled")
    )


def _is_named(kinds: tuple[type, ...], module: str, name: str) -> bool:
    """Tell whether a class of a module that may not be loaded is among *kinds*."""
    return getattr(sys.modules.get(module), name, None) in kinds

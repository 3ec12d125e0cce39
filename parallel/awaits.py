"""
`await future`: wait in a coroutine of asyncio or trio for a future that ends on another thread.

    future ends ──▶ _LoopAlarm ──▶ loop.call_soon_threadsafe ─┐
                └─▶ _TrioAlarm ──▶ token.run_sync_soon ───────┴─▶ the coroutine goes on and asks for the result

Guarantees:
- The library that runs the innermost coroutine is the one that waits, where one runs inside the other too.
- Cancelling who waits cancels the call, unless it runs already or somebody else wants to know how it ends.
- However the waiting ends, the future keeps nothing of it. A loop that was closed meanwhile disturbs nobody.
- Under trio every wait is a checkpoint, under asyncio one for a future that has ended doesn't give way to others.

The error goes from our future to the coroutine without a stop in one of asyncio's, which would keep it alive.
trio is never imported: where it runs, somebody else has done that.

State: an alarm's, which belongs to the thread of its loop; `pass_on` alone runs on the thread that ends the future.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from types import coroutine
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from parallel.context import about_to_wait, this
from parallel.delivery import Feed
from parallel.outcomes import Outcome
from parallel.states import State

if TYPE_CHECKING:
    import asyncio


def wait_on_loop(future: State[Any]) -> Generator[Any, None, None]:
    """
    Wait until *future* has ended. Cancelling who waits cancels it, unless it runs or somebody else waits for it too.

    Raises:
        asyncio.CancelledError: Under asyncio: the coroutine, or the future, was cancelled.
        trio.Cancelled: Under trio: the coroutine was cancelled.
        RuntimeError: Neither asyncio nor trio runs the coroutine.
    """
    trio = trio_here()
    try:
        yield from _until_ended(future, None, trio)
    except (Exception, GeneratorExit):
        raise  # it could not wait, or was dropped: nobody has cancelled anything
    except BaseException:
        if _is_unwanted(future):
            future.cancel()
        raise
    if trio is None and future.cancelled():
        import asyncio  # it runs, so this costs nothing

        raise asyncio.CancelledError


@coroutine
def until_ended(future: State[Any], timeout: float | None) -> Generator[Any, None, bool]:
    """Wait in a coroutine until *future* has ended, and leave it alone; False if *timeout* seconds came first."""
    yield from _until_ended(future, timeout, trio_here())
    return future.done()


def _until_ended(future: State[Any], timeout: float | None, trio: _Trio | None) -> Generator[Any, None, None]:
    if future.done():
        if trio is not None:
            yield from trio.lowlevel.checkpoint().__await__()
        return
    about_to_wait()
    alarm = _LoopAlarm(future) if trio is None else _TrioAlarm(future, trio)
    worker = this.worker
    try:
        if not future.add(alarm):
            alarm.ring()
        if worker is None:
            yield from alarm.wait(timeout)
            return
        worker.lend(future)
        try:
            yield from alarm.wait(timeout)
        finally:
            worker.unlend()
    finally:
        future.remove(alarm)


def _is_unwanted(future: State[Any]) -> bool:
    """Tell whether nobody waits for *future* any more."""
    return not future.done() and future.serves_only(None)


class _LoopAlarm(Feed):
    """Wakes a coroutine of asyncio when its source has ended. It ends no future of ours."""

    __slots__ = ("_loop", "_waiter")
    adopts = False

    def __init__(self, source: State[Any]) -> None:
        import asyncio  # it runs, so this costs nothing

        super().__init__(source, source)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] = self._loop.create_future()

    def wait(self, timeout: float | None) -> Generator[Any, None, None]:
        """Wait for the ring, *timeout* seconds at most."""
        timer = None if timeout is None else self._loop.call_later(timeout, self.ring)
        try:
            yield from self._waiter.__await__()
        finally:
            if timer is not None:
                timer.cancel()

    def pass_on(self, outcome: Outcome) -> None:
        """Have the loop ring; one that was closed has nobody left to wake."""
        try:
            self._loop.call_soon_threadsafe(self.ring)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def ring(self) -> None:
        """Wake the coroutine, on its own thread."""
        if not self._waiter.done():
            self._waiter.set_result(None)


class _TrioAlarm(Feed):
    """Wakes a coroutine of trio when its source has ended. It ends no future of ours."""

    __slots__ = ("_rung", "_task", "_token", "_trio")
    adopts = False

    def __init__(self, source: State[Any], trio: _Trio) -> None:
        super().__init__(source, source)
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._task: _TrioTask | None = None  # while it sleeps
        self._rung = False

    def wait(self, timeout: float | None) -> Generator[Any, None, None]:
        """Wait for the ring, *timeout* seconds at most."""
        lowlevel = self._trio.lowlevel
        with nullcontext() if timeout is None else self._trio.move_on_after(timeout):
            if self._rung:
                yield from lowlevel.checkpoint().__await__()
            else:
                self._task = lowlevel.current_task()
                yield from lowlevel.wait_task_rescheduled(self._abort).__await__()

    def _abort(self, raise_cancel: Callable[[], NoReturn]) -> object:
        """Let trio end the sleep with a cancellation; the ring that may be on its way finds nobody."""
        self._task = None
        return self._trio.lowlevel.Abort.SUCCEEDED

    def pass_on(self, outcome: Outcome) -> None:
        """Have trio ring; a run that has ended has nobody left to wake."""
        with suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(self.ring)

    def ring(self) -> None:
        """Wake the coroutine, on its own thread."""
        self._rung = True
        task, self._task = self._task, None
        if task is not None:
            self._trio.lowlevel.reschedule(task)


# -- who runs the coroutine -------------------------------------------------------------------------------------------


def trio_here() -> _Trio | None:
    """
    Return trio if it runs the present coroutine, None if asyncio does.

    Raises:
        RuntimeError: Neither does.
    """
    trio = _running_trio()
    if _loop_runs():
        return None if trio is None or not _is_innermost(trio.lowlevel.current_task()) else trio
    if trio is None:
        raise RuntimeError("neither asyncio nor trio runs here, and `await future` needs one of them; use result()")
    return trio


def _running_trio() -> _Trio | None:
    """Return trio if one of its tasks runs on this thread."""
    if "trio" not in sys.modules:
        return None
    trio = cast("_Trio", import_module("trio"))
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return None
    return trio


def _loop_runs() -> bool:
    """Tell whether a loop of asyncio runs on this thread."""
    if "asyncio" not in sys.modules:
        return False
    import asyncio  # not without need: a program of trio may never load it

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_innermost(task: _TrioTask) -> bool:
    """
    Tell whether the coroutine of trio's *task* is nearer on the stack than that of asyncio's.

    `trio.run()` works in a coroutine of asyncio, as in a notebook's cell, and `asyncio.run()` in one of trio.
    """
    import asyncio  # its loop runs
    import inspect  # asyncio needs it too

    other = asyncio.current_task()
    ours, theirs = _frame_of(task.coro), None if other is None else _frame_of(other.get_coro())
    frame = inspect.currentframe()
    while frame is not None and frame is not theirs:
        if frame is ours:
            return True
        frame = frame.f_back
    return False


def _frame_of(runs: object) -> object:
    """Return the frame of a coroutine, None for one that is not made of Python's frames."""
    return getattr(runs, "cr_frame", None)


class _Trio(Protocol):
    """What is used of the package trio. Spelled out here, as it may not be there for a type checker either."""

    lowlevel: _Lowlevel
    RunFinishedError: type[RuntimeError]

    def move_on_after(self, seconds: float) -> AbstractContextManager[object]: ...


class _Lowlevel(Protocol):
    """What is used of `trio.lowlevel`."""

    Abort: _Abort

    def current_task(self) -> _TrioTask: ...
    def current_trio_token(self) -> _TrioToken: ...
    def checkpoint(self) -> Awaitable[None]: ...
    def wait_task_rescheduled(self, abort: Callable[[Callable[[], NoReturn]], object], /) -> Awaitable[object]: ...
    def reschedule(self, task: _TrioTask, /) -> None: ...


class _Abort(Protocol):
    SUCCEEDED: object


class _TrioTask(Protocol):
    coro: object


class _TrioToken(Protocol):
    def run_sync_soon(self, fn: Callable[[], object], /) -> None: ...

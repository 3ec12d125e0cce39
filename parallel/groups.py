"""
`TaskGroup`: a block that no call made inside it outlives.

    with TaskGroup() ──▶ every call, link and combination made inside: adopt() ──▶ a member
         a failure of a member counts ──▶ the other members are cancelled, and the body of an `async with`
    the block's end ──▶ waits for the last member ──▶ raises an ExceptionGroup of the failures

Guarantees:
- When the block has ended, its members have ended, unless a second Ctrl-C came, or it could not wait at all.
- A failure that something of the group takes on (`catch`, `gather`, ...) doesn't count: the end of that does.
- Waiting for the members helps, or lends its place, as every wait of a worker does.
- Ended members are let go of at once; only their errors are kept.

State: that of `company`, guarded by its lock; no user code runs under it. The rest is written by the thread of the
block alone. Which failures count, and what cancelling means, is told there.

Source: which errors are raised, and how the task around an `async with` is cancelled, are those of CPython 3.13's
`asyncio/taskgroups.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from math import inf
from types import TracebackType
from typing import Final, Self, cast

from parallel.company import CANCELLED, Bell, Company, Stage
from parallel.context import WITHIN, Within, entered
from parallel.deadlines import Deadline
from parallel.hosts import Host, host_here, is_interruption, is_of_call
from parallel.limits import Limits
from parallel.members import Members
from parallel.options import Duration, TaskOptions


class TaskGroup(Company):
    """
    A block, `with` or `async with`, that ends when every call made inside has ended.

    The calls that its calls make belong to it too, and what is chained to them inside. If one fails, and nothing of the
    group follows it, the others are cancelled, except for those that a future from outside the group waits for. At its
    end the block raises all failures, that of its body too, in an `ExceptionGroup`.

    In a group that has been cancelled new calls raise `CancelledError`, and so does asking for the result of a
    cancelled one; if that leaves the body, the block's end takes it back. The body of an `async with` is cancelled as
    well. A block inside is cancelled with the one around it.

    A failure counts as soon as nothing can take it on any more: when the thread that made the call waits for another,
    leaves the block, gives way to its event loop, or after a tenth of a second.

    Args:
        timeout: How long its calls have, from the block's begin: seconds, a `timedelta`, or a string such as `5m`;
            those that have not ended then fail with `TaskTimeoutError`. None: no limit.
        limit: How many of its calls run at a time; None: no limit.

    Raises:
        ExceptionGroup: Raised by the block's end; a `BaseExceptionGroup` if one of the errors is no `Exception`.
        CancelledError: Raised by the block's end: the group around it has been cancelled.
        RuntimeError: It is entered a second time.

    Attributes:
        timeout: The same, in seconds.
        limit: The same.
        limits: What its calls ask for a place; None: no limit.
    """

    def __init__(self, *, timeout: Duration | None = None, limit: int | None = None) -> None:
        said = TaskOptions(timeout=timeout, limit=limit)
        self.timeout: Final = said.timeout
        self.limit: Final = said.limit
        self.limits: Final = None if limit is None else Limits(limit, None)
        super().__init__()
        self._around: Within | None = None
        self._within: Within | None = None

    # -- what the block's user sees -----------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether its calls have been cancelled: by `cancel`, or as one of them failed."""
        return self._cancelled

    def cancel(self) -> None:
        """
        Cancel all its calls, as `Future.cancel` does, and the body of an `async with`; the block ends without an error.

        What runs on a thread or in a process is asked to stop, and waited for; what it raises other than a
        `CancelledError` is raised by the block. May be called from everywhere, and again; before the block has begun,
        and when it has ended, it does nothing.
        """
        with self._lock:
            if self._stage is not Stage.OPEN:
                return
            self._cancelled = True
        self.cancel_members(everyone=True)

    def __repr__(self) -> str:
        members = self._members
        state = "cancelled" if self._cancelled and self._stage is Stage.OPEN else self._stage.value
        return f"<TaskGroup {state} [{len(members.open)} running or queued, {members.ended} ended]>"

    # -- the block ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        left = None if error is not None and self._cancelled and is_of_call(error) else error
        try:
            interruption = self._wait(left)
        finally:
            self._leave()
        try:
            return self._conclude(error, left, interruption)
        finally:
            del left, interruption, error  # an error refers to this frame: break the cycle

    async def __aenter__(self) -> Self:
        host = host_here()
        self._enter(host)
        host.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        left = cast(Host, self._host).end_body(error, cancelled=self._cancelled)
        try:
            interruption = await self._wait_in_coroutine(left)
        finally:
            self._leave()
        try:
            return self._conclude(error, left, interruption)
        finally:
            del left, interruption, error  # an error refers to this frame: break the cycle

    def _enter(self, host: Host | None = None) -> None:
        with self._lock:
            if self._stage is not Stage.NEW:
                raise RuntimeError(f"{self!r} has been entered before: make a new one for each block")
            self._stage = Stage.OPEN
        around = WITHIN.get()
        parent = None if around is None else around.group
        try:
            if isinstance(parent, TaskGroup):
                parent._admit(self)
                self._parent = parent
        except BaseException:
            self._stage = Stage.NEW
            raise
        self._host = host
        self._around = around
        self._registry = None if around is None else around.registry
        _open[self] = None
        self._deadline = self._earlier_deadline(around)
        self._within = entered(group=self, deadline=self._deadline)
        WITHIN.set(self._within)

    def _earlier_deadline(self, around: Within | None) -> Deadline | None:
        """Return when the members have to have ended: by its own deadline, or that around it; None: at any time."""
        outer = cast("Deadline | None", None if around is None else around.deadline)
        if self.timeout is None or self.timeout == inf:
            return outer
        deadline = Deadline(self.timeout)
        return deadline if outer is None or deadline.at < outer.at else outer

    def _admit(self, inner: TaskGroup) -> None:
        """Note that *inner* begins in this one: it is cancelled with it."""
        self.look()
        with self._lock:
            self._check_open()
            self._inner[inner] = None

    def _end_body(self, error: BaseException | None) -> BaseException | None:
        """Note that the body has ended, with *error*; return that if it is raised itself in the end."""
        with self._lock:
            begun = self._count(self._members.leave())
            begun = begun or (error is not None and not self._cancelled)
            self._cancelled = self._cancelled or error is not None
        interrupted = error is not None and is_interruption(error)
        if begun or interrupted:
            self.cancel_members(everyone=interrupted, running=isinstance(error, KeyboardInterrupt))
        return error if interrupted else None

    def _wait(self, left: BaseException | None) -> BaseException | None:
        """
        Wait until no member is left.

        Args:
            left: What the body has raised.

        Returns:
            What is to be raised itself: a Ctrl-C that has come, or *left*.
        """
        interruption: BaseException | None = None
        while True:
            try:
                if interruption is None:
                    interruption = self._end_body(left)
                while (bell := self._next_bell()) is not None:
                    bell.result()
                return interruption
            except KeyboardInterrupt as error:
                if interruption is not None:
                    raise  # the second one
                interruption = error
                self._cancel_all(running=True)
            except BaseException:  # this thread can't wait: it would starve its pool, or block the members' loop
                self._cancel_all()
                raise

    async def _wait_in_coroutine(self, left: BaseException | None) -> BaseException | None:
        """As `_wait`; the interruption may be a cancellation."""
        host = cast(Host, self._host)
        interruption: BaseException | None = None
        while True:
            try:
                if interruption is None:
                    interruption = self._end_body(left)
                while (bell := self._next_bell()) is not None:
                    await host.wait(bell, shielded=interruption is not None)
                return interruption
            except (Exception, GeneratorExit):  # the loop is closing, or the coroutine was dropped
                self._cancel_all()
                raise
            except BaseException as error:
                if interruption is None:
                    interruption = error
                elif isinstance(error, KeyboardInterrupt | SystemExit):
                    raise  # the second one
                self._cancel_all()

    def _next_bell(self) -> Bell | None:
        """Return the future that ends when no member is left; close the group, and return None, if none is."""
        bell = Bell(self._members)
        with self._lock:
            self._bell = bell  # before the look: a signal handler may end a member in between
            if self._members.open:
                bell.feeds = tuple(self._members.open.values())  # so that a waiting thread can see what it waits for
                return bell
            self._bell = None
            self._close()
        return None

    def _close(self) -> None:
        """Take no more members in, and judge what has failed. Under the lock."""
        self._count(self._members.close())
        self._stage = Stage.CLOSED

    def _leave(self) -> None:
        """Undo what `_enter` did; members that could not be waited for are left to themselves."""
        with self._lock:
            if self._stage is Stage.OPEN:
                self._close()
        _open.pop(self, None)
        if self._parent is not None:
            self._parent._inner.pop(self, None)
        if WITHIN.get() is self._within:  # else it ends in another context than it began in
            WITHIN.set(self._around)
        self._around = self._within = self._parent = None

    def _conclude(
        self, error: BaseException | None, left: BaseException | None, interruption: BaseException | None
    ) -> bool:
        """
        Raise what the block raises.

        Args:
            error: What its body raised.
            left: What is left of that without what the cancelling of this group has caused.
            interruption: What ends more than this block.

        Returns:
            Whether *error* is done with.
        """
        host, self._host = self._host, None
        errors = self._take_errors(None if left is interruption else left)
        try:
            if interruption is not None:
                if not errors or isinstance(interruption, KeyboardInterrupt | SystemExit | GeneratorExit):
                    if interruption is error:
                        return False
                    raise interruption
                errors += [] if host is None else host.keep(interruption)
            if errors:
                raise BaseExceptionGroup("unhandled errors in a TaskGroup", errors) from None
            if not self._from_outside:
                return error is not None
            if error is not None:
                return False
            raise CancelledError(CANCELLED) if host is None else host.cancellation()
        finally:
            del error, left, interruption, errors  # an error refers to this frame: break the cycle

    def _take_errors(self, left: BaseException | None) -> list[BaseException]:
        """Return the failures that count, with the tracebacks they had in their calls, then that of the body."""
        outcomes, self._errors = self._errors, {}
        errors: list[BaseException] = []
        for _, error, failure in outcomes.values():
            shown = error if failure is None else failure.shown(None)
            if shown is not None and shown is not left:
                errors.append(shown)
        return errors if left is None else [*errors, left]

    def after_fork_in_child(self) -> None:
        """Let go of the members: they belong to the parent."""
        self._lock = threading.RLock()  # a thread that is no more may have held the old one
        self._members = Members()
        self._inner = {}
        self._errors = {}


@contextmanager
def detached() -> Generator[None]:
    """
    Let the calls made in a block belong to no task group: they may outlive it, and nothing cancels them with it.

    They have none of the deadlines around the block either.
    """
    around = WITHIN.get()
    token = WITHIN.set(Within(None if around is None else around.registry))
    try:
        yield
    finally:
        WITHIN.reset(token)


_open: dict[TaskGroup, None] = {}
"""Those whose blocks have begun and have not ended; changed by single atomic steps."""


def _after_fork_in_child() -> None:
    for group in list(_open):
        group.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

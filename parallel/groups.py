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

State: `_state`, `_cancelled`, `_from_outside`, `_members`, `_errors`, `_inner` and `_bell`, guarded by `_lock`, which
is re-entrant: a signal handler or a destructor may make a call while it is held. No user code runs under it. The rest
is written by the thread of the block alone.

Source: which errors are raised, and how the task around an `async with` is cancelled, are those of CPython 3.13's
`asyncio/taskgroups.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Final, Self, cast

from parallel.context import WITHIN, Dispatcher, Home, Within, default_registry, entered
from parallel.deadlines import Deadline
from parallel.errors import GroupClosedError
from parallel.futures import Future
from parallel.hosts import Host, host_here, is_cancellation, is_interruption, is_of_call
from parallel.limits import Limits
from parallel.meetings import attach
from parallel.members import GRACE, Member, Members, followed_from_outside
from parallel.options import Duration, TaskOptions
from parallel.outcomes import Outcome
from parallel.states import State
from parallel.timer import TIMER

LOGGER = logging.getLogger("parallel")


class _State(Enum):
    """How far a group is: one after the other."""

    NEW = "new"
    """Its block has not begun."""

    OPEN = "open"
    """It takes members in."""

    CLOSED = "closed"
    """Its block has ended."""


class TaskGroup:
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
        self._lock = threading.RLock()
        self._state = _State.NEW
        self._cancelled = False
        self._from_outside = False  # by the group around it
        self._members = Members()
        self._errors: dict[int, Outcome] = {}  # by id, as two members may have failed with one error
        self._inner: dict[TaskGroup, None] = {}  # the open groups in this one
        self._bell: _Bell | None = None  # rings when no member is left
        self._around: Within | None = None
        self._within: Within | None = None
        self._parent: TaskGroup | None = None
        self._host: Host | None = None
        self._registry: Home | None = None

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
            if self._state is not _State.OPEN:
                return
            self._cancelled = True
        self.cancel_members(everyone=True)

    def __repr__(self) -> str:
        members = self._members
        state = "cancelled" if self._cancelled and self._state is _State.OPEN else self._state.value
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
            if self._state is not _State.NEW:
                raise RuntimeError(f"{self!r} has been entered before: make a new one for each block")
            self._state = _State.OPEN
        around = WITHIN.get()
        parent = None if around is None else around.group
        try:
            if isinstance(parent, TaskGroup):
                parent._admit(self)
                self._parent = parent
        except BaseException:
            self._state = _State.NEW
            raise
        self._host = host
        self._around = around
        self._registry = None if around is None else around.registry
        _open[self] = None
        self._within = entered(group=self, deadline=self._deadline(around))
        WITHIN.set(self._within)

    def _deadline(self, around: Within | None) -> Deadline | None:
        """Return when the calls have to have ended, if that is earlier than around the block; else None."""
        if self.timeout is None or self.timeout == inf:
            return None
        deadline = Deadline(self.timeout)
        outer = None if around is None else around.deadline
        return deadline if outer is None or deadline.at < outer.at else None

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
            self.cancel_members(everyone=interrupted)
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
                self._cancel_all()
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

    def _next_bell(self) -> _Bell | None:
        """Return the future that ends when no member is left; close the group, and return None, if none is."""
        bell = _Bell(self._members)
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
        self._state = _State.CLOSED

    def _leave(self) -> None:
        """Undo what `_enter` did; members that could not be waited for are left to themselves."""
        with self._lock:
            if self._state is _State.OPEN:
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
            raise CancelledError(_CANCELLED) if host is None else host.cancellation()
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

    # -- its members --------------------------------------------------------------------------------------------------

    def adopt(self, future: State[Any], /) -> None:
        """Take *future* in: it ends before the block does. See `context.Group`."""
        with self._lock:
            self._check_open(call=not future.feeds)
            member = self._members.admit(future, self._member_ended)
            cancelled = self._cancelled
            is_awaited = self._bell is not None
        if future.feeds and not cancelled:
            self._take_on(future)
        attach(member)
        if is_awaited:
            future.look()  # whoever waits at the block's end waits for this one, too
        if self._cancelled:
            future.cancel()

    def look(self) -> None:
        """Note that this thread is about to wait. See `context.Group`."""
        with self._lock:
            begun = self._count(self._members.look())
        if begun:
            self._cancel_behind()

    def _check_open(self, *, call: bool = True) -> None:
        """Refuse members when it is over, and new calls when it has been cancelled. Under the lock."""
        if self._state is not _State.OPEN:
            raise GroupClosedError
        if call and self._cancelled:
            raise CancelledError(_CANCELLED)

    def _take_on(self, future: State[Any]) -> None:
        """Note that *future* follows calls of this group, or of those around it."""
        group: TaskGroup | None = self
        while group is not None:
            with group._lock:
                group._members.take_on(future)
            group = group._parent

    def _member_ended(self, member: Member, outcome: Outcome) -> Future[None] | None:
        """Note the end of a member; return the bell if it was the last one. On whatever thread that has ended it."""
        with self._lock:
            begun = self._count(self._members.end(member, outcome))
            undecided = not self._cancelled and self._members.is_undecided(member)
            bell = None
            if not self._members.open:
                bell, self._bell = self._bell, None
        if begun:
            self._cancel_behind()
        elif undecided:
            self._let_decide(member)
        return bell

    def _count(self, failed: list[Member]) -> bool:
        """Note failures that count; True if the group has to be cancelled now. Under the lock."""
        begun = False
        for member in failed:
            error = cast(BaseException, member.outcome[1])
            if self._cancelled and is_cancellation(error):
                continue
            begun = begun or not self._cancelled
            self._cancelled = True
            self._errors.setdefault(id(error), member.outcome)
        return begun

    def _let_decide(self, member: Member) -> None:
        """Leave what made *member* a moment to say what follows it."""
        with suppress(RuntimeError):  # its loop has been closed
            if member.maker.turn is not None:
                member.maker.turn(self.look)
        try:
            timer = TIMER.call_later(GRACE, partial(self._decide, member))
        except RuntimeError:  # no thread can be started: it is judged when its maker waits, or the block ends
            return
        with self._lock:
            decided = not self._members.is_undecided(member)
            member.timer = timer
        if decided:
            timer.cancel()

    def _decide(self, member: Member) -> None:
        with self._lock:
            failed = self._members.judge(member)
            begun = self._count(failed or [])
        if failed is None:
            self._let_decide(member)
        elif begun:
            self._cancel_behind()

    # -- cancelling ---------------------------------------------------------------------------------------------------

    def _cancel_all(self) -> None:
        self._cancelled = True
        self.cancel_members(everyone=True)

    def _cancel_from_outside(self) -> None:
        """Cancel it with the group around it."""
        self._from_outside = True
        self._cancel_all()

    def _cancel_behind(self) -> None:
        """Cancel the members on a callback thread: here user code, such as their callbacks, might be out of place."""
        if not (self._members.open or self._inner or self._host):
            return
        try:
            (self._registry or default_registry()).callbacks.dispatch(_Cancelling(self))
        except Exception:  # there is no thread any more, or none could be started
            self.cancel_members(everyone=False)

    def cancel_members(self, *, everyone: bool) -> None:
        """Cancel what belongs to it; unless *everyone*, without what futures from outside wait for."""
        with self._lock:
            members, inner, host = dict(self._members.open), list(self._inner), self._host
        if host is not None:
            host.interrupt()
        with ExitStack() as stack:  # each is cancelled, whatever a callback of another raises
            for group in inner:
                stack.callback(group._cancel_from_outside)
        spared: set[State[Any]] = set() if everyone else followed_from_outside(members)
        with ExitStack() as stack:
            for future, member in reversed(members.items()):
                if future not in spared:
                    stack.callback(attach, member)  # a Ctrl-C may have come between taking it in and that
                    stack.callback(future.cancel)

    def after_fork_in_child(self) -> None:
        """Let go of the members: they belong to the parent."""
        self._lock = threading.RLock()  # a thread that is no more may have held the old one
        self._members = Members()
        self._inner = {}
        self._errors = {}


class _Bell(Future[None]):
    """
    Ends when no member is left.

    Args:
        members: The members.
    """

    def __init__(self, members: Members) -> None:
        super().__init__()
        self._members = members
        self.take_work()  # nobody can cancel it

    def awaited(self) -> list[Any]:
        """Return all members, those as well that have come since somebody waits for it; see `State.awaited`."""
        return list(self._members.open)


class _Cancelling:
    """The cancelling of a group's members, on its way to a callback thread."""

    __slots__ = ("_group",)
    priority = 0

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def run_on(self, here: Dispatcher) -> None:
        """Cancel them; what callbacks raise is logged."""
        try:
            self._group.cancel_members(everyone=False)
        except BaseException:
            LOGGER.exception("exception while the calls of %r were cancelled", self._group)


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


_CANCELLED: Final = "the task group has been cancelled"

_open: dict[TaskGroup, None] = {}
"""Those whose blocks have begun and have not ended; changed by single atomic steps."""


def _after_fork_in_child() -> None:
    for group in list(_open):
        group.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

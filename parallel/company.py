"""
A company: the calls that belong together in a task group, which of their failures count, and how they are cancelled.

    a call, link or combination ──▶ adopt() ──▶ a member ──▶ its end ──▶ a failure that counts ──▶ the others cancelled
                                                                └──▶ the last one's: the bell

State: `_stage`, `_cancelled`, `_from_outside`, `_members`, `_errors`, `_inner` and `_bell`, guarded by `_lock`, which
is re-entrant: a signal handler or a destructor may make a call while it is held. No user code runs under it. `_parent`,
`_host`, `_deadline` and `_registry` are written by the thread of the block alone.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from enum import Enum
from functools import partial
from typing import Any, Final, cast

from parallel import outcomes
from parallel.call import Call
from parallel.context import Dispatcher, Home, default_registry
from parallel.deadlines import Deadline
from parallel.errors import GroupClosedError
from parallel.futures import Future
from parallel.hosts import Host, is_cancellation
from parallel.meetings import attach, tell
from parallel.members import GRACE, Member, Members, followed_from_outside
from parallel.outcomes import Outcome
from parallel.states import State
from parallel.timer import TIMER

LOGGER = logging.getLogger("parallel")


class Stage(Enum):
    """How far a group is: one after the other."""

    NEW = "new"
    """Its block has not begun."""

    OPEN = "open"
    """It takes members in."""

    CLOSED = "closed"
    """Its block has ended."""


class Bell(Future[None]):
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


class Company:
    """The members of a group, and the groups inside it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stage = Stage.NEW
        self._cancelled = False
        self._from_outside = False  # by the group around it
        self._members = Members()
        self._errors: dict[int, Outcome] = {}  # by id, as two members may have failed with one error
        self._inner: dict[Company, None] = {}  # the open groups in this one
        self._bell: Bell | None = None  # rings when no member is left
        self._parent: Company | None = None
        self._host: Host | None = None
        self._deadline: Deadline | None = None  # of the block, or around it: when its members have to have ended
        self._registry: Home | None = None

    # -- members ------------------------------------------------------------------------------------------------------

    def adopt(self, future: State[Any], /) -> None:
        """Take *future* in: it ends before the block does. See `context.Group`."""
        try:
            self._take_in(future)
        except BaseException:  # a Ctrl-C in the middle: who made the future ends it, and nobody is to wait for that
            self._let_go(future)
            raise

    def _take_in(self, future: State[Any]) -> None:
        with self._lock:
            self._check_open(call=not future.feeds)
            member = self._members.admit(future, self._member_ended)
            cancelled = self._cancelled
            is_awaited = self._bell is not None
        if future.feeds and not cancelled:
            self._take_on(future)
        deadline = None if isinstance(future, Call) else self._deadline  # a call sees to its deadline itself
        if deadline is not None:
            deadline.add(member)
        attach(member)
        if is_awaited:
            future.look()  # whoever waits at the block's end waits for this one, too
        if self._cancelled:
            future.cancel()

    def _let_go(self, future: State[Any]) -> None:
        with self._lock:
            member = self._members.open.get(future)
        if member is not None:
            tell(member, (None, outcomes.CANCELLED, None))

    def entrust(self, future: State[Any], taker: State[Any], /) -> None:
        """Leave it to *taker* what becomes of a failure of *future*. See `context.Group`."""
        with self._lock:
            self._members.entrust(future, taker)

    def look(self) -> None:
        """Note that this thread is about to wait. See `context.Group`."""
        with self._lock:
            begun = self._count(self._members.look())
        if begun:
            self._cancel_behind()

    def _check_open(self, *, call: bool = True) -> None:
        """Refuse members when it is over, and new calls when it has been cancelled. Under the lock."""
        if self._stage is not Stage.OPEN:
            raise GroupClosedError
        if call and self._cancelled:
            raise CancelledError(CANCELLED)

    def _take_on(self, future: State[Any]) -> None:
        """Note that *future* follows calls of this group, or of those around it."""
        group: Company | None = self
        while group is not None:
            with group._lock:
                group._members.take_on(future)
            group = group._parent

    def _member_ended(self, member: Member, outcome: Outcome) -> Future[None] | None:
        """Note the end of a member; return the bell if it was the last one. On whatever thread that has ended it."""
        if self._deadline is not None:
            self._deadline.discard(member)
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

    def _cancel_all(self, *, running: bool = False) -> None:
        self._cancelled = True
        self.cancel_members(everyone=True, running=running)

    def _cancel_from_outside(self, running: bool) -> None:
        """Cancel it with the group around it."""
        self._from_outside = True
        self._cancel_all(running=running)

    def _cancel_behind(self) -> None:
        """Cancel the members on a callback thread: here user code, such as their callbacks, might be out of place."""
        if not (self._members.open or self._inner or self._host):
            return
        try:
            (self._registry or default_registry()).callbacks.dispatch(_Cancelling(self))
        except Exception:  # there is no thread any more, or none could be started
            self.cancel_members(everyone=False)

    def cancel_members(self, *, everyone: bool, running: bool = False) -> None:
        """
        Cancel what belongs to it.

        Args:
            everyone: Also what futures from outside wait for.
            running: Kill the worker processes that run some of it.
        """
        with self._lock:
            members, inner, host = dict(self._members.open), list(self._inner), self._host
        if host is not None:
            host.interrupt()
        with ExitStack() as stack:  # each is cancelled, whatever a callback of another raises
            for group in inner:
                stack.callback(group._cancel_from_outside, running)
        spared: set[State[Any]] = set() if everyone else followed_from_outside(members)
        with ExitStack() as stack:
            for future, member in reversed(members.items()):
                if future not in spared:
                    stack.callback(attach, member)  # a Ctrl-C may have come between taking it in and that
                    stack.callback(cast("Future[Any]", future).cancel, running=running)


class _Cancelling:
    """The cancelling of a group's members, on its way to a callback thread."""

    __slots__ = ("_group",)
    priority = 0

    def __init__(self, group: Company) -> None:
        self._group = group

    def run_on(self, here: Dispatcher) -> None:
        """Cancel them; what callbacks raise is logged."""
        try:
            self._group.cancel_members(everyone=False)
        except BaseException:
            LOGGER.exception("exception while the calls of %r were cancelled", self._group)


CANCELLED: Final = "the task group has been cancelled"

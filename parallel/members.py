"""
The members of a task group: which have not ended, and whose failures count.

    a member fails ──▶ something of the group follows it: the end of that one counts
                  ├──▶ what made it may still say what follows it: undecided, until that waits, leaves or ends
                  └──▶ else it counts

A failure that came at once must not count only because `fetch(url).catch(ParseError, ignore)` has not come to its
`catch`. So nothing that a thread has made since it last waited for something is judged, for `GRACE` seconds.

State: all of it is guarded by the lock of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from threading import get_ident
from typing import Any, Final, TypeAlias

from parallel.chains import name_of_chain
from parallel.deadlines import Deadline
from parallel.delivery import INLINE, Feed, cancel_sources, settle
from parallel.errors import TaskTimeoutError
from parallel.futures import Future
from parallel.hosts import Turn, turn_here
from parallel.outcomes import CANCELLED, NOTHING, Outcome
from parallel.runs import run_of
from parallel.states import State, hangs_on
from parallel.timer import Entry

GRACE: Final = 0.1
"""Seconds that a thread which doesn't wait for anything has to say what follows a call. Less: a failed call among many
that are made for one `gather` may count by itself; more: the others go on for longer after a failure."""


class Maker:
    """
    Something that makes calls: a thread, or an inline call that runs on it.

    Attributes:
        thread: The thread's `get_ident()`.
        below: What has made the inline call; None: this is the thread itself.
        turn: Of the event loop that runs on the thread.
        looks: How often it has waited for something. A member is fresh until that is more than when it was made.
        failed: Its fresh members that have failed.
        ended: Its inline call has ended.
    """

    __slots__ = ("below", "ended", "failed", "looks", "thread", "turn")

    def __init__(self, thread: int, below: Maker | None, turn: Turn | None) -> None:
        self.thread = thread
        self.below = below
        self.turn = turn
        self.looks = 0
        self.failed: dict[State[Any], Member] = {}
        self.ended = False


class Member(Feed):
    """
    The tie of one member to its group.

    Attributes:
        future: The member itself.
        maker: What has made it.
        looks: How often that had waited by then.
        body: It runs inline, on its maker's thread, and makes calls as this.
        takers: The futures that follow it, or answer for it otherwise.
        outcome: How it failed.
        timer: Is going to judge it.
    """

    __slots__ = ("_told", "body", "future", "looks", "maker", "outcome", "takers", "timer")
    adopts = False
    looks_on = True

    def __init__(self, future: State[Any], maker: Maker, told: Told) -> None:
        super().__init__(future, future)
        self.future = future
        self._told = told
        self.maker = maker
        self.looks = maker.looks
        self.body: Maker | None = None
        self.takers: list[State[Any]] = []
        self.outcome: Outcome = NOTHING
        self.timer: Entry | None = None

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        return self._told(self, outcome)

    def passed(self, outcome: Outcome) -> Outcome:
        return (None, None, None)

    def overdue(self, deadline: Deadline, /) -> None:
        """End the member, a link or a combination, as the time of its group is over; see `deadlines.Bounded`."""
        future, feeds = self.future, self.future.feeds
        if not feeds and future.running():
            run_of(future).ask()
        error = TaskTimeoutError(name_of_chain(future.__dict__), deadline.seconds, "deadline")
        if settle(future, (None, error, None), may_block=False):
            cancel_sources(feeds)

    def is_taken(self) -> bool:
        """Tell whether its failure is the business of another member: a cancelled one has none."""
        return any(not taker.cancelled() for taker in self.takers)


Told: TypeAlias = Callable[[Member, Outcome], "Future[None] | None"]
"""What a member tells its end; the future that it returns ends now."""


class Members:
    """
    The members of one group.

    Attributes:
        open: Those that have not ended.
        ended: How many have.
    """

    def __init__(self) -> None:
        self.open: dict[State[Any], Member] = {}
        self.ended = 0
        self._makers: dict[int, Maker] = {}  # by thread, the topmost
        self._failed: dict[State[Any], Member] = {}  # those of all makers

    def admit(self, future: State[Any], told: Told) -> Member:
        """Take *future* in, which this thread has made."""
        maker = self._topmost(get_ident())
        if maker is None:
            maker = Maker(get_ident(), None, turn_here())
        member = Member(future, maker, told)
        if future.dispatcher is INLINE and not future.feeds:
            member.body = maker = Maker(maker.thread, maker, maker.turn)
        self._makers[maker.thread] = maker
        self.open[future] = member
        return member

    def take_on(self, taker: State[Any]) -> None:
        """Note that *taker* follows what feeds it."""
        feeds: Iterable[Feed] = taker.feeds
        for feed in feeds:
            self.entrust(feed.source, taker)

    def entrust(self, future: Any, taker: State[Any]) -> None:
        """Note that *taker* answers for *future*, if that is a member: the standard library's are none."""
        member = self.open.get(future) or self._failed.get(future)
        if member is not None:
            member.takers.append(taker)
            self._forget(member)

    def end(self, member: Member, outcome: Outcome) -> list[Member]:
        """Note the end of a member; return those that have failed and count now."""
        if self.open.pop(member.future, None) is None:
            return []
        self.ended += 1
        error = outcome[1]
        counts: list[Member] = []
        if error is not None and error is not CANCELLED and not member.is_taken():
            member.outcome = outcome
            if member.looks == member.maker.looks:
                self._failed[member.future] = member.maker.failed[member.future] = member
            else:
                counts.append(member)
        if member.body is not None:
            member.body.ended = True
            counts += self._look_at(member.body)
        elif error is not CANCELLED and get_ident() != member.maker.thread:
            counts += self.look()  # its function has ended, here
        return counts

    def look(self) -> list[Member]:
        """Note that what runs on this thread waits for something; return those that have failed and count now."""
        maker = self._topmost(get_ident())
        return [] if maker is None else self._look_at(maker)

    def leave(self) -> list[Member]:
        """Note that this thread leaves the block; return as `look`."""
        counts: list[Member] = []
        maker = self._makers.get(get_ident())
        while maker is not None:
            counts += self._look_at(maker)
            maker = maker.below
        return counts

    def close(self) -> list[Member]:
        """Judge all; return as `look`."""
        counts = list(self._failed.values())
        for member in counts:
            self._forget(member)
        self._makers.clear()
        return counts

    def is_undecided(self, member: Member) -> bool:
        """Tell whether *member* has failed, and it is open whether that counts."""
        return member.future in self._failed

    def judge(self, member: Member) -> list[Member] | None:
        """Judge a member whose grace is over; return as `look`, None if its maker can't say anything right now."""
        if not self.is_undecided(member):
            return []
        if self._topmost(member.maker.thread) is not member.maker:
            return None  # it is in an inline call
        self._forget(member)
        return [member]

    def _look_at(self, maker: Maker) -> list[Member]:
        maker.looks += 1
        counts = list(maker.failed.values())
        for member in counts:
            self._forget(member)
        return counts

    def _forget(self, member: Member) -> None:
        """Take *member* out of the undecided ones."""
        if self._failed.pop(member.future, None) is None:
            return
        del member.maker.failed[member.future]
        if member.timer is not None:
            member.timer.cancel()

    def _topmost(self, thread: int) -> Maker | None:
        """Return what runs on a thread, None if that has made no member."""
        maker = self._makers.get(thread)
        while maker is not None and maker.ended:
            maker = self._makers[thread] = maker.below  # type: ignore[assignment]  # an inline call was made by something
        return maker


def followed_from_outside(members: Collection[State[Any]]) -> set[State[Any]]:
    """Return those of *members*, and what they hang on, that futures which aren't among them wait for."""
    followers = {tie.target for member in members for tie in _followers(member)}
    outside = [follower for follower in followers if follower not in members]
    return {part for follower in outside for part in hangs_on(follower)}


def _followers(future: State[Any]) -> list[Feed]:
    """Return the ties of *future* to futures that wait for it."""
    # Who merely waits, or looks on, has a tie too; but its target is fed by nothing.
    ties = [entry for entry in future.entries() if isinstance(entry, Feed)]
    return [tie for tie in ties if not tie.looks_on and tie.target.feeds]

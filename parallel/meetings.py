"""
Meetings: several futures, and the one that ends when enough of them have.

    source ──▶ _Member ─┐
    source ──▶ _Member ─┼─▶ Meeting (counts, keeps outcomes, says when it is over) ──▶ target
    source ──▶ _Member ─┘

A meeting looks at all failures: one that decides how the target ends is to be looked at there, the others are not
reported. What ties and callbacks its sources have besides is no business of it.

State: a meeting's, guarded by its lock; no user code runs while it is held.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import Future as AnyFuture
from typing import Any, cast
from weakref import ref

from parallel.context import Declared, Dispatcher, current_registry, era, renew, take_in
from parallel.delivery import Feed, alive, give_up, outcome_of
from parallel.delivery import settle as end
from parallel.futures import Future
from parallel.outcomes import CANCELLED, Outcome
from parallel.states import BARE, State, is_future, is_ours, no_failure
from parallel.unseen import Failure


class Meeting:
    """
    What the members of one combination share; a subclass says when it is over.

    Attributes:
        decisive: A weak reference to the failure that has decided how the target ends.
        era: The `era()` of its lock.
    """

    selects = False
    name = ""

    def __init__(self) -> None:
        self.decisive: Callable[[], Failure | None] = no_failure
        self.era = era()
        self._lock = threading.RLock()
        self._outcomes: list[Outcome | None] = []
        self._missing = 0

    def renew(self) -> None:
        """Take a lock that nobody holds; see `context.Inherited`."""
        self._lock = threading.RLock()

    def expect(self, count: int) -> None:
        """Prepare for *count* members."""
        self._outcomes = [None] * count
        self._missing = count

    def arrive(self, index: int, outcome: Outcome) -> Outcome | None:
        """Note how member *index* ended; return how the target ends now, None if it doesn't yet."""
        if self.era != era():
            renew(self)  # promises that were made before a fork may be kept in the child
        with self._lock:
            if self._missing <= 0:
                return None
            self._outcomes[index] = outcome
            self._missing -= 1
            early = self.early(outcome)
            if early is None and self._missing:
                return None
            self._missing = 0
            outcomes, self._outcomes = self._outcomes, []
        return early if early is not None else self.last(cast("list[Outcome]", outcomes))

    def early(self, outcome: Outcome) -> Outcome | None:
        """Return the end of the target if this one arrival decides it."""
        return None

    def last(self, outcomes: list[Outcome]) -> Outcome:
        """Return the end of the target when all have arrived."""
        raise AssertionError("an early arrival has decided it")


class Everyone(Meeting):
    """Over when all have ended; *make* builds the value from their outcomes."""

    name = "settle"

    def __init__(self, make: Callable[[list[Outcome]], Any]) -> None:
        super().__init__()
        self._make = make

    def last(self, outcomes: list[Outcome]) -> Outcome:
        return (self._make(outcomes), None, None)


class AllOrError(Meeting):
    """Over at the first failure, or when all have values; *make* builds the value from the list of them."""

    name = "gather"

    def __init__(self, make: Callable[[list[Any]], Any], *, selects: bool = True) -> None:
        super().__init__()
        self._make = make
        self.selects = selects

    def early(self, outcome: Outcome) -> Outcome | None:
        return None if outcome[1] is None else outcome

    def last(self, outcomes: list[Outcome]) -> Outcome:
        return (self._make([outcome[0] for outcome in outcomes]), None, None)


class Race(Meeting):
    """Over when one has ended."""

    name = "race"

    def early(self, outcome: Outcome) -> Outcome | None:
        return outcome


class FirstValue(Meeting):
    """Over when one has a value, or all have failed."""

    name = "first"

    def early(self, outcome: Outcome) -> Outcome | None:
        return outcome if outcome[1] is None else None

    def last(self, outcomes: list[Outcome]) -> Outcome:
        errors = [cast(BaseException, error_of(outcome)) for outcome in outcomes]
        group = BaseExceptionGroup(f"none of {len(errors)} futures has a value", errors)
        return (None, group, None)


class _Member(Feed):
    """The tie of one source to the target of a meeting."""

    __slots__ = ("_end", "_index", "_meeting")
    adopts = False

    def __init__(self, source: AnyFuture[Any], target: State[Any], meeting: Meeting, index: int) -> None:
        super().__init__(source, target)
        self._meeting = meeting
        self._index = index
        self._end: Outcome | None = None

    @property
    def selects(self) -> bool:  # type: ignore[override]  # per meeting here, per class there
        return self._meeting.selects

    @property
    def joins(self) -> str:  # type: ignore[override]  # as above
        return self._meeting.name

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        meeting, failure = self._meeting, outcome[2]
        end = self._end = meeting.arrive(self._index, outcome)
        if end is outcome:
            self._overlook_others(failure)
        elif failure is not None and failure is not meeting.decisive():
            failure.look()  # it becomes a part of the value, or of the group of all errors; or it is late
        return None if end is None else self.target

    def _overlook_others(self, failure: Failure | None) -> None:
        """Have no failure of the other sources reported: this end decides, and nobody can get theirs here."""
        if failure is not None:
            self._meeting.decisive = ref(failure)
        for feed in self.target.feeds:
            if feed.source is not self.source and is_ours(feed.source):
                feed.source.overlook(self._meeting.decisive)

    def passed(self, outcome: Outcome) -> Outcome:
        return cast(Outcome, self._end)


def meet_all(futures: Sequence[AnyFuture[Any]], meeting: Meeting) -> Future[Any]:
    for future in futures:
        check_future(future)
    target: Future[Any] = Future(BARE, _common_dispatcher(futures))
    meet(futures, meeting, target)
    return target


def check_future(value: object) -> None:
    """Refuse what is no future."""
    if not is_future(value):
        hint = ""
        if isinstance(value, Declared):
            hint = "; call it first"
        elif isinstance(value, Awaitable):
            hint = "; await it, or make a future of it with a task"
        elif isinstance(value, Iterable):
            hint = "; pass futures one by one: gather(*futures)"
        raise TypeError(f"only futures can be combined and waited for, found {value!r}{hint}")


def meet(futures: Sequence[AnyFuture[Any]], meeting: Meeting, target: State[Any]) -> None:
    """Have *target* end as *meeting* decides when *futures* have ended; the group of the present block adopts it."""
    meeting.expect(len(futures))
    if not futures:
        take_in(target)
        end(target, meeting.last([]))
        return
    members = tuple(_Member(future, target, meeting, index) for index, future in enumerate(futures))
    target.feeds = members
    try:
        take_in(target)
        for member in members:
            if target.done():
                break
            attach(member)
    except BaseException:  # a Ctrl-C: the group may wait for it
        give_up(target)
        raise


def all_or_error(*, selects: bool) -> Meeting:
    """Make the meeting whose value is the list of all values; with *selects*, a failure cancels the others."""
    return AllOrError(list, selects=selects)


def attach(feed: Feed) -> None:
    """Tie *feed* to its source; if that has ended, it is told at once."""
    source = feed.source
    if not is_ours(source):
        source.add_done_callback(lambda ended: tell(feed, outcome_of(ended)))
    elif not source.add(feed):
        tell(feed, source.outcome())


def tell(feed: Feed, outcome: Outcome) -> None:
    """Tell *feed* how its source has ended."""
    target = feed.pass_on(outcome)
    if target is not None:
        end(target, feed.passed(outcome), may_block=False)


def _common_dispatcher(futures: Sequence[AnyFuture[Any]]) -> Dispatcher:
    """Return the dispatcher that all *futures* share, else the callback threads."""
    dispatchers = {alive(future.dispatcher) if is_ours(future) else None for future in futures}
    shared = dispatchers.pop() if len(dispatchers) == 1 else None
    return shared or current_registry().callbacks


def error_of(outcome: Outcome) -> BaseException | None:
    """Return the error of an outcome, a `CancelledError` for a cancellation; None if it has a value."""
    error = outcome[1]
    return CancelledError() if error is CANCELLED else error

"""
Futures of several futures: `gather`, `settle`, `race`, `first`; and waiting for several: `as_completed`, `wait`.

    source ──▶ _Member ─┐
    source ──▶ _Member ─┼─▶ _Meeting (counts, keeps values) ──▶ target
    source ──▶ _Member ─┘

All take futures of the standard library as well. A future given twice counts twice, in its own places.

State: a meeting's, guarded by its lock; no user code runs while it is held.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, overload

from attrs import frozen

from parallel.context import Declared, Dispatcher, current_registry
from parallel.delivery import Feed, alive, outcome_of
from parallel.delivery import settle as end
from parallel.futures import Future
from parallel.outcomes import CANCELLED, Outcome
from parallel.states import BARE, State, is_future, is_ours

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
F = TypeVar("F", bound=concurrent.futures.Future[Any])

AnyFuture = concurrent.futures.Future


class DoneAndNotDone(NamedTuple, Generic[F]):
    """What `wait` returns: the futures that have ended, and the others."""

    done: set[F]
    not_done: set[F]


@frozen
class Settled(Generic[T]):
    """
    How one future ended.

    Attributes:
        value: Its value; None if it has none.
        error: Its exception, a `CancelledError` if it was cancelled; None if it has a value.
    """

    value: T | None
    error: BaseException | None

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    def result(self) -> T:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


@overload
def gather(a: AnyFuture[T1], /) -> Future[tuple[T1]]: ...
@overload
def gather(a: AnyFuture[T1], b: AnyFuture[T2], /) -> Future[tuple[T1, T2]]: ...
@overload
def gather(a: AnyFuture[T1], b: AnyFuture[T2], c: AnyFuture[T3], /) -> Future[tuple[T1, T2, T3]]: ...
@overload
def gather(
    a: AnyFuture[T1], b: AnyFuture[T2], c: AnyFuture[T3], d: AnyFuture[T4], /
) -> Future[tuple[T1, T2, T3, T4]]: ...
@overload
def gather(*futures: AnyFuture[T]) -> Future[tuple[T, ...]]: ...
@overload
def gather(*futures: AnyFuture[T], return_exceptions: bool) -> Future[tuple[T | BaseException, ...]]: ...
@overload  # of several types
def gather(*futures: AnyFuture[Any], return_exceptions: bool) -> Future[tuple[Any, ...]]: ...
@overload  # of several types
def gather(
    a: AnyFuture[Any],
    b: AnyFuture[Any],
    c: AnyFuture[Any],
    d: AnyFuture[Any],
    e: AnyFuture[Any],
    /,
    *more: AnyFuture[Any],
) -> Future[tuple[Any, ...]]: ...
def gather(*futures: AnyFuture[Any], return_exceptions: bool = False) -> Future[Any]:
    """
    Make the future of all values, one per future, in the order given.

    Args:
        futures: Any number; of none, the value is `()`.
        return_exceptions: False: the first failure, or cancellation, is the result, and of the other futures those
            that have not been started and serve nobody else are cancelled. True: exceptions take the places of
            values; the result never fails.
    """
    if return_exceptions:
        return _meet(futures, _Everyone(lambda outcomes: tuple(_value_or_error(outcome) for outcome in outcomes)))
    return _meet(futures, _AllOrError(tuple))


@overload
def settle(a: AnyFuture[T1], b: AnyFuture[T2], /) -> Future[tuple[Settled[T1], Settled[T2]]]: ...
@overload
def settle(
    a: AnyFuture[T1], b: AnyFuture[T2], c: AnyFuture[T3], /
) -> Future[tuple[Settled[T1], Settled[T2], Settled[T3]]]: ...
@overload
def settle(*futures: AnyFuture[T]) -> Future[tuple[Settled[T], ...]]: ...
@overload  # of several types
def settle(
    a: AnyFuture[Any], b: AnyFuture[Any], c: AnyFuture[Any], d: AnyFuture[Any], /, *more: AnyFuture[Any]
) -> Future[tuple[Settled[Any], ...]]: ...
def settle(*futures: AnyFuture[Any]) -> Future[Any]:
    """Make the future of how all ended, one `Settled` per future, in the order given; it never fails."""
    return _meet(futures, _Everyone(lambda outcomes: tuple(_settled(outcome) for outcome in outcomes)))


@overload
def race(a: AnyFuture[T1], b: AnyFuture[T2], /) -> Future[T1 | T2]: ...
@overload
def race(*futures: AnyFuture[T]) -> Future[T]: ...
@overload  # of several types
def race(a: AnyFuture[Any], b: AnyFuture[Any], c: AnyFuture[Any], /, *more: AnyFuture[Any]) -> Future[Any]: ...
def race(*futures: AnyFuture[Any]) -> Future[Any]:
    """
    Make the future that ends as the first of these to end, in whatever way. The others go on.

    Raises:
        ValueError: There are no futures: the result would never end.
    """
    return _meet(_some(futures, "race"), _Race())


@overload
def first(a: AnyFuture[T1], b: AnyFuture[T2], /) -> Future[T1 | T2]: ...
@overload
def first(*futures: AnyFuture[T]) -> Future[T]: ...
@overload  # of several types
def first(a: AnyFuture[Any], b: AnyFuture[Any], c: AnyFuture[Any], /, *more: AnyFuture[Any]) -> Future[Any]: ...
def first(*futures: AnyFuture[Any]) -> Future[Any]:
    """
    Make the future of the first value. The other futures go on.

    If none succeeds, it fails with an `ExceptionGroup` of all errors, in the order given.

    Raises:
        ValueError: There are no futures: the result would never end.
    """
    return _meet(_some(futures, "first"), _FirstValue())


def as_completed(futures: Iterable[F], timeout: float | None = None) -> Iterator[F]:
    """
    Yield each future as it ends; those that have ended come first. Each is yielded once, given twice or not.

    Args:
        futures: The futures to wait for.
        timeout: Seconds from now until the last must have ended, None for ever.

    Raises:
        TimeoutError: Some have not ended in time; they go on.
    """
    return _Arrivals(futures).come(timeout)


def wait(futures: Iterable[F], timeout: float | None = None, return_when: str = ALL_COMPLETED) -> DoneAndNotDone[F]:
    """
    Wait for *futures*, as `concurrent.futures.wait` does, but on a worker lend its place meanwhile.

    Args:
        futures: The futures to wait for.
        timeout: Seconds to wait, None for ever.
        return_when: `FIRST_COMPLETED`, `FIRST_EXCEPTION` or `ALL_COMPLETED`.

    Returns:
        The named pair of sets: *done*, *not_done*.
    """
    if return_when not in _WHENS:
        raise ValueError(f"return_when must be one of {', '.join(_WHENS)}; found {return_when!r}")
    everyone = set(futures)
    done = {future for future in everyone if future.done()}
    if not any(_enough(future, return_when) for future in done):
        coming = _Arrivals(everyone - done).come(timeout)
        try:
            for future in coming:
                done.add(future)
                if _enough(future, return_when):
                    break
        except TimeoutError:
            done |= {future for future in everyone if future.done()}
        finally:
            coming.close()
    return DoneAndNotDone(done, everyone - done)


_WHENS: Final = (FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED)


def _enough(future: AnyFuture[Any], return_when: str) -> bool:
    """Tell whether the end of *future* ends a wait."""
    if return_when == FIRST_COMPLETED:
        return True
    return return_when == FIRST_EXCEPTION and not future.cancelled() and future.exception() is not None


def _some(futures: Sequence[AnyFuture[T]], name: str) -> Sequence[AnyFuture[T]]:
    if not futures:
        raise ValueError(f"{name}() needs at least one future: of none, the result would never end")
    return futures


def _value_or_error(outcome: Outcome) -> Any:
    settled = _settled(outcome)
    return settled.value if settled.error is None else settled.error


def _settled(outcome: Outcome) -> Settled[Any]:
    value, error, _ = outcome
    return Settled(value, CancelledError() if error is CANCELLED else error)


class _Meeting:
    """What the members of one combination share; a subclass says when it is over."""

    selects = False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._outcomes: list[Outcome | None] = []
        self._missing = 0

    def expect(self, count: int) -> None:
        """Prepare for *count* members."""
        self._outcomes = [None] * count
        self._missing = count

    def arrive(self, index: int, outcome: Outcome) -> Outcome | None:
        """Note how member *index* ended; return how the target ends now, None if it doesn't yet."""
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


class _Everyone(_Meeting):
    """Over when all have ended; *make* builds the value from their outcomes."""

    def __init__(self, make: Callable[[list[Outcome]], Any]) -> None:
        super().__init__()
        self._make = make

    def last(self, outcomes: list[Outcome]) -> Outcome:
        return (self._make(outcomes), None, None)


class _AllOrError(_Meeting):
    """Over at the first failure, or when all have values; *make* builds the value from the list of them."""

    def __init__(self, make: Callable[[list[Any]], Any], *, selects: bool = True) -> None:
        super().__init__()
        self._make = make
        self.selects = selects

    def early(self, outcome: Outcome) -> Outcome | None:
        return None if outcome[1] is None else outcome

    def last(self, outcomes: list[Outcome]) -> Outcome:
        return (self._make([outcome[0] for outcome in outcomes]), None, None)


class _Race(_Meeting):
    """Over when one has ended."""

    def early(self, outcome: Outcome) -> Outcome | None:
        return outcome


class _FirstValue(_Meeting):
    """Over when one has a value, or all have failed."""

    def early(self, outcome: Outcome) -> Outcome | None:
        return outcome if outcome[1] is None else None

    def last(self, outcomes: list[Outcome]) -> Outcome:
        errors = [cast(BaseException, _settled(outcome).error) for outcome in outcomes]
        group = BaseExceptionGroup(f"none of {len(errors)} futures has a value", errors)
        return (None, group, None)


class _Member(Feed):
    """The tie of one source to the target of a meeting."""

    __slots__ = ("_end", "_index", "_meeting")
    adopts = False

    def __init__(self, source: AnyFuture[Any], target: State[Any], meeting: _Meeting, index: int) -> None:
        super().__init__(source, target)
        self._meeting = meeting
        self._index = index
        self._end: Outcome | None = None

    @property
    def selects(self) -> bool:  # type: ignore[override]  # per meeting here, per class there
        return self._meeting.selects

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        self._end = self._meeting.arrive(self._index, outcome)
        return None if self._end is None else self.target

    def passed(self, outcome: Outcome) -> Outcome:
        return cast(Outcome, self._end)


def _meet(futures: Sequence[AnyFuture[Any]], meeting: _Meeting) -> Future[Any]:
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


def meet(futures: Sequence[AnyFuture[Any]], meeting: _Meeting, target: State[Any]) -> None:
    """Have *target* end as *meeting* decides when *futures* have ended."""
    meeting.expect(len(futures))
    if not futures:
        end(target, meeting.last([]))
        return
    members = tuple(_Member(future, target, meeting, index) for index, future in enumerate(futures))
    target.feeds = members
    for member in members:
        if target.done():
            break
        attach(member)


def all_or_error(*, selects: bool) -> _Meeting:
    """Make the meeting whose value is the list of all values; with *selects*, a failure cancels the others."""
    return _AllOrError(list, selects=selects)


def attach(feed: Feed) -> None:
    """Tie *feed* to its source; if that has ended, it is told at once."""
    source = feed.source
    if not is_ours(source):
        source.add_done_callback(lambda ended: _tell(feed, outcome_of(ended)))
    elif not source.add(feed):
        _tell(feed, source.outcome())


def _tell(feed: Feed, outcome: Outcome) -> None:
    target = feed.pass_on(outcome)
    if target is not None:
        end(target, feed.passed(outcome), may_block=False)


def _common_dispatcher(futures: Sequence[AnyFuture[Any]]) -> Dispatcher:
    """Return the dispatcher that all *futures* share, else the callback threads."""
    dispatchers = {alive(future.dispatcher) if is_ours(future) else None for future in futures}
    shared = dispatchers.pop() if len(dispatchers) == 1 else None
    return shared or current_registry().callbacks


class _Arrival(Feed):
    """The tie of one source to whoever iterates over arrivals."""

    __slots__ = ("_arrivals",)
    adopts = False

    def __init__(self, source: AnyFuture[Any], arrivals: _Arrivals[Any]) -> None:
        super().__init__(source, _NOBODY)
        self._arrivals = arrivals

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        return self._arrivals.note(self.source)

    def passed(self, outcome: Outcome) -> Outcome:
        return (None, None, None)


_NOBODY: Final[Future[Any]] = Future()


class _Arrivals(Generic[F]):
    """
    The ended ones of some futures, in the order in which they end.

    State: `_ties` to those that have not arrived, `_arrived`, and `_bell`, the future that the iterating thread waits
    for; guarded by `_lock`.
    """

    def __init__(self, futures: Iterable[F]) -> None:
        self._ties: dict[AnyFuture[Any], _Arrival] = {future: _Arrival(future, self) for future in futures}
        for future in self._ties:
            check_future(future)
        self._lock = threading.RLock()
        self._arrived: deque[F] = deque()
        self._bell: Future[None] | None = None

    def note(self, future: Any) -> Future[None] | None:
        """Note an arrival; return the bell to ring."""
        with self._lock:
            del self._ties[future]  # who iterates may drop the future, and its value with it
            self._arrived.append(future)
            bell, self._bell = self._bell, None
        return bell

    def come(self, timeout: float | None) -> Generator[F, None, None]:
        """Yield the futures as they arrive."""
        deadline = None if timeout is None else time.monotonic() + timeout
        missing = len(self._ties)
        try:
            self._attach()
            while missing:
                yield self._next(deadline, missing)
                missing -= 1
        finally:
            for tie in list(self._ties.values()):
                if is_ours(tie.source):
                    tie.source.remove(tie)

    def _attach(self) -> None:
        for tie in list(self._ties.values()):
            attach(tie)

    def _next(self, deadline: float | None, missing: int) -> F:
        while True:
            bell: Future[None] = Future()
            with self._lock:
                self._bell = bell  # before the look: a signal handler may end a future in between
                if self._arrived:
                    return self._arrived.popleft()
                bell.feeds = tuple(self._ties.values())  # so that a waiting thread can see what it waits for
            try:
                bell.result(None if deadline is None else max(deadline - time.monotonic(), 0))
            except TimeoutError:
                raise TimeoutError(f"{missing} futures have not ended in time; they go on") from None

"""
Futures of several futures: `gather`, `settle`, `race`, `first`; and waiting for several: `as_completed`, `wait`.

All take futures of the standard library as well. A future given twice counts twice, in its own places.

State: that of `_Arrivals`, guarded by its lock; no user code runs while it is held.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, overload

from attrs import frozen

from parallel.delivery import Feed
from parallel.futures import Future
from parallel.meetings import AllOrError, Everyone, FirstValue, Race, attach, check_future, error_of, meet_all
from parallel.outcomes import Outcome
from parallel.states import State, is_ours

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
        return meet_all(futures, Everyone(lambda outcomes: tuple(_value_or_error(outcome) for outcome in outcomes)))
    return meet_all(futures, AllOrError(tuple))


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
    return meet_all(futures, Everyone(lambda outcomes: tuple(_settled(outcome) for outcome in outcomes)))


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
    return meet_all(_some(futures, "race"), Race())


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
    return meet_all(_some(futures, "first"), FirstValue())


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
    return Settled(outcome[0], error_of(outcome))


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

"""
Futures of several futures: `gather`, `settle`, `race`, `first`; and waiting for several: `as_completed`, `wait`.

All take futures of the standard library as well. A future given twice counts twice, in its own places.

    future ── _Tie ─┐                    ┌─▶ Arrivals: `for`, `async for`
    future ── _Tie ─┼─▶ _Roll: arrived ──┤
    future ── _Tie ─┘         and a bell └─▶ wait()

State: that of `_Roll`, guarded by its lock; no user code runs while it is held.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from contextlib import AbstractContextManager
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, overload

from attrs import frozen

from parallel.awaits import until_ended
from parallel.context import era
from parallel.delivery import Feed, outcome_of
from parallel.futures import Future, completed
from parallel.meetings import AllOrError, Everyone, FirstValue, Race, attach, check_future, error_of, meet_all
from parallel.outcomes import CANCELLED, Outcome
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
            that serve nobody else are cancelled, as `Future.cancel` does: what runs on a thread or in a process is
            asked to stop. True: exceptions take the places of values; the result never fails.
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


def as_completed(futures: Iterable[F], timeout: float | None = None) -> Arrivals[F]:
    """
    Yield each future as it ends; those that have ended come first. Each is yielded once, given twice or not.

        for future in as_completed(futures): ...
        async for future in as_completed(futures): ...    # under asyncio and trio

    Leaving the loop early, and cancelling the task that runs it, cancels none of them. To be yielded is no look: a
    failure that nobody looks at is reported.

    Args:
        futures: The futures to wait for.
        timeout: Seconds from now until the last must have ended, None for ever.

    Raises:
        TimeoutError: Raised by the loop: some have not ended in time; they go on.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    roll: _Roll[F] = _Roll(futures)
    arrivals = Arrivals(roll, deadline)
    roll.open()
    return arrivals


def wait(futures: Iterable[F], timeout: float | None = None, return_when: str = ALL_COMPLETED) -> DoneAndNotDone[F]:
    """
    Wait for *futures*, as `concurrent.futures.wait` does, but on a worker lend its place meanwhile.

    It looks at no failure: one that nobody looks at afterwards is reported.

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
        coming = as_completed(everyone - done, timeout)
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
    # `exception()` would count as a look at the failure, and who only waits has not seen it.
    error = outcome_of(future)[1] if return_when == FIRST_EXCEPTION else None
    return error is not None and error is not CANCELLED


def _some(futures: Sequence[AnyFuture[T]], name: str) -> Sequence[AnyFuture[T]]:
    if not futures:
        raise ValueError(f"{name}() needs at least one future: of none, the result would never end")
    return futures


def _value_or_error(outcome: Outcome) -> Any:
    settled = _settled(outcome)
    return settled.value if settled.error is None else settled.error


def _settled(outcome: Outcome) -> Settled[Any]:
    return Settled(outcome[0], error_of(outcome))


class Arrivals(Iterator[F], AsyncIterator[F]):
    """
    What `as_completed` returns: the futures as they end, for a `for` loop, or an `async for` of asyncio or trio.

    Several threads, or several tasks, may share one: each future comes to one of them. It is tied to the futures from
    the start until the last has come, or it is closed or dropped.
    """

    __slots__ = ("_deadline", "_roll")

    def __init__(self, roll: _Roll[F], deadline: float | None) -> None:
        """Only `as_completed` makes one."""
        self._roll = roll
        self._deadline = deadline

    def __next__(self) -> F:
        """Wait for the next future."""
        roll = self._roll
        while (future := roll.take()) is None:
            bell = roll.bell()
            if bell is None:
                raise StopIteration
            try:
                bell.result(self._left())
            except TimeoutError:
                raise self._too_late() from None
        return future

    async def __anext__(self) -> F:
        """Wait for the next future; a checkpoint, under trio."""
        roll = self._roll
        while True:
            bell = roll.bell()
            came = await until_ended(bell or _RUNG, self._left())
            future = roll.take()
            if future is not None:
                return future
            if bell is None:
                raise StopAsyncIteration
            if not came:
                raise self._too_late()

    def _left(self) -> float | None:
        """Return the seconds that are left, None for ever."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"{self._roll.missing()} futures have not ended in time; they go on")

    def close(self) -> None:
        """End the iteration, and leave the futures that have not come alone; they go on."""
        self._roll.close()

    def __del__(self) -> None:
        if self._roll.missing():
            self._roll.close()


class _Roll(Generic[F]):
    """
    Some futures, and which of them have ended.

    State: `_ties` to those that have not; `_arrived`, those that have and have not been taken, in the order of their
    ends; `_bell`, the future that ends at the next arrival, once somebody wants to wait for it. Changed under `_lock`,
    except for taking, which is one atomic step. `_lock` and `_era` change after a fork.
    """

    def __init__(self, futures: Iterable[F]) -> None:
        self._ties: dict[AnyFuture[Any], _Tie] = {future: _Tie(future, self) for future in futures}
        for future in self._ties:
            check_future(future)
        self._arrived: deque[F] = deque()
        self._bell: Future[None] | None = None
        self._lock = threading.RLock()
        self._era = era()
        self._feeds: tuple[Feed, ...] = ()  # of the bells, once there was one

    def open(self) -> None:
        """Tie this to the futures; those that have ended arrive at once."""
        for tie in tuple(self._ties.values()):
            attach(tie)

    def close(self) -> None:
        """Untie this from the futures that have not arrived; nothing is left to take."""
        with self._locked():
            ties, self._ties = self._ties, {}
            arrived, self._arrived = self._arrived, deque()
            bell, self._bell = self._bell, None
            self._feeds = ()
        del arrived  # with no lock held: a value's `__del__` may do anything
        for future, tie in ties.items():
            if is_ours(future):
                future.remove(tie)
        if bell is not None:
            bell.set_result(None)  # whoever shares this and waits finds that it is over

    def missing(self) -> int:
        """Count those that have not arrived."""
        return len(self._ties)

    def take(self) -> F | None:
        """Return one that has arrived, None if there is none at present."""
        try:
            return self._arrived.popleft()
        except IndexError:
            return None

    def bell(self) -> Future[None] | None:
        """Return the future that has ended once there is one to take; None if none will come any more."""
        with self._locked():
            if self._ties:
                bell = self._bell
                if bell is None:
                    bell = self._bell = Future()  # before the look: a signal handler may end a future in between
                    bell.feeds = self._feeds = self._feeds or self._seen_from_a_bell()
                if not self._arrived:
                    return bell
            return _RUNG if self._arrived else None

    def note(self, tie: _Tie) -> Future[None] | None:
        """Note an arrival; return the bell to ring."""
        with self._locked():
            future: Any = tie.source
            if self._ties.pop(future, None) is None:
                return None  # closed meanwhile
            self._arrived.append(future)
            tie.source = _RUNG  # who takes the future may drop it, and its value with it
            bell, self._bell = self._bell, None
            if not self._ties:
                self._feeds = ()  # break a reference cycle: its ties refer to this
        return bell

    def _seen_from_a_bell(self) -> tuple[Feed, ...]:
        """Return the tie through which a thread that is about to block at a bell can see all that it waits for."""
        everyone: Future[None] = Future()  # never ends
        everyone.feeds = tuple(self._ties.values())
        return (Feed(everyone, _NOBODY),)

    def _locked(self) -> AbstractContextManager[object]:
        """Return the lock; in a forked child a new one, as a thread that is no more may have held the old one."""
        if self._era != era():
            self._lock = threading.RLock()
            self._era = era()
            self.open()  # what the parent's pools run ends here with an error: it arrives now
        return self._lock


class _Tie(Feed):
    """The tie of one source to whoever iterates over arrivals."""

    __slots__ = ("_roll",)
    adopts = False

    def __init__(self, source: AnyFuture[Any], roll: _Roll[Any]) -> None:
        super().__init__(source, _NOBODY)
        self._roll = roll

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        return self._roll.note(self)

    def passed(self, outcome: Outcome) -> Outcome:
        return (None, None, None)


_NOBODY: Final[Future[Any]] = Future()
_RUNG: Final[Future[None]] = completed(None)

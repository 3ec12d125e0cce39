"""
How a call ended, and who is told: the cells of a future's state.

A future's state is never stored; it follows from cells of its `__dict__`, each written once by one atomic step:

    "_work"   what is to be run; whoever pops it has started the call, or cancelled it. Absent: not pending any more.
    "_end"    an `Outcome`  the call ended while no `Watch` was there, or
              a `Watch`     it came first; the outcome is in there, once there is one.
    "_first"  the first who wants to be told of the end, if there was no `Watch` yet: most calls have no second one.
    "_told"   who took that one, to tell it or to let it go; `_first` is None then.

The atomic steps are `dict.pop` and `dict.setdefault`: the one decides between running and cancelling, the other
between an end that costs no lock, and the full protocol of the standard library's futures.

Who registers writes `_first`, or the entries of the `Watch`, and looks for an outcome afterwards; who ends the call
writes that, and looks for who is to be told afterwards. So none is overlooked, and one taken twice is taken by one.

Source: the idea of a condition made only when observed comes from `concurrent.futures._base` of CPython 3.11, whose
`wait` and `as_completed` read `_condition` and `_waiters` directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextvars import Context
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from weakref import ref

from parallel.context import WITHIN, Waiter, Within, era, renew, this
from parallel.coroutines import run_coroutine
from parallel.unseen import Failure
from parallel.weak import WeakSet

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Outcome: TypeAlias = tuple[Any, BaseException | None, Failure | None]
"""
A value, or an error and what is known of it: None until a future holds it. `error is CANCELLED`: there is neither.

An error that passes on from future to future keeps its outcome, so that all of them share one `Failure`.
"""

CANCELLED: Final = CancelledError()
"""Marks the outcome of a cancelled call. Never raised itself: its traceback would grow."""

Work: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, Context]
"""A call that waits for a worker: function, positional and keyword arguments (None: none), the caller's context."""

NOTHING: Final[Outcome] = (None, None, None)
"""The outcome of a function that returned None. It is one of many futures, so only where no two can end the same."""

LockType: Final = type(threading.Lock())

_RLock: Final = type(threading.RLock())
"""`threading.RLock` is a function that chooses between two types each time."""


class StandardWaiter(Protocol):
    """What `concurrent.futures.wait` and `as_completed` put into a future's `_waiters`."""

    event: threading.Event

    def add_result(self, future: Any, /) -> object: ...
    def add_exception(self, future: Any, /) -> object: ...
    def add_cancelled(self, future: Any, /) -> object: ...


class _LendingEvent(threading.Event):
    """The event on which a worker thread waits in a function of the standard library: its place is lent meanwhile."""

    def __init__(self, worker: Waiter) -> None:
        super().__init__()
        self._worker = worker
        self.futures: WeakSet[Any] = WeakSet()
        """Those that it waits for."""

    def wait(self, timeout: float | None = None) -> bool:
        if self.is_set():
            return True
        if timeout is None or timeout > 0:
            self._worker.check(self.futures)
        self._worker.lend()
        try:
            return super().wait(timeout)
        finally:
            self._worker.unlend()


class _Waiters(list[StandardWaiter]):
    """The standard waiters of one future; the one that a worker thread adds gets a lending event."""

    def __init__(self, future: object) -> None:
        super().__init__()
        self._future = ref(future)

    def append(self, waiter: StandardWaiter) -> None:
        worker = this.worker
        if worker is not None:
            if not isinstance(waiter.event, _LendingEvent):
                waiter.event = _LendingEvent(worker)
            waiter.event.futures.add(self._future())
        super().append(waiter)


class Watch:
    """
    Who wants to know how one call ends.

    `outcome` is written once, under `lock`. `entries` needs no lock: who adds one looks at `outcome` afterwards, and
    takes its entry back if it came too late; who ends the call writes `outcome` first and takes all entries then.

    Attributes:
        era: The `era()` of `lock`.
    """

    __slots__ = ("_standard", "entries", "era", "lock", "outcome")

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.era = era()
        self.lock = _RLock()
        self.outcome = outcome
        self.entries: dict[Any, None] = {}  # in the order in which they came
        self._standard: tuple[threading.Condition, list[StandardWaiter]] | None = None

    def renew(self) -> None:
        """Take a lock that nobody holds; see `context.Inherited`."""
        self.lock = _RLock()
        if self._standard is not None:
            self._standard = (threading.Condition(self.lock), self._standard[1])

    def standard(self, future: object) -> tuple[threading.Condition, list[StandardWaiter]]:
        """Return the condition and the list of waiters of *future*, this one's: always the same; see `State`."""
        if self.era != era():
            renew(self)
        with self.lock:
            if self._standard is None:
                self._standard = (threading.Condition(self.lock), _Waiters(future))
            return self._standard

    def end(self, future: Any, outcome: Outcome) -> list[Any] | None:
        """Publish *outcome*, wake the standard waiters, and take all entries; None if there is an outcome already."""
        if self.era != era():
            renew(self)  # a promise that was made before a fork may be kept in the child
        with self.lock:
            if self.outcome is not None:
                return None
            self.outcome = outcome
            if self._standard is not None:
                condition, waiters = self._standard
                for waiter in waiters:
                    _tell(waiter, future, outcome)
                condition.notify_all()
        entries = self.entries
        if len(entries) == 1:
            try:
                return [entries.popitem()[0]]
            except KeyError:
                return []  # taken back meanwhile
        taken: list[Any] = []
        while entries:  # in the order in which they came
            taken += [entry for entry in list(entries) if self.remove(entry)]
        return taken

    def add(self, entry: object) -> bool:
        """Add *entry*; False if the call has ended and the caller has to act on it itself."""
        self.entries[entry] = None
        return self.outcome is None or not self.remove(entry)

    def remove(self, entry: object) -> bool:
        """Take *entry* back; False if it has been taken already."""
        return self.entries.pop(entry, False) is None

    def has_standard_waiters(self) -> bool:
        """Tell whether functions of the standard library wait for this call."""
        return self._standard is not None and bool(self._standard[1])


ENDED: Final = "ended"
LATE: Final = "late"
REMOVED: Final = "removed"
"""Who takes the first that is to be told: who ends the call, who registered it too late, who takes it back."""


def take_first(fields: dict[str, Any], taker: str) -> Any:
    """Take the first who wants to be told, for *taker*; None if there is none, or another has taken it."""
    first = fields.get("_first")
    if first is None or fields.setdefault("_told", taker) is not taker:
        return None
    fields["_first"] = None
    return first


def _tell(waiter: StandardWaiter, future: object, outcome: Outcome) -> None:
    error = outcome[1]
    if error is None:
        waiter.add_result(future)
    elif error is CANCELLED:
        waiter.add_cancelled(future)
    else:
        waiter.add_exception(future)


def is_coroutine(value: object) -> TypeIs[CoroutineType[Any, Any, Any]]:
    """Tell whether *value* is the coroutine of an `async def`."""
    return type(value) is CoroutineType


def attempt(work: Work) -> Outcome:
    """Do *work* and catch whatever comes out; a coroutine is run to its end."""
    fn, args, kwargs, context = work
    try:
        value: Any = context.run(fn, *args, **kwargs) if kwargs else context.run(fn, *args)
        if is_coroutine(value):
            value = context.run(run_coroutine, value)
    except BaseException as error:
        return failure(error, fn, context)
    finally:
        # The error's traceback refers to the frames below the user's, this one too: keep nothing alive from there.
        del work, fn, args, kwargs, context
    return (value, None, None)


_traceback_of: Final[Callable[[BaseException], TracebackType | None]] = vars(BaseException)["__traceback__"].__get__
_context_of: Final = vars(BaseException)["__context__"]
"""Read and set these as the interpreter does: the exception's own attributes may run the user's code, or be frozen."""


def failure(error: BaseException, fn: Callable[..., Any] | None = None, context: Context | None = None) -> Outcome:
    """
    Make the outcome of an *error* just caught, with the frames of the user's alone in its traceback.

    That still refers to all frames below, by `f_back`, and what a frame held at its end it holds for good. Those of a
    call that its caller has run are below too: they drop what refers to the future, or each error would be in a cycle.

    Args:
        error: The error.
        fn: The function that it came out of, if that is known.
        context: The context of the call; None: the present one.
    """
    traceback = _users_part(_traceback_of(error))
    BaseException.with_traceback(error, traceback)
    within = WITHIN.get() if context is None else context.get(WITHIN)
    return (None, error, Failure(error, traceback, fn, within))


def failed_with(error: BaseException, within: Within | None = None) -> Outcome:
    """Make the outcome of an *error* that was not caught here; its traceback stays as it is."""
    return (None, error, Failure(error, _traceback_of(error), None, within or WITHIN.get()))


def _users_part(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this library, and those of asyncio that lead from them to a coroutine of the user's."""
    while traceback is not None and _is_of(traceback, _INSIDES):
        traceback = traceback.tb_next
    one = traceback
    while one is not None:
        following = one.tb_next
        while following is not None and _is_of(following, _OURS):
            following = following.tb_next
        if following is not one.tb_next:
            one.tb_next = following
        one = following
    return traceback


_OURS: Final = frozenset({"parallel"})
_INSIDES: Final = frozenset({"parallel", "asyncio"})


def _is_of(traceback: TracebackType, packages: frozenset[str]) -> bool:
    """Tell whether the code of a frame is in one of *packages*."""
    module: object = traceback.tb_frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in packages


def happened_during(error: BaseException, before: BaseException) -> None:
    """Have *error*, raised while *before* was handled, say so, as one that is raised in an `except` clause does."""
    *_, first = contexts(error)
    if all(one is not first for one in contexts(before)):  # else the two have met, and it would be a ring
        _context_of.__set__(first, before)


def contexts(error: BaseException) -> Iterator[BaseException]:
    """Yield *error*, what was handled when it was raised, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = _context_of.__get__(one)

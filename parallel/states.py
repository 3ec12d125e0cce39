"""
The state of a future, and waiting for its end; `futures` adds what may follow the end.

State: the cells of `outcomes`. Besides, `dispatcher` (who runs what follows; it changes only when a future adopts
another one), `feeds` (the ties through which other futures end this one; dropped at the end), `priority` (of a call
in the queue of its pool; the higher, the earlier) and `idempotent` (a call whose worker died in it may be run again).

Source: the protocol is that of CPython 3.11's `concurrent/futures/_base.py`.
"""

from __future__ import annotations

import concurrent.futures
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from parallel import trail
from parallel.context import Dispatcher, about_to_wait, era, this
from parallel.errors import ForkedError
from parallel.naps import NAP
from parallel.outcomes import (
    CANCELLED,
    ENDED,
    LATE,
    REMOVED,
    Outcome,
    StandardWaiter,
    Watch,
    failed_with,
    take_first,
)
from parallel.unseen import Failure

if TYPE_CHECKING:
    from typing_extensions import TypeIs

T = TypeVar("T")

BARE: Final = ()
"""The work of a future that no engine runs: one made by hand, or the target of a link."""


def _acquire(lock: threading.Lock, timeout: float | None) -> bool:
    """Take *lock*; False if *timeout* seconds came first. On the main thread, look for signals in between."""
    left = math.inf if timeout is None else timeout
    end = time.monotonic() + left
    nap = NAP
    while not lock.acquire(timeout=max(min(left, nap), 0)):
        left = end - time.monotonic()
        if left <= 0:
            return False
        if threading.current_thread() is not threading.main_thread():
            nap = threading.TIMEOUT_MAX  # signals are none of its business
    return True


def is_future(value: object) -> TypeIs[concurrent.futures.Future[Any]]:
    """Tell whether *value* is a future, ours or the standard library's."""
    return isinstance(value, concurrent.futures.Future)


def is_ours(value: object) -> TypeIs[State[Any]]:
    """Tell whether *value* is a future of this library."""
    return isinstance(value, State)


def hangs_on(*futures: State[Any], through_bodies: bool = False) -> Iterator[State[Any]]:
    """
    Walk through what has to end before *futures* have: themselves, then what feeds them, each once.

    What has ended by the time the walk comes to it is left out, with all that fed it.

    Args:
        futures: Where to begin.
        through_bodies: Also go on to what running calls wait for in their bodies.
    """
    ahead: list[object] = list(reversed(futures))
    seen: set[State[Any]] = set()  # of n futures that each combine one before twice, 2**n ways lead to the first
    while ahead:
        one = ahead.pop()
        if not is_ours(one) or one in seen or one.done():
            continue
        seen.add(one)
        yield one
        ahead += [feed.source for feed in reversed(one.feeds)]
        if through_bodies:
            ahead += one.awaited()


def no_failure() -> None:
    """Stand for a weak reference to a failure where there is none."""


def shown(outcome: Outcome, future: concurrent.futures.Future[Any]) -> BaseException:
    """Return the error of *outcome*, with which *future* has ended, for somebody who looks at it."""
    _, error, failure = outcome
    if error is CANCELLED or error is None:
        return CancelledError()
    if failure is None:
        return BaseException.with_traceback(error, None)
    return failure.shown(future.__dict__.get("_chain"))


def share_keys(kind: type[State[Any]], *names: str) -> None:
    """
    Have the dicts of all futures of one *kind* share their keys, those of *names* too.

    CPython shares the keys that the first thirty instances of a class have had. A dict with one that comes later is
    twice as large, and takes longer to make. Each name costs all futures of its kind eight bytes: these are but the
    usual ones.
    """
    fields = object.__new__(kind).__dict__
    for name in ("_work", "dispatcher", "_end", "_first", "_told", *names):
        fields[name] = None  # one by one: `update` would make the dict another's copy


class State(concurrent.futures.Future[T]):
    """A future that can be looked at, waited for and ended, but tells nobody of its end by itself."""

    dispatcher: Dispatcher | None = None
    priority: int = 0
    idempotent: bool = False

    def __init__(self, work: object = BARE, dispatcher: Dispatcher | None = None) -> None:
        """
        Make a pending future.

        Args:
            work: For engines: what is to be run.
            dispatcher: For engines: who runs what follows; None: the callback threads of the registry.
        """
        # The standard constructor is not called: it would make the condition that most futures never need.
        # The dict must be there before a second thread asks for it: CPython 3.11 makes it when first asked for, and
        # if the collector runs in that very moment, two threads get two dicts that free the same values.
        fields = self.__dict__
        fields["_work"] = work
        if dispatcher is not None:
            fields["dispatcher"] = dispatcher

    def take_work(self) -> Any:
        """Start the call: hand its work to the first who asks, None to others. For engines."""
        return self.__dict__.pop("_work", None)

    def awaited(self) -> list[Any]:
        """Return the futures for which the body of this call waits now; None among them: nobody knows what."""
        waits: list[Any] = self.__dict__.get("_awaited", [])
        return waits

    def is_promise(self) -> bool:
        """Tell whether it was made by hand, or ends as such a one does: nobody knows what ends it."""
        return self.dispatcher is None and not self.feeds and not self.awaited()

    def look(self) -> None:
        """Note that somebody waits for this future now. For calls that wait for a place under a limit."""

    def is_queued_at(self, dispatcher: Dispatcher) -> bool:
        """Tell whether this call waits for a worker of *dispatcher*, and a waiter may run it. For engines."""
        work: object = self.__dict__.get("_work")
        return self.dispatcher is dispatcher and type(work) is tuple and work is not BARE

    # -- looking ----------------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Tell whether the call has ended: with a value, an error, or by cancellation."""
        return self.ended() is not None

    def cancelled(self) -> bool:
        """Tell whether the call was cancelled."""
        outcome = self.ended()
        return outcome is not None and outcome[1] is CANCELLED

    def running(self) -> bool:
        """Tell whether the call has been started and has not ended."""
        return self.ended() is None and "_work" not in self.__dict__

    def result(self, timeout: float | None = None) -> T:
        """
        Wait for the call to end and return its value, or raise its exception.

        Args:
            timeout: Seconds to wait, None for ever. Bounds the waiting, not the call.

        Raises:
            TimeoutError: Nothing came in time; the call goes on.
            CancelledError: The call was cancelled.
        """
        end: Any = self.__dict__.get("_end")
        outcome = cast(Outcome, end) if type(end) is tuple else self.outcome(timeout)
        if outcome[1] is None:
            return cast(T, outcome[0])
        try:
            raise shown(outcome, self)
        finally:
            del self, end, outcome  # the error refers to this frame: break the cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """
        Wait for the call to end and return its exception, None if there was none.

        Args:
            timeout: Seconds to wait, None for ever. Bounds the waiting, not the call.

        Raises:
            TimeoutError: Nothing came in time; the call goes on.
            CancelledError: The call was cancelled.
        """
        outcome = self.outcome(timeout)
        if outcome[1] is None:
            return None
        error = shown(outcome, self)
        if outcome[1] is CANCELLED:
            raise error
        return error

    def __repr__(self) -> str:
        outcome = self.ended()
        if outcome is None:
            return f"<{type(self).__name__} at {id(self):#x} state={self._state.lower()}>"
        value, error, _ = outcome
        if error is CANCELLED:
            how = "cancelled"
        elif error is not None:
            how = f"finished raised {type(error).__name__}"
        else:
            how = f"finished returned {type(value).__name__}"
        return f"<{type(self).__name__} at {id(self):#x} state={how}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Future can't be pickled: pass its value with result(), or give the future itself to a task, "
            "which waits for it"
        )

    @property
    def feeds(self) -> tuple[Any, ...]:
        """The ties through which other futures end this one; of a lone one no tuple is kept."""
        feeds: Any = self.__dict__.get("_feeds", ())
        return feeds if type(feeds) is tuple else (feeds,)  # pyright: ignore[reportUnknownVariableType]  # of any kind

    @feeds.setter
    def feeds(self, feeds: tuple[Any, ...]) -> None:
        if feeds:
            self.__dict__["_feeds"] = feeds
        else:
            self.__dict__.pop("_feeds", None)

    # -- for the rooms above ----------------------------------------------------------------------------------------

    def ended(self) -> Outcome | None:
        """Return how the call ended, None if it has not."""
        end: Any = self.__dict__.get("_end")
        if end is not None:
            kind: object = type(end)  # pyright: ignore[reportUnknownVariableType]  # of a tuple of anything
            outcome: Outcome | None = end if kind is tuple else end.outcome
            if outcome is not None:
                return outcome
        if self.dispatcher is not None and self.dispatcher.era != era():
            # The cell is overwritten: at the fork, a thread that is no more may have held the lock of a `Watch`.
            forked: Outcome = (None, ForkedError(), None)
            self.__dict__["_end"] = forked
            return forked
        return None

    def end_with(self, outcome: Outcome) -> list[Any] | None:
        """Publish *outcome*; return who is to be told, None if the future had ended already."""
        if outcome[1] is not None and outcome[1] is not CANCELLED:
            return self._fail_with(outcome)
        fields = self.__dict__
        if "_work" in fields:
            self.take_work()
        return self._publish(outcome)

    def _publish(self, outcome: Outcome) -> list[Any] | None:
        fields = self.__dict__
        end: Any = fields.setdefault("_end", outcome)
        if end is outcome:
            told: list[Any] | None = []
        else:
            told = None if type(end) is tuple else end.end(self, outcome)
        if told is not None and "_first" in fields:
            first = take_first(fields, ENDED)
            if first is not None:
                told.insert(0, first)
        noting = trail.current
        if noting is not None and told is not None and outcome[1] is not None and "_id" in fields:
            noting.note((trail.ENDED, trail.clock(), fields["_id"], outcome[1]))
        return told

    def _fail_with(self, outcome: Outcome) -> list[Any] | None:
        """As `end_with`, of an error."""
        _, error, failure = outcome
        fields = self.__dict__
        if failure is None:
            outcome = failed_with(cast(BaseException, error), fields.get("_within"))
            failure = cast(Failure, outcome[2])
        # Before it is published, as then somebody may look at it.
        is_first = failure.expect_look(fields)
        if "_work" in fields:
            self.take_work()
        told = self._publish(outcome)
        if is_first if told is None else "_overlooked" in fields and fields["_overlooked"]() is not failure:
            failure.look()
        return told

    def overlook(self, decisive: Callable[[], Failure | None]) -> None:
        """
        Count an error of this call as looked at, whenever it comes: who has waited for it needs it no more.

        Args:
            decisive: A weak reference to the failure because of which that is so; it may come to this future too.
        """
        fields = self.__dict__
        fields["_overlooked"] = decisive
        fields.setdefault("_end", Watch())  # with that there, it ends by `end_with`, which asks for the mark afterwards
        outcome = self.ended()
        if outcome is not None and outcome[2] is not None and outcome[2] is not decisive():
            outcome[2].look()

    def add(self, entry: object) -> bool:
        """Register *entry*; False if the future has ended, and the caller has to act on it itself."""
        if self.ended() is not None:
            return False
        fields = self.__dict__
        if "_end" not in fields and fields.setdefault("_first", entry) is entry:
            return self.ended() is None or take_first(fields, LATE) is None
        end = fields.get("_end") or fields.setdefault("_end", Watch())
        return type(end) is not tuple and end.add(entry)

    def remove(self, entry: object) -> bool:
        """Take *entry* back; False if it has been taken."""
        fields = self.__dict__
        if fields.get("_first") is entry:
            return take_first(fields, REMOVED) is entry
        end = fields.get("_end")
        return type(end) is Watch and end.remove(entry)

    def entries(self) -> list[Any]:
        """Return all that is registered and not taken yet."""
        fields = self.__dict__
        first, end = fields.get("_first"), fields.get("_end")
        others: list[Any] = list(end.entries) if type(end) is Watch else []
        return others if first is None else [first, *others]

    def serves_only(self, target: object) -> bool:
        """Tell whether nobody waits for this call but ties to *target*; who only looks on doesn't count."""
        end = self.__dict__.get("_end")
        if type(end) is Watch and end.has_standard_waiters():
            return False
        try:
            entries = self.entries()
        except RuntimeError:
            return False  # somebody came meanwhile
        return all(getattr(entry, "target", entry) is target or getattr(entry, "looks_on", False) for entry in entries)

    def outcome(self, timeout: float | None = None) -> Outcome:
        """Wait for the end and return it."""
        outcome = self.ended()
        if outcome is None:
            about_to_wait()
            worker = this.worker
            came = worker.wait(self, timeout) if worker is not None else self.sleep(timeout)
            outcome = self.ended() if came else None
            if outcome is None:
                raise TimeoutError
        return outcome

    def sleep(self, timeout: float | None) -> bool:
        """
        Block this thread until the future has ended; False if *timeout* seconds came first. For engines.

        `result` does the same where it may; a worker of a pool first looks for something better to do.
        """
        lead = getattr(self.dispatcher, "lead", None)
        if lead is not None:
            timeout = lead(self, timeout)  # its engine has the waiter look for the end itself, for a while
        lock = threading.Lock()
        lock.acquire()
        if not self.add(lock):
            return True
        came = False
        try:
            came = _acquire(lock, timeout)
        finally:
            # On a timeout, or an interrupt: if the entry is gone, the future has ended meanwhile.
            if not came:
                came = not self.remove(lock)
        return came

    # -- the standard library's fields, derived: `wait`, `as_completed` and asyncio read them ---------------------

    @property
    def _state(self) -> str:  # type: ignore[override]  # derived here, stored there
        outcome = self.ended()
        if outcome is not None:
            return "CANCELLED_AND_NOTIFIED" if outcome[1] is CANCELLED else "FINISHED"
        return "PENDING" if "_work" in self.__dict__ else "RUNNING"

    @property
    def _result(self) -> T | None:  # type: ignore[override]  # derived here, stored there
        outcome = self.ended()
        return None if outcome is None else outcome[0]

    @property
    def _exception(self) -> BaseException | None:  # type: ignore[override]  # derived here, stored there
        outcome = self.ended()
        return None if outcome is None or outcome[1] is CANCELLED else outcome[1]

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # made here when first asked for
        return self._watched().standard(self)[0]

    @property
    def _waiters(self) -> list[StandardWaiter]:  # type: ignore[override]  # made here when first asked for
        return self._watched().standard(self)[1]

    def _watched(self) -> Watch:
        """Return the one `Watch` of this future; one that ended unwatched gets one that tells so."""
        self.ended()
        end: Any = self.__dict__.setdefault("_end", Watch())
        if type(end) is tuple:
            end = self.__dict__.setdefault("_late", Watch(cast(Outcome, end)))
        return cast(Watch, end)

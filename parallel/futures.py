"""
`Future[T]`: the typed handle of one call, and the chaining of what follows it.

    future ── then(fn) ──▶ future ── catch(fn) ──▶ future ── finally_(fn) ──▶ future

Guarantees:
- Every future ends once. Whoever waits is woken; whoever comes later finds it ended.
- Cancelling the end of a chain cancels what leads only to it; a cancelled future cancels what follows.

On free-threaded builds nothing changes: no step relies on the interpreter's lock for more than what CPython documents
as atomic of its own containers. Who runs, cancels or ends a call is decided by one `dict.pop` or `dict.setdefault` (see
`outcomes`), places by one `list.pop`, an attempt by one `Lock.acquire`; what has several steps takes a lock. What is
read without one is either written once, before it is handed on, or a hint that is looked at again under the lock.

How a future knows its state is in `states`; where what follows it runs, and in which order, in `delivery`.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import InvalidStateError
from importlib import import_module
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from parallel import durations
from parallel.awaits import wait_on_loop
from parallel.chains import Chain, chain_of, longer, name_of_chain
from parallel.context import WITHIN, Dispatcher, current_registry, era, take_in
from parallel.coroutines import run_coroutine
from parallel.delivery import Callback, Feed, Link, cancel_sources, deliver, give_up, serves_only, settle
from parallel.durations import Duration
from parallel.links import Catch, Finally, Limit, Shield, Then
from parallel.outcomes import CANCELLED, NOTHING, Outcome, Work, failed_with, failure
from parallel.runs import Run, run_of
from parallel.states import BARE, State, is_ours, share_keys, shown
from parallel.timer import TIMER, Entry

if TYPE_CHECKING:
    from parallel.graphs import Graph

T = TypeVar("T")
U = TypeVar("U")
E = TypeVar("E", bound=BaseException)


_new_future: Final[Callable[[object], Future[Any]]] = object.__new__  # type: ignore[assignment]  # of types alone
"""Make a future without its constructor."""


class Future(State[T]):
    """
    The handle of one call: a `concurrent.futures.Future` whose continuations chain.

    Made by hand it is a promise, as the standard one is: end it with `set_result` or `set_exception`.
    """

    # -- chaining ---------------------------------------------------------------------------------------------------

    @overload
    def then(self, fn: Callable[[T], Awaitable[U]], /, *, pool: str | None = None) -> Future[U]: ...
    @overload
    def then(self, fn: Callable[[T], U], /, *, pool: str | None = None) -> Future[U]: ...
    def then(self, fn: Callable[[T], Any], /, *, pool: str | None = None) -> Future[Any]:
        """
        Call *fn* with the value once there is one; the future of what it returns.

        A future or awaitable that *fn* returns is waited for: the result is never a future of a future. If this call
        fails or is cancelled, so is the result, and *fn* is not called. What *fn* raises, the result raises.

        Args:
            fn: Takes the value. A task runs in its own pool.
            pool: The pool to run *fn* in. None: after a thread call, a thread of its pool; after an inline call,
                the caller; else the registry's callback threads.

        Raises:
            UnknownPoolError: No pool is called *pool*.
        """
        return self._follow(Then, fn, pool)

    @overload
    def catch(self, fn: Callable[[Exception], Awaitable[U]], /, *, pool: str | None = None) -> Future[T | U]: ...
    @overload
    def catch(self, fn: Callable[[Exception], U], /, *, pool: str | None = None) -> Future[T | U]: ...
    @overload
    def catch(
        self, exc: type[E] | tuple[type[E], ...], fn: Callable[[E], Awaitable[U]], /, *, pool: str | None = None
    ) -> Future[T | U]: ...
    @overload
    def catch(
        self, exc: type[E] | tuple[type[E], ...], fn: Callable[[E], U], /, *, pool: str | None = None
    ) -> Future[T | U]: ...
    def catch(self, exc: Any, fn: Any = None, /, *, pool: str | None = None) -> Future[Any]:
        """
        Call *fn* with the error if this call failed so; its value takes the place of the error.

        Without a failure, or if the call was cancelled, *fn* is not called and the end is passed on as it is. What
        *fn* raises, the result raises.

        Args:
            exc: The exception, or tuple of them, to catch; left out: every `Exception`.
            fn: Takes the error.
            pool: As for `then`.
        """
        types, fn = what_to_catch(exc, fn)
        return self._follow(Catch, fn, pool, types)

    def finally_(self, fn: Callable[[], object], /, *, pool: str | None = None) -> Future[T]:
        """
        Call *fn* once the call has ended in whatever way, cancellation included; then pass its end on.

        An error of *fn* takes the place of the end; its value is dropped, after it was waited for if it is a future.
        """
        return self._follow(Finally, fn, pool)

    def with_timeout(self, seconds: Duration, /) -> Future[T]:
        """
        Make the future that ends as this one does, or after so long with a `TaskTimeoutError`.

        Then this one is cancelled, as by `cancel()`, unless somebody else waits for it too. No thread waits meanwhile.

        Args:
            seconds: From now: a number, a `timedelta`, or a string such as `"250ms"`; `inf` for no limit.

        Raises:
            TypeError: It is no duration.
            ValueError: It is not more than 0.
        """
        limit = durations.seconds(seconds)
        target: LimitedFuture[T] = LimitedFuture(BARE)
        self._prepare(target, chain_of(self.__dict__))
        feed = Limit(self, target, limit, name_of_chain(self.__dict__))
        if limit != inf and not self.done():
            target.entry = TIMER.call_later(limit, feed.expire)
        self._tie(feed)
        if target.done():
            feed.untie()  # its time may have been over before it was tied
        return target

    def shield(self) -> Future[T]:
        """Make the future that ends as this one does; who cancels it, or what follows it, doesn't reach this one."""
        target: Future[T] = Future(BARE)
        self._prepare(target, chain_of(self.__dict__))
        self._tie(Shield(self, target))
        return target

    def on_success(self, fn: Callable[[T], object], /) -> Future[T]:
        """Call *fn* with the value, if there is one, and return this same future. What *fn* raises is logged."""
        self._call_back(Callback(lambda future: fn(future.result()), on_error=False))
        return self

    def on_failure(self, fn: Callable[[BaseException], object], /) -> Future[T]:
        """Call *fn* with the error, if there is one, and return this same future. What *fn* raises is logged."""
        self._call_back(Callback(lambda future: fn(cast(BaseException, future.exception())), on_value=False))
        return self

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """
        Call *fn* with this future when it ends, or at once if it has ended. What *fn* raises is logged.

        It runs on the thread that ends the future, or on a callback thread where that one must not block.
        """
        self._call_back(Callback(fn, on_cancel=True))

    def __await__(self) -> Generator[Any, None, T]:
        """
        Wait in a coroutine of asyncio or trio: `value = await future`.

        Cancelling who waits cancels the call, unless it runs already or somebody else waits for it too. A cancelled
        call raises `asyncio.CancelledError` under asyncio, and `concurrent.futures.CancelledError` under trio, where no
        scope has been cancelled.

        Raises:
            RuntimeError: Neither asyncio nor trio runs the coroutine.
        """
        yield from wait_on_loop(self)
        # As `result` does, without its line in the traceback.
        outcome = self.outcome()
        if outcome[1] is None:
            return cast(T, outcome[0])
        try:
            raise shown(outcome, self)
        finally:
            del self, outcome  # an error refers to this frame: break the cycle

    def cancel(self, *, running: bool = False) -> bool:
        """
        Cancel the call unless it runs on a thread or in a process, and what led only to it; what follows it as well.

        A function that runs on a thread is asked to stop: `current_task().cancelled` tells it, `checkpoint()` and
        `sleep()` raise. A coroutine that runs is cancelled; its `finally` is run.

        Args:
            running: Kill the worker process that runs the call. A thread can't be killed.

        Returns:
            True if it is cancelled now. False if it goes on, or had ended before in another way.
        """
        link: State[Any] = self
        while True:
            if link.take_work() is not None:
                break
            outcome = link.ended()
            if outcome is not None:
                return outcome[1] is CANCELLED
            # It waits for a future that its function returned: that one can be cancelled if it serves nobody else.
            feeds = link.feeds
            if not feeds:
                return run_of(link).cancel(kill=running)
            if len(feeds) != 1 or not feeds[0].adopts or not serves_only(feeds[0]):
                return False
            source = feeds[0].source
            if not is_ours(source):
                return bool(source.cancel())
            link = source
        feeds, link.feeds = link.feeds, ()
        if settle(link, (None, CANCELLED, None)):
            cancel_sources(feeds)
        return self.cancelled()

    # -- for engines, and for whoever made the future by hand -------------------------------------------------------

    def begin(self) -> Run | None:
        """Start the call, for an engine that doesn't use `run_on`; None if it has been started or cancelled."""
        work: Work | None = self.take_work()
        if work is None:
            return None
        run: Run = self.__dict__.setdefault("_run", Run(self))
        if run.asked:  # cancelled in a moment in which its pool had its work in hand
            run.finish((None, CANCELLED, None), may_block=False)
            return None
        run.work = work
        return run

    def run_on(self, here: Dispatcher | None, *, may_block: bool = True) -> None:
        """
        Run the call on this thread, if it has not been started or cancelled yet.

        Args:
            here: The dispatcher whose thread this is; None: what follows the call is not to run here.
            may_block: Whether callbacks may run on this thread.
        """
        fields = self.__dict__
        work: Work | None = fields.pop("_work", None)
        if work is None:
            return
        # As `attempt` does, without the call: this is the path of every call of a thread pool.
        fn, args, kwargs, context = work
        del work
        try:
            try:
                value: Any
                if kwargs:
                    value = context.run(fn, *args, **kwargs)
                else:  # to unpack no arguments takes as long as a tenth of all the rest
                    value = context.run(fn, *args) if args else context.run(fn)
                kind: object = type(value)  # pyright: ignore[reportUnknownVariableType]  # of what anybody returns
                if kind is CoroutineType:
                    value = context.run(run_coroutine, value)
                # Who runs a call is the only one who can end it so: see the claim below.
                outcome: Outcome = NOTHING if value is None else (value, None, None)
                del value
            except BaseException as error:
                outcome = self._failed(failure(error, fn, context))
            if "_run" in fields:  # somebody has asked for it; what follows on this thread is no part of it
                outcome = fields.pop("_run").told(outcome)
        except BaseException as error:  # not even that could be done: the stack is full
            outcome = (None, error, None)
        del fn, args, kwargs, context  # what follows may take long: don't keep the arguments alive
        if (fields.setdefault("_end", outcome) is not outcome or "_first" in fields) and not settle(
            self, outcome, here, may_block=may_block
        ):
            _forget(outcome)
        del self, fields, outcome  # an error refers to this frame: break the cycle

    def _failed(self, outcome: Outcome) -> Outcome:
        """Prepare the *outcome* of a call that has raised for being published."""
        fields = self.__dict__
        run: Run | None = fields.pop("_run", None)
        if run is not None:
            outcome = run.told(outcome)
        if outcome[2] is not None:
            outcome[2].expect_look(fields)
        return outcome

    def tree(self) -> Graph:
        """
        Return what this future hangs on, and what that hangs on, as it is at this moment: for `print`, or as a drawing.

        Each is told with its pool and its state. How long it has run is told of calls that run; of those that have
        ended, if somebody observes: see `PoolStats`. What has ended has let go of what led to it: only the names of its
        chain are left. To look is no look at a failure.
        """
        # It loads what draws, and what it needs.
        made: Graph = import_module("parallel.observe.walks").tree_of_future(self)
        return made

    def set_running_or_notify_cancel(self) -> bool:
        """Mark a future made by hand as running; False if it has been cancelled."""
        fields = self.__dict__
        mark = object()
        is_first = fields.setdefault("_begun", mark) is mark
        if fields.pop("_work", None) is not None:
            return True
        if self.cancelled():
            return False
        if is_first and self.dispatcher is None and not self.done():
            # No engine runs it, and nobody has begun it: who has taken the work cancels it, and is about to say so.
            fields.pop("_begun", None)
            return False
        raise RuntimeError(f"{self._state}: {self!r}")

    def set_result(self, result: T) -> None:
        """End a future made by hand with a value."""
        if not settle(self, (result, None, None)):
            raise InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception: BaseException | None) -> None:
        """End a future made by hand with an error; None ends it with the value None, as in the standard library."""
        if not settle(self, (None, _exception(exception), None)):
            raise InvalidStateError(f"{self._state}: {self!r}")

    def _follow(
        self, kind: Callable[..., Link], fn: Callable[..., Any], pool: str | None, *more: object
    ) -> Future[Any]:
        """Tie a new future to this one through *fn*."""
        if not callable(fn):
            raise TypeError(f"a continuation must be callable, found {fn!r}")
        executor = None if pool is None else current_registry().pool(pool)
        # As `Future(BARE)` and `_prepare` do, written out: each link of a chain is made here.
        target: Future[Any] = _new_future(Future)
        fields = target.__dict__
        fields["_work"] = BARE
        dispatcher = self.dispatcher
        if dispatcher is None or dispatcher.era != era():
            dispatcher = current_registry().callbacks
        fields["dispatcher"] = dispatcher
        fields["_chain"] = longer(self.__dict__, fn)
        link = kind(self, target, fn, executor, *more)
        fields["_feeds"] = link
        try:
            if WITHIN.get() is not None:
                take_in(target)  # the group looks at what feeds it
            if not self.add(link):
                deliver(self, self.outcome(), [link], None, may_block=False)
        except BaseException:  # a Ctrl-C: the group may wait for it
            give_up(target)
            raise
        return target

    def _prepare(self, target: Future[Any], chain: Chain) -> None:
        """Prepare *target* to end after this future."""
        dispatcher = self.dispatcher
        if dispatcher is None or dispatcher.era != era():
            dispatcher = current_registry().callbacks
        fields = target.__dict__
        fields["dispatcher"] = dispatcher
        fields["_chain"] = chain

    def _tie(self, feed: Feed) -> None:
        """Tie its target to this future; the group of the present block adopts that."""
        feed.target.feeds = (feed,)
        try:
            take_in(feed.target)
            if not self.add(feed):
                deliver(self, self.outcome(), [feed], None, may_block=False)
        except BaseException:  # as in `_follow`
            give_up(feed.target)
            raise

    def _call_back(self, callback: Callback) -> None:
        if not self.add(callback):
            callback.call(self, engine=False)


share_keys(Future, "_made", "_chain", "_feeds")


class LimitedFuture(Future[T]):
    """
    The future of `with_timeout`.

    Attributes:
        entry: That of the timer, withdrawn when this future ends, in whatever way.
    """

    entry: Entry | None = None

    def end_with(self, outcome: Outcome) -> list[Any] | None:
        told = super().end_with(outcome)
        if self.entry is not None:
            self.entry.cancel()
        return told


def _forget(outcome: Outcome) -> None:
    """Drop the *outcome* of a call whose future has ended in another way meanwhile: there is nobody to look at it."""
    if outcome[2] is not None:
        outcome[2].look()


def _exception(given: object) -> BaseException | None:
    """Return what `set_exception` is given; of a type, an instance, as `raise` does."""
    error: object = given() if isinstance(given, type) else given
    if not isinstance(error, BaseException | None):
        raise TypeError(f"only an exception, or None, can be set as one, found {given!r}")
    return error


def what_to_catch(exc: Any, fn: Any) -> tuple[tuple[type[BaseException], ...], Callable[[Any], Any]]:
    """Return the exception types and the function that the arguments of `catch` mean."""
    if fn is None and _is_exception_type(exc):
        raise TypeError(f"catch({exc!r}) needs a function too: catch({exc!r}, fn)")
    caught, fn = (Exception, exc) if fn is None else (exc, fn)
    return tuple(_exception_types(caught)), fn


def _is_exception_type(value: object) -> bool:
    return isinstance(value, tuple) or (isinstance(value, type) and issubclass(value, BaseException))


def _exception_types(caught: object) -> Iterator[type[BaseException]]:
    """Yield the types in what `except` would take: a type, or a tuple of such, nested or not."""
    if isinstance(caught, tuple):
        for one in cast("tuple[object, ...]", caught):
            yield from _exception_types(one)
    elif isinstance(caught, type) and issubclass(caught, BaseException):
        yield caught
    else:
        raise TypeError(f"catch() takes exception types, or a tuple of them, found {caught!r}")


def completed(value: T) -> Future[T]:
    """Make a future that has ended with *value*."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    """
    Make a future that has ended with *error*.

    It is not reported if nobody looks at it; a future to which the error passes on is.
    """
    future: Future[Any] = Future()
    future.take_work()
    future.__dict__["_end"] = failed_with(cast(BaseException, _exception(error)))
    return future

"""
The links of a chain: how a function of the user's, or a limit, makes the end of one future that of the next.

    source ──▶ Then, Catch, Finally: fn is called ──▶ a value, or an error ──────────▶ target
                                          └─────────▶ a future, which is waited for ──▶

Guarantees:
- Whatever the function raises ends the target; raised while an error was handled, it says so.
- A future that comes back is waited for, unless it waits for the target itself: that is an error.

Nothing here has state of its own.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from parallel import trail
from parallel.context import Declared, current_registry, this
from parallel.delivery import Ended, Feed, Link, end_of, outcome_of, serves_only, settle
from parallel.errors import TaskTimeoutError
from parallel.outcomes import CANCELLED, ENDED, Outcome, failure, happened_during, take_first
from parallel.states import State, hangs_on, is_future, is_ours, shown
from parallel.trail import CAUSE, note_call, note_start, note_stop

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import TypeIs

T = TypeVar("T")

LOGGER = logging.getLogger("parallel")


class Then(Link):
    """Calls the function with the value."""

    how = "then"

    __slots__ = ()

    def passes(self, outcome: Outcome) -> bool:
        return outcome[1] is not None

    def run(self, outcome: Outcome) -> tuple[State[Any], Outcome] | None:
        target = self.target
        if target.take_work() is None:
            return None
        target.feeds = ()
        result = call(self, outcome[0])
        try:
            return (target, result) if type(result[0]) in _PLAIN else _adopted(target, result)
        finally:
            del self, target, outcome, result  # an error refers to this frame: break the cycle

    def follow(self, outcome: Outcome) -> Ended | None:
        """As `Link.follow`, written out: most links of most chains take this path."""
        target = self.target
        if outcome[1] is not None or self.executor is not None or trail.current is not None:
            try:
                return super().follow(outcome)
            finally:
                del self, target, outcome  # as below
        fields = target.__dict__
        if fields.pop("_work", None) is None:  # as `take_work`: the target of a link is a plain future
            return None
        fields.pop("_feeds", None)
        # As `call` does.
        worker = this.worker
        before: Any = None
        if worker is not None:
            before, worker.running = worker.running, target
        try:
            try:
                value: Any = self.context.run(self.fn, outcome[0])
                kind: object = type(value)  # pyright: ignore[reportUnknownVariableType]  # of what anybody returns
                # As `is_awaitable`, without the call.
                if kind not in _PLAIN and hasattr(kind, "__await__") and not is_future(value):  # pyright: ignore[reportUnknownArgumentType]
                    value = self.context.run(_on_loop, value)
                result: Outcome = (value, None, None)
                del value
            except BaseException as error:
                result = _told(target, failure(error, self.fn, self.context))
        except BaseException as error:  # not even that could be done: the stack is full
            result = (None, error, None)
        finally:
            if worker is not None:
                worker.running = before
        try:
            if result[1] is not None or isinstance(result[0], concurrent.futures.Future):
                return _ended(_adopted(target, result))
            there: Any = fields.setdefault("_end", result)
            if there is not result:
                return end_of(target, result)
            # As that does, when it comes to the same.
            first = take_first(fields, ENDED) if "_first" in fields else None
            return None if first is None else (target, result, [first])
        finally:
            del self, target, fields, before, result, outcome  # an error refers to this frame: break the cycle


class Catch(Link):
    """Calls the function with the error, if it is of one of some types."""

    __slots__ = ("types",)
    how = "catch"

    def __init__(
        self,
        source: State[Any],
        target: State[Any],
        fn: Callable[..., Any],
        executor: Executor | None,
        types: tuple[type[BaseException], ...],
    ) -> None:
        super().__init__(source, target, fn, executor)
        self.types = types

    def passes(self, outcome: Outcome) -> bool:
        error = outcome[1]
        if error is None or error is CANCELLED:
            return True
        # As `except` does, by the types alone: isinstance() may run code of the user's.
        bases = type(error).__mro__
        return not any(caught in bases for caught in self.types)

    def run(self, outcome: Outcome) -> tuple[State[Any], Outcome] | None:
        target = self.target
        if target.take_work() is None:
            return None
        target.feeds = ()
        result = call(self, shown(outcome, self.source))
        try:
            _tell_what_was_handled(result, outcome)
            return _adopted(target, result)
        finally:
            del self, target, result, outcome  # an error refers to this frame: break the cycle


class Finally(Link):
    """Calls the function in any case."""

    how = "finally"

    __slots__ = ()
    always = True

    def passes(self, outcome: Outcome) -> bool:
        return False

    def run(self, outcome: Outcome) -> tuple[State[Any], Outcome] | None:
        target = self.target
        cancelled = target.take_work() is None
        target.feeds = ()
        result = call(self)
        try:
            _tell_what_was_handled(result, outcome)
            if cancelled:
                _log_lost(result)
                return None
            return _after_finally(target, result, outcome)
        finally:
            del self, target, result, outcome  # an error refers to this frame: break the cycle


_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})
"""Types of values that can't be waited for: asking them costs more than looking here."""


def call(link: Link, *args: object) -> Outcome:
    """Call the function of *link* and catch whatever comes out; of an awaitable that is no future, make one."""
    noting = trail.current
    try:
        return _call(link, args) if noting is None else _call_noted(noting, link, args)
    finally:
        del link, args  # an error refers to this frame: keep nothing alive from here


def _call_noted(noting: trail.Trail, link: Link, args: tuple[object, ...]) -> Outcome:
    """Call it; note what it follows and, unless that is a call by itself, when it begins and ends."""
    link.context.run(CAUSE.set, link.source.__dict__.get("_id", 0))
    if isinstance(link.fn, Declared) or link.executor is not None:
        return _call(link, args)
    fields = link.target.__dict__
    link.context.run(note_call, noting, link.target, link.fn, 0)
    note_start(noting, fields)
    outcome = _call(link, args)
    try:
        note_stop(noting, fields, outcome[1])
        return outcome
    finally:
        del link, args, fields, outcome  # an error refers to this frame: break the cycle


def _call(link: Link, args: tuple[object, ...]) -> Outcome:
    fn, executor, context = link.fn, link.executor, link.context
    worker = this.worker
    before: Any = None
    if worker is not None:
        before, worker.running = worker.running, link.target  # what the function waits for, the target hangs on
    try:
        try:
            if executor is not None:
                value: Any = context.run(executor.submit, fn, *args)
            else:
                value = context.run(fn, *args)
                kind: object = type(value)  # pyright: ignore[reportUnknownVariableType]  # of what anybody returns
                if hasattr(kind, "__await__") and not is_future(value):  # pyright: ignore[reportUnknownArgumentType]
                    value = context.run(_on_loop, value)
        except BaseException as error:
            return _told(link.target, failure(error, fn, context))
    except BaseException as error:  # not even that could be done: the stack is full
        return (None, error, None)
    finally:
        if worker is not None:
            worker.running = before
        del link, args, fn, executor, context, before  # an error refers to this frame: keep nothing alive from here
    return (value, None, None)


def _told(target: State[Any], result: Outcome) -> Outcome:
    """Tell a function that stopped because *target* was cancelled from one that failed."""
    run: Any = target.__dict__.pop("_run", None)
    return result if run is None else cast(Outcome, run.told(result))


def _ended(end: tuple[State[Any], Outcome] | None) -> Ended | None:
    return None if end is None else end_of(*end)


def is_awaitable(value: object) -> TypeIs[Awaitable[Any]]:
    """Tell whether *value* can be awaited."""
    return hasattr(type(value), "__await__")  # the check of the abstract class costs five times as much


def _on_loop(awaitable: Awaitable[T]) -> concurrent.futures.Future[T]:
    return current_registry().pool("loop").submit(awaited, awaitable)  # type: ignore[arg-type]  # it awaits coroutines


async def awaited(awaitable: Awaitable[T]) -> T:
    """Await *awaitable*, of whatever kind, in a coroutine."""
    return await awaitable


def _tell_what_was_handled(result: Outcome, before: Outcome) -> None:
    """Have an error of the function tell of the one before, which has been seen then: it is shown with that."""
    problem, error, record = result[1], before[1], before[2]
    if problem is not None and error is not None and record is not None and problem is not error:
        happened_during(problem, error)
        record.look()


def _log_lost(result: Outcome) -> None:
    """Log the error of a `finally_` whose future was cancelled before: nobody will ask for it."""
    if result[1] is not None:
        LOGGER.error("exception in the function of a cancelled finally_", exc_info=result[1])


def _adopted(target: State[Any], result: Outcome) -> tuple[State[Any], Outcome] | None:
    """End *target* with *result*, or have it wait for the future that *result* holds."""
    value = result[0]
    if not is_future(value):
        return target, result
    return wait_for(Feed(value, target))


def _after_finally(target: State[Any], result: Outcome, before: Outcome) -> tuple[State[Any], Outcome] | None:
    value, error, _ = result
    if is_future(value):
        return wait_for(_Restore(value, target, before))
    return target, (before if error is None else result)


class _Restore(Feed):
    """After `finally_` returned a future: wait for it, then end as the call before it did."""

    __slots__ = ("before",)

    def __init__(self, source: concurrent.futures.Future[Any], target: State[Any], before: Outcome) -> None:
        super().__init__(source, target)
        self.before = before

    def passed(self, outcome: Outcome) -> Outcome:
        if outcome[1] is None:
            return self.before
        _tell_what_was_handled(outcome, self.before)
        return outcome


def wait_for(feed: Feed) -> tuple[State[Any], Outcome] | None:
    """Tie *feed* to its source; return the target and its end if the source has ended already."""
    source, target = feed.source, feed.target
    if not is_ours(source):
        target.feeds = (feed,)
        source.add_done_callback(lambda ended: settle(target, feed.passed(outcome_of(ended))))
        return None
    if trail.current is not None and "_id" in source.__dict__:
        target.__dict__["_id"] = source.__dict__["_id"]  # what follows the one follows the other
    if any(part is target for part in hangs_on(source)):
        return target, (None, RuntimeError("a continuation returned a future that waits for it"), None)
    target.feeds = (feed,)
    target.dispatcher = source.dispatcher or target.dispatcher
    if source.add(feed):
        for part in hangs_on(source, through_bodies=True):
            part.look()  # who waits for the target waits for these from now on
        return None
    return target, feed.passed(source.outcome())


class Shield(Feed):
    """Passes all on, and cancels nothing."""

    __slots__ = ()
    adopts = False
    shields = True


class Limit(Feed):
    """Passes all on that comes in time; when the time is over, its target fails."""

    __slots__ = ("seconds", "task")
    adopts = False

    def __init__(self, source: State[Any], target: State[Any], seconds: float, task: str) -> None:
        super().__init__(source, target)
        self.seconds = seconds
        self.task = task

    def expire(self) -> None:
        """Fail the target, and cancel the source if it serves nobody else. On the timer thread."""
        source = self.source
        serves_it_only = serves_only(self)
        error = TaskTimeoutError(self.task, self.seconds, "with_timeout")
        if settle(self.target, (None, error, None), may_block=False):
            self.untie()
            if serves_it_only:
                source.cancel()

    def untie(self) -> None:
        """Have the source forget it."""
        if is_ours(self.source):
            self.source.remove(self)

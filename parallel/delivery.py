"""
What follows the end of a future: the ties between futures, callbacks, and the order in which they are told.

    settle() ──▶ deliver() ──▶ waiters woken
                    ├──▶ ties that need no user code (an error skips a `then`): at once
                    ├──▶ one link of a call that ran on this very pool: on this worker
                    ├──▶ links to tasks that only have to be queued: at once
                    └──▶ all other links and callbacks: to the call's dispatcher

Guarantees:
- Whatever a continuation raises ends its future; whatever a callback raises is logged.
- Chains are walked in a loop: their length is bounded by memory alone.
- No lock is held while user code runs.

Nothing here has state of its own.
"""

from __future__ import annotations

import concurrent.futures
import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from parallel.context import Declared, Dispatcher, Step, current_registry, default_registry, era
from parallel.errors import PoolShutdownError
from parallel.outcomes import CANCELLED, LockType, Outcome, failed_with
from parallel.states import State, is_ours, shown

if TYPE_CHECKING:
    from concurrent.futures import Executor

LOGGER = logging.getLogger("parallel")


class Feed:
    """
    The tie through which the end of one future, *source*, ends another, *target*. This one adopts: it passes all on.

    Attributes:
        adopts: The target's own function has run; it only waits for the source.
        selects: The target may end before its sources: those that then serve nobody else are cancelled.
        always: It has something to do when the source ends, even if the target was cancelled before.
        shields: Cancelling the target doesn't cancel the source.
        looks_on: It only notes the end: it keeps nobody from cancelling the source.
        how: What people call the tie: `then`, `catch`, `finally`, `arguments`.
        joins: What people call the target, if it is what several futures are joined to: `gather`.
    """

    __slots__ = ("source", "target")
    adopts = True
    selects = False
    always = False
    shields = False
    looks_on = False
    how = ""
    joins = ""

    def __init__(self, source: concurrent.futures.Future[Any], target: State[Any]) -> None:
        self.source = source
        self.target = target

    def passes(self, outcome: Outcome) -> bool:
        """Tell whether *outcome* goes on without user code."""
        return True

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        """Say which future *outcome* ends now, None if none. Gets it only if `passes` said so."""
        return self.target

    def passed(self, outcome: Outcome) -> Outcome:
        """What *outcome* becomes for the target."""
        return outcome


class Link(Feed):
    """
    One link of a chain: *fn* is called with what the source ended with, and its value ends the target.

    Attributes:
        fn: The function.
        executor: The pool to run it in; None: where `deliver` says.
        context: What it runs in: a copy of that of who made the link.
    """

    __slots__ = ("context", "executor", "fn")
    adopts = False

    def __init__(
        self, source: State[Any], target: State[Any], fn: Callable[..., Any], executor: Executor | None
    ) -> None:
        self.source = source
        self.target = target
        self.fn = fn
        self.executor = executor
        self.context = copy_context()

    def is_light(self) -> bool:
        """Tell whether the function only queues a call: a hop to another thread would only delay that."""
        fn: object = self.fn
        return isinstance(fn, Declared) and self.executor is None and self.context.run(fn.submits_lightly)

    @abstractmethod  # each kind of link has its own; no base of `abc`, which would cost each link
    def run(self, outcome: Outcome) -> tuple[State[Any], Outcome] | None:
        """
        Call the function. Gets *outcome* only if it doesn't pass.

        Returns:
            The target and its end; None if it was cancelled, or if it now waits for the future that came back.
        """

    def follow(self, outcome: Outcome) -> Ended | None:
        """End the target after *outcome*: call the function, unless that passes. Return who is to be told."""
        end = (self.target, outcome) if self.passes(outcome) else self.run(outcome)
        try:
            return None if end is None else end_of(*end)
        finally:
            del self, outcome, end  # an error refers to this frame: break the cycle


class Callback:
    """A side effect: a function of the ended future, for the ends that it wants to see."""

    __slots__ = ("_fn", "_on_cancel", "_on_error", "_on_value")

    def __init__(
        self,
        fn: Callable[[Any], object],
        *,
        on_value: bool = True,
        on_error: bool = True,
        on_cancel: bool = False,
    ) -> None:
        self._fn = fn
        self._on_value = on_value
        self._on_error = on_error
        self._on_cancel = on_cancel

    def call(self, future: State[Any], *, engine: bool) -> None:
        """Call the function. On a thread of an *engine* nothing gets out; else only an `Exception` is logged."""
        error = future.outcome()[1]
        wanted = self._on_value if error is None else self._on_cancel if error is CANCELLED else self._on_error
        if not wanted:
            return
        if error is not None:
            shown(future.outcome(), future)
        del error  # it refers to this frame, if the function raises it: break the cycle
        try:
            self._fn(future)
        except BaseException as problem:
            if not engine and not isinstance(problem, Exception):
                raise
            LOGGER.exception("exception calling callback for %r", future)


class _LinkStep:
    """A link on its way to a dispatcher's thread."""

    __slots__ = ("_link", "_outcome")
    priority = 0

    def __init__(self, link: Link, outcome: Outcome) -> None:
        self._link = link
        self._outcome = outcome

    def run_on(self, here: Dispatcher) -> None:
        ended = self._link.run(self._outcome)
        if ended is not None:
            settle(*ended, here)
        del self, ended  # an error refers to this frame: break the cycle


class _CallbackStep:
    """A callback on its way to a dispatcher's thread."""

    __slots__ = ("_callback", "_future")
    priority = 0

    def __init__(self, callback: Callback, future: State[Any]) -> None:
        self._callback = callback
        self._future = future

    def run_on(self, here: Dispatcher) -> None:
        self._callback.call(self._future, engine=True)


class Errand:
    """What has to be done on a thread of a dispatcher: a function that is told whose it is."""

    __slots__ = ("_fn",)
    priority = 0

    def __init__(self, fn: Callable[[Dispatcher], object]) -> None:
        self._fn = fn

    def run_on(self, here: Dispatcher) -> None:
        """Do it."""
        self._fn(here)
        del self  # an error of what follows refers to this frame: break the cycle


def settle(future: State[Any], outcome: Outcome, here: Dispatcher | None = None, *, may_block: bool = True) -> bool:
    """
    End *future* and see to everything that follows.

    Args:
        future: The future that ends.
        outcome: Its end.
        here: The dispatcher whose thread this is, if any.
        may_block: Whether user code may run on this thread; False on those that read results or run loops.

    Returns:
        False if it had ended already: then nothing happens.
    """
    entries = future.end_with(outcome)
    if entries is None:
        return False
    if "_feeds" in future.__dict__:
        release(future)
    if len(entries) == 1 and type(entries[0]) is LockType:
        entries[0].release()  # the usual case, without the ceremony
    elif entries:
        deliver(future, future.outcome(), entries, here, may_block)
    del future, outcome, entries  # an error of what follows refers to this frame: break the cycle
    return True


def give_up(future: State[Any]) -> None:
    """End *future*, which nobody is going to get: a Ctrl-C, say, has come as it was made. What feeds it goes on."""
    feeds, future.feeds = future.feeds, ()
    for feed in feeds:
        if is_ours(feed.source):
            feed.source.remove(feed)
    settle(future, (None, CANCELLED, None), may_block=False)


def alive(dispatcher: Dispatcher | None) -> Dispatcher | None:
    """Return *dispatcher*, None if it stayed in the parent of this forked process."""
    return dispatcher if dispatcher is not None and dispatcher.era == era() else None


Ended: TypeAlias = tuple[State[Any], Outcome, list[Any]]
"""A future that has ended, how, and those who are to be told."""

_Left: TypeAlias = deque[tuple[Any, State[Any]]]
"""Links and callbacks that need code of the user's, each with the future that has ended."""


def deliver(source: State[Any], outcome: Outcome, entries: list[Any], here: Dispatcher | None, may_block: bool) -> None:
    """Tell *entries* that *source* has ended with *outcome*, then whoever ends by that, and so on; no recursion."""
    ended: Ended | None = (source, outcome, entries)
    del source, outcome, entries  # an error of what follows refers to this frame: keep nothing in it
    while ended is not None and len(ended[2]) == 1 and isinstance(ended[2][0], Link):
        # The usual case, without the ceremony.
        if here is not None and ended[0].dispatcher is here and here.fuses(ended[2][0], here):
            ended = ended[2][0].follow(ended[1])
        else:
            ended = _follow(ended[0], ended[1], ended[2][0], here, True)
    if ended is None:
        return
    told = deque((ended,))
    left: _Left = deque()
    del ended
    while told or left:
        while told:
            _tell(told, left)
        # Now whoever waits for any of them goes on: user code that blocks can hold up nobody. Only what is alone runs
        # here, as the next might wait for the one behind it.
        if left:
            _follow_up(left, told, here, may_block)


def _tell(told: deque[Ended], left: _Left) -> None:
    """Tell all who wait for the next future in *told*; what needs code of the user's goes to *left*."""
    source, outcome, entries = told.popleft()
    for entry in entries:
        if type(entry) is LockType:
            entry.release()
        elif type(entry) is Callback or not entry.passes(outcome):
            left.append((entry, source))
        else:
            target = entry.pass_on(outcome)
            if target is not None:
                ended = end_of(target, entry.passed(outcome))
                if ended is not None:
                    told.append(ended)


def _follow_up(left: _Left, told: deque[Ended], here: Dispatcher | None, may_block: bool) -> None:
    """See to the next in *left*: a lone link of *here*, or an inline one, runs here; a callback does if it may."""
    alone = len(left) == 1
    entry, source = left.popleft()
    if type(entry) is Callback:
        if not may_block:
            _dispatch_callback(entry, source)
        elif left and type(left[-1][0]) is not Callback:
            left.append((entry, source))  # links are handed on first
        else:
            entry.call(source, engine=here is not None)
    else:
        ended = _follow(source, source.outcome(), entry, here, alone)
        if ended is not None:
            told.append(ended)
        del ended
    del entry, source


def _follow(source: State[Any], outcome: Outcome, link: Link, here: Dispatcher | None, alone: bool) -> Ended | None:
    """See to *link*, here or on another thread; return what has ended by that, None if nothing did, or nobody asks."""
    dispatcher = source.dispatcher
    if dispatcher is None or dispatcher is not here:  # that one is alive: this is its thread
        dispatcher = alive(dispatcher) or cast(Dispatcher, link.target.dispatcher)
    fuses = alone and here is not None and here.fuses(link, dispatcher)
    if fuses or dispatcher is INLINE or link.passes(outcome) or link.is_light():
        return link.follow(outcome)
    end = _dispatch_link(dispatcher, link, outcome)
    try:
        return None if end is None else end_of(*end)
    finally:
        del source, link, outcome, end  # an error of what follows refers to this frame: break the cycle


def end_of(future: State[Any], outcome: Outcome) -> Ended | None:
    """End *future*; return it with those who are to be told, None if there are none."""
    entries = future.end_with(outcome)
    if entries is not None and "_feeds" in future.__dict__:
        release(future)
    return (future, outcome, entries) if entries else None


def _dispatch_link(dispatcher: Dispatcher, link: Link, outcome: Outcome) -> tuple[State[Any], Outcome] | None:
    """Hand *link* on; return its target and its end if that can't be done."""
    try:
        dispatch(dispatcher, _LinkStep(link, outcome))
    except Exception as error:  # there is no thread any more, or none could be started
        if link.target.take_work() is not None:
            return link.target, (None, error, None)
    return None


def _dispatch_callback(callback: Callback, future: State[Any]) -> None:
    try:
        dispatch(alive(future.dispatcher) or current_registry().callbacks, _CallbackStep(callback, future))
    except Exception:
        LOGGER.exception("no callback thread could be had for %r: a callback was not called", future)


def dispatch(dispatcher: Dispatcher, step: Step) -> None:
    """Have *dispatcher* run *step*; after its shutdown, the callback threads of the default registry."""
    try:
        dispatcher.dispatch(step)
    except PoolShutdownError:
        callbacks = default_registry().callbacks
        if callbacks is dispatcher:
            raise
        callbacks.dispatch(step)


def outcome_of(future: concurrent.futures.Future[Any]) -> Outcome:
    """Return how an ended future, ours or the standard library's, has ended."""
    if is_ours(future):
        return future.outcome()
    if future.cancelled():
        return (None, CANCELLED, None)
    error = future.exception()
    return (future.result(), None, None) if error is None else failed_with(error)


def serves_only(feed: Feed) -> bool:
    """Tell whether nobody but the target of *feed* waits for its source."""
    source = feed.source
    if not is_ours(source):
        return len(getattr(source, "_done_callbacks", ())) <= 1 and not getattr(source, "_waiters", ())
    return not source.done() and source.serves_only(feed.target)


def release(future: State[Any]) -> None:
    """Untie an ended *future* from what fed it; if it was to select among that, cancel the rest."""
    feeds = future.feeds
    future.feeds = ()
    if feeds and feeds[0].selects:
        cancel_sources(feeds, running=True)
    elif len(feeds) > 1:
        for feed in feeds:
            if feed.target is future and is_ours(feed.source):
                feed.source.remove(feed)  # a source that lives on must not keep this one alive


def cancel_sources(feeds: tuple[Feed, ...], *, running: bool = False) -> None:
    """
    Cancel what leads to an ended future and to nothing else, up the chain, without recursion.

    Args:
        feeds: The ties that have led to it.
        running: Also cancel what runs, as `cancel()` does: what can't be stopped is asked to stop.
    """
    left = list(feeds)
    while left:
        feed = left.pop()
        source = feed.source
        serves_it_only = not feed.shields and serves_only(feed)
        if not is_ours(source):
            if serves_it_only:
                source.cancel()
            continue
        if not feed.always:
            source.remove(feed)
        if not serves_it_only:
            continue
        if source.take_work() is not None:
            left += source.feeds
            source.feeds = ()
            settle(source, (None, CANCELLED, None))
        elif running or source.feeds:  # with feeds it waits for a future that its function returned
            source.cancel()


class _Inline:
    """The dispatcher of inline calls: what follows runs on the thread that asked."""

    __slots__ = ()

    @property
    def era(self) -> int:  # never older than the process: the thread that asks is there
        return era()

    def dispatch(self, step: Step) -> None:
        step.run_on(INLINE)

    def fuses(self, link: Link, dispatcher: Dispatcher) -> bool:
        return dispatcher is INLINE


INLINE: Final[Dispatcher] = cast(Dispatcher, _Inline())

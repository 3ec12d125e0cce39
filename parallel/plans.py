"""
Plans: how the calls of one task are made in one registry.

    Plan.call() ──▶ nothing is said about the task ──▶ a plain future ──▶ pool (with a timeout on a thread: `timed`)
               └──▶ it has terms, or is made in a group or under a deadline ──▶ Call ──▶ see `call`
               └──▶ futures among the arguments ──▶ Call, which waits for them
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final, cast

from parallel import trail
from parallel.arguments import ATOMS, Arguments, values_of
from parallel.call import Call
from parallel.context import WITHIN, Dispatcher, Within
from parallel.coroutines import run_coroutine
from parallel.deadlines import Deadline
from parallel.delivery import Feed, give_up, settle
from parallel.futures import Future
from parallel.outcomes import Outcome, is_coroutine
from parallel.states import State
from parallel.terms import About, Launcher, Site, Terms
from parallel.timed import TimedFuture
from parallel.traced import TracedFuture
from parallel.trail import note_call

LOGGER = logging.getLogger("parallel")

RERUNS: Final = 2
"""How often an item of a map is run again in which a worker has died, if it may be; as often as a call."""


class Plan:
    """
    How the calls of one task are made in one registry.

    Args:
        terms: Under what terms.
        is_bare: Nothing is said but where they run, perhaps a timeout, and whether they may be run again; and nobody
            watches them.

    Attributes:
        about: What messages call the task, and its pool.
        pool: Where they run.
        chunks: Whether many items of a map may run as one call.
        reruns: How often a call is run again whose worker has died in it.
        submits_lightly: Whether making a call only queues it: no code of the user's runs, and nothing blocks.
    """

    __slots__ = (
        "_future_kind",
        "_is_idempotent",
        "_is_plain",
        "_is_short",
        "_lane",
        "_launch",
        "_terms",
        "about",
        "chunks",
        "pool",
        "reruns",
        "submits_lightly",
    )

    def __init__(self, terms: Terms, *, is_bare: bool) -> None:
        self.about = About(terms.name, terms.pool.label)
        self._terms = terms
        is_plain = is_bare and terms.lane is None and terms.pool.gate is None
        self._is_plain = is_plain and not terms.idempotent
        self._is_idempotent = is_plain and terms.idempotent
        # A thread can only be asked to stop, so a timeout alone needs little there.
        self._lane = terms.lane if is_bare and terms.pool.gate is None and terms.pool.has_threads else None
        self._is_short = terms.only_bounds_attempts and terms.pool.gate is None
        self._launch = terms.pool.launch
        # Of a call that is noted on the trail; worker processes tell by themselves.
        self._future_kind: type[Future[Any]] = Future if terms.pool.tells_times else TracedFuture
        self.pool = terms.pool
        self.chunks = is_plain or self._is_idempotent
        self.reruns = RERUNS if terms.idempotent else 0
        self.submits_lightly = terms.pool.gate is None and not terms.pool.launches_here

    def call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Site, within: Within | None
    ) -> Future[Any]:
        """
        Make a call.

        Args:
            fn: The plain function.
            args: Its positional arguments, futures among them.
            kwargs: Its keyword arguments, futures among them.
            site: Where it is made.
            within: What it is made within.

        Raises:
            What the pool raises that doesn't take it, and a group that has closed.
        """
        if kwargs or not _are_plain(args):
            values = values_of(args, kwargs)
            if isinstance(values, Future):
                return self._call_later(fn, values, site, within)
            args, kwargs = values
        if within is not None and (within.group is not None or within.deadline is not None):
            return self._call_on_terms(fn, args, kwargs, site, within)
        future: Future[Any]
        noting = trail.current
        if noting is not None and (self._is_plain or self._is_idempotent):
            future = self._future_kind((fn, args, kwargs or None, copy_context()))
            future.__dict__["_made"] = site
            if self._is_idempotent:
                future.idempotent = True
        elif self._is_plain:
            future = Future((fn, args, kwargs or None, copy_context()))
            future.__dict__["_made"] = site
        elif self._lane is not None:
            future = TimedFuture((fn, args, kwargs or None, copy_context()), self.about.name, self._lane)
            future.__dict__["_made"] = site
        elif self._is_idempotent:
            future = Future((fn, args, kwargs or None, copy_context()))
            future.__dict__["_made"] = site
            future.idempotent = True
        elif self._is_short:  # nothing but the pool comes before the worker
            future = Call(self._terms, site, (fn, args, kwargs or None, copy_context()))
            if self._terms.lane is None:
                future.__dict__["_is_queued"] = True  # else nobody may help with it: see `Call.is_queued_at`
        else:
            return self._call_on_terms(fn, args, kwargs, site, within)
        if noting is not None:
            note_call(noting, future, self.about.name, self.pool.number)
        try:
            self._launch(future)
            return future
        except BaseException as error:
            if noting is not None:
                noting.note((trail.ENDED, trail.clock(), trail.id_of(future), error))
            raise
        finally:
            del args, kwargs, future  # an error of a call that was run here refers to this frame: see `failure`

    def _call_on_terms(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Site, within: Within | None
    ) -> Future[Any]:
        call, context = self._prepared(site, within)
        try:
            call.submit((fn, args, kwargs or None, context))
            return call
        except Exception as error:
            call.refuse(error)  # a group, or a deadline, may know of it
            _look_at(call)  # who made the call gets the error, and nobody gets the future
            raise
        except BaseException:  # a Ctrl-C; the call may have been started: then it is asked to stop
            drop(call, self.pool)
            if not call.attempts:
                give_up(call)  # its pool has dropped its work
            raise
        finally:
            del args, kwargs, call, context  # as in `call`

    def _call_later(
        self, fn: Callable[..., Any], arguments: Future[Any], site: Site, within: Within | None
    ) -> Future[Any]:
        """Make a call that is submitted when its arguments are there; its deadline runs from now on."""
        call, context = self._prepared(site, within)
        try:
            if trail.current is not None:
                ids = [feed.source.__dict__.get("_id", 0) for feed in arguments.feeds]
                trail.current.note((trail.FOLLOWS, trail.id_of(call), ids))
            tie = _Ready(arguments, call, fn, context)
            call.feeds = (tie,)
            if not arguments.add(tie):
                failed = tie.pass_on(arguments.outcome())
                if failed is not None:
                    settle(failed, arguments.outcome(), may_block=False)
        except BaseException:  # as in `_prepared`
            give_up(call)
            raise
        return call

    def _prepared(self, site: Site, within: Within | None) -> tuple[Call, Context]:
        """Make the future of a call, and the context that its function is to run in."""
        terms = self._terms
        context = copy_context()
        around = within or Within()
        limits, group = terms.limits, around.group
        if group is not None and group.limits is not None:
            limits = (group.limits, *limits)
        call = Call(terms, site, dispatcher=terms.pool.follower)
        if trail.current is not None:
            note_call(trail.current, call, terms.name, terms.pool.number)
        if limits:
            call.limit_by(limits)
        try:
            if group is not None:
                group.adopt(call)
            deadline = cast("Deadline | None", around.deadline)
            lane = terms.deadline_lane
            if lane is not None and (deadline is None or time.monotonic() + lane.seconds < deadline.at):
                deadline = Deadline(lane.seconds, lane)
                context.run(WITHIN.set, Within(around.registry, group, deadline))
            if deadline is not None:
                call.deadline = deadline
                deadline.add(call)
            if terms.on_success is not None or terms.on_failure is not None:
                _add_handlers(call, terms, around)
            if terms.hooks is not None:
                terms.hooks.watch(call, terms.name, terms.pool.name, around.registry)
        except BaseException:  # a Ctrl-C, or no thread can be started; the group may wait for it
            give_up(call)
            raise
        return call, context


def drop(future: Future[Any], pool: Launcher) -> None:
    """End a call whose launch a Ctrl-C has interrupted: a group may wait for it, and it may be in nobody's hands."""
    if not future.cancel(running=True) and pool.launches_here:
        give_up(future)  # its worker, if it has one, goes: see `Dispatching.repair`


def _look_at(call: Call) -> None:
    """Note that somebody has seen how *call* has ended."""
    outcome = call.ended()
    if outcome is not None and outcome[2] is not None:
        outcome[2].look()


def _are_plain(args: tuple[Any, ...]) -> bool:
    """Tell whether no argument is a future, or can hold one."""
    for arg in args:  # noqa: SIM110  # all() takes thrice as long for one or two
        if type(arg) not in ATOMS:
            return False
    return True


def _add_handlers(call: Call, terms: Terms, around: Within) -> None:
    """Add the declared handlers; they run when the call has ended: its deadline and its group are not for them."""
    context = copy_context()
    context.run(WITHIN.set, Within(around.registry))
    on_success, on_failure = terms.on_success, terms.on_failure
    if on_success is not None:
        call.on_success(lambda value: context.run(_call_handler, on_success, value, "on_success", terms.name))
    if on_failure is not None:
        call.on_failure(lambda error: context.run(_call_handler, on_failure, error, "on_failure", terms.name))


def _call_handler(fn: Callable[[Any], object], end: object, option: str, task: str) -> None:
    """Call a handler; if it is a coroutine function, to its end. What it raises is logged."""
    try:
        made = fn(end)
        if is_coroutine(made):
            run_coroutine(made)
    except BaseException:
        LOGGER.exception("exception in the %s of %s", option, task)


class _Ready(Feed):
    """The tie of a call to the future of its arguments: it is submitted then, on a callback thread."""

    __slots__ = ("_context", "_fn")
    adopts = False
    how = "arguments"

    def __init__(self, source: Future[Any], target: Call, fn: Callable[..., Any], context: Context) -> None:
        super().__init__(source, target)
        self._fn = fn
        self._context = context

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        """Submit the call; or say that it ends as its arguments do, if there are none."""
        if outcome[1] is not None:
            return self.target
        call = cast(Call, self.target)
        submission = _Submission(call, self._fn, outcome[0], self._context)
        try:
            call.terms.pool.callbacks.dispatch(submission)
        except Exception as error:
            call.refuse(error)
        return None


class _Submission:
    """A call whose arguments have come, on its way to a thread that may submit it."""

    __slots__ = ("_arguments", "_call", "_context", "_fn")
    priority = 0

    def __init__(self, call: Call, fn: Callable[..., Any], arguments: Arguments, context: Context) -> None:
        self._call = call
        self._fn = fn
        self._arguments = arguments
        self._context = context

    def run_on(self, here: Dispatcher) -> None:
        args, kwargs = self._arguments
        self._call.feeds = ()
        try:
            self._call.submit((self._fn, args, kwargs or None, self._context))
        except BaseException as error:
            self._call.refuse(error)
        finally:
            del self, args, kwargs  # an error refers to this frame: break the cycle

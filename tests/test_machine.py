"""
A machine that calls, chains, waits, cancels, times out and fails at random on every local kind of pool.

Each future that it makes is a `Node` of a model, which knows from which other futures it comes. When all have ended,
each must have ended in a way that the ends of those allow: see `Node.possible`.

It holds that:
- every future ends, once, and whoever waits for it is woken;
- every callback is called exactly once, every continuation at most once, and exactly once if its future has its value;
- no body runs more often than it may, none after it was cancelled in the queue, and no more at a time than may;
- nothing is left queued or running, no place is lost, no thread stays, and no future is kept alive.

`MACHINE_EXAMPLES` in the environment says how many runs it makes; `--hypothesis-show-statistics` tells what it met.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

import machine_jobs
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from machine_jobs import Act, BoomError, HoldingGate, task_of

import parallel.registry
import parallel.timer
from parallel import (
    Future,
    Pool,
    PoolFullError,
    PoolShutdownError,
    Registry,
    Retry,
    TaskGroup,
    TaskTimeoutError,
    as_completed,
    failed,
    first,
    gather,
    race,
    settle,
    unresolved,
    using,
    wait,
)
from parallel.combine import Settled

# Hypothesis warns of whoever draws from `random` while it draws itself: here a retry's jitter, on another thread.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisWarning")

LOGGER = logging.getLogger("parallel")
LONG = 30.0  # seconds; only a deadlock takes so long
SHORT = (0.005, 0.02)  # seconds; times that are met by some calls and not by others
POOLS: Final = {
    "thread": {"kind": "thread", "max_workers": 2},
    "gated": {"kind": "thread", "max_workers": 1, "max_pending": 3, "on_full": "raise"},
    "process": {"kind": "process", "max_workers": 1},
    "loop": {"kind": "loop"},
    "inline": {"kind": "inline"},
}
KINDS: Final = list(POOLS)
ON_THREADS: Final = ("thread", "gated", "inline")

End: TypeAlias = tuple[Any, ...]
"""How a future ended, in a form that can be compared: `("value", x)`, `("boom", n)`, `("cancelled",)` and so on."""

CANCELLED: Final[End] = ("cancelled",)
RAISED: Final[End] = ("raised a cancellation",)  # that of something that it waited for
AWAITED: Final[End] = ("raised one of asyncio",)  # the same, in a coroutine
SHUT: Final[End] = ("shut down",)


def end_of(future: concurrent.futures.Future[Any]) -> End:
    """Return how an ended future has ended."""
    if future.cancelled():
        return CANCELLED
    error = future.exception(timeout=0)
    if isinstance(error, CancelledError):
        return RAISED
    if isinstance(error, asyncio.CancelledError):
        return AWAITED
    return ("value", read(future.result(timeout=0))) if error is None else end_by(error)


def end_by(error: BaseException) -> End:
    """Return the end that an error is."""
    match error:
        case BoomError():
            return ("boom", *error.args)
        case TaskTimeoutError():
            return (error.what,)
        case CancelledError() | asyncio.CancelledError():
            return CANCELLED
        case PoolShutdownError():
            return SHUT
        case BaseExceptionGroup():
            return ("group", *map(end_by, error.exceptions))
    raise error  # nothing else may come


def as_error(end: End) -> End:
    """Return what an end looks like once it is an exception: all cancellations are one there."""
    return CANCELLED if end in (RAISED, AWAITED) else end


def read(value: Any) -> Any:
    """Make a value comparable: exceptions and `Settled` become ends."""
    match value:
        case BaseException():
            return end_by(value)
        case Settled():
            return ("value", read(value.value)) if value.ok else end_by(value.error)  # type: ignore[arg-type]  # not ok
        case tuple():
            return tuple(map(read, value))
    return value


# -- the model --------------------------------------------------------------------------------------------------------


class Node:
    """
    A future, what it comes from, and what was done to it.

    Attributes:
        future: The future; dropped when its end is known.
        sources: The nodes that it comes from.
        may_be_cancelled: Somebody tried to cancel it, or something that may take it along.
        may_be_cut: The pools are shut down with *cancel_futures*: what it would do next may be refused.
        end: How it ended, once that is known.
    """

    def __init__(self, future: Future[Any], *sources: Node) -> None:
        self.future = future
        self.sources = sources
        self.may_be_cancelled = False
        self.may_be_cut = False
        self.end: End | None = None
        self.told: list[End] = []  # by the callback that each node has
        self.side_effects: list[tuple[str, list[End]]] = []
        future.add_done_callback(lambda ended: self.told.append(end_of(ended)))

    def expect_cancellation(self) -> None:
        """Note that this one may be cancelled, and with it what leads to it."""
        ahead: list[Node] = [self]
        while ahead:
            node = ahead.pop()
            if not node.may_be_cancelled:
                node.may_be_cancelled = True
                ahead += node.sources

    def possible(self) -> list[End]:
        """Say how it may have ended, from the ends of its sources, but for a cancellation of itself."""
        raise NotImplementedError

    def takes_along(self) -> bool:
        """Tell whether its end may have cancelled its sources."""
        return False

    def sort(self) -> str:
        """Say what statistics count it as."""
        return type(self).__name__

    def check(self) -> None:
        """Hold its end against the model."""
        assert self.end is not None
        possible = [
            *self.possible(),
            *([CANCELLED] if self.may_be_cancelled else []),
            *([SHUT] if self.may_be_cut else []),
        ]
        assert self.end in possible, f"{self} ended with {self.end}, possible is {possible}"
        assert self.told == [self.end], f"{self} ended with {self.end}, and its callback was told {self.told}"
        for wish, told in self.side_effects:
            is_wanted = wish == "done" or (wish == "success") == (self.end[0] == "value")
            is_wanted = is_wanted and (wish == "done" or self.end != CANCELLED)
            expected = self.end if wish == "done" else as_error(self.end)
            assert told == [expected] * is_wanted, f"{self} ended with {self.end}, and on_{wish} was told {told}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.describe().items())})"

    def describe(self) -> dict[str, object]:
        """Say what messages show of it."""
        return {"end": self.end, "may_be_cancelled": self.may_be_cancelled}


class Called(Node):
    """A call of a task."""

    def __init__(self, future: Future[Any], act: Act, kind: str, terms: dict[str, Any], *sources: Node) -> None:
        super().__init__(future, *sources)
        self.act = act
        self.kind = kind
        self.terms = terms
        self.must_not_run_again: int | None = None  # it had run so often when it was cancelled

    def sort(self) -> str:
        return f"{self.kind} {self.act.does}"

    @property
    def most_runs(self) -> int:
        """How often its body may run."""
        retry: Retry | None = self.terms.get("retry")
        return 1 if retry is None else retry.attempts or 1

    def possible(self) -> list[End]:
        ends: list[End] = [(what,) for what in ("timeout", "deadline") if self.terms.get(what) in SHORT]
        if self.act.does == "wait":
            return [*ends, *self._passed_on(self.sources[0].end)]
        failed = [source.end for source in self.sources if source.end and source.end[0] != "value"]
        return ends + failed if failed else ends + self._of_the_body()

    @staticmethod
    def _passed_on(end: End | None) -> list[End]:
        assert end is not None
        if end[0] == "value":
            return [("value", ("waited", end[1]))]
        return [CANCELLED, RAISED, AWAITED] if as_error(end) == CANCELLED else [end]

    def _of_the_body(self) -> list[End]:
        value: End = ("value", self.act.value(tuple(source.end[1] for source in self.sources if source.end)))
        boom: End = ("boom", self.act.number)
        match self.act.does:
            case "error":
                return [boom]
            case "flaky" if self.terms.get("timeout") in SHORT or self.terms.get("deadline") in SHORT:
                return [boom, value]  # an overrun is an attempt as well, and a deadline leaves no time for more
            case "flaky":
                return [boom if self.act.fails >= self.most_runs else value]
            case "obey":
                return []
            case "nest":
                assert self.act.inner is not None
                inner = self.act.inner[1]
                passed = ("boom", inner.number) if inner.does == "error" else ("value", ("nest", inner.number))
                return [passed, RAISED, AWAITED] if self.may_be_cut else [passed]
        return [value]

    def takes_along(self) -> bool:
        assert self.end is not None
        return self.end[0] != "value"  # its arguments, and what its coroutine awaits

    def check_runs(self, runs: int) -> None:
        """Hold the number of its runs against the model."""
        assert self.end is not None
        least = 1 if self.end[0] == "value" or self.end == ("boom", self.act.number) else 0
        assert least <= runs <= self.most_runs, f"{self} has run {runs} times"
        if self.must_not_run_again is not None:
            assert runs == self.must_not_run_again, (
                f"{self} has run {runs} times, {self.must_not_run_again} when cancelled"
            )

    def describe(self) -> dict[str, object]:
        return {"act": self.act, "kind": self.kind, "terms": self.terms, **super().describe()}


class Refused(Node):
    """What stands for a call that its pool had no room for, or its group, so that what is drawn next is the same."""

    def __init__(self, future: Future[Any], act: Act) -> None:
        super().__init__(future)
        self.act = act

    def possible(self) -> list[End]:
        return [("boom", self.act.number)]


class Chained(Node):
    """A link of a chain."""

    def __init__(self, future: Future[Any], how: str, source: Node, calls: list[Any], pool: str | None) -> None:
        super().__init__(future, source)
        self.how = how
        self.calls = calls
        self.pool = pool

    def sort(self) -> str:
        return self.how

    def is_wanted(self) -> bool:
        """Tell whether its function is for the end that its source had."""
        end = self.sources[0].end
        assert end is not None
        match self.how.partition(" ")[0]:
            case "then":
                return end[0] == "value"
            case "catch":
                return end[0] != "value" and end not in (CANCELLED, AWAITED)
            case "catch_boom":
                return end[0] == "boom"
        return True

    def possible(self) -> list[End]:
        end = self.sources[0].end
        assert end is not None
        if not self.is_wanted():
            return [end]
        match self.how.split():
            case [_, "error"]:
                return [("boom", id(self.calls))]
            case ["finally_"]:
                return [end]
        return [("value", (self.how, end[1] if end[0] == "value" else as_error(end)))]

    def check(self) -> None:
        super().check()
        least, most = int(self.is_wanted()), int(self.is_wanted())
        if self.end == SHUT or (self.end == CANCELLED and not (self.how.startswith("finally_") and self.pool is None)):
            least = 0
        assert least <= len(self.calls) <= most, f"{self}: called {len(self.calls)} times"

    def describe(self) -> dict[str, object]:
        return {"how": self.how, "pool": self.pool, "source": self.sources[0], **super().describe()}


class Combined(Node):
    """A future of several futures."""

    def __init__(self, future: Future[Any], how: str, *sources: Node) -> None:
        super().__init__(future, *sources)
        self.how = how

    def sort(self) -> str:
        return self.how

    def possible(self) -> list[End]:
        ends = [source.end for source in self.sources if source.end]
        values = [end for end in ends if end[0] == "value"]
        failures = [end for end in ends if end[0] != "value"]
        match self.how:
            case "gather":
                return failures or [("value", tuple(end[1] for end in ends))]
            case "gather_all":
                return [("value", tuple(end[1] if end[0] == "value" else as_error(end) for end in ends))]
            case "settle":
                return [("value", tuple(map(as_error, ends)))]
            case "race":
                return [*ends]
        return values or [("group", *map(as_error, failures))]

    def takes_along(self) -> bool:
        assert self.end is not None
        return self.how == "gather" and self.end[0] != "value"

    def describe(self) -> dict[str, object]:
        return {"how": self.how, "sources": self.sources, **super().describe()}


# -- what is drawn ----------------------------------------------------------------------------------------------------


def is_boom(error: Exception) -> bool:
    """Say what is tried again."""
    return isinstance(error, BoomError)


RETRIES: Final = (
    Retry(BoomError, attempts=3, wait_initial=0, wait_jitter=0),
    Retry((BoomError, TaskTimeoutError), attempts=2, wait_initial=0.002, wait_jitter=0),
    Retry(is_boom, attempts=2, wait_initial=0.001, wait_jitter=0),
)
INNER: Final = {  # what a call makes in its body must not hang on the gate, if the machine's own thread runs it
    "thread": ["thread", "gated", "process", "loop", "inline"],
    "gated": ["thread", "gated", "process", "loop", "inline"],
    "process": ["thread", "process", "loop", "inline"],
    "loop": ["thread", "process", "loop"],
    "inline": ["inline"],
}
TIMES: Final = st.sampled_from([*SHORT, LONG])
TERMS: Final = st.fixed_dictionaries(
    {},
    optional={
        "timeout": TIMES,
        "deadline": TIMES,
        "retry": st.sampled_from(RETRIES),
        "limit": st.sampled_from([1, 2]),
        "rate": st.just("5/20ms"),
        "priority": st.sampled_from([-1, 1, 5]),
    },
)
TERMS_OR_NONE: Final = st.one_of(st.just({}), TERMS)
DEEDS: Final = st.sampled_from(["value", "value", "error", "flaky", "hold", "hold", "obey", "nest"])
LINKS: Final = ("then", "then error", "then task", "catch", "catch_boom", "catch error", "finally_", "finally_ error")
COMBINATORS: Final[dict[str, Callable[..., Future[Any]]]] = {
    "gather": gather,
    "gather_all": lambda *futures: gather(*futures, return_exceptions=True),
    "settle": settle,
    "race": race,
    "first": first,
}


def steered(kind: str, terms: dict[str, Any]) -> dict[str, Any]:
    """Leave out those terms that meet a known defect."""
    terms = dict(terms)
    if kind == "inline":
        terms.pop("limit", None)  # 8, 26
        terms.pop("rate", None)
    return terms


def is_kept(node: Node) -> bool:
    """Tell whether a known defect keeps a future alive: 19, 20."""
    return any(
        isinstance(one, Called) and one.terms.keys() & {"limit", "rate", "timeout"} for one in (node, *node.sources)
    )


# -- the machine ------------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Everything that a program may do with calls, in any order."""

    nodes = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        LOGGER.setLevel(logging.CRITICAL)  # pytest keeps what is logged, and errors refer to futures
        self.threads = set(threading.enumerate())
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name, "runs")
        self.numbers = count(1)
        self.all: list[Node] = []
        self.waiters: list[tuple[threading.Thread, Node, list[End]]] = []
        self.gate = 0
        self.ending = "calm"
        for known in (machine_jobs.RUNS, machine_jobs.MADE, machine_jobs.BUSY, machine_jobs.MOST, machine_jobs.GATES):
            known.clear()
        machine_jobs.GATES[0] = HoldingGate()
        self.registry = Registry({"pools": POOLS})
        self.pools = {kind: self.registry.pool(kind) for kind in POOLS}
        self.block = using(self.registry)
        self.block.__enter__()

    @initialize(ending=st.sampled_from(["calm", "hurry", "cancel"]))
    def choose_the_end(self, ending: str) -> None:
        """Choose whether the registry is shut down when all has ended, before, or with *cancel_futures*."""
        self.ending = ending

    # -- making futures ---------------------------------------------------------------------------------------------

    @rule(
        target=nodes, does=DEEDS, kind=st.sampled_from(KINDS), terms=TERMS_OR_NONE, coro=st.booleans(), data=st.data()
    )
    def call(self, does: str, kind: str, terms: dict[str, Any], coro: bool, data: st.DataObject) -> Node:
        """Call a task, under whatever terms, that does whatever a task may do."""
        return self._call(does, kind, terms, coro, data)

    @rule(
        target=nodes, does=DEEDS, kind=st.sampled_from(KINDS), terms=TERMS_OR_NONE, coro=st.booleans(), data=st.data()
    )
    def call_twice(self, does: str, kind: str, terms: dict[str, Any], coro: bool, data: st.DataObject) -> Any:
        """Call two in a row, the second of which may have to wait for the first."""
        return multiple(*[self._call(does, kind, terms, coro, data) for _ in range(2)])

    @rule(
        target=nodes,
        kind=st.sampled_from(KINDS),
        terms=TERMS_OR_NONE,
        coro=st.booleans(),
        given=st.lists(nodes, min_size=1, max_size=2),
    )
    def call_with_futures(self, kind: str, terms: dict[str, Any], coro: bool, given: list[Node]) -> Node:
        """Call a task with futures as arguments."""
        return self._submit("value", kind, terms, coro, *given)

    @rule(target=nodes, kind=st.sampled_from(["thread", "loop"]), terms=TERMS_OR_NONE, coro=st.booleans(), on=nodes)
    def call_that_waits(self, kind: str, terms: dict[str, Any], coro: bool, on: Node) -> Node:
        """Call a task that waits for a future in its body: by `result()`, or by `await`."""
        return self._submit("wait", kind, terms, coro, on)

    @rule(
        target=nodes,
        deeds=st.lists(st.sampled_from(["value", "error", "flaky", "hold", "obey"]), min_size=1, max_size=3),
        kinds=st.lists(st.sampled_from(KINDS), min_size=3, max_size=3),
        coro=st.booleans(),
        limit=st.sampled_from([None, 1, 2]),
        data=st.data(),
    )
    def call_in_a_group(
        self, deeds: list[str], kinds: list[str], coro: bool, limit: int | None, data: st.DataObject
    ) -> Any:
        """Make calls in a group; when its block has ended, so have they."""
        terms = {"deadline": max(SHORT)}  # the machine's own thread waits for them
        limit = None if "inline" in kinds else limit  # 8, 26
        made: list[Node] = []
        with suppress(ExceptionGroup), TaskGroup(limit=limit):
            for does, kind in zip(deeds, kinds, strict=False):
                made.append(self._call(does, kind, terms, coro, data))
                made[-1].expect_cancellation()
        assert all(node.future.done() for node in made)
        return multiple(*made)

    def _call(self, does: str, kind: str, terms: dict[str, Any], coro: bool, data: st.DataObject) -> Node:
        is_bounded = any(terms.get(what) in SHORT for what in ("timeout", "deadline"))
        if (kind == "inline" and does == "hold") or (does == "obey" and not is_bounded):
            does = "value"  # nobody could let it go on
        coro = coro and not (does == "obey" and kind in ON_THREADS)  # a coroutine that sleeps there hears of nothing
        return self._submit(does, kind, terms, coro, data=data)

    def _submit(
        self, does: str, kind: str, terms: dict[str, Any], coro: bool, *given: Node, data: st.DataObject | None = None
    ) -> Node:
        terms = steered(kind, terms)
        act = self._act(does, kind, terms, coro, data)
        arguments: list[Any] = [unresolved(node.future) if does == "wait" else node.future for node in given]
        try:
            future = task_of(kind, is_coroutine=coro).options(**terms)(act, *arguments)
        except (PoolFullError, CancelledError):  # its pool is full; its group has been cancelled
            return self._note(Refused(failed(BoomError(act.number)), act))
        return self._note(Called(future, act, kind, terms, *given))

    def _act(self, does: str, kind: str, terms: dict[str, Any], coro: bool, data: st.DataObject | None) -> Act:
        act = Act(does, next(self.numbers), os.getpid(), str(self.log), self.gate)
        limit = terms.get("limit")
        if limit and does not in ("nest", "wait"):  # those lend their places
            act = act._replace(place=f"{kind} {coro or kind == 'loop'} {limit} {terms.get('rate')}")
        if does == "hold" and kind == "process":
            return act._replace(address=machine_jobs.GATES[self.gate].address())
        if does == "flaky" and data is not None:
            return act._replace(fails=data.draw(st.sampled_from([1, 2])))
        if does == "nest" and data is not None:
            inner = data.draw(st.sampled_from(["value", "error"]))
            inside = Act(inner, next(self.numbers), os.getpid(), str(self.log))
            return act._replace(inner=(data.draw(st.sampled_from(INNER[kind])), inside))
        return act

    def _note(self, node: Node) -> Node:
        self.all.append(node)
        return node

    @rule(
        target=nodes, source=nodes, how=st.sampled_from(LINKS), pool=st.sampled_from([None, None, "thread", "inline"])
    )
    def chain(self, source: Node, how: str, pool: str | None) -> Node:
        """Chain a function, or a call of a task, to a future."""
        if how == "then task":
            pool = None  # machine.md 1
        calls: list[Any] = []
        inner = Act("value", next(self.numbers), os.getpid(), str(self.log))

        def follow(*given: Any) -> Any:
            calls.append(None)  # not what was given: an error refers to frames, and these to futures
            if how.endswith("error"):
                raise BoomError(id(calls))
            if how.endswith("task"):
                machine_jobs.MADE.append(task_of("thread")(inner))
                return task_of("loop")(inner).then(lambda _: (how, read(given[0])))
            return (how, read(given[0])) if given else None

        method = how.partition(" ")[0]
        types = (BoomError,) if method == "catch_boom" else ()
        future = getattr(source.future, method.removesuffix("_boom"))(*types, follow, pool=pool)
        return self._note(Chained(future, how, source, calls, pool))

    @rule(target=nodes, sources=st.lists(nodes, min_size=1, max_size=4), how=st.sampled_from(sorted(COMBINATORS)))
    def combine(self, sources: list[Node], how: str) -> Node:
        """Make one future of several."""
        return self._note(Combined(COMBINATORS[how](*[node.future for node in sources]), how, *sources))

    @rule(node=nodes, wish=st.sampled_from(["done", "success", "failure"]), fails=st.booleans())
    def add_side_effect(self, node: Node, wish: str, fails: bool) -> None:
        """Add a callback, which may fail itself."""
        told: list[End] = []
        node.side_effects.append((wish, told))

        def note(given: Any) -> None:
            told.append(
                end_of(given) if wish == "done" else ("value", read(given)) if wish == "success" else end_by(given)
            )
            if fails:
                raise BoomError("of a callback")

        if wish == "done":
            node.future.add_done_callback(note)
        else:
            assert getattr(node.future, f"on_{wish}")(note) is node.future

    # -- what happens to them ---------------------------------------------------------------------------------------

    @rule(node=nodes, running=st.booleans())
    def cancel(self, node: Node, running: bool) -> None:
        """Cancel a future, and a process if it runs there."""
        node.expect_cancellation()
        if node.future.cancel(running=running):
            assert node.future.cancelled()
            # On a thread nothing that has been started can be cancelled: it was in the queue, or between attempts.
            if isinstance(node, Called) and node.kind in ON_THREADS:
                node.must_not_run_again = machine_jobs.RUNS.count(node.act.number)

    @rule()
    def open_the_gate(self) -> None:
        """Let the held calls go on; those to come are held at the next."""
        machine_jobs.GATES[self.gate].open()
        self.gate += 1
        machine_jobs.GATES[self.gate] = HoldingGate()

    @rule(seconds=st.sampled_from(SHORT))
    def let_time_pass(self, seconds: float) -> None:
        """Let short timeouts pass."""
        time.sleep(seconds)

    @rule(node=nodes)
    def ask_for_the_result(self, node: Node) -> None:
        """Ask for the result with a timeout, which says nothing about the call."""
        with suppress(TimeoutError, BoomError, CancelledError, asyncio.CancelledError, ExceptionGroup):
            node.future.result(timeout=0.005)

    @rule(some=st.lists(nodes, min_size=1, max_size=4), how=st.sampled_from(["wait", "theirs", "ours"]))
    def wait_for_some(self, some: list[Node], how: str) -> None:
        """Wait for several for a moment, in our ways and in those of the standard library."""
        futures = [node.future for node in some]
        if how == "wait":
            assert wait(futures, timeout=0.005)[0] <= set(futures)
            concurrent.futures.wait(futures, timeout=0.005)
        else:
            arrivals = as_completed if how == "ours" else concurrent.futures.as_completed
            with suppress(TimeoutError):
                for future in arrivals(futures, timeout=0.005):
                    assert future.done()

    @rule(node=nodes)
    def have_a_thread_wait(self, node: Node) -> None:
        """Have a thread wait for the end, however long that takes."""
        told: list[End] = []
        future = node.future

        def wait_for_it() -> None:
            concurrent.futures.wait([future], timeout=LONG)
            with suppress(BaseException):
                future.result(timeout=LONG)
            told.append(end_of(future))

        thread = threading.Thread(target=wait_for_it)
        thread.start()
        self.waiters.append((thread, node, told))

    # -- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def ends_are_final(self) -> None:
        """What has ended stays as it is."""
        for node in self.all:
            if node.future.done():
                end = end_of(node.future)
                assert node.end in (None, end), f"{node} has ended once more, with {end}"
                node.end = end

    @invariant()
    def held_calls_are_held(self) -> None:
        """What waits at a gate that is closed has no value."""
        for node in self.all:
            if isinstance(node, Called) and node.act.does == "hold" and node.act.gate == self.gate:
                assert node.end is None or node.end[0] != "value"

    def teardown(self) -> None:
        """See how all ends."""
        try:
            for gate in machine_jobs.GATES.values():
                gate.open()
            if self.ending == "cancel":
                for node in self.all:
                    node.may_be_cancelled = node.may_be_cut = True
            if self.ending == "calm":
                self._all_end()
                self._nothing_is_left()
                self._no_place_is_lost()
            self._shut_down()
            self._all_end()
            self._ends_are_possible()
            self._runs_are_allowed()
            self._nothing_stays()
        finally:
            self.block.__exit__(None, None, None)
            self.folder.cleanup()
            LOGGER.setLevel(logging.NOTSET)
            super().teardown()

    def _all_end(self) -> None:
        futures = [*(node.future for node in self.all), *machine_jobs.MADE]
        late = concurrent.futures.wait(futures, timeout=LONG).not_done
        assert not late, f"never ended: {[node for node in self.all if node.future in late]}"
        for thread, node, told in self.waiters:
            thread.join(LONG)
            assert told == [end_of(node.future)], f"{node}: who waited was told {told}"
        self.ends_are_final()

    def _shut_down(self) -> None:
        in_time(lambda: self.registry.shutdown(cancel_futures=self.ending == "cancel"))
        for pool in self.pools.values():
            self._comes_to_rest(pool, workers=0)

    def _nothing_is_left(self) -> None:
        """See that no pool has anything to do: no straggler either, as all gates are open."""
        for pool in self.pools.values():
            in_time(pool.idle)
            self._comes_to_rest(pool)

    def _comes_to_rest(self, pool: Pool, workers: int | None = None) -> None:
        """See that nothing waits or runs; what is a straggler tells nobody when it has gone, as all gates are open."""
        deadline = time.monotonic() + LONG
        while (stats := pool.stats()).stragglers or (workers is not None and stats.workers != workers):
            assert time.monotonic() < deadline, f"{pool.label}: {stats}"
            time.sleep(0.001)
        assert (stats.queued, stats.running) == (0, 0), f"{pool.label}: {stats}"

    def _no_place_is_lost(self) -> None:
        """See that as many calls get under each limit as may, and as many into the queue that is bounded."""
        for kind, limit, rate in {
            (node.kind, node.terms["limit"], node.terms.get("rate"))
            for node in self.all
            if isinstance(node, Called) and "limit" in node.terms and node.kind in ("thread", "loop")
        }:
            self._run_at_once(kind, limit, rate)

    def _run_at_once(self, kind: str, limit: int, rate: str | None) -> None:
        gate = machine_jobs.GATES[-1] = HoldingGate()
        terms: dict[str, Any] = {"limit": limit} | ({"rate": rate} if rate else {})
        acts = [Act("hold", next(self.numbers), os.getpid(), "", -1) for _ in range(limit)]
        futures = [task_of(kind).options(**terms)(act) for act in acts]
        deadline = time.monotonic() + LONG
        while not {act.number for act in acts} <= set(machine_jobs.RUNS):
            assert time.monotonic() < deadline, f"a place of limit {limit} of {kind} is lost"
            time.sleep(0.001)
        gate.open()
        assert [future.result(LONG) for future in futures] == [act.number for act in acts]

    def _ends_are_possible(self) -> None:
        for node in self.all:
            if node.takes_along():
                for source in node.sources:
                    source.expect_cancellation()
        for node in self.all:
            node.check()
            event(f"{node.sort()}: {node.end and node.end[0]}")

    def _runs_are_allowed(self) -> None:
        runs = machine_jobs.runs(self.log)
        for node in self.all:
            if isinstance(node, Called):
                node.check_runs(runs[node.act.number])
        for place, most in machine_jobs.MOST.items():
            assert not place or most <= int(place.split()[2]), f"{most} ran at a time under the limit {place}"

    def _nothing_stays(self) -> None:
        """See that no thread is left; the default registry's run what followed after the end of this one."""
        parallel.registry.reset()
        deadline = time.monotonic() + LONG
        while left := {thread for thread in threading.enumerate() if "timer" not in thread.name} - self.threads:
            assert time.monotonic() < deadline, f"left: {left}, of {self.registry._callbacks}"
            time.sleep(0.001)
        self._no_future_is_kept()

    def _no_future_is_kept(self) -> None:
        """See that, once nobody holds them here, the collector takes all futures."""
        refs = []
        for node in self.all:
            if not is_kept(node):
                refs.append((weakref.ref(node.future), repr(node)))
            del node.future
        self.waiters.clear()
        machine_jobs.MADE.clear()
        deadline = time.monotonic() + LONG
        while kept := self._alive(refs):
            parallel.timer.TIMER.close()  # it drops at leisure what has been cancelled
            future, text = kept[0]
            assert time.monotonic() < deadline, f"kept alive: {text}, by\n" + "\n".join(holders(future))
            del kept, future
            time.sleep(0.01)  # who reports the errors that nobody has looked at drops them in its own time

    @staticmethod
    def _alive(refs: list[tuple[weakref.ref[Future[Any]], str]]) -> list[tuple[Future[Any], str]]:
        gc.collect()
        return [(future, text) for ref, text in refs if (future := ref()) is not None]


def holders(kept: object) -> list[str]:
    """Say what refers to *kept*, and what to that, and so on, to find who keeps it."""
    found: list[str] = []
    seen = {id(kept), id(sys._getframe(1)), id(sys._getframe()), id(found)}
    ahead: list[tuple[int, Any]] = [(0, kept)]
    while ahead and len(found) < 60:
        depth, one = ahead.pop()
        for holder in gc.get_referrers(one):
            if id(holder) not in seen and holder is not ahead and depth < 12:
                seen.add(id(holder))
                found.append(f"{'  ' * depth}{holder!r:.150}")
                ahead.append((depth + 1, holder))
    return found


def in_time(fn: Callable[[], object]) -> None:
    """Call *fn* on a thread, and insist that it returns."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            fn()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), f"{fn} hangs"
    if problems:
        raise problems[0]


Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MACHINE_EXAMPLES") or 80),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shorten a run that hangs takes too long
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase

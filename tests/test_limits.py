"""
Limits and rates: how many bodies are at work, who goes on first, and to whom a waiting body lends its place.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextvars import copy_context
from typing import Any

import jobs
import pytest
from clocks import Stage
from jobs import AT_ONCE, frequent_switches
from pools.process_jobs import wait_until

from parallel import Future, Rate, Registry, Retry, TaskGroup, TaskTimeoutError, detached, gather, task, using, wait
from parallel.context import WITHIN, Within
from parallel.delivery import INLINE
from parallel.limits import Limits
from parallel.states import BARE

LONG = 30  # seconds; only a deadlock takes so long
POOLS: dict[str, Any] = {
    "pools": {
        "one": {"kind": "thread", "max_workers": 1},
        "many": {"kind": "thread", "max_workers": 8},
        "inline": {"kind": "inline"},
        "processes": {"kind": "process", "max_workers": 2},
    }
}


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """A registry with a pool of each kind."""
    with using(POOLS) as made:
        yield made


class Counter:
    """Counts the bodies that are at work; the most is what a limit bounds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0
        self.starts: list[float] = []

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.starts.append(time.monotonic())

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


# -- the limit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("pool", ["many", "loop", "inline"])
def test_never_exceeded(pool: str, limit: int) -> None:
    """However many calls there are, and however they end, no more bodies are at work than the limit says."""
    counter = Counter()

    def body(i: int) -> int:
        with counter:
            time.sleep(0)
            if i % 5 == 0:
                raise OSError
            return i

    async def on_loop(i: int) -> int:
        with counter:
            await asyncio.sleep(0)
            if i % 5 == 0:
                raise OSError
            return i

    fn: Any = task(pool=pool, limit=limit, retry=Retry(OSError, attempts=2, **AT_ONCE))
    limited = fn(on_loop if pool == "loop" else body)
    futures = [limited(i) for i in range(100)]
    assert [future.exception(LONG) is None for future in futures] == [i % 5 != 0 for i in range(100)]
    assert counter.most <= limit


def test_never_exceeded_by_processes() -> None:
    """A limit bounds the processes that run a task, too."""
    with jobs.Gate() as gate:
        limited = task(pool="processes", limit=1)(jobs.wait_at)
        futures = [limited(gate.address, i) for i in range(3)]
        gate.arrived()
        assert [future.running() for future in futures] == [True, False, False]
        gate.open()
        assert [future.result(LONG) for future in futures] == [0, 1, 2]


def test_holds_no_worker() -> None:
    """What waits for a place waits in no worker."""
    go = threading.Event()
    limited = task(pool="many", limit=1)(go.wait)
    futures = [limited() for _ in range(20)]
    assert [task(pool="many")(jobs.double)(i).result(LONG) for i in range(8)] == list(range(0, 16, 2))
    go.set()
    assert all(future.result(LONG) for future in futures)


def test_straggler_holds_its_place() -> None:
    """A body that has overrun its timeout holds its place until it ends."""
    go = threading.Event()
    counter = Counter()

    def body(waits: bool) -> None:
        with counter:
            if waits:
                go.wait(LONG)

    limited = task(pool="many", limit=1, timeout=0.03)(body)
    late, next_one = limited(True), limited.options(timeout=LONG)(False)
    assert isinstance(late.exception(LONG), TaskTimeoutError)
    with pytest.raises(TimeoutError):
        next_one.result(0.03)
    go.set()
    assert next_one.result(LONG) is None
    assert counter.most == 1


def test_straggler_and_the_next_attempt() -> None:
    """The attempts of one call hold a place each: a straggler that ends gives back its own."""
    go, held = threading.Event(), threading.Event()
    counter = Counter()
    attempts: list[int] = []

    def body() -> int:
        with counter:
            attempts.append(1)
            (go if len(attempts) == 1 else held).wait(LONG)
            return len(attempts)

    retry = Retry(TaskTimeoutError, attempts=2, **AT_ONCE)
    limited = task(pool="many", limit=2, timeout=0.5, retry=retry)(body)
    future = limited()
    wait_until(lambda: len(attempts) == 2)
    go.set()
    others = [limited.options(timeout=LONG)() for _ in range(3)]
    held.set()
    assert future.result(LONG)
    assert all(other.result(LONG) for other in others)
    assert counter.most <= 2


def test_coroutine_holds_its_place_until_it_has_ended() -> None:
    """A coroutine that is cancelled holds its place until its `finally` is through."""
    counter = Counter()

    @task(limit=1, timeout=0.02, retry=Retry(attempts=3, **AT_ONCE))
    async def body() -> None:
        with counter:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.005)

    futures = [body() for _ in range(3)]
    assert all(isinstance(future.exception(LONG), TaskTimeoutError) for future in futures)
    assert counter.most == 1


def test_shared_by_copies_and_bound_tasks() -> None:
    """Copies by options(), and the same method of several objects, share the places of a task."""
    counter = Counter()

    class Thing:
        @task(pool="many", limit=1)
        def work(self) -> None:
            """Count."""
            with counter:
                time.sleep(0)

    futures = [call() for thing in (Thing(), Thing()) for call in (thing.work, thing.work.options(priority=1))]
    futures += [thing.work() for thing in [Thing() for _ in range(20)]]
    for future in futures:
        future.result(LONG)
    assert counter.most == 1


def test_priority_and_order() -> None:
    """Of those that wait, the one with the highest priority goes on first; of one priority, the first to come."""
    go = threading.Event()
    seen: list[int] = []

    def body(i: int) -> None:
        if i < 0:
            assert go.wait(LONG)
        seen.append(i)

    limited = task(pool="many", limit=1)(body)
    futures = [limited(-1)]
    futures += [limited.options(priority=priority)(i) for i, priority in enumerate([0, 5, 0, 5, -1, 9])]
    go.set()
    for future in futures:
        future.result(LONG)
    assert seen == [-1, 5, 1, 3, 0, 2, 4]


def test_cancelled_waiters() -> None:
    """Calls that are cancelled while they wait take no place, and keep nothing alive."""
    go = threading.Event()
    limited = task(pool="many", limit=1)(lambda *_: go.wait(LONG))
    first = limited()
    waiters = [limited(jobs.Weird()) for _ in range(50)]
    assert all(waiter.cancel() for waiter in waiters)
    last = limited()
    refs = [weakref.ref(waiter) for waiter in waiters]
    del waiters
    go.set()
    assert first.result(LONG)
    assert last.result(LONG)
    assert all(ref() is None for ref in refs)


def test_limit_of_a_file() -> None:
    """A limit of a file holds in place of the decorator's."""
    counter = Counter()

    def body() -> None:
        with counter:
            time.sleep(0.001)

    limited = task(pool="many", limit=8)(body)
    with using({**POOLS, "tasks": {limited.name: {"limit": 1}}}):
        wait([limited() for _ in range(20)])
    assert counter.most == 1


def test_limit_of_a_group(registry: Registry) -> None:
    """The limit of a group holds for all the calls that are made in it, besides their own."""
    counter = Counter()

    class Group:
        limits = Limits(2)

        def adopt(self, future: Any, /) -> None:
            """Take it."""

    both = threading.Barrier(2)

    def body() -> None:
        with counter:
            both.wait(LONG)

    def run() -> list[Future[None]]:
        WITHIN.set(Within(registry, Group()))
        tasks = [task(pool="many", limit=5)(body), task(pool="many")(body)]
        return [each() for each in tasks for _ in range(10)]

    for future in copy_context().run(run):
        future.result(LONG)
    assert counter.most == 2


def test_many_threads() -> None:
    """Calls from many threads that fail, are cancelled and overrun leave all places free."""
    counter = Counter()

    def body(i: int) -> None:
        with counter:
            if i % 3 == 0:
                raise OSError

    limited = task(pool="many", limit=2, retry=Retry(OSError, attempts=2, **AT_ONCE))(body)

    def caller() -> None:
        futures = [limited(i) for i in range(40)]
        for future in futures[::4]:
            future.cancel()
        for future in futures:
            try:
                future.exception(LONG)
            except CancelledError:
                assert future.cancelled()

    with frequent_switches():
        threads = [threading.Thread(target=copy_context().run, args=(caller,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert counter.most <= 2
    assert limited(1).result(LONG) is None


# -- lending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["one", "many", "inline"])
def test_recursion_with_a_limit_of_one(pool: str) -> None:
    """A task with limit=1 may call itself and wait: no two bodies are at work."""
    working = threading.Lock()

    def body(depth: int) -> int:
        assert working.acquire(timeout=LONG)
        call = limited(depth - 1) if depth and pool != "inline" else None
        working.release()
        value = limited(depth - 1).result() if depth and call is None else call.result() if call else 0
        assert working.acquire(timeout=LONG)
        working.release()
        return value + 1

    limited = task(pool=pool, limit=1)(body)
    assert limited(40).result(LONG) == 41


def test_recursion_of_coroutines() -> None:
    """So may a coroutine that awaits itself, also twice at once."""

    async def body(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(await asyncio.gather(wrapped(depth - 1), wrapped(depth - 1)))

    async def wrapped(depth: int) -> int:
        return await limited(depth)

    limited: Any = task(limit=1)(body)
    assert limited(5).result(LONG) == 32


@pytest.mark.parametrize("how", ["then", "gather", "flattened", "arguments", "wait", "await", "blocks in a then"])
@pytest.mark.parametrize("between", ["many", "one", "loop"])
def test_lent_through_others(between: str, how: str) -> None:
    """A place is lent through what lies between: other pools, chains, combinations, arguments, awaiting."""

    def middle(x: int) -> int:
        return inner(x).result(LONG)

    async def middle_on_loop(x: int) -> int:
        return await inner(x)

    def body() -> Any:
        if how == "then":
            return other(1).then(other).result(LONG)
        if how == "gather":
            return sum(gather(other(1), other(1)).result(LONG))
        if how == "flattened":
            return other(1).then(lambda x: other(x)).result(LONG)
        if how == "arguments":
            return other.submit(other(1)).result(LONG)
        if how == "wait":
            return sum(future.result() for future in wait([other(1), other(1)]).done)
        if how == "blocks in a then":
            return other(1).then(lambda x: other(x).result(LONG)).result(LONG)
        return asyncio.run(awaited())

    async def awaited() -> int:
        return await other(await other(1))

    other: Any = task(pool=between)(middle_on_loop if between == "loop" else middle)  # type: ignore[call-overload]
    limited = task(pool="many", limit=1)(lambda x=None: body() if x is None else x * 2)
    inner = limited
    assert limited().result(LONG) == 4


def test_coroutine_that_waits_for_two() -> None:
    """A coroutine that goes on with the one still lends to what the other hangs on."""
    go = threading.Event()

    async def body(x: int) -> int:
        if x:
            return x
        return sum(await asyncio.gather(first(), second()))

    async def first() -> int:
        return await quick(1)

    async def second() -> int:
        return await slow()

    def middle() -> int:
        assert go.wait(LONG)
        return limited(2).result(LONG)

    def note(x: int) -> int:
        threading.Timer(0.02, go.set).start()
        return x

    quick, slow = task(pool="one")(note), task(pool="many")(middle)
    limited: Any = task(limit=1)(body)
    assert limited(0).result(LONG) == 3


def test_lent_to_nobody_else() -> None:
    """A waiting body lends its place to what it waits for, and to no stranger."""
    seen: list[str] = []
    go = threading.Event()
    inside = threading.Event()

    def body(name: str) -> None:
        if name == "first":
            inside.set()
            assert other().result(LONG)
        seen.append(name)

    other = task(pool="many")(lambda: go.wait(LONG))
    limited = task(pool="many", limit=1)(body)
    first = limited("first")
    assert inside.wait(LONG)
    stranger = limited("stranger")
    with pytest.raises(TimeoutError):
        stranger.result(0.03)
    go.set()
    assert first.result(LONG) is stranger.result(LONG) is None
    assert seen == ["first", "stranger"]


@pytest.mark.parametrize("how", ["returned", "a task"])
def test_lent_to_what_a_chain_goes_on_with(how: str) -> None:
    """A place is lent to a call that waits for it already when a continuation returns it."""

    def body(x: int | None = None) -> int:
        if x is not None:
            return x
        return other(1).then((lambda x: limited(x)) if how == "returned" else limited).result(LONG)

    other = task(pool="many")(jobs.double)
    limited: Any = task(pool="many", limit=1)(body)
    assert limited().result(LONG) == 2


def test_lent_to_what_is_waited_for_deep_inside() -> None:
    """A place is lent to a call that other bodies waited for before this one did."""
    is_awaited = threading.Event()

    def body(x: int | None = None) -> int:
        return outer().result(LONG) if x is None else x

    def middle() -> int:
        call = inner()
        assert is_awaited.wait(LONG)
        return call.result(LONG)

    limited: Any = task(pool="many", limit=1)(body)
    inner = task(pool="many")(lambda: wanted.append(limited(1)) or wanted[0].result(LONG))
    outer = task(pool="many")(middle)
    wanted: list[Any] = []
    first = limited()
    wait_until(lambda: wanted and wanted[0]._is_sought)
    is_awaited.set()
    assert first.result(LONG) == 1


def test_lent_to_the_last_of_a_group() -> None:
    """A body that waits at the end of its group lends its place to members that nobody has waited for."""

    def body(x: int | None = None) -> int:
        if x is None:
            with TaskGroup():
                maker()
            return 7
        return x

    def make() -> None:
        wait_until(first.awaited)
        limited(1)

    limited: Any = task(pool="many", limit=1)(body)
    maker = task(pool="many")(make)
    first = limited()
    assert first.result(LONG) == 7


# -- several limits ---------------------------------------------------------------------------------------------------


class Inside:
    """The context of a group's block: what is called by it belongs to the group, whoever calls it."""

    def __init__(self) -> None:
        self._context = copy_context()

    def __call__(self, fn: Callable[[], Any]) -> Any:
        """Call *fn* there."""
        return self._context.copy().run(fn)


@pytest.mark.parametrize("pool", ["many", "loop"])
def test_hold_and_wait(pool: str) -> None:
    """A call that holds its group's place gets that of a body which waits for another call of the group."""
    begun, go = threading.Event(), threading.Event()
    inside: list[Inside] = []

    def body(x: int | None = None) -> int:
        if x is not None:
            return x
        begun.set()
        assert go.wait(LONG)
        return inside[0](other).result(LONG)

    async def on_loop(x: int | None = None) -> int:
        if x is not None:
            return x
        begun.set()
        while not go.is_set():
            await asyncio.sleep(0)
        return await inside[0](other)

    fn: Any = on_loop if pool == "loop" else body
    limited: Any = task(pool=pool, limit=1)(fn)
    other = task(pool="many")(lambda: 5)
    first = limited()
    assert begun.wait(LONG)
    with TaskGroup(limit=1):
        inside.append(Inside())
        second = limited(1)  # has the group's place, and waits for that of the first
        go.set()
        assert (first.result(LONG), second.result(LONG)) == (5, 1)


@pytest.mark.parametrize("first_to_wait", ["in the group", "outside"])
def test_two_bodies_with_a_place_each(first_to_wait: str) -> None:
    """Two bodies end that each wait for a call which needs the place of the other one."""
    both = threading.Barrier(2)
    waits = threading.Event()
    inside: list[Inside] = []

    def ask(make: Callable[[], Any], where: str) -> int:
        both.wait(LONG)
        if where == first_to_wait:
            call = make()
            threading.Timer(0, lambda: (wait_until(lambda: call._is_sought), waits.set())).start()
        else:
            assert waits.wait(LONG)
            call = make()
        return int(call.result(LONG))

    def body(x: int | None = None) -> int:
        return ask(lambda: inside[0](other), "outside") if x is None else x

    limited: Any = task(pool="many", limit=1)(body)
    other = task(pool="many")(lambda: 9)
    member = task(pool="many")(lambda: ask(lambda: limited(1), "in the group"))
    with TaskGroup(limit=1):
        inside.append(Inside())
        second = member()
        with detached():
            first = limited()
        assert (first.result(LONG), second.result(LONG)) == (9, 1)


def test_places_in_hand_help_nobody_who_works() -> None:
    """What waits for a place of a body at work gets it when that has ended, and not before."""
    go = threading.Event()
    counter = Counter()

    def body(waits: bool) -> None:
        with counter:
            assert not waits or go.wait(LONG)

    limited = task(pool="many", limit=1)(body)
    waiter = task(pool="many")(lambda: second.result(LONG))
    first, second = limited(True), limited(False)
    waiting = waiter()
    wait_until(lambda: waiting.awaited())
    assert not second.done()
    go.set()
    assert [future.result(LONG) for future in (first, second, waiting)] == [None] * 3
    assert counter.most == 1


def test_many_waiters_cost_little() -> None:
    """A call that waits for a place is not looked at by those that come, wait and go."""
    limits = Limits(2)
    told: list[Waiting] = []
    looks = 0

    class Watched(Waiting):
        def is_parked(self) -> bool:
            nonlocal looks
            looks += 1
            return True

    calls = [Watched(told.append) for _ in range(1000)]
    bodies = [Lender(), Lender()]
    for call in calls:
        limits.enter(call)
    for call, body in zip(calls[:2], bodies, strict=True):
        limits.lend(body)
        limits.unlend(body)
        limits.leave(call, body)
    assert told == calls[2:4]
    assert looks <= 8


def test_process_body_lends_nothing_but_ends() -> None:
    """Limits count in each process for itself: a task that calls itself in a worker runs inline there."""
    assert nested(3).result(LONG) == 3


@task(pool="processes", limit=1)
def nested(depth: int) -> int:
    """Call itself, so deep."""
    return 1 + nested(depth - 1).result() if depth else 0


# -- the rate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["many", "loop", "inline", "processes"])
def test_rate(pool: str) -> None:
    """In no period do more calls start than the rate says; nothing waits in a worker."""
    counter = Counter()

    def body() -> None:
        with counter:
            pass

    begun = time.monotonic()
    if pool == "processes":
        rated = task(pool=pool, rate="2/50ms")(jobs.nothing)
        wait([rated() for _ in range(6)])
        assert time.monotonic() - begun >= 0.1
        return
    limited: Any = task(pool=pool, rate="2/50ms")(jobs.to_async(body) if pool == "loop" else body)
    wait([limited() for _ in range(6)])
    # A body may begin later than its call went on, but no earlier.
    assert all(start - begun >= 0.05 * (i // 2) for i, start in enumerate(sorted(counter.starts)))


def test_rate_of_attempts() -> None:
    """Each attempt counts."""
    counter = Counter()

    def body() -> None:
        with counter:
            raise OSError

    for pool in ["many", "inline"]:
        counter.starts.clear()
        begun = time.monotonic()
        retry = Retry(OSError, attempts=3, **AT_ONCE)
        assert isinstance(task(pool=pool, rate="1/30ms", retry=retry)(body)().exception(LONG), OSError)
        assert len(counter.starts) == 3
        assert all(start - begun >= 0.03 * i for i, start in enumerate(counter.starts))


def test_rate_and_limit() -> None:
    """Both hold."""
    counter = Counter()

    def body() -> None:
        with counter:
            time.sleep(0.001)

    begun = time.monotonic()
    limited = task(pool="many", limit=1, rate="5/20ms")(body)
    wait([limited() for _ in range(20)])
    assert counter.most == 1
    assert all(start - begun >= 0.02 * (i // 5) for i, start in enumerate(counter.starts))


def test_rate_with_a_deadline() -> None:
    """A call for which the rate has no room before its deadline fails then."""
    rated = task(pool="many", rate="1/h", deadline=0.05)(jobs.double)
    first, second = rated(1), rated(2)
    assert first.result(LONG) == 2
    assert isinstance(second.exception(LONG), TaskTimeoutError)


def test_inline_place_with_a_deadline() -> None:
    """An inline call that waits for a place on its caller's thread fails at its deadline, there."""
    names: list[str] = []
    rated = task(pool="inline", rate="1/h", deadline=0.05)(jobs.double)
    assert rated(1).result(LONG) == 2
    future = rated(2)
    assert future.done()
    assert isinstance(future.exception(), TaskTimeoutError)
    future.on_failure(lambda _: names.append(threading.current_thread().name))
    assert names == ["MainThread"]


# -- by itself --------------------------------------------------------------------------------------------------------


class Waiting:
    """A call, as far as limits know it."""

    def __init__(self, told: Callable[[Waiting], object], priority: int = 0) -> None:
        self.priority = priority
        self.parked = True
        self._told = told

    def is_parked(self) -> bool:
        """Tell whether it waits."""
        return self.parked

    def is_waiting(self) -> bool:
        """Tell that its body is at work."""
        return False

    def admitted(self) -> None:
        """Note it."""
        self._told(self)


def test_places_of_limits() -> None:
    """Places are taken, waited for in order, given back and passed on."""
    told: list[Waiting] = []
    limits = Limits(2)
    calls = [Waiting(told.append, priority) for priority in (0, 0, 0, 1)]
    assert [limits.enter(call) for call in calls] == [True, True, False, False]
    limits.leave(calls[0])
    assert told == [calls[3]]
    calls[2].parked = False
    limits.leave(calls[1])
    assert told == [calls[3]]
    limits.leave(calls[3])
    assert [limits.enter(Waiting(told.append)) for _ in range(3)] == [True, True, False]


def test_cancelled_waiter_is_not_kept() -> None:
    """A call that has been cancelled while it waited is let go at once, though others wait and no place comes free."""
    limits = Limits(1)
    holder, other, cancelled = Waiting(lambda _: None), Waiting(lambda _: None), Waiting(lambda _: None)
    assert [limits.enter(call) for call in (holder, other, cancelled)] == [True, False, False]
    kept = weakref.ref(cancelled)
    limits.forget(cancelled)
    del cancelled
    assert kept() is None


def test_rate_alone_bounds_nothing_at_a_time() -> None:
    """Without a limit, a rate lets as many go on as it says, whether others have ended or not."""
    limits = Limits(rate=Rate(3, "1h"))
    assert [limits.enter(Waiting(lambda _: None)) for _ in range(5)] == [True, True, True, False, False]


class Lender:
    """A body that waits for a call which never ends."""

    def __init__(self) -> None:
        self.awaited = [Future[None](BARE, INLINE)]
        self.has_started = True


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A timer on a clock of its own, closed afterwards."""
    one = Stage()
    yield one
    one.timer.close(LONG)


def test_rate_counts_starts(stage: Stage) -> None:
    """Calls that start late, as their pool is busy, are counted from then on: there is no burst."""
    told: list[Waiting] = []
    limits = Limits(rate=Rate(2, 60), timer=stage.timer)
    calls = [Waiting(told.append) for _ in range(6)]
    assert [limits.enter(call) for call in calls] == [True, True, False, False, False, False]
    stage.time += 100  # they were queued for so long
    limits.started(calls[0])
    stage.go_on(59)
    limits.started(calls[1])
    assert told == []
    stage.go_on(1)
    assert told == [calls[2]]
    limits.started(calls[2])
    stage.go_on(58)
    assert told == [calls[2]]
    stage.go_on(1)
    assert told == [calls[2], calls[3]]


def test_rate_gives_back_what_never_starts(stage: Stage) -> None:
    """A call that is cancelled in the queue of its pool leaves its start to the next one; one that ran does not."""
    told: list[Waiting] = []
    limits = Limits(rate=Rate(1, 60), timer=stage.timer)
    calls = [Waiting(told.append) for _ in range(4)]
    assert [limits.enter(call) for call in calls] == [True, False, False, False]
    limits.leave(calls[0])
    assert told == [calls[1]]
    body = Lender()
    body.has_started = False
    limits.leave(calls[1], body)  # begun, and cancelled in that very moment
    assert told == [calls[1], calls[2]]
    limits.started(calls[2])
    limits.leave(calls[2], Lender())
    assert told == [calls[1], calls[2]]
    stage.go_on(60)
    assert told == calls[1:]


def test_rate_behind_a_busy_pool() -> None:
    """Behind a pool whose workers are busy, no more calls are queued than may start at once."""
    go = threading.Event()
    blocker = task(pool="one")(go.wait)()
    rated = task(pool="one", rate="2/h")(jobs.nothing)
    futures = [rated() for _ in range(3)]
    assert [future._is_queued for future in futures] == [True, True, False]  # type: ignore[attr-defined]  # of a Call
    go.set()
    assert blocker.result(LONG)
    assert [future.result(LONG) for future in futures[:2]] == [None, None]
    futures[2].cancel()


def test_a_limit_counts_a_task_whatever_its_rate() -> None:
    """Copies of a task with another rate, timeout or retry share its places."""
    counter = Counter()

    def body() -> None:
        with counter:
            time.sleep(0.001)  # long enough for another to come in, if one could

    plain = task(pool="many", limit=1)(body)
    copies = [plain, plain.options(rate="1000/s"), plain.options(limit=1, rate="500/s"), plain.options(timeout=LONG)]
    wait([copy() for copy in copies for _ in range(5)], timeout=LONG)
    assert counter.most == 1


@pytest.mark.parametrize("how", ["promise", "behind it"])
def test_a_place_is_lent_to_what_may_end_a_promise(how: str) -> None:
    """A body that waits for a future made by hand may wait for any call: perhaps its callback is what ends it."""

    @task(pool="one", limit=1)
    def count_down(n: int) -> int:
        if n == 0:
            return 0
        promise = Future[int]()
        count_down(n - 1).on_success(promise.set_result)
        return (promise if how == "promise" else promise.then(int)).result() + 1

    assert count_down(5).result(LONG) == 5

"""
Waiting inside calls: however they wait for each other, they end or raise, and none by sleeping.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parallel.pools.crew
from parallel import (
    Future,
    Registry,
    Retry,
    StarvationError,
    TaskTimeoutError,
    ThreadPool,
    as_completed,
    gather,
    task,
    using,
    wait,
)
from parallel.pools.crew import Crew
from parallel.pools.workers import Worker

LONG = 60  # seconds; only a deadlock takes so long
POOLS: dict[str, Any] = {
    "pools": {
        "one": {"kind": "thread", "max_workers": 1},
        "a": {"kind": "thread", "max_workers": 1},
        "b": {"kind": "thread", "max_workers": 1},
        "full": {"kind": "thread", "max_workers": 1, "max_pending": 1},
        "strict": {"kind": "thread", "max_workers": 1, "helping": False},
    }
}


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """A registry with small pools."""
    with using(POOLS) as made:
        yield made


@task(pool="one")
def nest(depth: int) -> int:
    """Wait for a call that waits for a call."""
    return 1 + nest(depth - 1).result() if depth else 0


@task(pool="one")
def fibonacci(n: int) -> int:
    """Compute it as nobody should."""
    if n < 2:
        return n
    left, right = fibonacci(n - 1), fibonacci(n - 2)
    return left.result() + right.result()


@pytest.mark.parametrize("pool", ["one", "strict"])
def test_deep_nest(pool: str) -> None:
    """A nest 1,000 deep on one thread ends; where nothing is helped with, as deep as spare workers go."""
    depth = 1000 if pool == "one" else 200

    def nested(left: int) -> int:
        return 1 + deep(left - 1).result() if left else 0

    deep = task(pool=pool)(nested)
    assert deep(depth).result(LONG) == depth


def test_too_deep_nest(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the spare workers are not enough, the innermost wait raises instead of hanging; it is told once."""
    monkeypatch.setattr(parallel.pools.crew, "MAX_LENT", 10)

    def nested(left: int) -> int:
        return 1 + deep(left - 1).result() if left else 0

    deep = task(pool="strict")(nested)
    with Registry(POOLS):  # whose end waits for all levels
        assert isinstance(deep(50).exception(LONG), StarvationError)
    assert not caplog.records
    assert deep(5).result(LONG) == 5


def test_fibonacci() -> None:
    """A recursive Fibonacci by tasks ends on one thread."""
    assert fibonacci(13).result(LONG) == 233


@pytest.mark.parametrize("options", [{"timeout": LONG}, {"deadline": LONG}, {"limit": 1}, {"priority": 1}])
def test_nest_of_calls_with_terms(options: Any) -> None:
    """Calls with a timeout, a deadline, a limit of one or a priority nest as others do."""

    def nested(left: int) -> int:
        return 1 + deep(left - 1).result() if left else 0

    deep = task(pool="one", **options)(nested)
    assert deep(100).result(LONG) == 100


def test_child_with_a_timeout_is_not_helped() -> None:
    """A waiter doesn't run a child that may overrun: the child alone fails, and the waiter goes on."""
    go = threading.Event()
    child = task(pool="one", timeout=0.03)(go.wait)

    def parent() -> str:
        error = child().exception()
        return type(error).__name__

    assert task(pool="one")(parent)().result(LONG) == "TaskTimeoutError"
    go.set()


def test_child_with_a_deadline_of_its_own_is_not_helped() -> None:
    """Nor one with a deadline that isn't the waiter's."""
    go = threading.Event()
    child = task(pool="one", deadline=0.03)(go.wait)
    assert task(pool="one")(lambda: type(child().exception()))().result(LONG) is TaskTimeoutError
    assert task(pool="one", deadline=LONG)(lambda: type(child().exception()))().result(LONG) is TaskTimeoutError
    go.set()


def test_helped_child_overruns_with_its_parent(registry: Registry) -> None:
    """A waiter and the child that it runs, late by the same deadline, are one straggler."""
    go = threading.Event()
    child = task(pool="one")(go.wait)
    parent = task(pool="one", deadline=0.05)(lambda: child().result())
    assert isinstance(parent().exception(LONG), TaskTimeoutError)
    pool = registry.pool("one")
    assert pool.submit(jobs.double, 1).result(LONG) == 2
    pool.idle()
    assert pool.stats().stragglers == 1
    go.set()


def test_timed_wait() -> None:
    """A timed wait lends its place, and ends in time or with the value."""
    held: Future[int] = Future()

    def parent() -> list[Any]:
        with pytest.raises(TimeoutError):
            held.result(0.01)
        return [child().result(LONG), child().exception(LONG)]

    child = task(pool="one")(jobs.nothing)
    assert task(pool="one")(parent)().result(LONG) == [None, None]


@pytest.mark.parametrize("how", ["then", "catch", "finally", "gather", "flattened", "arguments", "map"])
def test_waiting_for_what_follows(how: str) -> None:
    """A worker may wait for chained and combined futures of its own pool."""
    child = task(pool="one")(jobs.double)

    def parent() -> Any:
        if how == "then":
            return child(1).then(child).then(jobs.double).result()
        if how == "catch":
            return task(pool="one")(jobs.divide)(1, 0).catch(lambda _: 8).result()
        if how == "finally":
            return child(4).finally_(jobs.nothing).result()
        if how == "gather":
            return sum(gather(*[child(i) for i in range(3)], child(1)).result())
        if how == "flattened":
            return child(1).then(lambda x: child(x).then(child)).result()
        if how == "arguments":
            return child.submit(child.submit(child(1))).result()
        return sum(child.map([1, 1, 2]).result())

    assert task(pool="one")(parent)().result(LONG) == 8


@pytest.mark.parametrize("how", ["wait", "as_completed", "ours", "ours as completed", "wrapped"])
def test_standard_waits(how: str) -> None:
    """The standard library's functions, and ours of the same names, wait as result() does."""
    child = task(pool="one")(jobs.double)

    def parent() -> int:
        futures = [child(i) for i in range(4)]
        if how == "wait":
            done: Any = concurrent.futures.wait(futures).done
        elif how == "as_completed":
            done = concurrent.futures.as_completed(futures)
        elif how == "ours":
            done = wait(futures).done
        elif how == "ours as completed":
            done = as_completed(futures)
        else:
            return asyncio.run(gathered(futures))
        return sum(future.result() for future in done)

    async def gathered(futures: list[Future[int]]) -> int:
        return sum(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    if how == "wrapped":  # nothing tells that the worker waits: one spare place is all it takes
        with ThreadPool(2) as pool:
            assert pool.submit(parent).result(LONG) == 12
    else:
        assert task(pool="one")(parent)().result(LONG) == 12


def test_ring_of_two_pools() -> None:
    """Two pools of one thread that wait for each other, to and fro, end."""

    def ping(left: int) -> int:
        return 1 + pong_task(left - 1).result() if left else 0

    def pong(left: int) -> int:
        return 1 + ping_task(left - 1).result() if left else 0

    ping_task, pong_task = task(pool="a")(ping), task(pool="b")(pong)
    assert ping_task(200).result(LONG) == 200


def test_ring_of_a_loop_and_a_thread() -> None:
    """So do a thread and a loop: the coroutine awaits, the thread waits."""

    async def ping(left: int) -> int:
        return 1 + await pong_task(left - 1) if left else 0

    def pong(left: int) -> int:
        return 1 + ping_task(left - 1).result() if left else 0

    ping_task: Any = task(ping)
    pong_task = task(pool="a")(pong)
    assert ping_task(100).result(LONG) == 100


def test_full_pool_does_not_block_its_own_workers() -> None:
    """max_pending bounds what comes from outside: a worker's calls always get in."""

    def parent() -> int:
        return sum(future.result() for future in [child(i) for i in range(20)])

    child = task(pool="full")(jobs.double)
    assert task(pool="full")(parent)().result(LONG) == 380


def test_held_lock() -> None:
    """A child that wants a re-entrant lock of its waiter gets it: it runs on the waiter's stack."""
    lock = threading.RLock()

    def child() -> bool:
        with lock:
            return True

    def parent() -> bool:
        with lock:
            return task(pool="one")(child)().result()

    assert task(pool="one")(parent)().result(LONG) is True


def test_stranger_is_not_helped() -> None:
    """Only what is waited for runs on the waiter's stack: a stranger that wants its lock waits for it elsewhere."""
    lock = threading.RLock()
    threads: list[int] = []

    def stranger() -> None:
        with lock:
            threads.append(threading.get_ident())

    def child() -> int:
        return threading.get_ident()

    def parent() -> int:
        with lock:
            first = task(pool="one")(stranger)()
            assert task(pool="one")(child)().result() == threading.get_ident()
            assert threads == []
        first.result()
        return threading.get_ident()

    assert task(pool="one")(parent)().result(LONG)
    assert len(threads) == 1


def test_thread_locals_of_the_waiter() -> None:
    """A helped child sees the waiter's thread-locals; with helping = false it doesn't."""
    local = threading.local()

    def parent(pool: str) -> bool:
        local.value = 1
        return task(pool=pool)(lambda: hasattr(local, "value"))().result()

    assert task(pool="one")(parent)("one").result(LONG) is True
    assert task(pool="strict")(parent)("strict").result(LONG) is False


def test_waiting_from_many_threads() -> None:
    """Calls of several pools that wait for each other at random end."""
    pools = ["one", "a", "b", "strict"]

    def work(seed: int, depth: int) -> int:
        if depth == 0:
            return 1
        calls = [
            task(pool=pools[(seed + i) % 4], limit=3 if i else None)(work)(seed * 7 + i, depth - 1) for i in (0, 1)
        ]
        return sum(call.result() for call in calls)

    with jobs.frequent_switches():
        futures = [task(pool=pools[i % 4])(work)(i, 4) for i in range(8)]
        assert [future.result(LONG) for future in futures] == [16] * 8


@given(st.lists(st.sampled_from(["wait", "overrun", "ended"]), max_size=12))
def test_a_place_that_is_given_and_taken(steps: list[str]) -> None:
    """Whatever is told first, of a call's overrun and its end, a worker that is back has its one place."""
    crew = Crew("a crew", 1, "a-crew")
    worker = Worker(crew)
    waits, balance = 0, 0
    for step in steps:
        if step == "wait":
            (crew.unlend if waits else crew.lend)(worker)
            waits = 1 - waits
        elif step == "overrun":
            crew.replace(worker)
            balance += 1
        else:
            crew.come_back(worker)
            balance -= 1
        assert crew._spare == int(worker.is_away)
    while balance:
        (crew.come_back if balance > 0 else crew.replace)(worker)
        balance += -1 if balance > 0 else 1
    if waits:
        crew.unlend(worker)
    assert crew._spare == 0
    assert crew.counts().stragglers == 0


@pytest.mark.parametrize("pause", [0, 0.01])
def test_a_retried_call_is_not_run_by_its_waiter(pause: float) -> None:
    """Each attempt begins when its time has come, and nothing is left of the call where it has waited."""
    starts: list[float] = []

    @task(pool="one", retry=Retry(on=OSError, attempts=3, wait_initial=pause, wait_exp_base=1, wait_jitter=0))
    def child() -> int:
        starts.append(time.monotonic())
        if len(starts) < 3:
            raise OSError
        return len(starts)

    @task(pool="one")
    def parent() -> int:
        return child().result()

    with Registry(POOLS) as registry:  # whose end waits for what is left
        assert parent().result(LONG) == 3
        assert registry._desk is not None
    assert all(after - before >= pause for before, after in itertools.pairwise(starts))

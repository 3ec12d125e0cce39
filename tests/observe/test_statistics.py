"""
Statistics: what is counted is what has happened, and nothing is while nobody wants it.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from statistics import median
from typing import Any

import attrs
import jobs
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observe import seen_jobs
from pools.process_jobs import wait_until

from parallel import PoolStats, ProcessPool, Registry, Retry, ThreadPool, gather, settle, task, trail, using
from parallel.observe import statistics
from parallel.observe.statistics import Histogram

LONG = 30.0
OBSERVED = {"observe": {"stats": True}}
KINDS = ["thread", "process", "loop", "inline"]


def observed(**more: Any) -> Registry:
    """A registry with a pool of each kind, which is observed."""
    pools = {kind: {"kind": kind} for kind in KINDS} | {"thread": {"kind": "thread", "max_workers": 2}}
    return Registry({"pools": pools, **OBSERVED, **more})


def for_kind(kind: str, fn: Callable[..., Any]) -> Any:
    """A function as this kind runs it."""
    return jobs.to_async(fn) if kind == "loop" else fn


@pytest.mark.parametrize("kind", KINDS)
def test_calls(kind: str) -> None:
    """Ends of calls and their times are counted, pool by pool."""
    with observed() as registry, using(registry):
        pool = registry.pool(kind)
        good = [pool.submit(for_kind(kind, jobs.double), 1) for _ in range(20)]
        bad = [pool.submit(for_kind(kind, jobs.divide), 1, 0) for _ in range(5)]
        gather(*good).result(LONG)
        settle(*bad).result(LONG)
        wait_until(lambda: pool.stats().run_time.count == 25)  # type: ignore[union-attr]  # it is observed
        stats = pool.stats()
        assert (stats.name, stats.kind, stats.done) == (kind, kind, 25)
        assert (stats.failed, stats.cancelled, stats.retried) == (5, 0, 0)
        assert stats.queue_time is not None
        assert stats.run_time is not None
        assert stats.queue_time.count == 25
        for times in (stats.queue_time, stats.run_time):
            assert 0 <= times.p50 <= times.p95 <= times.p99 <= times.longest <= times.total < LONG
        for other in set(KINDS) - {kind}:
            assert registry.pool(other).stats().run_time.count == 0  # type: ignore[union-attr]  # likewise


@pytest.mark.parametrize("kind", ["thread", "process", "loop"])
def test_times_are_those_of_the_calls(kind: str) -> None:
    """What sleeps for 50 ms has run for 50 ms; the one behind it has waited for as long."""
    with Registry({"pools": {kind: {"kind": kind, "max_workers": 1}}, **OBSERVED}) as registry, using(registry):
        pool = registry.pool(kind)
        nap = seen_jobs.later_nap if kind == "loop" else seen_jobs.nap
        pool.submit(nap, 0).result(LONG)  # its worker is there
        gather(pool.submit(nap, 0.05), pool.submit(nap, 0.05)).result(LONG)
        wait_until(lambda: pool.stats().run_time.count == 3)  # type: ignore[union-attr]  # it is observed
        stats = pool.stats()
        assert stats.run_time is not None
        assert stats.queue_time is not None
        assert stats.run_time.p50 >= 0.045
        assert stats.queue_time.longest >= 0.045
        (worker,) = stats.at_work
        if kind == "loop":
            assert worker.utilisation is None
        else:
            assert worker.utilisation is not None
            assert 0 < worker.utilisation <= 1


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_retries_and_cancelled_calls(pool: str) -> None:
    """An attempt that was not the last is no failure; what was cancelled is told apart."""
    with observed() as registry, using(registry):
        retry = Retry(on=ZeroDivisionError, attempts=3, wait_initial=0.001, wait_jitter=0)
        assert isinstance(task(jobs.divide, pool=pool, retry=retry)(1, 0).exception(LONG), ZeroDivisionError)
        with jobs.Gate() as gate:
            futures = [task(jobs.wait_at, pool=pool)(gate.address) for _ in range(20)]
            gate.arrived()
            assert futures[-1].cancel()
            gate.open()
            gather(*futures[:-1]).result(LONG)
        wait_until(lambda: registry.pool(pool).stats().run_time.count == 22)  # type: ignore[union-attr]  # as above
        stats = registry.pool(pool).stats()
        assert (stats.failed, stats.cancelled, stats.retried) == (1, 1, 2)


def test_deaths() -> None:
    """A worker that dies is counted, and its call has failed; one that the pool ends is not."""
    with Registry({"pools": {"one": {"kind": "process", "max_workers": 1}}, **OBSERVED}) as registry:
        pool = registry.pool("one")
        assert isinstance(pool, ProcessPool)
        assert pool.submit(os._exit, 3).exception(LONG) is not None
        assert pool.submit(jobs.double, 1).result(LONG) == 2
        wait_until(lambda: pool.stats().failed == 1)
        assert pool.stats().deaths == 1
        slow = pool.submit(seen_jobs.nap, 60)
        wait_until(slow.running)
        assert slow.cancel(running=True)
        assert pool.submit(jobs.double, 1).result(LONG) == 2
        assert pool.stats().deaths == 1


def test_many_workers_and_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted of workers that are gone, and of pools that were closed long ago, is forgotten."""
    monkeypatch.setattr(statistics, "_CLOSED", 3)
    with observed() as registry:
        registry.pool("thread")
        with ProcessPool(1, max_tasks_per_child=1) as pool:
            for _ in range(5):
                pool.submit(jobs.nothing).result(LONG)
            figures = statistics.figures_of(pool)
            assert figures is not None
            wait_until(lambda: statistics.figures_of(pool) is figures and len(figures.seen) <= 1)
            assert len(figures.busy) <= 1
            assert figures.run_time.count == 5
        for _ in range(10):
            with ThreadPool(1) as one:
                one.submit(jobs.nothing).result(LONG)
        assert statistics.figures_of(registry.pool("thread")) is not None
        counting = statistics._counting.one
        assert counting is not None
        assert len(counting.pools) <= 3 + 2


def test_polling(kinds: Registry) -> None:
    """However often somebody asks meanwhile, an attempt that has failed isn't taken for the end of its call."""
    retry = Retry(on=ZeroDivisionError, attempts=20, wait_initial=0, wait_jitter=0)
    with observed() as registry, using(registry):
        over = threading.Event()
        pool = registry.pool("thread")

        def ask() -> None:
            while not over.is_set():
                pool.stats()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            with jobs.frequent_switches():
                settle(*(task(jobs.divide, pool="thread", retry=retry)(1, 0) for _ in range(20))).result(LONG)
        finally:
            over.set()
            asking.join()
        wait_until(lambda: pool.stats().failed == 20)
        assert pool.stats().retried == 20 * 19


def test_bytes() -> None:
    """What goes to processes and comes back is counted, large arrays too; threads get what they are given."""
    array = numpy.zeros(500_000)
    with ProcessPool(1) as pool:
        pool.submit(jobs.nothing).result(LONG)
        before = pool.stats()
        assert before.bytes_sent is not None
        assert before.bytes_received is not None
        assert 0 < before.bytes_sent < 10_000
        pool.submit(jobs.double, array).result(LONG)
        wait_until(lambda: (pool.stats().bytes_received or 0) > array.nbytes)
        after = pool.stats()
        assert array.nbytes < (after.bytes_sent or 0) - before.bytes_sent < array.nbytes + 100_000
        assert array.nbytes < (after.bytes_received or 0) - before.bytes_received < array.nbytes + 100_000
        assert pool.submit(os._exit, 3).exception(LONG) is not None
        wait_until(lambda: pool.stats().workers == 0)
        assert (pool.stats().bytes_sent or 0) >= (after.bytes_sent or 0), "of those that are gone, too"
    with ThreadPool(1) as threads:
        threads.submit(jobs.nothing).result(LONG)
        assert threads.stats().bytes_sent is None


def test_who_works() -> None:
    """Workers are told with what they run, for how long, and where that was called."""
    with jobs.Gate() as gate, ThreadPool(1, name="io") as pool:
        assert pool.stats().at_work == ()
        future = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        (worker,) = pool.stats().at_work
        assert worker.process == os.getpid()
        assert worker.thread in {thread.ident for thread in threading.enumerate()}
        assert worker.task
        assert worker.seconds is not None
        assert worker.utilisation is None, "nobody observes"
        gate.open()
        future.result(LONG)
        wait_until(lambda: not pool.stats().at_work[0].task)


def test_a_registry() -> None:
    """All its open pools are told, and what waits in none; as JSON, too."""
    with observed() as registry, using(registry):
        assert registry.stats().pools == {}
        retry = Retry(on=ZeroDivisionError, attempts=2, wait_initial=30, wait_max=30, wait_jitter=0)
        future = task(jobs.divide, pool="thread", retry=retry)(1, 0)
        wait_until(lambda: registry.stats().waiting == 1)
        assert task(jobs.double, pool="process")(2).result(LONG) == 4
        stats = registry.stats()
        assert list(stats.pools) == ["thread", "process"]
        said = json.loads(json.dumps(attrs.asdict(stats)))
        assert said["pools"]["process"]["done"] == 1
        assert said["waiting"] == 1
        future.cancel()


def test_nobody_observes() -> None:
    """Without the option nothing follows the calls, and what would have to be followed is None."""
    with Registry({}) as registry, using(registry):
        pool = registry.pool("threads")
        pool.submit(jobs.nothing).result(LONG)
        assert trail.current is None
        stats = pool.stats()
        assert (stats.failed, stats.cancelled, stats.retried, stats.queue_time, stats.run_time) == (None,) * 5
        assert stats.done == 1


def test_it_ends_with_the_registry() -> None:
    """Two that observe are told apart by their pools; after the last nobody follows."""
    with observed() as one, observed() as two:
        one.pool("thread").submit(jobs.nothing).result(LONG)
        two.pool("thread").submit(jobs.nothing).result(LONG)
        for each in (one, two):
            assert each.pool("thread").stats().run_time.count == 1  # type: ignore[union-attr]  # it is observed
        one.shutdown()
        assert trail.current is not None
    assert trail.current is None


def test_a_registry_that_is_forgotten() -> None:
    """It observes no more either."""
    registry = observed()
    registry.pool("thread").submit(jobs.nothing).result(LONG)
    with pytest.warns(ResourceWarning):
        del registry
    wait_until(lambda: trail.current is None)


def test_reload() -> None:
    """A configuration that is changed begins to observe, and ends it, with the pools that are open."""
    pools = {"io": {"kind": "thread"}}
    with Registry({"pools": pools}) as registry:
        pool = registry.pool("io")
        assert pool.stats().failed is None
        registry.adopt(Registry({"pools": pools, **OBSERVED}).config)
        assert registry.pool("io") is pool
        assert pool.stats().failed == 0
        registry.adopt(Registry({"pools": pools}).config)
        assert pool.stats().failed is None
        assert trail.current is None


def test_in_a_forked_child(in_fork: Callable[..., Any]) -> None:
    """It counts anew, once it has calls."""
    with observed() as registry, using(registry):
        gather(*(task(jobs.nothing, pool="thread")() for _ in range(5))).result(LONG)

        def count() -> tuple[int, int]:
            before = len(registry.stats().pools)
            gather(*(task(jobs.nothing, pool="thread")() for _ in range(3))).result(LONG)
            times = registry.pool("thread").stats().run_time
            return before, -1 if times is None else times.count

        assert in_fork(count) == (0, 3)


def test_by_the_environment(monkeypatch: pytest.MonkeyPatch, nowhere: Any) -> None:
    """A variable is enough."""
    monkeypatch.setenv("PARALLEL_OBSERVE__STATS", "true")
    with Registry() as registry:
        assert registry.pool("threads").stats().failed == 0


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300))
@settings(deadline=None)
def test_percentiles(times: list[int]) -> None:
    """Each is within 5 % of what sorting would tell."""
    histogram = Histogram()
    for each in times:
        histogram.add(each)
    ranked = sorted(times)
    for share in (0.5, 0.95, 0.99, 1.0):
        exact = ranked[max(-(-len(ranked) * share // 1), 1).__int__() - 1] if share < 1 else ranked[-1]
        assert histogram.percentile(share) * 1e9 == pytest.approx(exact, rel=0.05)
    assert histogram.times().longest * 1e9 == pytest.approx(ranked[-1])
    assert histogram.times().total * 1e9 == pytest.approx(sum(times))


def test_many_times_take_no_room() -> None:
    """A million different times are a few hundred numbers."""
    chance = random.Random(8)
    times = [int(chance.lognormvariate(12, 3)) + 1 for _ in range(100_000)]
    histogram = Histogram()
    for each in times:
        histogram.add(each)
    assert len(histogram.buckets) < 400
    assert histogram.percentile(0.5) * 1e9 == pytest.approx(median(times), rel=0.05)


def test_positions_are_those_of_before() -> None:
    """The first numbers come in the order in which they always did."""
    assert PoolStats(1, 2, 3, 4, 5, "link") == PoolStats(
        workers=1, queued=2, running=3, done=4, stragglers=5, dashboard_link="link"
    )

"""
Workers of process pools that leave while the pool goes on.
"""

from __future__ import annotations

import gc
import operator
import os
import threading
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
from jobs import Gate
from pools import process_jobs, start_jobs
from pools.process_jobs import PATIENCE, is_gone, wait_until

from parallel import ProcessPool, Registry
from parallel.errors import ConfigError, PoolBrokenError

METHODS = ["forkserver", "spawn", "fork"]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # 3.12 and later, where it is asked for


# -- max_memory_per_child ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_grown_too_large(method: str) -> None:
    """A worker over the limit is replaced after its call, whose value arrives; one that is not, stays."""
    inherited = process_jobs.resident() if method == "fork" else 0  # by a forked worker, of this process
    with ProcessPool(1, method, max_memory_per_child=300_000_000 + inherited) as pool:
        small = {pool.submit(start_jobs.keep, 10**6).result(PATIENCE) for _ in range(5)}
        assert len(small) == 1
        large = pool.submit(start_jobs.keep, 400_000_000).result(PATIENCE)
        assert {large} == small
        assert is_gone(large)
        assert pool.submit(os.getpid).result(PATIENCE) != large


def test_queued_behind_one_that_grows(tmp_path: Path) -> None:
    """Calls that it has been sent, and has not begun, are run by others: each once."""
    path = str(tmp_path / "notes")
    with ProcessPool(2, max_memory_per_child="300MB") as pool:
        for _ in range(10):
            pool.submit(process_jobs.note, path, -1).result(PATIENCE)
        futures = []
        for number in range(600):
            if number % 200 == 50:
                futures.append(pool.submit(start_jobs.keep, 400_000_000))
            futures.append(pool.submit(process_jobs.note, path, number))
        for future in futures:
            future.result(PATIENCE)
    noted = [int(line.split()[0]) for line in Path(path).read_text().splitlines()]
    assert sorted(number for number in noted if number >= 0) == list(range(600))


@pytest.mark.parametrize("method", METHODS)
def test_too_large_from_the_start(method: str) -> None:
    """The pool is broken: each that took its place would be as large."""
    told = r"its start raised MemoryError: a worker takes \d+ bytes before its first call"
    with ProcessPool(1, method, max_memory_per_child="1MB") as pool, pytest.raises(PoolBrokenError, match=told):
        pool.submit(os.getpid).result(PATIENCE)  # under fork the worker may be faster than the submit


# -- idle_timeout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_idle_workers_leave(method: str) -> None:
    """All of them; the next call starts one again."""
    with ProcessPool(2, method, idle_timeout=0.1) as pool:
        with Gate() as gate:
            futures = [pool.submit(jobs.wait_at, gate.address) for _ in range(2)]
            gate.arrived(2)
            gate.open()
            [future.result(PATIENCE) for future in futures]
        wait_until(lambda: pool.stats().workers == 0)
        assert pool.submit(operator.mul, 3, 4).result(PATIENCE) == 12
        wait_until(lambda: pool.stats().workers == 0)


def test_busy_workers_stay() -> None:
    """A call that takes longer than the timeout is no idleness."""
    with ProcessPool(2, idle_timeout=0.05) as pool, Gate() as gate:
        future = pool.submit(jobs.wait_at, gate.address, "ran")
        gate.arrived()
        pid = pool.submit(os.getpid).result(PATIENCE)
        assert is_gone(pid)
        wait_until(lambda: pool.stats().workers == 1)
        gate.open()
        assert future.result(PATIENCE) == "ran"


def test_submits_while_workers_leave() -> None:
    """None is lost, however it meets the leaving."""
    with ProcessPool(2, idle_timeout=0.002) as pool:
        pids = set()
        for number in range(400):
            pids.add(pool.submit(os.getpid).result(PATIENCE))
            threading.Event().wait(0.0005 * (number % 20))
        assert len(pids) > 2


@pytest.mark.skipif(not hasattr(time, "thread_time"), reason="the time of a thread is not known")
def test_no_time_without_workers() -> None:
    """An idle pool takes no time once its workers have left, and none to speak of before."""
    with ProcessPool(1, idle_timeout=0.1) as pool:
        pool.submit(os.getpid).result(PATIENCE)
        wait_until(lambda: pool.stats().workers == 0)
        before = time.process_time()
        threading.Event().wait(0.5)
        assert time.process_time() - before < 0.05


# -- max_workers ------------------------------------------------------------------------------------------------------


def test_more_workers() -> None:
    """If calls wait, more workers come at once."""
    with ProcessPool(1) as pool, Gate() as gate:
        futures = [pool.submit(jobs.wait_at, gate.address) for _ in range(3)]
        gate.arrived()
        pool.max_workers = 3
        gate.arrived(2)
        assert pool.stats().workers == pool.max_workers == 3
        gate.open()
        [future.result(PATIENCE) for future in futures]


def test_fewer_workers() -> None:
    """Idle ones leave, busy ones after their calls; no more calls run at a time from then on."""
    with ProcessPool(3) as pool:
        with Gate() as gate:
            futures = [pool.submit(jobs.wait_at, gate.address) for _ in range(3)]
            gate.arrived(3)
            queued = [pool.submit(operator.mul, i, 2) for i in range(50)]
            pool.max_workers = 1
            assert pool.stats().running == 3
            gate.open()
            [future.result(PATIENCE) for future in futures]
        assert [future.result(PATIENCE) for future in queued] == [2 * i for i in range(50)]
        wait_until(lambda: pool.stats().workers == 1)
        assert len({pool.submit(os.getpid).result(PATIENCE) for _ in range(10)}) == 1


def test_resized_before_it_is_open() -> None:
    """The first call finds what was said last."""
    with ProcessPool(3) as pool:
        pool.max_workers = 1
        assert {pool.submit(os.getpid).result(PATIENCE) for _ in range(10)}
        assert pool.stats().workers == 1
    with ProcessPool(1, "fork") as pool:
        pool.max_workers = 3
        pool.submit(os.getpid).result(PATIENCE)
        assert pool.stats().workers == 3


def test_resized_at_random() -> None:
    """Whatever is said while calls run, each is run."""
    with ProcessPool(2) as pool:
        futures = []
        for number in range(3_000):
            futures.append(pool.submit(operator.mul, number, 2))
            if number % 300 == 0:
                pool.max_workers = 1 + number // 300 % 4
        assert [future.result(PATIENCE) for future in futures] == [2 * number for number in range(3_000)]


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (True, TypeError), ("2", TypeError)])
def test_wrong_number_of_workers(wrong: Any, error: type[Exception]) -> None:
    """It is checked as at the start."""
    with ProcessPool(2) as pool:
        with pytest.raises(error, match="max_workers"):
            pool.max_workers = wrong
        assert pool.max_workers == 2


# -- what may be said, and what is left -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ({"max_memory_per_child": "much"}, ValueError, "max_memory_per_child: expected a size such as"),
        ({"max_memory_per_child": 2.5}, TypeError, "max_memory_per_child: expected a size"),
        ({"max_memory_per_child": 0}, ValueError, "max_memory_per_child: expected a size"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout: expected a duration"),
        ({"idle_timeout": "5 minutes"}, ValueError, r"idle_timeout: expected a duration .* \(did you mean '5m'\?\)"),
        ({"idle_timeout": True}, TypeError, "idle_timeout: expected a duration"),
    ],
)
def test_wrong_arguments(said: dict[str, Any], error: type[Exception], told: str) -> None:
    """They are refused when the pool is made, and when a file is read: each by its name."""
    with pytest.raises(error, match=f"^{told}"):
        ProcessPool(**said)
    with pytest.raises(ConfigError, match=rf"pools\.x\.{told}"):
        Registry({"pools": {"x": {"kind": "process", **said}}})


def test_said_by_a_file() -> None:
    """Durations and sizes as people write them."""
    said = {"kind": "process", "max_workers": 1, "idle_timeout": "100ms", "max_memory_per_child": "2GB"}
    with Registry({"pools": {"x": said}}) as registry:
        pool = registry.pool("x")
        assert pool.submit(operator.mul, 3, 4).result(PATIENCE) == 12
        wait_until(lambda: pool.stats().workers == 0)


# -- max_tasks_per_child ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_nothing_is_left_of_a_hundred(method: str) -> None:
    """Workers that have been replaced leave no descriptors behind."""
    with ProcessPool(2, method, max_tasks_per_child=1, idle_timeout=0.05) as pool:

        def descriptors_without_workers() -> int:
            wait_until(lambda: pool.stats().workers == 0)
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        [future.result(PATIENCE) for future in [pool.submit(os.getpid) for _ in range(10)]]
        before = descriptors_without_workers()
        pids = {future.result(PATIENCE) for future in [pool.submit(os.getpid) for _ in range(100)]}
        assert len(pids) == 100
        wait_until(lambda: descriptors_without_workers() <= before)  # the last is being buried


def test_the_next_one_is_started_meanwhile() -> None:
    """A worker that has its last call is replaced before it ends; but no more calls run at a time."""
    with ProcessPool(1, max_tasks_per_child=1) as pool, Gate() as gate:
        running = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        waiting = pool.submit(os.getpid)
        wait_until(lambda: pool.stats().workers == 2)
        assert pool.stats().running == 1
        assert not waiting.running()
        gate.open()
        running.result(PATIENCE)
        waiting.result(PATIENCE)


def test_a_spare_that_dies() -> None:
    """It is replaced, and costs nothing."""
    with ProcessPool(1, max_tasks_per_child=1) as pool:
        for _ in range(4):
            with Gate() as gate:
                running = pool.submit(jobs.wait_at, gate.address)
                gate.arrived()
                waiting = pool.submit(os.getpid)
                wait_until(lambda: pool.stats().workers == 2)
                spare = process_jobs.workers_of(pool)[-1]
                os.kill(spare, 9)
                assert is_gone(spare)
                gate.open()
                running.result(PATIENCE)
                assert waiting.result(PATIENCE) != spare

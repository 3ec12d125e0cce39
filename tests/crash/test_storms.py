"""
Kills, stops and shutdowns that meet: signals to workers in the middle of large messages, and ends that race.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import CancelledError, wait
from typing import Any

import jobs
import pytest
from pools import process_jobs
from pools.process_jobs import PATIENCE

from parallel import ProcessPool, WorkerDiedError

METHODS = ["forkserver", "spawn", "fork"]
LARGE = 24 << 20  # bytes; takes some 20 ms to travel, and fits into no socket

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # 3.12 and later, where it is asked for
by_each_method = pytest.mark.parametrize("method", METHODS)


def kill(pid: int) -> None:
    """Kill a worker, unless it has died."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.parametrize("way", ["argument", "value"])
@by_each_method
def test_killed_while_large_data_travels(method: str, way: str) -> None:
    """A worker killed at any moment of a large argument or value costs that call at most, and nothing is half there."""
    chance = random.Random(4)
    data = bytes(LARGE)
    with ProcessPool(1, method) as pool:
        for number in range(8):
            worker = pool.submit(jobs.pid).result(PATIENCE)
            large = pool.submit(process_jobs.size, data) if way == "argument" else pool.submit(bytes, LARGE)
            after = [pool.submit(jobs.double, i) for i in range(5)]
            time.sleep(chance.random() * 0.04)
            kill(worker)
            error = large.exception(PATIENCE)
            if error is None:
                assert large.result() == (LARGE if way == "argument" else data)
            else:
                assert isinstance(error, WorkerDiedError)
            lost = [each for future in after if (each := future.exception(PATIENCE)) is not None]
            assert len(lost) + (error is not None) <= 1, f"round {number}: one kill cost {lost} and {error}"


@by_each_method
def test_stopped_and_continued(method: str) -> None:
    """A worker that is stopped for a while costs nothing, and the other one goes on meanwhile."""
    with ProcessPool(2, method) as pool, jobs.Gate() as gate:
        held = pool.submit(jobs.wait_at, gate.address, "held")
        gate.arrived()
        other = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(other, signal.SIGSTOP)
        try:
            stopped = [pool.submit(jobs.double, i) for i in range(20)]
            gate.open()
            assert held.result(PATIENCE) == "held"
            assert sum(not future.done() for future in wait(stopped, 1).not_done) <= 1
        finally:
            os.kill(other, signal.SIGCONT)
        assert [future.result(PATIENCE) for future in stopped] == [i * 2 for i in range(20)]


@by_each_method
def test_both_directions_are_full(method: str) -> None:
    """A worker that has many large arguments to read, and as many large values to write, does both."""
    data = os.urandom(1 << 20)
    with ProcessPool(1, method) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(worker, signal.SIGSTOP)
        futures = [pool.submit(process_jobs.echo, data) for _ in range(60)]
        os.kill(worker, signal.SIGCONT)
        assert all(future.result(PATIENCE) == data for future in futures)


@by_each_method
def test_cancel_just_before_shutdown(method: str) -> None:
    """A call that is cancelled just before the shutdown doesn't keep it (CPython gh-94440)."""
    for _ in range(5):
        pool = ProcessPool(1, method)
        futures = [pool.submit(jobs.double, i) for i in range(3)]
        cancelled = futures[-1].cancel()
        pool.shutdown()
        assert all(future.done() for future in futures)
        assert futures[-1].cancelled() == cancelled


@by_each_method
def test_ends_that_race(method: str) -> None:
    """Shutdowns from several threads, while workers are killed and calls are cancelled, all return."""
    for _ in range(5):
        pool = ProcessPool(2, method)
        futures: list[Any] = [pool.submit(jobs.pid) for _ in range(60)]
        first = futures[0].result(PATIENCE)
        threads = [
            threading.Thread(target=pool.shutdown),
            threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}),
            threading.Thread(target=kill, args=(first,)),
            threading.Thread(target=lambda futures=futures: [each.cancel(running=True) for each in futures[30:]]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "it hangs"
        for future in futures:
            try:
                assert isinstance(future.result(0), int)
            except (CancelledError, WorkerDiedError):
                continue


@by_each_method
def test_start_while_others_fork(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is forked while a worker starts, and lives on, holds up nothing, whatever it has inherited."""
    children: list[int] = []
    open_pipe = os.pipe

    def fork() -> None:
        child = os.fork()
        if child == 0:
            time.sleep(2 * PATIENCE)
            os._exit(0)
        children.append(child)

    def pipe_and_fork() -> tuple[int, int]:
        ends = open_pipe()
        if len(children) < 100:
            forker = threading.Thread(target=fork)
            forker.start()
            forker.join()
        return ends

    # An environment of its own has a fork server started as well.
    pool = ProcessPool(1, method, env={"A": "1"}, max_tasks_per_child=1)
    try:
        monkeypatch.setattr(os, "pipe", pipe_and_fork)
        assert [pool.submit(jobs.double, i).result(PATIENCE) for i in range(2)] == [0, 2]
        monkeypatch.undo()
        pool.shutdown()
        assert children
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

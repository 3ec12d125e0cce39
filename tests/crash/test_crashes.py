"""
Deaths of workers that are too many: a crash loop ends, and nothing less does.
"""

from __future__ import annotations

import os
import signal

import jobs
import pytest
from pools.process_jobs import PATIENCE

from parallel import ProcessPool
from parallel.deaths import WorkerDiedError
from parallel.errors import PoolBrokenError
from parallel.pools.process import crashes
from parallel.pools.process.crashes import DEATHS, IDLE_DEATHS, PERIOD, Crashes


def test_few_idle_deaths_are_a_loop() -> None:
    """Deaths that cost no call are soon too many."""
    row = Crashes()
    counted = [row.count(float(i), 0, cost_a_call=False) for i in range(IDLE_DEATHS)]
    assert counted == [0] * (IDLE_DEATHS - 1) + [IDLE_DEATHS]


def test_many_deaths_are_a_loop() -> None:
    """Those that cost calls are too many when there are very many."""
    row = Crashes()
    counted = [row.count(i / 100, 0, cost_a_call=True) for i in range(DEATHS)]
    assert counted == [0] * (DEATHS - 1) + [DEATHS]


@pytest.mark.parametrize("cost_a_call", [False, True])
def test_answers_end_a_row(cost_a_call: bool) -> None:
    """Deaths between which calls are answered are never too many."""
    row = Crashes()
    assert not any(row.count(0.0, i // (IDLE_DEATHS - 1), cost_a_call=cost_a_call) for i in range(2 * DEATHS))


@pytest.mark.parametrize("cost_a_call", [False, True])
def test_slow_rows(cost_a_call: bool) -> None:
    """Nor are those that come slowly."""
    row = Crashes()
    assert not any(row.count(i * PERIOD / (IDLE_DEATHS - 2), 0, cost_a_call=cost_a_call) for i in range(2 * DEATHS))


def test_crash_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool in which nothing but deaths happens breaks, with the last of them as the cause."""
    monkeypatch.setattr(crashes, "DEATHS", 5)
    with ProcessPool(1) as pool:
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2
        futures = [pool.submit(os._exit, 3) for _ in range(20)]
        errors = [future.exception(PATIENCE) for future in futures]
        with pytest.raises(PoolBrokenError):
            pool.submit(jobs.double, 1)
    assert [type(error) for error in errors] == [WorkerDiedError] * 5 + [PoolBrokenError] * 15
    assert "5 workers died within 60 s, and no call ended: the last exited with status 3" in str(errors[-1])
    assert isinstance(errors[-1].__cause__, WorkerDiedError)


def test_idle_deaths_with_work_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle workers may be killed as often as one likes, if they have worked."""
    monkeypatch.setattr(crashes, "IDLE_DEATHS", 3)
    with ProcessPool(1) as pool:
        for _ in range(8):
            os.kill(pool.submit(jobs.pid).result(PATIENCE), signal.SIGKILL)
            error = pool.submit(jobs.nothing).exception(PATIENCE)
            assert error is None or isinstance(error, WorkerDiedError)


def test_killed_workers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that the pool ends by force are no crashes."""
    monkeypatch.setattr(crashes, "DEATHS", 2)
    with ProcessPool(1) as pool:
        for _ in range(4):
            with jobs.Gate() as gate:
                future = pool.submit(jobs.wait_at, gate.address)
                gate.arrived()
                assert future.cancel(running=True)
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2

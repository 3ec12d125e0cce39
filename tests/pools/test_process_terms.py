"""
Calls under terms in worker processes: what is tried again, and which locks are taken on the way.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from pools import process_jobs
from pools.process_jobs import PATIENCE, wait_until

from parallel import ProcessPool, Registry, Retry, TaskGroup, WorkerDiedError, task, using
from parallel.gates import Gate
from parallel.limits import Limits

POOLS: dict[str, Any] = {"pools": {"process": {"kind": "process", "max_workers": 1, "max_pending": 10}}}


@pytest.fixture(autouse=True)
def pool() -> Iterator[ProcessPool]:
    """The one pool of a registry."""
    with using(Registry(POOLS)) as registry, registry:
        made = registry.pool("process")
        assert isinstance(made, ProcessPool)
        yield made


def stop(worker: int) -> None:
    """Stop a process, and wait until it stands still."""
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "T")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for the state of a process")
def test_unread_once_in_each_attempt(pool: ProcessPool) -> None:
    """An attempt that its worker has not read is sent again, though that has happened to an earlier attempt as well."""
    workers: list[int] = []

    def stop_worker(error: Exception) -> float | bool:
        workers.append(error.args[0])
        if len(workers) == 2:
            return False
        stop(workers[0])
        return 0.0

    first = pool.submit(jobs.pid).result(PATIENCE)
    stop(first)
    future = task(pool="process", retry=Retry(stop_worker, attempts=2))(process_jobs.raise_pid)()
    os.kill(first, signal.SIGKILL)  # it has not read the first attempt
    wait_until(lambda: workers and future.attempts == 2 and pool.stats().running)  # type: ignore[attr-defined]  # a Call
    os.kill(workers[0], signal.SIGKILL)  # nor this one the second
    error = future.exception(PATIENCE)
    assert not isinstance(error, WorkerDiedError)
    assert isinstance(error, OSError)
    assert len({first, *workers}) == 3


class CancelsWhilePickled:
    """Cancels a group when it is pickled."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def __reduce__(self) -> str | tuple[Any, ...]:
        self._group.cancel()
        return int, ()


def test_no_lock_under_that_of_the_pool(pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No place is given back under a lock of the pool: a handler may submit while it has that of a gate, or limit."""
    owned: list[bool] = []

    def noting(fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            owned.append(pool._staff._lock._is_owned())  # type: ignore[attr-defined]  # as Condition does
            owned.append(pool._staff._dispatching.is_owned())
            return fn(*args)

        return run

    monkeypatch.setattr(Gate, "leave", noting(Gate.leave))
    monkeypatch.setattr(Limits, "leave", noting(Limits.leave))
    limited: Any = task(pool="process", limit=1)(jobs.double)
    assert limited(1).result(PATIENCE) == 2
    with TaskGroup() as group:
        called_off = limited(CancelsWhilePickled(group))
    assert called_off.cancelled()
    with jobs.Gate() as gate:
        running = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        queued = [limited(2), pool.submit(jobs.nothing)]
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in queued)
        gate.open()
        running.result(PATIENCE)
    assert len(owned) >= 12
    assert not any(owned)

"""
Calls that may be run again: a death of their worker costs them nothing, unless it happens again and again.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import jobs
import pytest
from crash import kill_jobs
from pools import process_jobs
from pools.process_jobs import PATIENCE

from parallel import ProcessPool, Registry, Retry, TaskTimeoutError, WorkerDiedError, task, using
from parallel.pools.process import peer

POOLS: dict[str, Any] = {"pools": {"process": {"kind": "process", "max_workers": 1}}}


@pytest.fixture(autouse=True)
def pool() -> Iterator[ProcessPool]:
    """The one pool of a registry."""
    with using(Registry(POOLS)) as registry, registry:
        made = registry.pool("process")
        assert isinstance(made, ProcessPool)
        yield made


@pytest.fixture(params=["bare", "with terms"])
def terms(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What else is said: a call under terms takes another way."""
    return {"pool": "process"} if request.param == "bare" else {"pool": "process", "timeout": 600, "priority": 1}


def test_run_again(terms: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A call whose worker died in it is run by another one, without a word above `INFO`."""
    with caplog.at_level(logging.INFO, "parallel"):
        future = task(idempotent=True, **terms)(process_jobs.die_once)(str(tmp_path / "marker"))
        assert future.result(PATIENCE) == "second"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "died while it ran pools.process_jobs:die_once, which is run again" in caplog.text


@pytest.mark.parametrize("said", [False, None])
def test_not_run_again(terms: dict[str, Any], tmp_path: Path, said: bool | None) -> None:
    """Unless that is said, it fails."""
    future = task(idempotent=said, **terms)(process_jobs.die_once)(str(tmp_path / "marker"))
    assert isinstance(future.exception(PATIENCE), WorkerDiedError)


def test_bounded(terms: dict[str, Any], tmp_path: Path) -> None:
    """A call that kills each of its workers fails in the end: poison is not taken for ever."""
    path = tmp_path / "note"
    future = task(idempotent=True, **terms)(process_jobs.note)(str(path), 7, deadly=True)
    assert isinstance(future.exception(PATIENCE), WorkerDiedError)
    assert path.read_text() == "7\n" * 3


def test_bounded_with_retries(tmp_path: Path) -> None:
    """So it does with retries: once more for each attempt."""
    path = tmp_path / "note"
    retry = Retry(WorkerDiedError, attempts=3, wait_initial=0, wait_max=0, wait_jitter=0)
    future = task(pool="process", idempotent=True, retry=retry)(process_jobs.note)(str(path), 7, deadly=True)
    assert isinstance(future.exception(PATIENCE), WorkerDiedError)
    assert path.read_text() == "7\n" * 5


def test_said_in_a_file(tmp_path: Path) -> None:
    """A file can say it."""
    tables = {**POOLS, "tasks": {"pools.process_jobs:die_once": {"idempotent": True}}}
    with using(Registry(tables)) as registry, registry:
        future = task(pool="process")(process_jobs.die_once)(str(tmp_path / "marker"))
        assert future.result(PATIENCE) == "second"


def test_others_of_its_message_are_run_once(pool: ProcessPool, tmp_path: Path) -> None:
    """Calls that travel with one that kills its worker three times are each run once."""
    path, marker = tmp_path / "note", tmp_path / "marker"
    note = task(pool="process", idempotent=True)(process_jobs.note)
    with jobs.Gate() as gate:
        holding = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        before = [note(str(path), i) for i in range(20)]
        deadly = note(str(marker), 0, deadly=True)
        after = [note(str(path), i) for i in range(20, 40)]
        gate.open()
        holding.result(PATIENCE)
    assert [future.result(PATIENCE) for future in before + after] == list(range(40))
    assert isinstance(deadly.exception(PATIENCE), WorkerDiedError)
    assert sorted(map(int, path.read_text().split())) == list(range(40))
    assert marker.read_text() == "0\n" * 3


def test_time_begins_anew(tmp_path: Path) -> None:
    """A call that is run again has all its time again."""
    path = tmp_path / "note"
    future = task(pool="process", idempotent=True, timeout=4)(kill_jobs.sleep_and_die_once)(str(path), 2.5)
    assert future.result(PATIENCE) == "second"


def test_overrun_is_no_death() -> None:
    """A call that was killed as it overran its time is not run again by this."""
    future = task(pool="process", idempotent=True, timeout=0.2)(time.sleep)(600)
    assert isinstance(future.exception(PATIENCE), TaskTimeoutError)


def test_cancelled_is_not_run_again(pool: ProcessPool) -> None:
    """Nor is one that was cancelled while it ran."""
    with jobs.Gate() as gate:
        future = task(pool="process", idempotent=True)(jobs.wait_at)(gate.address)
        gate.arrived()
        assert future.cancel(running=True)
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2
        assert future.cancelled()


def test_without_a_board(monkeypatch: pytest.MonkeyPatch, terms: dict[str, Any], tmp_path: Path) -> None:
    """Where nobody knows whether it had ended, it is run again as well."""
    monkeypatch.setattr(peer, "make_memory", lambda: None)
    future = task(idempotent=True, **terms)(process_jobs.die_once)(str(tmp_path / "marker"))
    assert future.result(PATIENCE) == "second"


@pytest.mark.parametrize("name", ["threads", "loop"])
def test_kinds_whose_workers_do_not_die(name: str) -> None:
    """To others it makes no difference."""
    assert task(pool=name, idempotent=True)(jobs.async_double)(2).result(PATIENCE) == 4


def test_killed_before_it_began_again_and_again(pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose workers die before they begin it is given to two of them, whether it may be run again or not."""
    deaths: list[int] = []

    def not_begun(dead: peer.Peer) -> bool:
        deaths.append(dead.pid)
        return False

    monkeypatch.setattr(peer.Peer, "in_call", not_begun)
    for call in (pool.submit(os._exit, 3), task(pool="process", timeout=600)(os._exit)(3)):
        assert isinstance(call.exception(PATIENCE), WorkerDiedError)
    assert len(deaths) == 4


def test_interrupted(pool: ProcessPool) -> None:
    """At an interrupt nothing is run again."""
    with jobs.Gate() as gate:
        future = task(pool="process", idempotent=True)(jobs.wait_at)(gate.address)
        gate.arrived()
        pool.shutdown(wait=False, cancel_futures=True)
        pool._staff.interrupt()
        with pytest.raises(CancelledError):
            future.result(PATIENCE)


def test_signal_is_named() -> None:
    """The error at the end is that of the last death."""
    error = task(pool="process", idempotent=True)(process_jobs.die)(signal.SIGKILL).exception(PATIENCE)
    assert "was killed by SIGKILL" in str(error)

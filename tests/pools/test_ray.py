"""
Kind `ray`: the contract on a real local cluster, and what only this kind does.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from pools.clusters import ClusterContract, check_ctrl_c, check_interpreter_exit, far, ray_started, wait_for
from pools.contract import LONG, Kind, PoolContract, gate, opened
from pools.shops import Stocked, stocked

import parallel.pools.ray
from parallel import Pool, PoolBrokenError, RayPool

KNOWN = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
"""Ray's wheels are known to run here; elsewhere its tests are skipped if they can't be had."""

try:
    import ray
except ImportError as error:
    if KNOWN:
        raise
    pytest.skip(f"there is no Ray for this machine: {error}", allow_module_level=True)

__all__ = ["far", "gate", "stocked"]

pytestmark = pytest.mark.ray


def cluster(max_workers: int, **options: Any) -> Pool:
    """Make a pool on the cluster of this process."""
    return RayPool(max_workers=max_workers, **options)


@pytest.fixture(scope="module")
def kind() -> Kind:
    """One cluster for all pools of this process."""
    return Kind("ray", cluster, remote=True, starts=True, late=True)


@pytest.fixture(scope="class")
def shared(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers that many tests use; as long as it is there, so is the cluster."""
    with opened(kind, 2) as pool:
        with jobs.Gate() as gate:
            futures = [kind.hold(pool, gate) for _ in range(2)]
            gate.arrived(2)
        for future in futures:
            future.result(timeout=LONG)
        yield pool


@pytest.fixture
def pool(kind: Kind, shared: Pool) -> Iterator[Pool]:
    """A pool of two workers, on the same cluster."""
    with opened(kind, 2) as pool:
        yield pool


@pytest.mark.usefixtures("shared")
class TestContract(PoolContract):
    """A cluster keeps the contract, but in forked children: Ray's own threads are not there."""

    def test_fork(self, kind: Kind, pool: Pool, gate: jobs.Gate, in_fork: Callable[..., Any]) -> None:
        """A forked child is told so at once; what had ended before can be read, and the parent goes on."""
        ended = pool.submit(jobs.double, 1)
        assert ended.result(timeout=LONG) == 2

        def child() -> tuple[Any, ...]:
            try:
                return ended.result(timeout=20), str(pool.submit(jobs.double, 1).exception(timeout=20))
            finally:
                pool.shutdown()

        value, told = in_fork(child)
        assert value == 2
        assert "Ray was used before this process was forked" in told
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4

    def test_fork_while_busy(self, kind: Kind, pool: Pool, in_fork: Callable[..., Any]) -> None:
        """Forks in the middle of submits by other threads leave the parent working."""
        stop = threading.Event()
        results: list[Any] = []

        def submit() -> None:
            while not stop.is_set():
                results.append(pool.submit(jobs.double, 1).result(timeout=LONG))

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            for _ in range(3):
                assert in_fork(lambda: pool.stats().running) == 0
        finally:
            stop.set()
            thread.join(LONG)
        assert set(results) == {2}


# -- what the cluster is ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head with room for two calls, started as an operator does it; returns the address."""
    with ray_started(tmp_path_factory.mktemp("ray")) as address:
        yield address


@pytest.fixture
def said(head: str) -> dict[str, Any]:
    """What a configuration says of that cluster."""
    return {"kind": "ray", "address": head}


@pytest.fixture
def there(head: str) -> Iterator[RayPool]:
    """A pool on that cluster."""
    with RayPool(head) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        assert pool.stats().workers == 2
        yield pool


class TestCluster(ClusterContract):
    """A cluster that an operator has started."""


def test_what_a_call_takes(head: str) -> None:
    """Ray runs as many calls at a time as there is room for; what no node has is refused at once."""
    with RayPool(head, resources={"license": 1}) as pool, jobs.Gate() as gate:
        futures = [pool.submit(jobs.wait_at, gate.address, n) for n in range(2)]
        gate.arrived()
        wait_for(lambda: pool.stats().running)
        time.sleep(0.2)
        assert pool.stats().running == 1
        gate.open()
        assert [future.result(timeout=LONG) for future in futures] == [0, 1]
    with RayPool(head, num_gpus=1, memory="1MB") as pool:
        told = str(pool.submit(jobs.double, 2).exception(timeout=LONG))
    assert "no node has room for a call: 1 CPU, 1 GPU, 1MB memory is asked for" in told
    assert " has 2 CPU, 1 license, " in told


def test_max_workers(head: str) -> None:
    """On a cluster that is there, it is the most calls at a time."""
    with RayPool(head, 1) as pool, jobs.Gate() as gate:
        futures = [pool.submit(jobs.wait_at, gate.address, n) for n in range(3)]
        gate.arrived()
        wait_for(lambda: pool.stats().running)
        time.sleep(0.2)
        assert (pool.stats().running, pool.stats().queued) == (1, 2)
        gate.open()
        assert [future.result(timeout=LONG) for future in futures] == [0, 1, 2]


def test_one_connection(head: str) -> None:
    """Pools share it, and one of another cluster is refused; what the program has connected is left alone."""
    host, _, port = head.rpartition(":")
    with RayPool(head) as pool, RayPool(f"localhost:{port}") as same, RayPool(f"{host}:1") as other:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        assert same.submit(jobs.double, 2).result(timeout=LONG) == 4
        assert "a process can be connected to one only" in str(other.submit(jobs.double, 2).exception(timeout=LONG))
    assert not ray.is_initialized()
    ray.init(head, configure_logging=False, log_to_driver=False)
    try:
        with RayPool() as pool:
            assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_uploads_leave_nothing(stocked: Stocked) -> None:
    """Ray kills its workers; what was unpacked by those of a cluster of our own is removed all the same."""
    prices = stocked("3")
    with RayPool(max_workers=1, upload=["shop"]) as pool:
        folder = Path(pool.submit(prices.place).result(timeout=LONG)).parents[2]
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists()


def test_runtime_env(head: str) -> None:
    """The workers have what it names."""
    with RayPool(head, runtime_env={"env_vars": {"COLOUR": "green"}}) as pool:
        assert pool.submit(os.getenv, "COLOUR").result(timeout=LONG) == "green"


def test_no_head() -> None:
    """Nobody waits for ever for one that isn't there."""
    with RayPool("127.0.0.1:9") as pool:
        error = pool.submit(jobs.double, 2).exception(timeout=60)
    assert isinstance(error, PoolBrokenError)
    assert "could not be started" in str(error)
    assert "127.0.0.1:9" in str(error)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "", 4])
def test_wrong_addresses(address: Any) -> None:
    """What can't be an address is refused where it is said."""
    with pytest.raises((TypeError, ValueError), match="address must be"):
        RayPool(address)


# -- the end ----------------------------------------------------------------------------------------------------------


def part_of_ray(name: str) -> psutil.Process:
    """Return the process of that name that this one has started, for a cluster of its own."""
    [found] = [one for one in psutil.Process().children() if one.name() == name]
    return found


def test_the_head_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call ends, with an error that says so, before Ray ends the program; another pool starts anew."""
    monkeypatch.setattr(parallel.pools.ray, "GONE", 2.0)
    with RayPool(max_workers=2) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        running = [pool.submit(time.sleep, 60) for _ in range(5)]
        wait_for(lambda: pool.stats().running)
        part_of_ray("gcs_server").kill()
        errors = [future.exception(timeout=LONG) for future in running]
        assert {type(error) for error in errors} == {PoolBrokenError}
        assert "has not answered for 2 seconds" in str(errors[0])
        with pytest.raises(PoolBrokenError):
            pool.submit(jobs.double, 2)
    with RayPool(max_workers=1) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4


def test_the_raylet_is_killed() -> None:
    """So does it when Ray's part of this machine is gone."""
    with RayPool(max_workers=2) as pool:
        running = [pool.submit(time.sleep, 60) for _ in range(5)]
        wait_for(lambda: pool.stats().running)
        part_of_ray("raylet").kill()
        errors = [future.exception(timeout=2 * LONG) for future in running]
    assert {type(error) for error in errors} == {PoolBrokenError}


def test_interpreter_exit(run_script: Callable[..., Any]) -> None:
    """What was accepted is run, and what follows it."""
    check_interpreter_exit(run_script, "ray")


def test_ctrl_c(run_script: Callable[..., Any]) -> None:
    """After one that nobody handles, what waits is cancelled, and what runs is ended."""
    check_ctrl_c(run_script, "ray")

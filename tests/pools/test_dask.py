"""
Kind `dask`: the contract on a real local cluster, and what only this kind does.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import distributed
import jobs
import psutil
import pytest
from pools import cluster_jobs, clusters
from pools.clusters import ClusterContract, check_ctrl_c, check_interpreter_exit, dask_started, far, wait_for
from pools.contract import LONG, Kind, PoolContract, gate, opened
from pools.shops import stocked

import parallel.pools.dask
from parallel import (
    DaskPool,
    Future,
    Pool,
    PoolBrokenError,
    Progress,
    Registry,
    TaskTimeoutError,
    WorkerDiedError,
    as_completed,
    gather,
    task,
    using,
)
from parallel.pools.dask import LARGE, Sealed

__all__ = ["far", "gate", "stocked"]

pytestmark = pytest.mark.dask


def cluster(max_workers: int, **options: Any) -> Pool:
    """Make a pool on a cluster of its own."""
    return DaskPool(max_workers=max_workers, **options)


@pytest.fixture(scope="module")
def kind() -> Kind:
    """A local cluster for each pool."""
    return Kind("dask", cluster, remote=True, starts=True, late=True)


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers that many tests use."""
    with opened(kind, 2) as pool:
        with jobs.Gate() as gate:
            futures = [kind.hold(pool, gate) for _ in range(2)]
            gate.arrived(2)
        for future in futures:
            future.result(timeout=LONG)
        for _ in range(3):  # Dask opens connections as they are needed, and keeps them
            gather(*(pool.submit(jobs.double, n) for n in range(500))).result(timeout=LONG)
        yield pool


@pytest.fixture
def pool(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers."""
    with opened(kind, 2) as pool:
        yield pool


class TestContract(PoolContract):
    """A cluster keeps the contract, but in forked children: Dask's own threads are not there."""

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
        assert "Dask was used before this process was forked" in told
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
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two workers of one thread, started as an operator does it; returns the address."""
    folder = tmp_path_factory.mktemp("dask")
    with dask_started(folder) as address:
        yield address


@pytest.fixture
def there(scheduler: str) -> Iterator[DaskPool]:
    """A pool on that cluster."""
    with DaskPool(scheduler) as pool:
        wait_for(lambda: pool.submit(jobs.double, 2).result(timeout=LONG) == 4 and pool.stats().workers == 2)
        yield pool


def test_resources(scheduler: str) -> None:
    """Calls go to workers that have what is asked for; what no worker has is refused at once."""
    with DaskPool(scheduler, resources={"GPU": 1}) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
    with DaskPool(scheduler, resources={"TPU": 1}) as pool:
        told = str(pool.submit(jobs.double, 2).exception(timeout=LONG))
    assert "no worker may run the calls: resources {'TPU': 1}" in told
    assert "{'GPU': 1.0}" in told or "{'GPU': 1}" in told


def test_the_dashboard() -> None:
    """`stats()` tells where the scheduler shows what it does, and so does a map of how far it is."""
    seen: list[Progress] = []
    with Registry({"pools": {"far": {"kind": "dask", "max_workers": 1}}}) as registry, using(registry):
        assert registry.pool("far").stats().dashboard_link == ""
        assert list(task(pool="far")(jobs.double).map(range(3), progress=seen.append)) == [0, 2, 4]
        link = registry.pool("far").stats().dashboard_link
    assert re.fullmatch(r"http://.+:\d+/status", link)
    assert seen[-1].dashboard_link == link


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for one that isn't there."""
    monkeypatch.setattr(parallel.pools.dask, "PATIENCE", 2.0)
    with DaskPool("tcp://127.0.0.1:9", max_workers=1) as pool:
        error = pool.submit(jobs.double, 2).exception(timeout=60)
    assert isinstance(error, PoolBrokenError)
    assert "could not be started" in str(error)


def test_workers_without_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are refused: the first call would end them. Here they find another module of that name."""
    (tmp_path / "parallel.py").touch()
    usual = clusters.environment(tmp_path)
    lacking = {**usual, "PYTHONPATH": os.pathsep.join([str(tmp_path), usual["PYTHONPATH"]])}
    monkeypatch.setattr(clusters, "environment", lambda _: lacking)
    with dask_started(tmp_path) as address, DaskPool(address) as pool:
        told = str(pool.submit(jobs.double, 2).exception(timeout=LONG))
    assert "the versions differ: the scheduler has parallel is not there, here" in told


def test_a_large_constant_travels_once(there: DaskPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls wait for it, and not through the scheduler."""
    client: Any = cast(Any, there)._engine._driver._client
    scattered: list[tuple[int, bool]] = []
    scatter = client.scatter

    async def noted(data: Any, **said: Any) -> Any:
        scattered.append((data[0][1].size, said["direct"]))
        return await scatter(data, **said)

    monkeypatch.setattr(client, "scatter", noted)
    large = there.shared(b"x" * (8 * LARGE))
    futures = [there.submit(cluster_jobs.add_length, number, large) for number in range(100)]
    assert [future.result(timeout=LONG) for future in futures] == [number + 8 * LARGE for number in range(100)]
    assert [direct for size, direct in scattered if size > LARGE] == [True]


def test_other_versions(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of other versions is refused, with both of them: here the table that the scheduler sends is changed."""
    get_versions = distributed.Client.get_versions

    async def changed(client: Any) -> Any:
        table = await get_versions(client)
        table["scheduler"]["packages"]["python"] = "2.7.18.final.0"
        return table

    monkeypatch.setattr(distributed.Client, "get_versions", changed)
    with DaskPool(scheduler) as pool:
        told = str(pool.submit(jobs.double, 2).exception(timeout=LONG))
    assert "the versions differ: the scheduler has python 2.7, here 3." in told


# -- encrypted connections ---------------------------------------------------------------------------------------------


def authority(folder: Path) -> dict[str, str]:
    """Have an authority of its own issue a certificate for this machine; returns what the option `tls` is given."""
    trustme = pytest.importorskip("trustme")
    said = {name: str(folder / f"{name}.pem") for name in ("ca_file", "cert", "key")}
    issuer = trustme.CA()
    certificate = issuer.issue_cert("127.0.0.1", "localhost")
    issuer.cert_pem.write_to_path(said["ca_file"])
    certificate.cert_chain_pems[0].write_to_path(said["cert"])
    certificate.private_key_pem.write_to_path(said["key"])
    return said


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the option `tls` is given for `encrypted`."""
    return authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def encrypted(tls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler, and workers, all of whose connections are encrypted; returns the address."""
    files = ["--tls-ca-file", tls["ca_file"], "--tls-cert", tls["cert"], "--tls-key", tls["key"]]
    with dask_started(tmp_path_factory.mktemp("encrypted"), both=["--protocol", "tls", *files]) as address:
        yield address


def test_encrypted(encrypted: str, tls: dict[str, str]) -> None:
    """Calls, large ones and what they return travel encrypted; `kill` works."""
    said = {"kind": "dask", "address": encrypted, "tls": tls, "kill": True}
    large = b"x" * 3_000_000
    with Registry({"pools": {"far": said}}) as registry, using(registry):
        assert encrypted.startswith("tls://")
        assert list(task(pool="far")(jobs.double).map(range(100))) == list(range(0, 200, 2))
        assert task(pool="far")(jobs.double)(large).result(timeout=LONG) == large * 2
        with pytest.raises(TaskTimeoutError):
            task(pool="far", timeout=0.5)(time.sleep)(60).result(timeout=LONG)


WRONG_TLS = {
    "nothing": (None, "tls://.* is the address of an encrypted connection: the option tls has to name its ca_file"),
    "another authority": ({"ca_file": "other"}, "certificate does not match"),
    "another's certificate": ({"cert": "other", "key": "other"}, "SSLError|CommClosedError"),
    "another's key": ({"key": "other"}, "key values mismatch"),
    "no file": ({"cert": "nowhere"}, "No such file or directory: .*nowhere"),
}


@pytest.mark.parametrize("wrong", WRONG_TLS)
def test_wrong_certificates(wrong: str, encrypted: str, tls: dict[str, str], tmp_path: Path) -> None:
    """Who has none, or others, is told so, and doesn't wait."""
    replaced, told = WRONG_TLS[wrong]
    others = {"other": authority(tmp_path), "nowhere": dict.fromkeys(tls, str(tmp_path / "nowhere"))}
    said = None if replaced is None else {**tls, **{name: others[which][name] for name, which in replaced.items()}}
    with DaskPool(encrypted, tls=said) as pool:
        error = pool.submit(jobs.double, 2).exception(timeout=LONG)
    assert isinstance(error, PoolBrokenError)
    assert re.search(told, str(error))


@pytest.mark.parametrize("wrong", [{"ca_file": "a.pem"}, {"ca_file": "a", "cert": "b", "key": ""}, "a.pem"])
def test_tls_that_names_other_files(wrong: Any) -> None:
    """What can't be the option is refused where it is said."""
    with pytest.raises(ValueError, match="'ca_file', 'cert' and 'key'"):
        DaskPool("tls://127.0.0.1:9", tls=wrong)


# -- workers that can't be killed -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[["--nthreads", "2"], ["--nworkers", "1", "--no-nanny"]], ids=" ".join)
def unkillable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster whose workers can't be ended for the sake of one call; returns the address."""
    with dask_started(tmp_path_factory.mktemp("unkillable"), *request.param) as address:
        yield address


def test_kill_is_refused(unkillable: str) -> None:
    """Who insists on it is told why it can't be."""
    with DaskPool(unkillable) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
    with DaskPool(unkillable, kill=True) as pool:
        told = str(pool.submit(jobs.double, 2).exception(timeout=LONG))
    assert "kill = true: a call can be ended by force only on workers of one thread with a nanny" in told


def test_a_timeout_asks(unkillable: str, tmp_path: Path) -> None:
    """A call that overruns its time fails at once; its function is told to stop, and does."""
    told = tmp_path / "told"
    with Registry({"pools": {"far": {"kind": "dask", "address": unkillable}}}) as registry, using(registry):
        assert registry.pool("far").submit(jobs.double, 2).result(timeout=LONG) == 4
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            task(pool="far", timeout=0.5)(cluster_jobs.until_told)(str(told)).result(timeout=LONG)
        assert time.monotonic() - began < 15
        wait_for(lambda: told.exists() and told.read_text())
        assert told.read_text() == "asked"


@pytest.fixture
def said(scheduler: str) -> dict[str, Any]:
    """What a configuration says of that cluster."""
    return {"kind": "dask", "address": scheduler, "kill": True}


class TestCluster(ClusterContract):
    """A cluster that an operator has started."""


def sealed() -> list[Sealed]:
    """Return the packets that are in memory."""
    return [one for one in gc.get_objects() if type(one) is Sealed]


def test_a_million_items() -> None:
    """The scheduler has a few pieces at a time to see to, and nothing is left of them, there or here."""
    with Registry({"pools": {"far": {"kind": "dask", "max_workers": 2}}}) as registry, using(registry):
        pool = registry.pool("far")
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        scheduler: Any = cast(Any, pool)._engine._driver._cluster.scheduler
        before = sealed()  # by pools of other tests, whose clients Dask keeps
        most = total = 0
        for number in task(pool="far")(jobs.double).stream(range(1_000_000)):
            total += number
            if number % 10_000 == 0:
                most = max(most, len(scheduler.tasks))
        assert total == 1_000_000 * 999_999
        assert 0 < most < 200
        wait_for(lambda: not scheduler.tasks and all(any(one is old for old in before) for one in sealed()))


# -- the end -----------------------------------------------------------------------------------------------------------


def held(pool: Pool, seconds: float = 60) -> list[Future[Any]]:
    """Have its two workers run two calls that take so long, and 200 short ones wait."""
    long = [pool.submit(time.sleep, seconds) for _ in range(2)]
    wait_for(lambda: all(future.running() for future in long))
    return long + [pool.submit(jobs.double, number) for number in range(200)]


def test_a_worker_is_restarted(there: DaskPool, scheduler: str) -> None:
    """By somebody else, in the middle of a call: that is blamed, and nothing else is lost."""
    first, second, *others = held(there)
    with distributed.Client(scheduler, set_as_default=False) as operator:
        operator.restart_workers(list(operator.scheduler_info()["workers"])[:1])
    blamed = next(as_completed([first, second], timeout=LONG))
    assert isinstance(blamed.exception(), WorkerDiedError)
    assert (first if blamed is second else second).cancel(running=True)
    assert [future.result(timeout=LONG) for future in others] == list(range(0, 400, 2))


def test_the_cluster_is_restarted(there: DaskPool, scheduler: str) -> None:
    """By somebody else: what ran is blamed, what waited is run, and what had gone ahead to the workers goes again."""
    large = b"x" * LARGE
    measure = partial(cluster_jobs.add_length, data=large)
    assert list(there.map(measure, range(3))) == [LARGE, LARGE + 1, LARGE + 2]
    first, second, *others = held(there)
    with distributed.Client(scheduler, set_as_default=False) as operator:
        operator.restart()
    assert {type(future.exception(timeout=LONG)) for future in (first, second)} == {WorkerDiedError}
    assert [future.result(timeout=LONG) for future in others] == list(range(0, 400, 2))
    assert list(there.map(measure, range(3))) == [LARGE, LARGE + 1, LARGE + 2]


@pytest.mark.parametrize("way", ["closed", "cut"])
def test_the_client_is_closed(way: str, scheduler: str) -> None:
    """Under the pool's feet: every call ends, with an error that says so."""
    with DaskPool(scheduler) as pool:
        futures = held(pool, seconds=5)  # those of a client that is gone run to their ends
        driver: Any = cast(Any, pool)._engine._driver
        client = driver._client
        end = (lambda: driver._spawn(client.close())) if way == "closed" else client.scheduler_comm.comm.abort
        driver._loop.call_soon_threadsafe(end)
        errors = [future.exception(timeout=LONG) for future in futures]
        assert {type(error) for error in errors} == {PoolBrokenError}
        assert f"the connection to the scheduler {scheduler} is lost" in str(errors[0])


def test_the_loop_is_stopped(there: DaskPool) -> None:
    """By whoever got hold of it: it goes on, and can't be closed."""
    loop = cast(Any, there)._engine._driver._loop
    future = there.submit(time.sleep, 0.5)
    with pytest.raises(RuntimeError):
        loop.close()
    loop.call_soon_threadsafe(loop.stop)
    assert future.result(timeout=LONG) is None
    assert there.submit(jobs.double, 2).result(timeout=LONG) == 4


def test_the_scheduler_is_killed(tmp_path: Path) -> None:
    """Every call ends, with an error that says so, and so does every later one."""
    with dask_started(tmp_path) as address, DaskPool(address) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        running = [pool.submit(time.sleep, 60) for _ in range(5)]
        wait_for(lambda: pool.stats().running)
        os.kill(pid_at(address), signal.SIGKILL)
        errors = [future.exception(timeout=LONG) for future in running]
        assert {type(error) for error in errors} == {PoolBrokenError}
        assert f"the connection to the scheduler {address} is lost" in str(errors[0])
        with pytest.raises(PoolBrokenError):
            pool.submit(jobs.double, 2)


def test_interpreter_exit(run_script: Callable[..., Any]) -> None:
    """What was accepted is run, and what follows it."""
    assert check_interpreter_exit(run_script, "dask") == ""


def test_ctrl_c(run_script: Callable[..., Any]) -> None:
    """After one that nobody handles, what waits is cancelled, what runs is ended, and no cluster is left."""
    check_ctrl_c(run_script, "dask")


def pid_at(address: str) -> int:
    """Return the process that listens there."""
    port = int(address.rpartition(":")[2])
    found = [one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"]
    assert found[0] is not None
    return int(found[0])

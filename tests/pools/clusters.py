"""
Clusters as operators start them, and what every one must do: `ClusterContract`, written once.

A subclass gives the fixtures *said*, what a configuration says of the pool, and *there*, a pool on the cluster, both
with two workers of one thread on this machine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jobs
import psutil
import pytest
from pools import cluster_jobs
from pools.contract import LONG
from pools.shops import Stocked

from parallel import Pool, Registry, Retry, TaskTimeoutError, WorkerDiedError, gather, task, using, wait


def wait_for(fact: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + LONG
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- starting them, as operators do ------------------------------------------------------------------------------------


TESTS = Path(__file__).parent.parent


def environment(folder: Path) -> dict[str, str]:
    """Return that of a worker: the package and the tests' modules are in reach; it writes to *folder*."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)}


@contextmanager
def dask_started(folder: Path, *workers: str, both: Sequence[str] = ()) -> Iterator[str]:
    """
    Start a Dask scheduler, and two workers of one thread with nannies; returns the address.

    Args:
        folder: Where they put what they write.
        workers: Options of `dask worker` besides.
        both: Options of that, and of `dask scheduler`.
    """
    file = folder / "scheduler.json"
    here = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard", *both]
    first = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *here]
    others = [sys.executable, "-m", "distributed.cli.dask_worker", "--nworkers", "2", "--nthreads", "1", *here]
    others += ["--resources", "GPU=1", *workers]
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    said = {"DASK_DISTRIBUTED__WORKER__DAEMON": "False", "DASK_TEMPORARY_DIRECTORY": str(folder)}
    options |= {"env": {**environment(folder), **said}, "start_new_session": True}
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(subprocess.Popen(first, **options))
        wait_for(file.exists)
        running.append(subprocess.Popen(others, **options))
        yield str(json.loads(file.read_text())["address"])
    finally:
        for one in running:
            os.killpg(one.pid, signal.SIGKILL)  # with what it has started: they end in order in 20 seconds at best
            one.wait(LONG)


@contextmanager
def ray_started(folder: Path) -> Iterator[str]:
    """
    Start the head of a Ray cluster, with room for two calls, in *folder*; returns the address.

    Its files lie elsewhere: names of its sockets have to be short.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = ["--head", "--block", "--port", str(port), "--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
    there = ["--num-cpus", "2", "--resources", '{"license": 1}', "--include-dashboard", "false"]
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as short:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *here, *there],
            env=environment(Path(short)),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda: answers(port) and "raylet" in names_below(process.pid))
            yield f"127.0.0.1:{port}"
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(LONG)
            for one in psutil.wait_procs(started, LONG)[1]:
                one.kill()


def answers(port: int) -> bool:
    """Tell whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def names_below(pid: int) -> list[str]:
    """Return the names of the processes that one has started."""
    return [one.name() for one in psutil.Process(pid).children(recursive=True)]


# -- what they must do ------------------------------------------------------------------------------------------------


@pytest.fixture
def far(said: dict[str, Any]) -> Iterator[Registry]:
    """A registry with a pool on the cluster, which is that of the test."""
    with Registry({"pools": {"far": said}}) as registry, using(registry):
        yield registry


class ClusterContract:
    """What is so on every cluster."""

    def test_a_cluster_that_is_there(self, there: Pool) -> None:
        """Its workers run the calls; it outlives the pool."""
        futures = [there.submit(jobs.double, n) for n in range(50)]
        assert gather(*futures).result(timeout=LONG) == tuple(range(0, 100, 2))
        assert there.submit(lambda: os.getpid()).result(timeout=LONG) != os.getpid()

    def test_a_worker_that_is_killed(self, there: Pool, tmp_path: Path) -> None:
        """The call that it ran is blamed, and not run again; the others are run."""
        runs = tmp_path / "runs"
        dying = there.submit(cluster_jobs.note_and_die, str(runs), 0.3)
        others = [there.submit(jobs.double, n) for n in range(100)]
        error = dying.exception(timeout=LONG)
        assert isinstance(error, WorkerDiedError)
        assert error.worker
        assert f"worker {error.worker} died while it ran" in str(error)
        assert [future.result(timeout=LONG) for future in others] == list(range(0, 200, 2))
        assert runs.read_text() == "."

    def test_an_idempotent_call_is_run_again(self, far: Registry, tmp_path: Path) -> None:
        """Twice at most."""
        runs = tmp_path / "runs"
        dying = task(pool="far", idempotent=True)(cluster_jobs.note_and_die)
        assert isinstance(dying(str(runs), 0.2).exception(timeout=2 * LONG), WorkerDiedError)
        assert runs.read_text() == "..."

    def test_a_timeout_kills(self, far: Registry) -> None:
        """A call that overruns its time is ended with its worker, which is started anew."""
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            task(pool="far", timeout=0.5)(time.sleep)(60).result(timeout=LONG)
        held = task(pool="far")(time.sleep)(60)
        wait_for(held.running)
        assert held.cancel(running=True)
        far.drain(2 * LONG)
        assert time.monotonic() - began < 50
        assert far.pool("far").submit(jobs.double, 2).result(timeout=LONG) == 4

    def test_a_timeout_of_who_holds_the_interpreter(self, far: Registry) -> None:
        """No thread of the worker's can tell anything meanwhile: so it was told before."""
        assert far.pool("far").submit(jobs.double, 2).result(timeout=LONG) == 4
        began = time.monotonic()
        error = task(pool="far", timeout=0.5)(cluster_jobs.explode)().exception(timeout=LONG)
        assert isinstance(error, TaskTimeoutError)
        assert time.monotonic() - began < 5

    def test_a_timeout_ends_the_body(self, far: Registry, tmp_path: Path) -> None:
        """At once: it doesn't go on until it likes to end."""
        told = tmp_path / "told"
        error = task(pool="far", timeout=0.5)(cluster_jobs.count_on)(str(told)).exception(timeout=LONG)
        assert isinstance(error, TaskTimeoutError)
        far.drain(2 * LONG)
        assert far.pool("far").submit(jobs.double, 2).result(timeout=LONG) == 4
        assert len(told.read_text()) < 30  # a tenth of a second each

    def test_a_function_is_asked_to_stop(self, there: Pool, tmp_path: Path) -> None:
        """`cancel()` tells it, on whatever machine it runs."""
        told = tmp_path / "told"
        future = there.submit(cluster_jobs.until_told, str(told))
        wait_for(future.running)
        assert not future.cancel()
        wait_for(lambda: told.exists() and told.read_text())
        assert told.read_text() == "asked"

    def test_priority(self, far: Registry) -> None:
        """What is urgent runs before what waits."""
        here = far.pool("far")
        with jobs.Gate() as gate:
            held = [here.submit(jobs.wait_at, gate.address) for _ in range(2)]
            gate.arrived(2)
            # So long that a worker which the machine lets wait isn't overtaken by dozens meanwhile.
            usual = [task(pool="far")(cluster_jobs.began)(0.005) for _ in range(300)]
            urgent = task(pool="far", priority=1)(cluster_jobs.began)(0.005)
            last = task(pool="far", priority=-1)(cluster_jobs.began)(0.005)
        began = sorted(future.result(timeout=LONG) for future in usual)
        assert urgent.result(timeout=LONG) < began[60]
        assert last.result(timeout=LONG) > began[-60]
        wait(held)

    def test_options(self, far: Registry, tmp_path: Path) -> None:
        """Each option of tasks does what it does elsewhere."""
        seen = []
        retried = task(pool="far", retry=Retry(on=OSError, attempts=3, wait_initial=0), on_success=seen.append)
        assert retried(cluster_jobs.fail_twice)(str(tmp_path / "tries")).result(timeout=LONG) == 3
        limited = task(pool="far", limit=1, rate="1000/s")(cluster_jobs.alone)
        assert gather(*(limited(str(tmp_path / "alone")) for _ in range(6))).result(timeout=LONG) == (True,) * 6
        late = task(pool="far", deadline=0.3, on_failure=lambda error: seen.append(type(error)))(time.sleep)(60)
        with pytest.raises(TaskTimeoutError):
            late.result(timeout=LONG)
        wait_for(lambda: len(seen) == 2)
        assert seen == [3, TaskTimeoutError]

    def test_a_large_constant(self, far: Registry) -> None:
        """It goes to each worker once, not with each chunk."""
        mapped = task(pool="far")(cluster_jobs.add_length)
        data = b"x" * 5_000_000
        found = mapped.map(range(2_000), constants={"data": data}, chunksize=50)
        assert list(found) == [n + len(data) for n in range(2_000)]

    def test_many_tiny_items(self, far: Registry) -> None:
        """They go in chunks: the cluster sees some hundred tasks of 200,000 items."""
        mapped = task(pool="far")(jobs.double)
        assert sum(mapped.stream(range(200_000))) == 199_999 * 200_000
        assert far.pool("far").stats().done < 2_000

    def test_items_that_kill(self, far: Registry) -> None:
        """An item that kills its worker is blamed alone."""
        ends = list(task(pool="far")(cluster_jobs.die_at_seven).map(range(20), errors="collect"))
        assert [index for index, end in enumerate(ends) if end.error is not None] == [7]
        assert isinstance(ends[7].error, WorkerDiedError)

    def test_nested_calls(self, far: Registry) -> None:
        """In a worker, the same pool runs calls inline: no nest holds up the cluster."""
        found = gather(*(cluster_jobs.outer() for _ in range(8))).result(timeout=LONG)
        assert all(outside == inside for outside, inside in found)

    def test_a_package_that_is_uploaded(self, said: dict[str, Any], stocked: Stocked) -> None:
        """Workers that don't have it are sent it, and a newer version takes its place."""
        prices = stocked("3")
        with Registry({"pools": {"far": said}}) as registry:
            told = str(registry.pool("far").submit(prices.price).exception(timeout=LONG))
        assert "No module named 'shop'" in told
        assert "install it there, or name its package in `upload`" in told
        for price in ("4", "5"):
            prices = stocked(price)
            with Registry({"pools": {"far": {**said, "upload": ["shop"]}}}) as registry:
                far = registry.pool("far")
                assert set(gather(*(far.submit(prices.price) for _ in range(100))).result(timeout=LONG)) == {price}


AT_EXIT = """
from parallel import configure, task
import sys, time

def late(text):
    time.sleep(0.02)
    return text

def show(text):
    sys.stdout.write(f"{text}\\n")  # in one piece, as several threads do
    sys.stdout.flush()

if __name__ == "__main__":
    configure({"pools": {"far": {"kind": "KIND", "max_workers": 1}}})
    futures = [task(pool="far")(late)(f"call {index}").then(show) for index in range(10)]
"""


def check_interpreter_exit(run_script: Callable[..., Any], kind: str) -> str:
    """See that what was accepted is run, and what follows it; return what was said besides."""
    done = run_script(AT_EXIT.replace("KIND", kind), timeout=60)
    assert sorted(done.stdout.splitlines()) == [f"call {index}" for index in range(10)]
    return str(done.stderr)


def check_ctrl_c(run_script: Callable[..., Any], kind: str) -> None:
    """See that after one that nobody handles, what waits is cancelled, and what runs is ended."""
    began = time.monotonic()
    script = AT_EXIT.replace("KIND", kind) + "    show('ready'); task(pool='far')(time.sleep)(60).result()\n"
    done = run_script(script.replace("0.02", "20"), interrupt_at="ready", status=None, timeout=60)
    assert done.returncode in (1, 130, -signal.SIGINT)
    assert "call 5" not in done.stdout
    assert time.monotonic() - began < 40

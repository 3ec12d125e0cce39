"""
Workers that die, and the process of the pool that dies: every future ends, and nothing is left behind.
"""

from __future__ import annotations

import errno
import operator
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, wait
from pathlib import Path
from typing import Any

import jobs
import pytest
from jobs import Gate
from pools import process_jobs
from pools.process_jobs import PATIENCE, is_gone, wait_until

from parallel import ProcessPool
from parallel.deaths import WorkerDiedError
from parallel.errors import PoolBrokenError
from parallel.pools.process import launching

METHODS = ["forkserver", "spawn", "fork"]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # 3.12 and later, where it is asked for


def death_of(pool: ProcessPool, fn: Callable[..., Any], *args: Any) -> WorkerDiedError:
    """Return how the worker died that ran the call."""
    error = pool.submit(fn, *args).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    return error


# -- workers that die in a call ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_a_call(method: str) -> None:
    """A worker that is killed costs the call that it ran: that one tells how, the pool goes on."""
    with ProcessPool(2, method) as pool:
        assert pool.submit(jobs.double, 3).result(PATIENCE) == 6
        error = death_of(pool, process_jobs.die)
        assert (error.task, error.exit_code) == ("pools.process_jobs:die", -signal.SIGKILL)
        assert "killed by SIGKILL" in str(error)
        assert is_gone(error.pid)
        assert [pool.submit(jobs.double, i).result(PATIENCE) for i in range(4)] == [0, 2, 4, 6]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # a forked worker would inherit the gate
def test_bystanders_of_a_death(method: str) -> None:
    """A call that runs in another worker meanwhile is none the wiser."""
    with Gate() as gate, ProcessPool(2, method) as pool:
        bystander = pool.submit(jobs.wait_at, gate.address, "fine")
        gate.arrived()
        death_of(pool, process_jobs.die)
        assert pool.submit(jobs.double, 4).result(PATIENCE) == 8
        gate.open()
        assert bystander.result(PATIENCE) == "fine"


@pytest.mark.parametrize("status", [0, 3])
def test_exit_without_goodbye(status: int) -> None:
    """A worker that leaves in a call has died, whatever its status."""
    with ProcessPool(1) as pool:
        assert death_of(pool, process_jobs.leave, status).exit_code == status
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2


def test_each_death_has_its_own_error() -> None:
    """Two lost calls don't share an exception, or their tracebacks would pile up."""
    with ProcessPool(2) as pool:
        futures = [pool.submit(process_jobs.die) for _ in range(4)]
        errors = [future.exception(PATIENCE) for future in futures]
    assert len({id(error) for error in errors}) == 4
    assert len({error.pid for error in errors if isinstance(error, WorkerDiedError)}) == 4


def test_queued_calls_go_on() -> None:
    """A death costs none of the calls that wait."""
    with ProcessPool(1) as pool:
        death = pool.submit(process_jobs.die)
        rest = [pool.submit(jobs.double, i) for i in range(50)]
        assert [future.result(PATIENCE) for future in rest] == [i * 2 for i in range(50)]
        assert isinstance(death.exception(), WorkerDiedError)


def test_half_an_answer() -> None:
    """A worker that dies in the middle of its answer has died."""
    with ProcessPool(1) as pool:
        death_of(pool, process_jobs.leave_half_an_answer)
        assert pool.submit(jobs.double, 2).result(PATIENCE) == 4


def test_deadly_remains() -> None:
    """A value whose end kills the worker has been sent before; the next call finds a fresh worker."""
    with ProcessPool(1) as pool:
        futures = [pool.submit(process_jobs.make_deadly), *(pool.submit(jobs.double, i) for i in range(20))]
        assert futures[0].result(PATIENCE) == "deadly"
        assert [future.result(PATIENCE) for future in futures[1:]] == [i * 2 for i in range(20)]


def test_socket_held_by_a_grandchild(tmp_path: Path) -> None:
    """A worker that leaves a child behind is known to be dead all the same, and the child goes too."""
    note = tmp_path / "pid"
    with ProcessPool(1) as pool:
        death_of(pool, process_jobs.fork_a_sleeper_and_die, str(note))
        assert pool.submit(jobs.double, 2).result(PATIENCE) == 4
        assert is_gone(int(note.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*about to fork while other threads run:RuntimeWarning")
def test_kill_storm(method: str) -> None:
    """Through hundreds of kills, at random moments, each call ends: with its value, or as the death that it was."""
    chance = random.Random(7)
    stop = threading.Event()
    killed = 0

    with ProcessPool(2, method) as pool:

        def kill_now_and_then() -> None:
            nonlocal killed
            while not stop.wait(chance.random() * 0.01):
                peers = list(pool._staff._roster.staff)
                ready = [peer for peer in peers if peer.ready and not peer.dead]
                if ready:
                    try:
                        os.kill(chance.choice(ready).pid, signal.SIGKILL)
                        killed += 1
                    except ProcessLookupError:
                        continue

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        lost = 0
        try:
            for _ in range(20):
                futures = [pool.submit(operator.mul, i, 2) for i in range(200)]
                done = wait(futures, PATIENCE)
                assert not done.not_done
                for i, future in enumerate(futures):
                    error = future.exception()
                    if error is None:
                        assert future.result() == i * 2
                    else:
                        assert isinstance(error, WorkerDiedError)
                        lost += 1
        finally:
            stop.set()
            killer.join()
        assert killed > 10
        assert lost <= killed


def test_hundreds_of_deaths_do_not_break_the_pool() -> None:
    """Calls that kill their worker, one after the other, break nothing: each is its own fault."""
    with ProcessPool(2) as pool:
        futures = [pool.submit(os._exit, 1) for _ in range(300)]
        assert all(isinstance(future.exception(PATIENCE), WorkerDiedError) for future in futures)
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2


# -- workers that die outside of a call -------------------------------------------------------------------------------


def test_idle_worker_killed() -> None:
    """The death of an idle worker is noticed, costs no call, and it is replaced when it is needed."""
    with ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: pool.stats().workers == 0)
        assert pool.submit(jobs.pid).result(PATIENCE) != worker


def test_submit_races_with_the_death_of_an_idle_worker() -> None:
    """A call that is sent to a worker that has just died, and can't have read it, goes to another one."""
    with ProcessPool(1) as pool:
        for i in range(100):
            os.kill(pool.submit(os.getpid).result(PATIENCE), signal.SIGKILL)
            error = pool.submit(operator.mul, i, 2).exception(PATIENCE)
            assert error is None or isinstance(error, WorkerDiedError)


def test_stopped_worker_killed_before_it_reads() -> None:
    """A call that a worker has not read when it dies is not its call: another worker runs it."""
    with ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(worker, signal.SIGSTOP)
        future = pool.submit(jobs.pid)
        os.kill(worker, signal.SIGKILL)
        assert future.result(PATIENCE) != worker


def test_big_call_of_a_stopped_worker() -> None:
    """The same for a call that does not fit into the socket."""
    with ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(worker, signal.SIGSTOP)
        future = pool.submit(process_jobs.size, bytes(8 << 20))
        os.kill(worker, signal.SIGKILL)
        assert future.result(PATIENCE) == 8 << 20


def test_fork_server_killed() -> None:
    """The end of the fork server costs no call: its children go on, and new ones have a new server."""
    with Gate() as gate, ProcessPool(2, "forkserver") as pool:
        bystander = pool.submit(jobs.wait_at, gate.address, "fine")
        gate.arrived()
        server, _ = launching.helper() or (0, 0)
        os.kill(server, signal.SIGKILL)
        assert pool.submit(jobs.double, 4).result(PATIENCE) == 8
        gate.open()
        assert bystander.result(PATIENCE) == "fine"
        pool.submit(process_jobs.die).exception(PATIENCE)
        assert pool.submit(jobs.double, 5).result(PATIENCE) == 10


def failure_of(pool: ProcessPool) -> BaseException | None:
    """Return the error of a call, or of its submit."""
    try:
        return pool.submit(jobs.nothing).exception(PATIENCE)
    except PoolBrokenError as refused:
        return refused


# -- workers that never come ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_initializer_raises(method: str) -> None:
    """An initializer that raises breaks the pool: queued calls and later submits tell what it raised."""
    with ProcessPool(2, method, process_jobs.initializer_that_fails, ("no such device",)) as pool:
        errors = [failure_of(pool) for _ in range(5)]
        for error in errors:
            assert isinstance(error, PoolBrokenError)
            assert isinstance(error.__cause__, ValueError)
            assert "no such device" in str(error)
        assert len({id(error) for error in errors}) == 5
        with pytest.raises(BrokenExecutor, match="no such device"):
            pool.submit(jobs.double, 1)


def test_initializer_that_can_not_be_loaded() -> None:
    """So does one whose arguments explode in the worker."""
    explosive = process_jobs.Explosive(ValueError("damp"))
    with ProcessPool(1, "spawn", jobs.remember, (explosive,)) as pool, pytest.raises(PoolBrokenError, match="damp"):
        pool.submit(jobs.nothing).result(PATIENCE)


def test_initializer_that_can_not_be_pickled() -> None:
    """One that can't be pickled fails the calls that wait for a worker."""
    with ProcessPool(1, "forkserver", jobs.remember, (jobs.Unpicklable(),)) as pool:
        for _ in range(2):
            with pytest.raises(PoolBrokenError, match="stays at home"):
                pool.submit(jobs.nothing).result(PATIENCE)


@pytest.mark.parametrize("method", METHODS)
def test_initializer_dies(tmp_path: Path, method: str) -> None:
    """An initializer that kills its worker breaks the pool after a few tries: no endless respawning."""
    note = tmp_path / "starts"
    pool = ProcessPool(1, method, process_jobs.initializer_that_dies_with_note, (str(note),))
    with pool, pytest.raises(PoolBrokenError, match="before they were ready: the last exited with status 9"):
        pool.submit(jobs.nothing).result(PATIENCE)
    assert len(note.read_text()) == 3


def test_no_descriptors_left() -> None:
    """Without descriptors for a worker the waiting call fails; nothing stays, and later the pool works."""
    with ProcessPool(1) as warm:
        warm.submit(jobs.nothing).result(PATIENCE)  # the fork server runs
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ProcessPool(1) as pool:
        try:
            for spare in range(64):
                resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
                error = failure_of(pool)
                if error is None:
                    break
                assert isinstance(error, PoolBrokenError)
                assert isinstance(error.__cause__, OSError)
                assert error.__cause__.errno == errno.EMFILE
            else:
                raise AssertionError("it should have worked at last")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_no_main_guard(run_script: Any, method: str) -> None:
    """A script without a guard ends at once, and tells what it lacks."""
    result = run_script(
        f"""
from parallel import ProcessPool
import jobs
pool = ProcessPool(2, {method!r})
print(pool.submit(jobs.double, 1).result())
""",
        status=1,
        timeout=30,
    )
    assert "if __name__ == '__main__':" in result.stderr.splitlines()[-1]
    assert "PoolBrokenError" in result.stderr.splitlines()[-1]
    assert result.stdout == ""


# -- the process of the pool dies -------------------------------------------------------------------------------------

ORPHANS = """
import os, signal, sys
import jobs
from pools import process_jobs
from parallel import ProcessPool
if __name__ == "__main__":
    pool = ProcessPool(2, sys.argv[1])
    with jobs.Gate() as gate:
        pids = [pool.submit(jobs.pid) for _ in range(2)]
        held = [pool.submit(jobs.wait_at, gate.address) for _ in range(2)]
        gate.arrived(2)
        pids = [peer.pid for peer in pool._staff._roster.staff]
        if sys.argv[2] == "idle":
            gate.open()
            [one.result() for one in held]
        print(*pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("method", METHODS)
def test_parent_killed(tmp_path: Path, method: str, state: str) -> None:
    """When the process of the pool is killed, its workers go, whether they are idle or busy."""
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    process = subprocess.run(
        [sys.executable, str(script), method, state],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert process.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in process.stdout.split()]
    assert len(pids) == 2
    assert all(is_gone(pid, 5) for pid in pids)


SLEEPS = """
import os, time
from parallel import ProcessPool
if __name__ == "__main__":
    pool = ProcessPool(1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    print("now", flush=True)
    time.sleep(600)
"""


def test_interrupted(run_script: Any) -> None:
    """After a Ctrl-C the program ends soon, its workers too, with one traceback."""
    result = run_script(SLEEPS, interrupt_at="now", status=None, timeout=30)
    assert result.stderr.count("KeyboardInterrupt") == 1
    assert result.returncode == -signal.SIGINT
    assert is_gone(int(result.stdout.split()[0]), 5)


def test_interrupted_shutdown() -> None:
    """A Ctrl-C in the wait of a shutdown kills what runs, and cancels what is queued."""
    pool = ProcessPool(1)
    running = pool.submit(time.sleep, 600)
    queued = pool.submit(time.sleep, 600)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pool.shutdown()
    finally:
        signal.signal(signal.SIGALRM, before)
    pool.shutdown()
    assert queued.cancelled()
    assert running.cancelled() or isinstance(running.exception(), WorkerDiedError)


def test_death_wakes_all_kinds_of_waiters() -> None:
    """Those that wait by `select`-like means are told of a death as well."""
    with ProcessPool(1) as pool:
        future = pool.submit(process_jobs.die)
        told: list[object] = []
        ours, theirs = os.pipe()
        future.add_done_callback(lambda ended: (told.append(ended), os.write(theirs, b"x")))
        assert select.select([ours], [], [], PATIENCE)[0]
        os.close(ours)
        os.close(theirs)
        assert told == [future]


def test_death_is_seen_at_once() -> None:
    """A kill is noticed within a second."""
    with Gate() as gate, ProcessPool(1) as pool:
        pid = pool.submit(jobs.pid).result(PATIENCE)
        future = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert isinstance(future.exception(PATIENCE), WorkerDiedError)
        assert time.monotonic() - began < 1


def test_interrupted_before_the_call_began() -> None:
    """A call that its worker had not read yet when it was killed at an interrupt is not begun again elsewhere."""
    pool = ProcessPool(1)
    os.kill(pool.submit(os.getpid).result(PATIENCE), signal.SIGSTOP)
    unread = pool.submit(time.sleep, 600)
    pool.shutdown(wait=False, cancel_futures=True)
    pool._staff.interrupt()
    with pytest.raises(CancelledError):
        unread.result(PATIENCE)
    pool.shutdown()

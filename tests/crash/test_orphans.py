"""
The process of a pool is killed: its workers go, whatever they are doing, and so does all that they have started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash import kill_jobs
from pools.process_jobs import PATIENCE, is_gone, wait_until

SCRIPT = """
import os, signal, sys
from multiprocessing import resource_tracker
import jobs
from crash import kill_jobs
from pools.process_jobs import wait_until
from parallel import ProcessPool
from parallel.pools.process import launching

def sleeps(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"

if __name__ == "__main__":
    method, state, note = sys.argv[1:]
    pool = ProcessPool(2, method, kill_jobs.note_at_end, (note,))
    with jobs.Gate() as gate:
        both = [pool.submit(jobs.wait_at, gate.address) for _ in range(2)]
        gate.arrived(2)
    [one.result() for one in both]
    pids = [peer.pid for peer in pool._staff._roster.staff]
    pids.append(pool.submit(kill_jobs.start_a_sleeper).result())
    if state != "idle":
        reader, writer = os.pipe()
        path = f"/proc/{os.getpid()}/fd/{writer}"
        for _ in range(2):
            pool.submit(getattr(kill_jobs, state), path)
            os.read(reader, 1)
    else:  # a worker that has answered may have a step to go
        wait_until(lambda: all(sleeps(peer.pid) for peer in pool._staff._roster.staff))
    pids += [(launching.helper() or (None,))[0], resource_tracker._resource_tracker._pid]
    print(*filter(None, pids), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def orphans(tmp_path: Path, method: str, state: str) -> list[int]:
    """Have the process of a pool killed in which the workers do that, and return the ids of all others."""
    script = tmp_path / "orphans.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script), method, state, str(tmp_path / "note")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])},
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )
    assert process.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in process.stdout.split()]
    assert len(pids) >= 3
    return pids


@pytest.mark.parametrize("state", ["idle", "sleep", "keep_the_interpreter"])
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_nobody_is_left(tmp_path: Path, method: str, state: str) -> None:
    """Workers, their children, the fork server and the resource tracker are gone a moment later."""
    assert all(is_gone(pid, 5) for pid in orphans(tmp_path, method, state))


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_idle_workers_clean_up(tmp_path: Path, method: str) -> None:
    """A worker without a call leaves in order: what it has to run at its end is run."""
    pids = orphans(tmp_path, method, "idle")
    assert all(is_gone(pid, 5) for pid in pids)
    assert len((tmp_path / "note").read_text()) == 2


def test_without_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system sends no signal for the end of a pipe, a thread sees to all but what keeps it from running."""
    monkeypatch.setenv("NO_SIGNALS", "1")
    assert all(is_gone(pid, 5) for pid in orphans(tmp_path, "spawn", "sleep"))


def test_children_of_a_worker_that_leaves_in_order() -> None:
    """What a call has left running goes on when its worker is dismissed: it was no accident."""
    from parallel import ProcessPool

    with ProcessPool(1) as pool:
        child = pool.submit(kill_jobs.start_a_sleeper).result(PATIENCE)
        worker = pool.submit(os.getpid).result(PATIENCE)
    wait_until(lambda: is_gone(worker, 0))
    assert not is_gone(child, 0)
    os.kill(child, signal.SIGKILL)

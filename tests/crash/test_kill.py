"""
Calls that are ended by force: which processes that costs, how soon, and that it costs nothing else.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jobs
import pytest
from crash import kill_jobs
from pools.process_jobs import PATIENCE, is_gone, wait_until

from parallel import ProcessPool, Registry, TaskTimeoutError, WorkerDiedError, task, using
from parallel.config import from_mapping
from parallel.errors import ConfigError
from parallel.pools.process import killing

LONG_GRACE = 600.0


class Post:
    """Where calls arrive, and tell something."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._inside: list[socket.socket] = []

    def arrived(self) -> list[int]:
        """Wait until one more is there, and return what it told: numbers, its process id first."""
        connection, _ = self._listener.accept()
        self._inside.append(connection)
        with connection.makefile() as file:
            return [int(word) for word in file.readline().split()]

    def close(self) -> None:
        """Wait for no more."""
        for end in (self._listener, *self._inside):
            end.close()


@pytest.fixture
def post() -> Iterator[Post]:
    """Where the calls of a test arrive."""
    made = Post()
    yield made
    made.close()


@pytest.fixture(params=["groups by handles", "handles", "numbers"])
def signals(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How signals are sent: as on this system; as on an older one; as on one without handles of processes."""
    if request.param == "handles":
        monkeypatch.setattr(killing, "_TO_GROUP", 1 << 20)
    elif request.param == "numbers":
        monkeypatch.setattr(killing, "open_handle", None)
    return str(request.param)


# -- the worker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_cancel_of_a_running_call(post: Post, signals: str, method: str) -> None:
    """The future is cancelled at once, the worker dies of its SIGTERM, and the pool goes on."""
    with ProcessPool(1, method, kill_grace=LONG_GRACE) as pool:
        future = pool.submit(kill_jobs.linger, post.address)
        (worker,) = post.arrived()
        assert future.cancel(running=True)
        assert future.cancelled()
        assert is_gone(worker)
        assert pool.submit(jobs.pid).result(PATIENCE) != worker


def test_handler_gets_the_grace(post: Post, tmp_path: Any) -> None:
    """A worker with a handler for SIGTERM has time to tidy up."""
    note = tmp_path / "note"
    with ProcessPool(1, kill_grace=LONG_GRACE) as pool:
        future = pool.submit(kill_jobs.tidy_up, post.address, str(note))
        (worker,) = post.arrived()
        assert future.cancel(running=True)
        assert is_gone(worker)
    assert note.read_text() == "tidy"


def test_grace_is_bounded(post: Post, signals: str) -> None:
    """One that takes no notice of SIGTERM is killed after the grace; nobody waits for that, not even its successor."""
    with ProcessPool(1, kill_grace="500ms") as pool:
        future = pool.submit(kill_jobs.ignore_terms, post.address)
        (worker,) = post.arrived()
        began = time.monotonic()
        assert future.cancel(running=True)
        assert pool.submit(jobs.pid).result(PATIENCE) != worker
        assert is_gone(worker)
        assert time.monotonic() - began >= 0.5


def test_no_grace(post: Post) -> None:
    """Without grace it is killed at once."""
    with ProcessPool(1, kill_grace=0) as pool:
        future = pool.submit(kill_jobs.ignore_terms, post.address)
        (worker,) = post.arrived()
        assert future.cancel(running=True)
        assert is_gone(worker)


def test_shutdown_waits_for_the_grace_and_no_longer(post: Post) -> None:
    """A pool that is shut down while a worker takes its grace leaves nothing behind."""
    with ProcessPool(1, kill_grace=0.3) as pool:
        future = pool.submit(kill_jobs.ignore_terms, post.address)
        (worker,) = post.arrived()
        assert future.cancel(running=True)
    assert is_gone(worker, 0)


def test_dying_workers_do_not_pile_up(post: Post) -> None:
    """As many are dying at a time as may work: one more, and the first gets no more grace."""
    with ProcessPool(1, kill_grace=LONG_GRACE) as pool:
        workers = []
        for _ in range(3):
            future = pool.submit(kill_jobs.ignore_terms, post.address)
            workers += post.arrived()
            assert future.cancel(running=True)
        assert is_gone(workers[0])
        assert is_gone(workers[1])
        assert not is_gone(workers[2], 0)
        os.kill(workers[2], signal.SIGKILL)


def test_late_value_is_dropped(post: Post) -> None:
    """A worker whose handler lets its call go on to its end leaves then, in order; the value comes too late."""
    with ProcessPool(1, kill_grace=LONG_GRACE) as pool:
        future = pool.submit(kill_jobs.survive, post.address)
        (worker,) = post.arrived()
        assert future.cancel(running=True)
        assert is_gone(worker)
        assert future.cancelled()
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2


def test_stopped_worker(post: Post) -> None:
    """One that has been stopped gets its SIGTERM all the same."""
    with ProcessPool(1, kill_grace=LONG_GRACE) as pool:
        future = pool.submit(kill_jobs.linger, post.address)
        (worker,) = post.arrived()
        os.kill(worker, signal.SIGSTOP)
        assert future.cancel(running=True)
        assert is_gone(worker)


def test_parents_handler_is_not_inherited(run_script: Any) -> None:
    """Under fork, a handler for SIGTERM of the program does not run in its workers."""
    result = run_script(
        """
import signal, jobs
from parallel import ProcessPool
signal.signal(signal.SIGTERM, lambda *_: print("not here", flush=True))
with jobs.Gate() as gate, ProcessPool(1, "fork", kill_grace=60) as pool:
    future = pool.submit(jobs.wait_at, gate.address)
    gate.arrived()
    print(future.cancel(running=True))
""",
        flags=("-W", "ignore::DeprecationWarning"),
    )
    assert result.stdout == "True\n"


# -- what its calls have started --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stubborn", [False, True])
def test_children_of_a_killed_call(post: Post, signals: str, stubborn: bool) -> None:
    """Programs that a call has started end with it, by SIGTERM, or by SIGKILL after the grace."""
    with ProcessPool(1, kill_grace=0.2) as pool:
        future = pool.submit(kill_jobs.linger_with_a_child, post.address, stubborn=stubborn)
        worker, child = post.arrived()
        assert future.cancel(running=True)
        assert is_gone(child)
        assert is_gone(worker)


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children_of_a_dead_worker(post: Post, signals: str, stubborn: bool, method: str) -> None:
    """So do those of a worker that has died by itself."""
    with ProcessPool(1, method, kill_grace=0.2) as pool:
        future = pool.submit(kill_jobs.linger_with_a_child, post.address, stubborn=stubborn, deadly=True)
        _, child = post.arrived()
        assert isinstance(future.exception(PATIENCE), WorkerDiedError)
        assert is_gone(child)


def test_pools_of_a_killed_call(post: Post) -> None:
    """So do the workers of a pool that the call has, which lead sessions of their own, and its fork server."""
    with ProcessPool(1) as pool:
        future = pool.submit(kill_jobs.linger_with_a_pool, post.address)
        pids = post.arrived()
        assert len(pids) == 3
        assert future.cancel(running=True)
        assert all(is_gone(pid) for pid in pids)


def test_workers_have_no_terminal() -> None:
    """Each leads a session, so that nothing that a call starts is stopped for reading the terminal."""
    with ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        assert os.getsid(worker) == os.getpgid(worker) == worker


# -- timeouts ---------------------------------------------------------------------------------------------------------


def test_overrun(post: Post) -> None:
    """A call that overruns its time fails, and another worker runs the next, though its own takes no notice."""
    pools = {"pools": {"process": {"kind": "process", "max_workers": 1, "kill_grace": "10m"}}}
    with using(Registry(pools)) as registry, registry:
        future = task(pool="process", timeout=0.3)(kill_jobs.ignore_terms)(post.address)
        (worker,) = post.arrived()
        assert isinstance(future.exception(PATIENCE), TaskTimeoutError)
        assert task(pool="process")(jobs.double)(2).result(PATIENCE) == 4
        assert not is_gone(worker, 0)
        os.kill(worker, signal.SIGKILL)


# -- the option -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [-1, "soon", float("inf"), float("nan"), None, True])
def test_wrong_grace(grace: Any) -> None:
    """What is no duration, or has no end, is refused by name."""
    with pytest.raises((TypeError, ValueError), match=r"^kill_grace: expected a duration"):
        ProcessPool(kill_grace=grace)


def test_grace_of_a_file() -> None:
    """A file says it in the same words."""
    read = from_mapping({"pools": {"p": {"kind": "process", "kill_grace": "2s"}}})
    assert read.pools["p"].arguments() == {"kill_grace": 2.0}
    with pytest.raises(ConfigError, match=r"pools\.p\.kill_grace: expected a duration"):
        from_mapping({"pools": {"p": {"kind": "process", "kill_grace": "soon"}}})


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_number_of_another_process(signals: str) -> None:
    """No signal hits a process that has got the number of a worker that is no more."""
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], process_group=0)
    try:
        target = killing.Target(other.pid)
        if target._handle is not None:
            os.close(target._handle)
            gone = subprocess.Popen(["true"])
            target._handle = os.pidfd_open(gone.pid)
            gone.wait()
        target.is_reaped = True
        assert not target.send(signal.SIGKILL)
        killing.close_kept(target)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_exit_is_seen(signals: str) -> None:
    """A target tells whether its process has exited."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    target = killing.Target(child.pid)
    assert not target.has_exited()
    child.communicate()
    wait_until(target.has_exited)
    killing.close_kept(target)


def test_no_handle_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors for handles, numbers do."""

    def refuse(pid: int) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(killing, "open_handle", refuse)
    with ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        future = pool.submit(select.select, [], [], [], PATIENCE)
        wait_until(future.running)
        assert future.cancel(running=True)
        assert is_gone(worker)


def test_half_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where a sandbox lets handles be opened, but not used."""

    def refuse(handle: int, number: int, flags: int = 0) -> None:
        raise PermissionError

    monkeypatch.setattr(killing, "_send_by_handle", refuse)
    with ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        future = pool.submit(select.select, [], [], [], PATIENCE)
        wait_until(future.running)
        assert future.cancel(running=True)
        assert is_gone(worker)

"""
Moments that are hard to hit: what happens between two steps of a process pool, at just the wrong time.

Each test widens one such moment until somebody is in it; all else is as it always is.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import jobs
import pytest
from pools.process_jobs import PATIENCE, wait_until

from parallel import ProcessPool, Registry, Retry, SerializationError, TaskTimeoutError, WorkerDiedError, task, using
from parallel.errors import PoolBrokenError
from parallel.futures import Future
from parallel.pools.process import dispatching, killing
from parallel.pools.process.board import STARTED, Board
from parallel.pools.process.dispatching import Dispatching
from parallel.pools.process.looking import Looking
from parallel.pools.process.peer import Peer
from parallel.pools.process.reactor import Reactor
from parallel.pools.process.wire import Inbox


@pytest.fixture
def one() -> Iterator[ProcessPool]:
    """A pool of one worker, which knows that `nap` is short."""
    with ProcessPool(1) as pool:
        list(pool.map(nap, [0] * 400))
        yield pool


def nap(seconds: float) -> float:
    """Take so long."""
    if seconds:
        time.sleep(seconds)
    return seconds


def on_main(fn: Callable[..., Any], before: Callable[[], object]) -> Callable[..., Any]:
    """Make a function that calls *before*, once, and only on this thread."""
    main, left = threading.current_thread(), [before]

    def call(*args: Any) -> Any:
        if left and threading.current_thread() is main:
            left.pop()()
        return fn(*args)

    return call


def test_short_calls_behind_a_long_one() -> None:
    """A call that is sent alone behind a long one is taken back as others are: another worker is free."""
    with ProcessPool(2) as pool:
        list(pool.map(nap, [0] * 400))
        pool.submit(nap, 0.03)
        long = pool.submit(nap, 3.0)
        time.sleep(0.1)
        short = [pool.submit(nap, 0) for _ in range(400)]
        assert [future.result(PATIENCE) for future in short] == [0] * 400
        assert not long.done()


@pytest.mark.parametrize("said", [{"idle_timeout": "120d"}, {"kill_grace": "120d"}])
def test_long_times(said: dict[str, Any]) -> None:
    """A time that is longer than the system can wait at once is waited all the same."""
    with ProcessPool(1, **said) as pool:
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2
        running = pool.submit(nap, PATIENCE)
        wait_until(running.running, PATIENCE)
        assert running.cancel(running=True)
        assert pool.submit(jobs.double, 2).result(PATIENCE) == 4


class Exits:
    """Ends whoever pickles it."""

    def __reduce__(self) -> NoReturn:
        raise SystemExit("not this one")


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_start_that_raises_anything(method: str) -> None:
    """What pickling an initializer's arguments raises, an exit even, breaks no thread: the calls get it."""
    with ProcessPool(1, method, nap, (Exits(),)) as pool:
        error = pool.submit(jobs.double, 1).exception(PATIENCE)
        assert isinstance(error, PoolBrokenError | SerializationError)


def test_log_filter_that_raises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A filter of the program that raises costs what it should have let through, and nobody's end."""
    monkeypatch.setattr(killing, "LEAVE", 0.3)

    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError("the filter")

    logger = logging.getLogger("parallel")
    logger.addFilter(refuse)
    try:
        with ProcessPool(1) as pool:
            pool.submit(leave_a_thread).result(PATIENCE)
    finally:
        logger.removeFilter(refuse)
    assert "the filter" in capsys.readouterr().err


def leave_a_thread() -> None:
    """Start a thread that keeps this process."""
    threading.Thread(target=time.sleep, args=(PATIENCE,)).start()


def test_answer_while_a_submit_looks(one: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that gets free while a submit has just seen it busy is given the call."""
    one.submit(nap, 0.1)
    one.submit(nap, 0.3)
    time.sleep(0.2)
    monkeypatch.setattr(Peer, "is_idle", on_main(Peer.is_idle, lambda: time.sleep(0.4)))
    one._staff._dispatching.attention = True  # as any answer leaves it
    assert [one.submit(nap, 0).result(PATIENCE) for _ in range(2)] == [0, 0]


def test_recall_of_what_has_just_begun(one: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that begins a call just before it is told not to is given others after that."""
    recall = Board.recall

    def recall_late(self: Board, first: int, end: int) -> bool:
        wait_until(lambda: self.words[STARTED] >= first, PATIENCE)
        return recall(self, first, end)

    monkeypatch.setattr(Board, "recall", recall_late)
    calls = [one.submit(nap, seconds) for seconds in (0.05, 0.02, 0.2)]
    time.sleep(0.15)
    assert calls[-1].result(PATIENCE) == 0.2
    assert one.submit(nap, 0).result(PATIENCE) == 0


def test_kill_of_what_is_being_given(one: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is killed in the middle of its submit ends, and doesn't go on in the worker."""
    given, killed, make = [], threading.Event(), dispatching._new_given

    def kill() -> None:
        assert given[0].cancel(running=True)
        killed.set()

    def make_late(cls: Any, values: Any) -> Any:
        if not given:
            given.append(values[1])
            killer = threading.Thread(target=kill)
            killer.start()
            killer.join()
            time.sleep(0.1)
        return make(cls, values)

    monkeypatch.setattr(dispatching, "_new_given", make_late)
    future = one.submit(nap, PATIENCE)
    assert future.cancelled()
    assert one.submit(nap, 0).result(PATIENCE / 2) == 0


def test_cancel_of_what_is_being_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is asked to stop before its time runs is asked; nobody has said that it is to be killed."""
    asked: list[bool] = []
    send = Dispatching.send_claimed

    def cancel_and_send(self: Dispatching, peer: Peer) -> None:
        asked.append(peer.inflight[0].future.cancel())
        send(self, peer)

    monkeypatch.setattr(Dispatching, "send_claimed", cancel_and_send)
    with Registry({"pools": {"p": {"kind": "process", "max_workers": 1}}}) as registry, using(registry):
        assert task(pool="p", timeout=PATIENCE)(nap)(0.2).result(PATIENCE) == 0.2
    assert asked == [False]


@pytest.mark.parametrize("what", ["stats", "repr", "shutdown", "resize"])
def test_signal_in_the_middle_of_a_submit(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler may ask the pool anything, and shut it down, while another thread is about to look at the queue."""
    with ProcessPool(2) as pool:
        assert pool.submit(jobs.double, 1).result(PATIENCE) == 2
        staff = pool._staff
        others: list[threading.Thread] = []

        def handle(signum: int, frame: object) -> None:
            if what == "shutdown":
                pool.shutdown(wait=False)
            elif what == "resize":
                pool.max_workers = 1
            else:
                assert (pool.stats() if what == "stats" else repr(pool)) is not None

        def interrupt() -> None:
            others.append(threading.Thread(target=staff._hiring._lacks_workers))  # as the starter does
            others[0].start()
            time.sleep(0.1)
            signal.raise_signal(signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            monkeypatch.setattr(Dispatching, "_idle_for", on_main(Dispatching._idle_for, interrupt))
            staff._dispatching.attention = True
            assert pool.submit(jobs.double, 2).result(PATIENCE) == 4
        finally:
            signal.signal(signal.SIGUSR1, before)
        others[0].join(PATIENCE)
        assert not others[0].is_alive()


def values(number: int) -> Any:
    """Return something small, or for 5 something large."""
    if number == 0:
        time.sleep(0.2)
    return list(range(100_000)) if number == 5 else number


def test_answer_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer for which there is no memory costs its call; those before and behind it have their own ends."""
    begin = Inbox._begin_large

    def begin_or_not(self: Inbox, first: int, second: int, start: int) -> Any:
        if first + second > 200_000:
            raise MemoryError
        return begin(self, first, second, start)

    with ProcessPool(1) as pool:
        list(pool.map(values, [1] * 400))
        monkeypatch.setattr(Inbox, "_begin_large", begin_or_not)
        pool.submit(nap, 0.1)
        futures = {number: pool.submit(values, number) for number in (1, 2, 3, 4, 5, 6, 7)}
        errors = {number: type(future.exception(PATIENCE)) for number, future in futures.items()}
        assert errors == {number: MemoryError if number == 5 else type(None) for number in futures}


def test_submit_while_the_opening_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was made while another thread could not open the pool opens it."""
    opening, looked, failed = threading.Event(), threading.Event(), threading.Event()
    direct, open_reactor = Dispatching.direct, Reactor.open
    made: list[Future[int]] = []

    def fail(self: Reactor) -> None:
        opening.set()
        looked.wait(PATIENCE)
        monkeypatch.setattr(Reactor, "open", open_reactor)
        raise OSError(24, "Too many open files")

    def wait_and_direct(self: Dispatching, future: Future[Any], known: Any) -> None:
        if threading.current_thread() is second:
            looked.set()
            failed.wait(PATIENCE)
        direct(self, future, known)

    def submit() -> None:
        opening.wait(PATIENCE)
        made.append(pool.submit(jobs.double, 2))

    second = threading.Thread(target=submit)
    monkeypatch.setattr(Reactor, "open", fail)
    monkeypatch.setattr(Dispatching, "direct", wait_and_direct)
    with ProcessPool(1) as pool:
        second.start()
        with pytest.raises(PoolBrokenError, match="Too many open files"):
            pool.submit(jobs.double, 1)
        failed.set()
        second.join(PATIENCE)
        assert made[0].result(PATIENCE) == 4


def test_interrupt_while_calls_are_cancelled() -> None:
    """A Ctrl-C in the middle of a shutdown that cancels leaves no call without an end, and no shutdown that hangs."""
    for delay in (0.002, 0.02, 0.1):
        pool = ProcessPool(1)
        futures = [pool.submit(nap, 0.5), *(pool.submit(nap, 0) for _ in range(20_000))]
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            pool.shutdown(cancel_futures=True)
            time.sleep(PATIENCE)
        except KeyboardInterrupt:
            timer.join()
        pool.shutdown()
        assert all(future.done() for future in futures)


def begin_twice(notes: str) -> str:
    """Overstay at first; then go on until the worker of that attempt is gone."""
    file = Path(notes)
    if not file.exists():
        file.write_text(str(os.getpid()))
        time.sleep(10 * PATIENCE)
    wait_until(lambda: not Path(f"/proc/{file.read_text()}").exists())
    return "well"


def test_kill_of_an_attempt_when_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout ends the worker of the attempt that was too late, not that of the next one."""
    retry = Retry(TaskTimeoutError, attempts=2, wait_initial=0, wait_max=0, wait_jitter=0)
    kill = Looking.kill

    def when_it_runs(self: Looking, given: Any) -> None:
        wait_until(lambda: sum(bool(peer.inflight) for peer in self._books.roster.staff) == 2)
        kill(self, given)

    monkeypatch.setattr(Looking, "kill", when_it_runs)
    with Registry({"pools": {"two": {"kind": "process", "max_workers": 2}}}) as registry, using(registry):
        pool = registry.pool("two")
        list(pool.map(nap, [0.1] * 4))
        wait_until(lambda: pool.counts()[:3] == (2, 0, 0))
        call = task(pool="two", timeout=0.2, retry=retry)(begin_twice)
        assert call(str(tmp_path / "first")).result(PATIENCE) == "well"


@pytest.mark.parametrize("before", [True, False], ids=["queued before the answer", "queued after it"])
def test_answer_before_its_sender_is_through(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued while a worker is idle already, and its sender has not noticed, is not forgotten."""
    send = Peer.send
    queued: list[Future[float]] = []

    def answered(peer: Peer) -> bool:
        return peer.sent == peer.answered

    def send_slowly(self: Peer) -> bool:
        through = send(self)
        if self.sender == threading.get_ident() and threading.current_thread() is threading.main_thread():
            if not before:
                wait_until(lambda: answered(self))
            other = threading.Thread(target=lambda: queued.append(pool.submit(nap, 0)))
            other.start()
            other.join()
            wait_until(lambda: answered(self) and not pool._staff._calls.settling)
        return through

    with Registry({"pools": {"one": {"kind": "process", "max_workers": 1}}}) as registry, using(registry):
        pool: Any = registry.pool("one")
        list(pool.map(nap, [0] * 100))
        call = task(pool="one", timeout=PATIENCE)(nap)
        assert call(0).result() == 0
        monkeypatch.setattr(Peer, "send", send_slowly)
        assert call(0.1).result() == 0.1
        monkeypatch.undo()
        assert queued[0].result(PATIENCE) == 0


def leave_with_a_child(code: int) -> None:
    """Leave, but for a child that holds what this process had open."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2:
                os.set_inheritable(os.dup(int(name)), True)
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({10 * PATIENCE})"], close_fds=False)
    os._exit(code)


def close_and_leave(code: int) -> None:
    """Close all files a moment before the exit."""
    os.closerange(3, 1024)
    time.sleep(0.1)
    os._exit(code)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_death_of_a_worker_whose_files_stay_open(method: str) -> None:
    """A worker's end is seen, whoever holds what it had open."""
    with ProcessPool(1, method) as pool, pytest.raises(WorkerDiedError, match="status 5"):
        pool.submit(leave_with_a_child, 5).result(PATIENCE)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_exit_after_the_sentinel(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no handles, a process that has closed its files, and not exited yet, is waited for."""
    monkeypatch.setattr(killing, "open_handle", None)
    with ProcessPool(1, method) as pool, pytest.raises(WorkerDiedError, match="status 5"):
        pool.submit(close_and_leave, 5).result(PATIENCE)

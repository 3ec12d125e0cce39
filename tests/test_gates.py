"""
Back-pressure: what becomes of a call that comes when as many wait as may.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from queue import Full
from subprocess import CompletedProcess
from typing import Any

import jobs
import pytest

from parallel import (
    Future,
    LoopPool,
    PoolFullError,
    ProcessPool,
    Registry,
    Retry,
    SerializationError,
    TaskTimeoutError,
    ThreadPool,
    current_task,
    task,
    using,
)
from parallel.gates import Gate

LONG = 30  # seconds; only a deadlock takes so long


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """An event on which bodies wait, set at the end."""
    event = threading.Event()
    yield event
    event.set()


def full(go: threading.Event, **options: Any) -> Registry:
    """Make a registry whose pool `io` has one worker, which is busy, and one call that waits; it may have no more."""
    registry = Registry({"pools": {"io": {"kind": "thread", "max_workers": 1, "max_pending": 1, **options}}})
    running = threading.Event()

    def body() -> None:
        running.set()
        assert go.wait(LONG)

    registry.pool("io").submit(body)
    assert running.wait(LONG)
    registry.pool("io").submit(go.wait, LONG)
    return registry


@pytest.mark.parametrize("by", ["submit", "task", "task with terms"])
def test_raise(go: threading.Event, by: str) -> None:
    """With `raise`, one more is a PoolFullError, a queue.Full too, that names the pool and the bound."""
    with full(go, on_full="raise") as registry:
        options: Any = {"timeout": LONG, "limit": 5} if by == "task with terms" else {}
        call = task(pool="io", **options)(jobs.double)
        with pytest.raises(PoolFullError, match="thread pool 'io' has max_pending = 1") as caught:
            registry.pool("io").submit(jobs.double, 1) if by == "submit" else call(1)
        assert isinstance(caught.value, Full)
        go.set()
        registry.pool("io").idle()
        assert call(1).result(LONG) == 2


@pytest.mark.parametrize("by", ["submit", "task", "task with terms"])
def test_run(go: threading.Event, by: str) -> None:
    """With `run`, one more is run by its caller, and is a call as others are."""

    def body() -> tuple[int, str]:
        return threading.get_ident(), current_task().pool

    with full(go, on_full="run") as registry:
        options: Any = {"timeout": LONG, "limit": 5} if by == "task with terms" else {}
        call = task(pool="io", **options)(body)
        future: Future[Any] = registry.pool("io").submit(body) if by == "submit" else call()
        assert future.done()
        assert future.result() == (threading.get_ident(), "thread pool 'io'")
        go.set()


def test_run_at_a_rate_and_with_a_retry(go: threading.Event) -> None:
    """A caller that runs a call waits for its place, on its own thread; later attempts go to the pool."""
    threads: list[int] = []

    def body(fails: int) -> None:
        threads.append(threading.get_ident())
        if len(threads) <= fails:
            raise OSError

    retry = Retry(OSError, wait_initial=0, wait_max=0, wait_jitter=0)
    with full(go, on_full="run"):
        rated = task(pool="io", rate="1/20ms", limit=1)(body)
        assert rated(0).done()
        assert rated(0).done()
        assert set(threads) == {threading.get_ident()}
        threads.clear()
        retried = task(pool="io", retry=retry, limit=1)(body)(1)
        assert not retried.done()
        go.set()
        assert retried.result(LONG) is None
        assert threads[0] == threading.get_ident() != threads[1]


def test_interrupt_in_what_the_caller_runs(go: threading.Event) -> None:
    """A Ctrl-C in a call that its caller runs is for the program, too."""
    with full(go, on_full="run") as registry:
        with pytest.raises(KeyboardInterrupt):
            registry.pool("io").submit(jobs.interrupt)
        with pytest.raises(KeyboardInterrupt):
            task(pool="io", timeout=LONG)(jobs.interrupt)()
        go.set()


def test_block(go: threading.Event) -> None:
    """With `block`, the default, the caller waits until there is room."""
    begun = threading.Event()
    made: list[Future[int]] = []

    with full(go) as registry:

        def caller() -> None:
            begun.set()
            made.append(registry.pool("io").submit(jobs.double, 1))

        thread = threading.Thread(target=caller)
        thread.start()
        assert begun.wait(LONG)
        thread.join(0.03)
        assert thread.is_alive()
        go.set()
        thread.join(LONG)
        assert made[0].result(LONG) == 2


def test_block_until_the_deadline(go: threading.Event) -> None:
    """A blocked call fails at its deadline, as elsewhere."""
    with full(go):
        future = task(pool="io", deadline=0.03)(jobs.double)(1)
        assert isinstance(future.exception(LONG), TaskTimeoutError)
        go.set()


def test_block_on_a_loop(go: threading.Event) -> None:
    """On an event loop's thread it raises: the loop must not be blocked."""

    async def main(registry: Registry) -> None:
        with pytest.raises(PoolFullError):
            registry.pool("io").submit(jobs.double, 1)

    with full(go) as registry:
        asyncio.run(main(registry))
        go.set()


def test_cancelled_call_makes_room(go: threading.Event) -> None:
    """A call that is cancelled while it waits makes room at once."""
    with full(go, on_full="raise", max_pending=2) as registry:
        pool = registry.pool("io")
        queued = pool.submit(jobs.double, 1)
        with pytest.raises(PoolFullError):
            pool.submit(jobs.double, 2)
        assert queued.cancel()
        assert not pool.submit(jobs.double, 3).done()
        go.set()


def test_what_comes_from_inside_gets_in(go: threading.Event) -> None:
    """Workers, continuations and retries never wait for room."""
    tries: list[int] = []

    def body() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise OSError
        return sum(future.result() for future in [registry.pool("io").submit(jobs.double, i) for i in range(5)])

    options: dict[str, Any] = {"kind": "thread", "max_workers": 1, "max_pending": 1, "on_full": "raise"}
    with using({"pools": {"io": options}}) as registry:
        retry = Retry(OSError, wait_initial=0.01, wait_max=0.01, wait_jitter=0)
        call = task(pool="io", retry=retry)(body)()
        double = task(pool="io")(jobs.double)
        assert call.then(lambda x: [double(x) for _ in range(4)][-1]).result(LONG) == 40


def test_process_pool_counts_what_cannot_travel() -> None:
    """A call that can't be pickled gives its place back; so do cancelled ones."""
    with ProcessPool(1, max_pending=1, on_full="raise") as pool, jobs.Gate() as gate:
        for _ in range(5):
            with pytest.raises(SerializationError):
                pool.submit(jobs.double, jobs.Unpicklable()).result(LONG)
        first = pool.submit(jobs.wait_at, gate.address, 1)
        gate.arrived()
        second = pool.submit(jobs.double, 1)
        with pytest.raises(PoolFullError):
            pool.submit(jobs.double, 2)
        assert second.cancel()
        third = pool.submit(jobs.double, 3)
        gate.open()
        assert (first.result(LONG), third.result(LONG)) == (1, 6)


def test_loop_pool() -> None:
    """A loop has a bound as well; its coroutines can't run on their caller."""
    with pytest.raises(ValueError, match="on_full"):
        LoopPool(1, on_full="run")  # type: ignore[arg-type]
    go = threading.Event()
    running = threading.Event()

    def wait() -> None:
        running.set()
        assert go.wait(LONG)

    with LoopPool(1, max_pending=1, on_full="raise") as pool:
        first = pool.submit(jobs.to_thread(wait))
        assert running.wait(LONG)
        second = pool.submit(jobs.async_double, 1)
        with pytest.raises(PoolFullError):
            pool.submit(jobs.async_double, 2)
        go.set()
        assert (first.result(LONG), second.result(LONG)) == (None, 2)


@pytest.mark.parametrize("wrong", [{"max_pending": 0}, {"max_pending": 1, "on_full": "drop"}])
def test_wrong_bound(wrong: Any) -> None:
    """A bound below one, or an unknown policy, is a ValueError."""
    with pytest.raises(ValueError, match=r"max_pending|on_full"):
        ThreadPool(1, **wrong)


@pytest.mark.parametrize("wrong", [True, 1.5, "1"])
def test_bound_of_another_type(wrong: Any) -> None:
    """What is no integer is a TypeError."""
    with pytest.raises(TypeError, match="max_pending"):
        ThreadPool(1, max_pending=wrong)


def test_interrupt_of_a_blocked_call(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """A Ctrl-C ends the blocking of a submit, whose place is not lost."""
    script = """
import threading
from parallel import PoolFullError, ThreadPool

pool = ThreadPool(1, max_pending=1)
running, go = threading.Event(), threading.Event()
pool.submit(lambda: (running.set(), go.wait()))
running.wait()
pool.submit(go.wait)
try:
    print("ready", flush=True)
    pool.submit(print, "never")
except KeyboardInterrupt:
    print("interrupted")
go.set()
pool.idle()
pool.submit(print, "goes on").result()
"""
    out = run_script(script, interrupt_at="ready").stdout
    assert out.split("\n") == ["ready", "interrupted", "goes on", ""]


def test_interrupted_waiter_hands_its_room_on() -> None:
    """A waiter that is interrupted in the moment in which it gets room leaves it to the next one."""
    gate = Gate("a pool", 1, "block")
    assert gate.enter()
    entered = threading.Event()
    interrupted = threading.Event()

    class Interrupt(Exception):
        pass

    def handler(*_: object) -> None:
        gate.leave()  # tells the one that waits first: this thread
        raise Interrupt

    def second() -> None:
        assert interrupted.wait(LONG)
        gate.enter()
        entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        threading.Timer(0.01, interrupted.set).start()
        with pytest.raises(Interrupt):
            gate.enter()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert entered.wait(LONG)
    thread.join(LONG)


def test_fork_with_a_full_gate(in_fork: Callable[..., Any], go: threading.Event) -> None:
    """In a forked child nothing of the parent's waits."""
    with full(go, on_full="raise") as registry:
        pool = registry.pool("io")
        assert in_fork(lambda: pool.submit(jobs.double, 1).result(LONG)) == 2
        go.set()


def test_many_callers() -> None:
    """However many threads submit to a bounded pool, all calls are run, and no more than the bound wait."""
    most: list[int] = []

    def body() -> None:
        most.append(pool.gate._inside if pool.gate else 0)

    with ThreadPool(2, max_pending=3) as pool, jobs.frequent_switches():
        threads = [threading.Thread(target=lambda: [pool.submit(body) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        pool.idle()
    assert len(most) == 400  # the pool has been shut down: all have ended
    assert max(most) <= 3

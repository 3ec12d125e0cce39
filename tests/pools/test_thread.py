"""
What only pools of threads do: helping and lending, and how their threads come and go.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from itertools import chain, filterfalse, repeat
from operator import itemgetter
from subprocess import CompletedProcess
from typing import Any, cast

import jobs
import pytest
from interrupts import CtrlC, returns_in_time
from jobs import Held, frequent_switches

import parallel.pools.crew
from parallel import (
    Future,
    PoolBrokenError,
    PoolShutdownError,
    StarvationError,
    ThreadPool,
    UnknownPoolError,
    as_completed,
    gather,
    using,
    wait,
)
from parallel.pools.crew import Crew

LONG = 30  # seconds; only a deadlock takes so long


@pytest.fixture
def two() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1])
def test_too_few_workers(wrong: int) -> None:
    """Less than one worker is a ValueError that says what was found."""
    with pytest.raises(ValueError, match=str(wrong)):
        ThreadPool(wrong)


@pytest.mark.parametrize("wrong", [True, 2.0, "4"])
def test_workers_of_another_type(wrong: Any) -> None:
    """What is no integer is a TypeError."""
    with pytest.raises(TypeError, match="max_workers"):
        ThreadPool(wrong)


def test_initializer_must_be_callable() -> None:
    """An initializer that can't be called is a TypeError at once."""
    with pytest.raises(TypeError, match="initializer"):
        ThreadPool(1, initializer=5)  # type: ignore[arg-type]


def test_thread_names() -> None:
    """Threads are called after the prefix, numbered from 0; without one after the pool."""
    with ThreadPool(1, "mine") as pool:
        assert pool.submit(jobs.thread_name).result(timeout=LONG) == "mine_0"
    with using({"pools": {"io": {"kind": "thread"}}}) as registry:
        assert "io" in registry.pool("io").submit(jobs.thread_name).result(timeout=LONG)


def test_starts_no_thread_before_the_first_call() -> None:
    """A pool that is not used has no threads, and starts only those that it needs."""
    before = threading.active_count()
    with ThreadPool(8) as pool:
        assert threading.active_count() == before
        for _ in range(50):
            pool.submit(jobs.nothing).result(timeout=LONG)
            pool.idle()
        assert pool.stats().workers <= 3  # one; more only if a worker was on its way back


def test_starts_no_more_than_max_workers() -> None:
    """However many calls there are, there are max_workers threads at most."""
    with ThreadPool(3) as pool:
        names = {pool.submit(jobs.thread_name) for _ in range(300)}
        assert len({future.result(timeout=LONG) for future in names}) <= 3
        assert pool.stats().workers <= 3


def test_calls_start_in_order() -> None:
    """One worker runs calls in the order in which they were submitted."""
    seen: list[int] = []
    with ThreadPool(1) as pool:
        for index in range(1000):
            pool.submit(seen.append, index)
    assert seen == list(range(1000))


# -- initializer ------------------------------------------------------------------------------------------------------


def test_initializer_runs_on_each_thread() -> None:
    """The initializer is called with initargs at the start of each thread."""
    local = threading.local()
    meet = threading.Barrier(2)

    def look() -> int:
        meet.wait(LONG)
        return int(local.value)

    with ThreadPool(2, initializer=lambda value: setattr(local, "value", value), initargs=(7,)) as pool:
        assert [future.result(timeout=LONG) for future in [pool.submit(look), pool.submit(look)]] == [7, 7]


@pytest.mark.parametrize("error", [ValueError("no such device"), SystemExit(1)])
def test_initializer_that_fails(error: BaseException) -> None:
    """It breaks the pool: pending calls and later submits get a BrokenExecutor with the cause; nothing hangs."""
    start = threading.Event()

    def initialize() -> None:
        start.wait(LONG)
        raise error

    with ThreadPool(1, initializer=initialize) as pool:
        futures = [pool.submit(jobs.nothing) for _ in range(5)]
        after = futures[0].then(str)
        start.set()
        for future in [*futures, after]:
            broken = future.exception(timeout=LONG)
            assert isinstance(broken, PoolBrokenError)
            assert isinstance(broken, BrokenExecutor)
            assert broken.__cause__ is error
        assert futures[0].exception() is not futures[1].exception()  # tracebacks of one don't pile up in the other
        with pytest.raises(PoolBrokenError):
            pool.submit(jobs.nothing)


def test_registry_with_a_broken_pool_shuts_down() -> None:
    """A pool whose initializer failed doesn't keep its registry from shutting down."""
    with using({"pools": {"bad": {"kind": "thread", "initializer": "jobs:bad_initializer"}}}) as registry:
        future = registry.pool("bad").submit(jobs.nothing)
        assert isinstance(future.exception(timeout=LONG), PoolBrokenError)
        shutting = threading.Thread(target=registry.shutdown, daemon=True)
        shutting.start()
        shutting.join(10)
        assert not shutting.is_alive()


def test_idle_of_a_broken_pool() -> None:
    """idle() returns when all calls of a broken pool have failed."""
    with ThreadPool(1, initializer=jobs.bad_initializer) as pool:
        futures = [pool.submit(jobs.nothing)]
        for _ in range(10):
            try:
                futures.append(pool.submit(jobs.nothing))
            except PoolBrokenError:
                break
        waiting = threading.Thread(target=pool.idle, daemon=True)
        waiting.start()
        waiting.join(10)
        assert not waiting.is_alive()


# -- waiting inside a call --------------------------------------------------------------------------------------------


def test_fibonacci() -> None:
    """A recursion whose calls wait for calls of the same small pool ends."""
    with ThreadPool(2) as pool:

        def fib(n: int) -> int:
            if n < 2:
                return n
            one, two = pool.submit(fib, n - 1), pool.submit(fib, n - 2)
            return one.result() + two.result()

        assert pool.submit(fib, 13).result(timeout=LONG) == 233


@pytest.mark.parametrize("depth", [1, 16, 17, 60])
def test_depth_of_one_worker(depth: int) -> None:
    """In a pool of one, calls that wait for calls end however deep they are, helped first and then lent."""
    with ThreadPool(1) as pool:

        def down(n: int) -> int:
            return pool.submit(down, n - 1).result() + 1 if n else 0

        assert pool.submit(down, depth).result(timeout=LONG) == depth


def test_helping_runs_on_the_waiters_thread() -> None:
    """A worker that waits for a queued call of its pool runs it itself."""
    with ThreadPool(1) as pool:
        names = pool.submit(lambda: (jobs.thread_name(), pool.submit(jobs.thread_name).result()))
        mine, child = names.result(timeout=LONG)
        assert mine == child
        assert pool.stats().workers == 1


def test_helping_keeps_the_context() -> None:
    """A helped call sees its own context, not the waiter's."""
    with ThreadPool(1) as pool:

        def parent() -> tuple[str, str]:
            jobs.VARIABLE.set("at submit")
            child = pool.submit(jobs.variable)
            jobs.VARIABLE.set("at result")
            return child.result(), jobs.variable()

        assert pool.submit(parent).result(timeout=LONG) == ("at submit", "at result")


def test_helping_a_call_that_fails(two: ThreadPool) -> None:
    """What a helped call raises is that call's error."""

    def parent() -> str:
        try:
            two.submit(jobs.leave).result()
        except SystemExit:
            return "caught"
        return "nothing"

    assert two.submit(parent).result(timeout=LONG) == "caught"


@pytest.mark.parametrize("how", ["result with timeout", "exception", "gather", "wait", "as_completed", "promise"])
def test_lending(how: str) -> None:
    """A worker that waits lends its place, in whatever way it waits; the pool of one goes on."""
    with ThreadPool(1) as pool:

        def parent() -> object:
            child = pool.submit(jobs.double, 1)
            if how == "result with timeout":
                return child.result(timeout=LONG)
            if how == "exception":
                return 2 if child.exception(timeout=LONG) is None else 0
            if how == "gather":
                return gather(child).result()[0]
            if how == "wait":
                return wait([child]).done.pop().result()
            if how == "as_completed":
                return next(as_completed([child])).result()
            promise: Future[int] = Future()
            pool.submit(promise.set_result, 2)
            return promise.result()

        assert pool.submit(parent).result(timeout=LONG) == 2


def test_spare_workers_leave_again() -> None:
    """When those that waited go on, the pool is back at max_workers."""
    with ThreadPool(2) as pool:
        promise: Future[int] = Future()
        waiting = [pool.submit(promise.result) for _ in range(10)]
        probe = pool.submit(jobs.nothing)
        probe.result(timeout=LONG)
        assert pool.stats().workers > 2
        promise.set_result(1)
        assert gather(*waiting).result(timeout=LONG) == (1,) * 10
        deadline = time.monotonic() + LONG
        while pool.stats().workers > 2 and time.monotonic() < deadline:
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert pool.stats().workers <= 2


def test_capacity_after_lending() -> None:
    """Lending doesn't raise the number of calls that run at a time."""
    with ThreadPool(2) as pool:
        promise: Future[int] = Future()
        lent = [pool.submit(promise.result) for _ in range(4)]
        pool.submit(jobs.nothing).result(timeout=LONG)
        promise.set_result(1)
        gather(*lent).result(timeout=LONG)
        running, most, lock = 0, 0, threading.Lock()

        def count() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)  # long enough to meet others, if there are too many
            with lock:
                running -= 1

        gather(*(pool.submit(count) for _ in range(200))).result(timeout=LONG)
        assert most <= 3  # a spare one that has not left yet may take one more call


def test_starvation_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the cap of spare workers a wait raises StarvationError, and nothing hangs."""
    monkeypatch.setattr(parallel.pools.crew, "MAX_LENT", 3)
    with ThreadPool(1) as pool:
        promise: Future[int] = Future()
        waiting = [pool.submit(promise.result) for _ in range(6)]
        starved = next(as_completed(waiting, timeout=LONG))
        error = starved.exception()
        assert isinstance(error, StarvationError)
        assert "then()" in str(error)
        promise.set_result(1)
        ends = [future.exception(timeout=LONG) for future in waiting]
        assert sum(end is None for end in ends) >= 3
        assert all(end is None or isinstance(end, StarvationError) for end in ends)


def test_helping_is_possible_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the cap a worker can still run itself what it waits for."""
    monkeypatch.setattr(parallel.pools.crew, "MAX_LENT", 0)
    with ThreadPool(1) as pool:
        assert pool.submit(lambda: pool.submit(jobs.double, 1).result()).result(timeout=LONG) == 2


def test_waiting_across_two_pools() -> None:
    """Calls of two pools of one that wait for each other's calls end."""
    with ThreadPool(1) as ping, ThreadPool(1) as pong:

        def down(n: int) -> int:
            pool = ping if n % 2 else pong
            return pool.submit(down, n - 1).result() + 1 if n else 0

        assert ping.submit(down, 40).result(timeout=LONG) == 40


def test_callback_threads_lend_too() -> None:
    """Continuations that wait for continuations don't starve the callback threads."""

    def down(n: int) -> int:
        if n == 0:
            return 0
        start: Future[int] = Future()
        below = start.then(down)
        start.set_result(n - 1)
        return below.result() + 1

    with using({}):
        start: Future[int] = Future()
        end = start.then(down)
        start.set_result(60)
        assert end.result(timeout=LONG) == 60


# -- shutdown ---------------------------------------------------------------------------------------------------------


def test_shutdown_races_with_submit() -> None:
    """Every submit that races with shutdown raises or its future ends; no thread is left behind."""
    with frequent_switches():
        for _ in range(400):
            pool = ThreadPool(2)
            meet = threading.Barrier(3)
            futures: list[Future[int]] = []

            def submit(pool: ThreadPool = pool, meet: threading.Barrier = meet, futures: Any = futures) -> None:
                meet.wait(LONG)
                with suppress(PoolShutdownError):
                    futures.append(pool.submit(jobs.double, 1))

            threads = [threading.Thread(target=submit) for _ in range(2)]
            for thread in threads:
                thread.start()
            meet.wait(LONG)
            pool.shutdown(wait=False)
            for thread in threads:
                thread.join(LONG)
            assert [future.result(timeout=LONG) for future in futures] == [2] * len(futures)
            done = threading.Thread(target=pool.shutdown, daemon=True)
            done.start()
            done.join(LONG)
            assert not done.is_alive()


def test_shutdown_cancelling_races_with_submit() -> None:
    """So it is with cancel_futures: what was accepted has run or is cancelled, and whoever waits is told."""
    with frequent_switches():
        for _ in range(300):
            pool = ThreadPool(1)
            futures = [pool.submit(jobs.double, 1) for _ in range(3)]
            closing = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
            closing.start()
            with suppress(PoolShutdownError):
                futures.append(pool.submit(jobs.double, 1))
            assert not wait(futures, timeout=LONG).not_done
            closing.join(LONG)
            assert not closing.is_alive()
            assert all(future.cancelled() or future.result() == 2 for future in futures)


def test_shutdown_from_a_worker() -> None:
    """A call that shuts its own pool down doesn't wait for itself; what was accepted is run."""
    pool = ThreadPool(2)
    gate = threading.Event()

    def close() -> None:
        gate.wait(LONG)
        pool.shutdown()

    closing = pool.submit(close)
    after = [pool.submit(jobs.double, 1) for _ in range(5)]
    gate.set()
    assert closing.result(timeout=LONG) is None
    assert gather(*after).result(timeout=LONG) == (2,) * 5
    with pytest.raises(PoolShutdownError):
        pool.submit(jobs.nothing)
    pool.shutdown()


def test_shutdown_from_a_callback() -> None:
    """A done-callback on a worker may shut the pool down."""
    pool = ThreadPool(1)
    start = threading.Event()
    future = pool.submit(start.wait, LONG)
    closed = threading.Event()
    future.add_done_callback(lambda _: (pool.shutdown(), closed.set()))
    start.set()
    assert closed.wait(LONG)
    pool.shutdown()


def test_shutdown_waits_for_links() -> None:
    """shutdown(wait=True) returns when what follows the calls on this pool has run too."""
    seen: list[int] = []
    pool = ThreadPool(1)
    gate = threading.Event()
    end = pool.submit(gate.wait, LONG)
    for index in range(50):
        end = end.then(lambda _, index=index: seen.append(index))
    gate.set()
    pool.shutdown()
    assert seen == list(range(50))
    assert end.done()


def test_cancelling_keeps_what_follows() -> None:
    """What follows a call is run at a shutdown that cancels, though its worker leaves while calls are being ended."""
    pool = ThreadPool(1)
    ended = pool.submit(threading.current_thread)
    worker = ended.result(timeout=LONG)
    running, go = threading.Event(), threading.Event()
    pool.submit(lambda: (running.set(), go.wait(LONG)))
    assert running.wait(LONG)
    after = ended.then(lambda _: "has run")
    queued = pool.submit(jobs.nothing)
    queued.add_done_callback(lambda _: (go.set(), worker.join(LONG)))
    pool.shutdown(cancel_futures=True)
    assert queued.cancelled()
    assert after.result(timeout=LONG) == "has run"
    assert not worker.is_alive()


def test_threads_leave_at_shutdown() -> None:
    """After shutdown(wait=True) no thread of the pool is there."""
    with ThreadPool(4, "gone") as pool:
        gather(*(pool.submit(jobs.nothing) for _ in range(100))).result(timeout=LONG)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gone")]
    assert pool.stats().workers == 0


def test_stats_count() -> None:
    """stats() counts queued, running and ended calls."""
    with Held() as held:
        queued = [held.pool.submit(jobs.nothing) for _ in range(3)]
        stats = held.pool.stats()
        assert (stats.workers, stats.queued, stats.running, stats.done) == (1, 3, 1, 0)
        assert "3 queued, 1 running" in repr(held.pool)
        held.go.set()
        gather(held.future, *queued).result(timeout=LONG)
        assert held.pool.idle() == 4
        stats = held.pool.stats()
        assert (stats.queued, stats.running, stats.done) == (0, 0, 4)


# -- from odd places --------------------------------------------------------------------------------------------------


def test_submit_in_a_signal_handler(two: ThreadPool) -> None:
    """A signal handler may submit and chain, though it interrupts a submit."""
    futures: list[Future[int]] = []

    def submit(*_: object) -> None:
        futures.append(two.submit(jobs.double, 2).then(jobs.double))

    before = signal.signal(signal.SIGALRM, submit)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        mine = [two.submit(jobs.double, 1).then(jobs.double) for _ in range(5000)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert gather(*mine).result(timeout=LONG) == (4,) * 5000
    assert futures
    assert gather(*futures).result(timeout=LONG) == (8,) * len(futures)


def test_shutdown_in_a_signal_handler() -> None:
    """A signal handler may shut down the pool whose submit it interrupts."""
    for _ in range(20):
        pool = ThreadPool(2)
        before = signal.signal(signal.SIGALRM, lambda *_, pool=pool: pool.shutdown(wait=False))
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        futures = []
        try:
            with pytest.raises(PoolShutdownError):
                while True:
                    futures.append(pool.submit(jobs.nothing))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert not wait(futures, timeout=LONG).not_done
        pool.shutdown()


# -- Ctrl-C while a call is made --------------------------------------------------------------------------------------


def interrupting(crew: Crew) -> None:
    """Let a Ctrl-C come in the very moment in which *crew* numbers the next step: with no code that would meet it."""
    beside = chain(filterfalse(interrupt_main, [signal.SIGINT]), repeat(None))
    crew._numbers = cast(Any, map(itemgetter(0), zip(crew._numbers, beside, strict=False)))


@pytest.mark.parametrize("ranked", [False, True])
def test_ctrl_c_while_a_call_is_numbered(two: ThreadPool, ranked: bool) -> None:
    """A Ctrl-C between two steps of submitting loses no number: the pool still knows when it is idle."""
    if ranked:
        two._crew.rank()
    for _ in range(3):
        interrupting(two._crew)
        with pytest.raises(KeyboardInterrupt):
            two.submit(int)
    assert two.submit(int).result(LONG) == 0
    assert returns_in_time(two._crew.idle)
    assert two.stats().queued == two.stats().running == 0


def test_ctrl_c_before_a_step_is_ranked(two: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C before a call is in the backlog leaves a token for nothing, which is run as such."""
    two._crew.rank()
    backlog = two._crew._ranked
    assert backlog is not None
    with monkeypatch.context() as patch:
        patch.setattr(backlog, "append", lambda step: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            two.submit(int)
    assert two.submit(int).result(LONG) == 0
    assert returns_in_time(two._crew.idle)


@pytest.mark.parametrize("look", [ThreadPool.stats, lambda pool: pool._crew.idle()])
def test_ctrl_c_while_a_pool_is_looked_at(two: ThreadPool, look: Callable[[ThreadPool], object]) -> None:
    """A Ctrl-C while the calls are counted doesn't spoil the next count."""
    two.submit(int).result(LONG)
    interrupting(two._crew)
    with pytest.raises(KeyboardInterrupt):
        look(two)
    assert returns_in_time(two._crew.idle)


@pytest.mark.parametrize("ranked", [False, True])
def test_ctrl_c_at_any_point_of_submitting(run_script: Callable[..., CompletedProcess[str]], ranked: bool) -> None:
    """Wherever a Ctrl-C hits the thread that submits, the pool is idle in the end, and shuts down."""
    done = run_script(
        f"""
import os, signal, sys
from parallel import ThreadPool

sys.setswitchinterval(1e-6)
pool = ThreadPool(4)
if {ranked}:
    pool._crew.rank()
for _ in range(200):
    try:
        pool.submit(os.kill, os.getpid(), signal.SIGINT)
        while True:
            pool.submit(int)
    except KeyboardInterrupt:
        continue
pool._crew.idle()
pool.shutdown()
print("idle")
"""
    )
    assert done.stdout.split() == ["idle"], done.stderr


def test_ctrl_c_at_each_point_of_submitting() -> None:
    """Wherever a Ctrl-C hits the thread that submits, and starts a worker, the pool is idle in the end, and ends."""
    number = 0
    left = 0
    while left == 0:  # the place is there
        number += 1
        pool = ThreadPool(2)
        with CtrlC(number) as ctrl_c, suppress(KeyboardInterrupt):
            pool.submit(int)
            pool.submit(int)
        left = ctrl_c.left
        assert pool.submit(int).result(LONG) == 0
        for step in (pool._crew.idle, pool.shutdown):
            assert returns_in_time(step), f"{step} hangs after a Ctrl-C at place {number}"
    assert number > 20
    threading._limbo.clear()  # type: ignore[attr-defined]  # what a Ctrl-C keeps from starting, CPython leaves there


NO_THREADS = """
import threading
from parallel import Future, ThreadPool, completed, task
from parallel.registry import default_registry

ran = []

def refused(call):
    threading.stack_size(1 << 46)  # more than there is: the operating system refuses
    try:
        return call()
    except RuntimeError as error:
        return f"refused: {error}"
    finally:
        threading.stack_size(0)
"""


def test_thread_that_cannot_start(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """If no thread can be started, submit() raises, and the refused call is not run later; the pool goes on."""
    out = run_script(
        NO_THREADS
        + """
pool = ThreadPool(2)
print(refused(lambda: pool.submit(ran.append, "refused")))
print(pool.submit(ran.append, "accepted").exception(timeout=10))
print(pool.idle() is not None, pool.stats().queued)
pool.shutdown()
print(ran)
""",
        timeout=20,
    ).stdout.splitlines()
    assert out[0].startswith("refused: ")
    assert out[1:] == ["None", "True 0", "['accepted']"]


def test_continuation_without_a_thread(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """If no thread can be started for what follows, that fails, and does not hang."""
    out = run_script(
        NO_THREADS
        + """
promise = Future()
after = promise.then(ran.append)
refused(lambda: promise.set_result(1))
print(type(after.exception(timeout=10)).__name__)
""",
        timeout=20,
    ).stdout.splitlines()
    assert out in (["RuntimeError"], ["PoolShutdownError"], ["PoolBrokenError"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_worker_that_forks(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """A call that forks may go on in the child, which ends quietly when the call does; the parent is untouched."""
    done = run_script(
        """
import os, sys
from parallel import ThreadPool

def fork():
    pid = os.fork()
    if pid == 0:
        return "child"  # goes on as a worker whose pool stayed in the parent
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

with ThreadPool(2) as pool:
    print(pool.submit(fork).result(timeout=15), pool.submit(len, "abc").result(timeout=15))
""",
        flags=("-W", "ignore::DeprecationWarning"),
        timeout=30,
    )
    assert done.stdout.split() == ["0", "3"]
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_worker_that_forks_and_uses_the_pool(two: ThreadPool, in_fork: Callable[..., Any]) -> None:
    """In the child of a fork inside a call the same pool works."""

    def fork() -> Any:
        return in_fork(lambda: two.submit(jobs.double, 2).result(timeout=10))

    assert two.submit(fork).result(timeout=LONG) == 4
    assert two.submit(jobs.double, 3).result(timeout=LONG) == 6


def test_coroutine_function_runs_on_a_worker(two: ThreadPool) -> None:
    """A coroutine function runs to its end on a worker; no coroutine is returned."""
    assert two.submit(jobs.async_double, 2).result(timeout=LONG) == 4  # type: ignore[comparison-overlap]


def test_step_that_gets_out_of_hand(two: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
    """A done-callback that raises SystemExit is logged, and costs no worker."""
    with caplog.at_level(logging.ERROR):
        for _ in range(10):
            start = threading.Event()
            future = two.submit(start.wait, LONG)
            future.add_done_callback(lambda _: sys.exit(3))
            start.set()
            future.result(timeout=LONG)
        assert two.submit(jobs.double, 1).result(timeout=LONG) == 2
        two.shutdown()
    assert caplog.text.count("SystemExit") >= 10


def test_unknown_pool_names_the_known() -> None:
    """Asked for an unknown pool the registry says which it knows."""
    with using({}) as registry, pytest.raises(UnknownPoolError, match="threads"):
        registry.pool("therads")

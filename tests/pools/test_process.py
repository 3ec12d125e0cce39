"""
Process pools: what only they do. Deaths and values that do not travel are in `crash/`.
"""

from __future__ import annotations

import functools
import gc
import math
import multiprocessing
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import jobs
import jobs_a
import jobs_b
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Gate, frequent_switches
from pools import process_jobs
from pools.process_jobs import PATIENCE, Counter, is_gone, wait_until

from parallel import ProcessPool, task
from parallel.errors import PoolBrokenError, PoolShutdownError, SerializationError
from parallel.pools.process import wire

METHODS = ["forkserver", "spawn", "fork"]
ROOT = Path(__file__).parents[2]
NO_THREADS_AT_EXIT = (3, 12) <= sys.version_info < (3, 12, 2)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # 3.12 and later, where it is asked for


@pytest.fixture(params=METHODS)
def pool(request: pytest.FixtureRequest) -> Any:
    """A pool of two workers, by each start method."""
    with ProcessPool(2, request.param) as one:
        yield one


@pytest.fixture
def one() -> Any:
    """A pool of one worker."""
    with ProcessPool(1) as pool:
        yield pool


# -- functions --------------------------------------------------------------------------------------------------------


def test_runs_elsewhere(pool: ProcessPool) -> None:
    """Calls run in other processes, and as many at a time as there are workers."""
    pids = [pool.submit(jobs.pid) for _ in range(20)]
    found = {future.result(PATIENCE) for future in pids}
    assert os.getpid() not in found
    assert 1 <= len(found) <= 2


def test_functions_of_all_kinds(pool: ProcessPool) -> None:
    """Whatever can be called can be submitted."""
    counter = Counter(10)
    offset = 100
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
        (jobs.double, (2,), 4),
        (lambda x: x + offset, (1,), 101),
        (functools.partial(jobs.add, 1), (2,), 3),
        (counter.plus, (1,), 11),
        (counter, (2,), 12),
        (counter.tasked, (3,), 13),
        (Counter.make, (4,), 4),
        (Counter.static, (5,), 5),
        (Counter.Inner().who, (), "Counter.Inner"),
        (math.sqrt, (16,), 4.0),
        (operator.itemgetter(1), ("abc",), "b"),
        ("-".join, (["a", "b"],), "a-b"),
        (str, (5,), "5"),
        (len, ("four",), 4),
        (process_jobs.twice_decorated, (1,), ("wrapped", 2)),
        (jobs.async_double, (21,), 42),
        (process_jobs.make_coroutine, (7,), 7),
    ]
    futures = [pool.submit(fn, *args) for fn, args, _ in calls]
    assert [future.result(PATIENCE) for future in futures] == [value for _, _, value in calls]


def test_closure_as_it_is_now(one: ProcessPool) -> None:
    """A closure travels as it is at the time of its call."""
    seen = 0

    def look() -> int:
        return seen

    futures = []
    for seen in range(3):  # noqa: B007  # the closure reads it
        futures.append(one.submit(look))
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_names_that_are_the_same(method: str) -> None:
    """Functions of one name, in two modules or two classes, run each its own body."""
    with ProcessPool(1, method) as pool:
        futures = [
            pool.submit(fn, *args)
            for fn, args in [
                (jobs_a.who, ()),
                (jobs_b.who, ()),
                (jobs.First.who, ()),
                (jobs.Second.who, ()),
                (jobs.First().me, ()),
                (jobs.Second().me, ()),
                (jobs.First.kind, ()),
                (jobs.Second.kind, ()),
            ]
        ]
        assert [future.result(PATIENCE) for future in futures] == [
            "a", "b", "First", "Second", "First.me of First", "Second.me of Second",
            "First.kind of First", "Second.kind of Second",
        ]  # fmt: skip


def test_rebound_name(one: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose name has been bound to another is sent itself, before and after."""
    first = process_jobs.rebound
    assert one.submit(first).result(PATIENCE) == "the first"
    monkeypatch.setattr(process_jobs, "rebound", lambda: "the second")
    assert one.submit(first).result(PATIENCE) == "the first"
    assert one.submit(process_jobs.rebound).result(PATIENCE) == "the second"


def test_declared_in_a_function(one: ProcessPool) -> None:
    """A task that no module has travels by value."""

    @task(pool="processes")
    def local(x: int) -> int:
        return x + 1

    assert one.submit(local, 1).result(PATIENCE) == 2


def test_keyword_arguments(one: ProcessPool) -> None:
    """Keywords are the function's own, whatever they are called."""
    value = one.submit(jobs.takes_words, timeout=1, priority=2, key=3, pool=4, fn=5, self=6).result(PATIENCE)
    assert value == {"timeout": 1, "priority": 2, "key": 3, "pool": 4, "fn": 5, "self": 6}


def test_one_loop_for_all_coroutines(one: ProcessPool) -> None:
    """Coroutines of one worker run in one event loop."""
    assert len({one.submit(process_jobs.loop_id).result(PATIENCE) for _ in range(3)}) == 1


def test_calls_share_no_context(one: ProcessPool) -> None:
    """What a call sets in its context, the next one in that worker does not see."""
    assert one.submit(process_jobs.set_variable, "mine").result(PATIENCE) == "unset"
    assert one.submit(process_jobs.set_variable, "mine").result(PATIENCE) == "unset"


# -- the worker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_loads_what_it_needs(run_script: Any, method: str) -> None:
    """A worker starts without what few calls need."""
    script = f"""
def main():  # what the main module itself has of this library, a fork server loads
    from parallel import ProcessPool
    with ProcessPool(1, {method!r}) as pool:
        loaded = set(pool.submit(eval, "[*__import__('sys').modules]").result())
    heavy = {{"rich", "asyncio", "attr", "cattrs", "cloudpickle", "logging", "concurrent.futures", "parallel.errors"}}
    print(sorted(loaded & heavy))
if __name__ == "__main__":
    main()
"""
    assert run_script(script).stdout == "[]\n"


def test_ctrl_c_leaves_workers_alone(one: ProcessPool) -> None:
    """A worker does nothing about a Ctrl-C, and the programs that it starts are not told to ignore it."""
    assert one.submit(process_jobs.sigint_myself).result(PATIENCE) == "still here"
    assert one.submit(process_jobs.is_sigint_ignored_by_programs).result(PATIENCE) is False


def test_worker_may_start_processes(one: ProcessPool) -> None:
    """A worker is no daemon: it can have children, and pools of its own."""
    assert one.submit(process_jobs.start_a_process).result(PATIENCE) == 7
    assert one.submit(process_jobs.use_a_pool).result(PATIENCE) == [0, 2, 4, 6]


def test_no_thread_to_be_seen(one: ProcessPool) -> None:
    """What watches over the worker is no thread of the user's program."""
    assert one.submit(process_jobs.own_threads).result(PATIENCE) == []


@pytest.mark.parametrize("method", METHODS)
def test_output_is_flushed(run_script: Any, method: str) -> None:
    """What calls print without flushing is there in the end."""
    script = f"""
from pools import process_jobs
from parallel import ProcessPool
if __name__ == "__main__":
    with ProcessPool(1, {method!r}) as pool:
        pool.submit(process_jobs.print_late, "printed late")
"""
    assert "printed late" in run_script(script, flags=("-W", "ignore")).stdout


def test_initializer(pool: ProcessPool) -> None:
    """An initializer runs once in each worker, with its arguments; a lock of multiprocessing may be one."""
    with ProcessPool(1, pool._context, jobs.remember, ("here",)) as other:
        assert [other.submit(jobs.remembered).result(PATIENCE) for _ in range(2)] == [["here"], ["here"]]
    with ProcessPool(1, pool._context, process_jobs.keep_lock, (pool._context.Lock(),)) as other:  # type: ignore[attr-defined]
        assert other.submit(process_jobs.use_lock).result(PATIENCE) is True


def test_connections_travel(one: ProcessPool) -> None:
    """A connection of multiprocessing is sent as a connection; a lock says that it can't be sent so."""
    reader, writer = multiprocessing.Pipe()
    one.submit(operator.methodcaller("send", "through"), writer).result(PATIENCE)
    assert reader.poll(PATIENCE) and reader.recv() == "through"
    reader.close()
    writer.close()
    resource_sharer.stop()
    with pytest.raises(SerializationError, match="inheritance"):
        one.submit(jobs.double, multiprocessing.get_context("spawn").Lock()).result(PATIENCE)


# -- max_tasks_per_child ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_workers_retire(method: str) -> None:
    """A worker is replaced after that many calls, and all calls are run."""
    with ProcessPool(2, method, max_tasks_per_child=3) as pool:
        pids = [future.result(PATIENCE) for future in [pool.submit(os.getpid) for _ in range(20)]]
    assert len(set(pids)) >= 7
    assert max(pids.count(pid) for pid in pids) <= 3


def test_retire_while_dying() -> None:
    """Deaths among the retiring lose nothing else."""
    with ProcessPool(2, max_tasks_per_child=2) as pool:
        futures = [pool.submit(os._exit, 1) if i % 5 == 0 else pool.submit(operator.mul, i, 2) for i in range(40)]
        wait(futures, PATIENCE)
        assert [future.exception() is None for future in futures] == [i % 5 != 0 for i in range(40)]


@pytest.mark.parametrize("method", METHODS)
def test_retire_after_shutdown(method: str) -> None:
    """After `shutdown(wait=False)` workers are still replaced while calls are queued."""
    pool = ProcessPool(1, method, max_tasks_per_child=1)
    futures = [pool.submit(operator.mul, i, 2) for i in range(5)]
    pool.shutdown(wait=False)
    assert [future.result(PATIENCE) for future in futures] == [0, 2, 4, 6, 8]
    pool.shutdown()


# -- life -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": "2"}, TypeError),
        ({"mp_context": "teleport"}, ValueError),
        ({"mp_context": 3}, TypeError),
        ({"initializer": 3}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"max_tasks_per_child": True}, TypeError),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception]) -> None:
    """What is no such argument is refused at once."""
    with pytest.raises(error):
        ProcessPool(**kwargs)


def test_workers_start_on_demand() -> None:
    """No worker is started while another is free."""
    with ProcessPool(4) as pool:
        for i in range(5):
            pool.submit(operator.mul, i, 2).result(PATIENCE)
            assert pool.idle() == i + 1
        assert pool.stats().workers == 1
        assert repr(pool) == "<ProcessPool running [calls: 0 queued, 0 running]>"


def test_stats(one: ProcessPool) -> None:
    """The statistics count the calls."""
    with Gate() as gate:
        futures = [one.submit(jobs.wait_at, gate.address) for _ in range(3)]
        gate.arrived()
        stats = one.stats()
        assert (stats.workers, stats.queued, stats.running, stats.done) == (1, 2, 1, 0)
        gate.open()
        wait(futures, PATIENCE)
    assert one.idle() == 3
    assert one.stats().done == 3


def test_cancel(one: ProcessPool) -> None:
    """A queued call can be cancelled, a running one can't."""
    with Gate() as gate:
        running = one.submit(jobs.wait_at, gate.address, "ran")
        gate.arrived()
        queued = one.submit(jobs.double, 1)
        assert queued.cancel()
        assert not running.cancel()
        gate.open()
        assert running.result(PATIENCE) == "ran"
        assert one.idle() == 2
    with pytest.raises(CancelledError):
        queued.result()


def test_shutdown_cancels(one: ProcessPool) -> None:
    """`shutdown(cancel_futures=True)` wakes those that wait for what is queued, and lets the rest run."""
    with Gate() as gate:
        running = one.submit(jobs.wait_at, gate.address, "ran")
        gate.arrived()
        queued = [one.submit(jobs.double, i) for i in range(3)]
        one.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in queued)
        assert not wait(queued, PATIENCE).not_done
        with pytest.raises(PoolShutdownError):
            one.submit(jobs.nothing)
        gate.open()
        assert running.result(PATIENCE) == "ran"


def test_shutdown_unused() -> None:
    """A pool that never had a call has nothing to shut down."""
    pool = ProcessPool(1)
    pool.shutdown()
    pool.shutdown()
    with pytest.raises(PoolShutdownError):
        pool.submit(jobs.nothing)


def test_submit_races_with_shutdown() -> None:
    """A submit that races with the shutdown raises, or its future ends."""
    for _ in range(20):
        pool = ProcessPool(2, "fork")
        futures = [pool.submit(operator.mul, 1, 1)]

        def submit() -> None:
            try:
                while True:
                    futures.append(pool.submit(operator.mul, 1, 2))  # noqa: B023
            except PoolShutdownError:
                return

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        pool.shutdown()
        for thread in threads:
            thread.join()
        assert all(future.done() for future in futures)


def test_dropped_pool() -> None:
    """A pool that nobody holds any more runs what it has accepted, and leaves nothing behind."""
    pool = ProcessPool(2)
    dropped = weakref.ref(pool)
    future = pool.submit(os.getpid)
    more = [pool.submit(operator.mul, i, 2) for i in range(5)]
    del pool
    gc.collect()
    assert dropped() is None
    assert [one.result(PATIENCE) for one in more] == [0, 2, 4, 6, 8]
    assert is_gone(future.result(PATIENCE))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_leaks(method: str) -> None:
    """The descriptors and threads of ten pools are gone with them."""

    def use() -> None:
        with ProcessPool(2, method) as pool:
            wait([pool.submit(operator.mul, i, 2) for i in range(10)], PATIENCE)
            pool.submit(os._exit, 1).exception(PATIENCE)

    use()  # the fork server and the callback threads stay
    gc.collect()
    before = (set(os.listdir("/proc/self/fd")), threading.active_count())
    for _ in range(10):
        use()
    gc.collect()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert multiprocessing.active_children() == []


def test_memory_is_given_back(one: ProcessPool) -> None:
    """Neither the pool nor its threads keep a value, or arguments, once nobody else does."""

    class Witness(list[int]):
        pass

    future = one.submit(process_jobs.echo, Witness([1]))
    seen = weakref.ref(future.result(PATIENCE))
    del future
    one.idle()
    assert seen() is None


@pytest.mark.skipif(NO_THREADS_AT_EXIT, reason="CPython 3.12.0 and 3.12.1 start no thread at exit (gh-113964)")
@pytest.mark.parametrize("wait_for_it", [True, False])
def test_exit_runs_what_was_accepted(run_script: Any, wait_for_it: bool) -> None:
    """The program ends after its calls, with status 0, whether it shuts the pool down or not."""
    script = f"""
import jobs, sys
from parallel import ProcessPool
if __name__ == "__main__":
    pool = ProcessPool(2)
    for i in range(20):
        pool.submit(jobs.double, i).add_done_callback(lambda f: sys.stdout.write(f"{{f.result()}}\\n"))
    if not {wait_for_it}:
        pool.shutdown(wait=False)
"""
    assert sorted(map(int, run_script(script).stdout.split())) == [i * 2 for i in range(20)]


@pytest.mark.skipif(NO_THREADS_AT_EXIT, reason="CPython 3.12.0 and 3.12.1 start no thread at exit (gh-113964)")
def test_unserved_chain_at_exit(run_script: Any) -> None:
    """What follows a call of a dropped pool is run as well."""
    script = """
import jobs
from parallel import ProcessPool
if __name__ == "__main__":
    ProcessPool(1).submit(jobs.double, 1).then(jobs.double).then(print)
"""
    assert run_script(script).stdout == "4\n"


# -- callbacks, signals, re-entrance --------------------------------------------------------------------------------


def test_blocking_callback(one: ProcessPool) -> None:
    """A callback that blocks does not stop the delivery of other results."""
    go = threading.Event()
    called = threading.Event()

    def block(_: object) -> None:
        called.set()
        assert go.wait(PATIENCE)

    one.submit(jobs.nothing).add_done_callback(block)
    one.submit(jobs.nothing).result(PATIENCE)
    with Gate() as gate:
        late = one.submit(jobs.wait_at, gate.address)
        gate.arrived()
        late.add_done_callback(block)
        gate.open()
        assert called.wait(PATIENCE)
        assert one.submit(jobs.double, 2).result(PATIENCE) == 4
    go.set()


def test_shutdown_from_a_callback() -> None:
    """A callback may shut the pool down."""
    pool = ProcessPool(1)
    done = threading.Event()
    with Gate() as gate:
        future = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        future.add_done_callback(lambda _: (pool.shutdown(), done.set()))
        gate.open()
        assert done.wait(PATIENCE)


def test_submit_and_shutdown_in_a_signal_handler() -> None:
    """A signal handler may submit and shut down, at whatever moment of a submit it comes."""
    pool = ProcessPool(2, "fork")
    inside: list[Any] = []
    pool.submit(operator.mul, 1, 1).result(PATIENCE)

    def handler(*_: object) -> None:
        if len(inside) < 200:
            inside.append(pool.submit(operator.mul, 3, 3))
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)  # or it would be called in the middle of itself
            pool.shutdown()

    before = signal.signal(signal.SIGALRM, handler)
    outside = []
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        with pytest.raises(PoolShutdownError):
            while True:
                outside.append(pool.submit(operator.mul, 2, 2))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pool.shutdown()
    assert {future.result(PATIENCE) for future in outside} == {4}
    assert {future.result(PATIENCE) for future in inside} == {9}


class Interruption(BaseException):
    """What a signal handler raises in a submit."""


# It may come in a callback of a weak reference as well, where the interpreter can only report it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_submit() -> None:
    """A signal handler that raises in the middle of a submit leaves a pool that works."""
    with ProcessPool(2, "fork") as pool:
        pool.submit(operator.mul, 1, 1).result(PATIENCE)

        def handler(*_: object) -> None:
            raise Interruption

        before = signal.signal(signal.SIGALRM, handler)
        futures: list[Any] = []
        raised = 0
        try:
            while raised < 100:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0003)
                    while True:
                        future = pool.submit(operator.mul, 2, 2)
                        futures.append(future)
                        if len(futures) % 5 == 0:
                            future.exception(PATIENCE)
                        if len(futures) % 50 == 0:  # it came where an exception is ignored, or made the call's
                            signal.setitimer(signal.ITIMER_REAL, 0.0003)
                except Interruption:
                    raised += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert {future.result() for future in futures if future.exception(PATIENCE) is None} == {4}
        assert pool.submit(operator.mul, 2, 3).result(PATIENCE) == 6
        pool.idle()


def test_submit_in_del() -> None:
    """A `__del__` may submit, on whatever thread the collector runs it."""
    futures: list[Any] = []
    with ProcessPool(2, "fork") as pool:

        class Cycle:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                futures.append(pool.submit(operator.mul, 2, 2))

        threshold = gc.get_threshold()
        gc.set_threshold(5)
        try:
            for i in range(500):
                Cycle()
                futures.append(pool.submit(operator.mul, i, 0))
        finally:
            gc.set_threshold(*threshold)
        # Where another thread is collecting, this does nothing, and that one may go on only now.
        wait_until(lambda: gc.collect() >= 0 and len(futures) == 1000)
        values = [future.result(PATIENCE) for future in futures]
    assert values.count(4) == 500
    assert values.count(0) == 500


def test_many_threads() -> None:
    """Threads that submit at once, and take turns as often as can be, lose nothing."""
    with frequent_switches(), ProcessPool(2) as pool:
        results: list[int] = []

        def use(start: int) -> None:
            futures = [pool.submit(operator.mul, i, 2) for i in range(start, start + 100)]
            futures[50].cancel()
            for future in futures:
                if not future.cancelled():
                    results.append(future.result(PATIENCE) // 2)

        threads = [threading.Thread(target=use, args=(i * 1000,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) in range(594, 601)
        assert len(set(results)) == len(results)
        assert pool.idle() == 600


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_large_values_both_ways() -> None:
    """Large arguments and values cross each other without waiting for one another."""
    data = os.urandom(1 << 20) * 8
    with ProcessPool(2) as pool:
        futures = [pool.submit(process_jobs.echo, data) for _ in range(6)]
        assert all(future.result(PATIENCE) == data for future in futures)
        assert [pool.submit(process_jobs.size, bytes(n)).result(PATIENCE) for n in (0, 65535, 65536, 65537)] == [
            0, 65535, 65536, 65537,
        ]  # fmt: skip


def test_lengths_beyond_four_gigabytes() -> None:
    """A frame's head has room for what does not fit into 32 bits."""
    head = wire.HEAD.pack(10, 5 << 30)
    assert wire.HEAD.unpack(head) == (10, 5 << 30)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 200_000)), max_size=6), st.integers(100, 100_000))
def test_frames_survive_any_cutting(parts: list[tuple[bytes, int]], piece: int) -> None:
    """Frames come out as they went in, however the stream is cut into pieces."""
    sent = [((number, [first]), bytes([number]) * size) for number, (first, size) in enumerate(parts)]
    stream = b"".join(b"".join(wire.pack(*frame)) for frame in sent)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE)
        inbox = wire.Inbox()
        got = []
        for start in range(0, len(stream), piece):
            chunk = stream[start : start + piece]
            while chunk:
                taken = theirs.send(chunk[:30_000])
                chunk = chunk[taken:]
                ours.setblocking(False)
                try:
                    while inbox.read(ours):
                        while (frame := inbox.cut()) is not None:
                            got.append((frame[0], bytes(frame[1])))
                except BlockingIOError:
                    continue
    assert got == sent


# -- the main module --------------------------------------------------------------------------------------------------

MAIN = """
import sys
from parallel import ProcessPool, task

class Point:
    def __init__(self, x):
        self.x = x

@task(pool="processes")
def move(point, by):
    assert type(point) is Point, type(point).__module__
    return Point(by(point.x))

def plain(point):
    assert isinstance(point, Point)
    return point

if __name__ == "__main__":
    with ProcessPool(1, METHOD) as pool:
        moved = pool.submit(move, Point(1), lambda x: x + 1).result(60)
        assert type(moved) is Point, type(moved).__module__
        same = pool.submit(plain, moved).result(60)
        assert type(same) is Point, type(same).__module__
        print(moved.x, same.x)
"""


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_main_module(run_script: Any, method: str, as_module: bool) -> None:
    """Functions, tasks and classes of the main module are the same on both sides, also beside a lambda."""
    script = MAIN.replace("METHOD", repr(method))
    assert run_script(script, as_module=as_module, flags=("-W", "ignore")).stdout == "2 2\n"


COMMAND = """
import os
from parallel import ProcessPool
class Point:
    def __init__(self, x): self.x = x
def move(point):
    assert type(point) is Point
    return Point(point.x + 1)
with ProcessPool(1, METHOD) as pool:
    moved = pool.submit(move, Point(1)).result(60)
    assert type(moved) is Point
    print(moved.x, pool.submit(lambda: 3).result(60), pool.submit(lambda x: x.x, moved).result(60))
"""


@pytest.mark.parametrize("way", ["-c", "stdin"])
@pytest.mark.parametrize("method", METHODS)
def test_main_that_no_worker_can_import(method: str, way: str) -> None:
    """From `python -c` and from standard input, what the main module defines travels by value."""
    text = COMMAND.replace("METHOD", repr(method))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *(["-c", text] if way == "-c" else ["-"])],
        input=text if way == "stdin" else "",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (result.stdout, result.stderr) == ("2 3 2\n", "")


# -- fork -------------------------------------------------------------------------------------------------------------


def test_fork_of_the_parent(in_fork: Callable[..., Any]) -> None:
    """In a forked child the pool has a fresh engine; the parent's goes on, and its workers end with it alone."""
    with ProcessPool(1) as pool, Gate() as gate:
        worker = pool.submit(os.getpid).result(PATIENCE)
        running = pool.submit(jobs.wait_at, gate.address, "ran")
        gate.arrived()

        def child() -> Any:
            with pytest.raises(RuntimeError, match="forked"):
                running.result(1)
            theirs = pool.submit(os.getpid).result(PATIENCE)
            pool.shutdown()
            return theirs

        assert in_fork(child) != worker
        gate.open()
        assert running.result(PATIENCE) == "ran"
        assert pool.submit(os.getpid).result(PATIENCE) == worker


def test_forked_child_keeps_no_worker_alive(in_fork: Callable[..., Any]) -> None:
    """A forked child that lives on does not keep the workers of a parent that shuts its pool down."""
    pool = ProcessPool(1)
    worker = pool.submit(os.getpid).result(PATIENCE)
    sleeper = process_jobs.fork_a_sleeper()
    try:
        pool.shutdown()
        assert is_gone(worker)
    finally:
        os.kill(sleeper, signal.SIGKILL)
        os.waitpid(sleeper, 0)


def test_forked_workers_hold_no_socket_of_their_siblings() -> None:
    """Under fork too, each worker sees the end of its own stream."""
    with ProcessPool(3, "fork") as pool:
        pool.submit(operator.mul, 1, 1).result(PATIENCE)
        wait_until(lambda: len(pool._staff._dispatching.peers) == 3)
        first, second, third = [peer.pid for peer in pool._staff._dispatching.peers]
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: pool.stats().workers == 2)
    assert is_gone(first) and is_gone(third)


def test_worker_started_while_the_main_module_is_imported() -> None:
    """A pool of a process that is itself a worker, and still imports its main module, refuses with the hint."""
    process = multiprocessing.current_process()
    process._inheriting = True  # type: ignore[attr-defined]
    try:
        with ProcessPool(1) as pool, pytest.raises(PoolBrokenError, match="if __name__ == '__main__'"):
            pool.submit(jobs.nothing)
    finally:
        del process._inheriting  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100])
def test_map_in_chunks(chunksize: int) -> None:
    """A map in chunks has the same values, in order, however the items are cut."""
    with ProcessPool(2) as pool:
        assert list(pool.map(operator.mul, range(10), range(10), chunksize=chunksize)) == [x * x for x in range(10)]
        assert list(pool.map(abs, [], chunksize=chunksize)) == []


def test_map_without_chunks() -> None:
    """A chunk has one item at least."""
    with ProcessPool(1) as pool, pytest.raises(ValueError, match="chunksize must be 1 or more, found 0"):
        pool.map(abs, [1], chunksize=0)

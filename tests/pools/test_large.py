"""
Large data through process pools: what arrives, who may write to what, and that nothing of it is left, whatever happens.
"""

from __future__ import annotations

import array
import errno
import gc
import os
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import jobs
import pytest
from jobs import Gate
from pools import large_jobs, process_jobs
from pools.large_jobs import Photo, memfds
from pools.process_jobs import PATIENCE, wait_until

from parallel import ProcessPool, Registry, Retry, TaskTimeoutError, WorkerDiedError, task, using
from parallel.errors import SerializationError
from parallel.pools.process import passages, segments
from parallel.pools.process.buffers import LARGE
from parallel.pools.process.constants import Constant

SIZE = 4 * LARGE
METHODS = ["forkserver", "spawn", "fork"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # 3.12 and later
    pytest.mark.skipif(not segments.POSSIBLE, reason="nothing but in band here"),
]
with_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks /proc for descriptors")


def store_of(pool: ProcessPool) -> segments.Store:
    """The segments of a pool."""
    return pool._staff._books.store


def lent(pool: ProcessPool) -> int:
    """Count the segments that the workers of a pool have."""
    return sum(len(peer.baggage._passage._lent) for peer in pool._staff._dispatching.peers)


def in_use(pool: ProcessPool) -> int:
    """Count the segments of a pool that are not free for other data."""
    store = store_of(pool)
    return len(store._opened) - len(store._warm)


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """See that each pool of the test has closed its segments at the end."""
    stores: list[segments.Store] = []
    init = segments.Store.__init__

    def note(self: segments.Store, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        stores.append(self)

    monkeypatch.setattr(segments.Store, "__init__", note)
    yield
    for store in stores:
        wait_until(lambda store=store: "[0 segments" in repr(store), 5.0)  # type: ignore[misc]


@pytest.fixture
def one() -> Iterator[ProcessPool]:
    """A pool of one worker."""
    with ProcessPool(1) as pool:
        yield pool


def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change nothing."""


def _without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")


def _in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(segments, "_MEMORY", "/does/not/exist")


def _in_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "POSSIBLE", False)
    monkeypatch.setattr(passages, "POSSIBLE", False)


def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)


def _no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(socket, "send_fds", refuse)


def _unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "MOST_MAPPED", 0)


WAYS = [_as_it_is, _without_memfd, _in_files, _in_band, _full, _no_way, _unmapped]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessPool]:
    """A pool whose workers inherit a way in which large data has to travel."""
    request.param(monkeypatch)
    with ProcessPool(2, "fork") as pool:
        yield pool


# -- what arrives -----------------------------------------------------------------------------------------------------

VALUES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: os.urandom(SIZE),
    "bytearray": lambda: bytearray(os.urandom(SIZE)),
    "memoryview": lambda: memoryview(bytearray(os.urandom(SIZE))),
    "list": lambda: [os.urandom(SIZE), 1, [bytearray(SIZE)]],
    "dict": lambda: {"one": os.urandom(SIZE), 2: memoryview(b"x" * SIZE)},
    "dataclass": lambda: Photo("me", memoryview(os.urandom(SIZE))),
    "many": lambda: [memoryview(bytes([i]) * LARGE) for i in range(50)],
    "much that is small": lambda: [os.urandom(1000) for _ in range(1000)],
    "just not large": lambda: b"x" * (LARGE - 1),
    "text": lambda: "x" * SIZE,
    "array": lambda: array.array("d", range(SIZE // 8)),
    "empty": lambda: (b"", bytearray(), memoryview(b"")),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_values_arrive(forked: ProcessPool, make: Callable[[], Any]) -> None:
    """Arguments and results are what they were, and of the same types, by whatever way."""
    value = make()
    back = forked.submit(large_jobs.echo, value).result(PATIENCE)
    assert type(back) is type(value)
    assert back == value
    args, kwargs = forked.submit(large_jobs.echo_all, value, 5, key=value).result(PATIENCE)
    assert (args, kwargs) == ((value, 5), {"key": value})


@pytest.mark.parametrize("method", METHODS)
def test_start_methods(method: str) -> None:
    """However a worker was started, large data comes and goes; the next worker gets it too."""
    data = bytearray(os.urandom(SIZE))
    with ProcessPool(1, method) as pool:
        for _ in range(3):
            assert pool.submit(large_jobs.echo, data).result(PATIENCE) == data
            assert isinstance(pool.submit(large_jobs.die_with, data).exception(PATIENCE), WorkerDiedError)
        assert pool.submit(large_jobs.echo, data).result(PATIENCE) == data


def test_pickle_buffers_arrive(one: ProcessPool) -> None:
    """What a `PickleBuffer` holds arrives."""
    data = bytearray(os.urandom(SIZE))
    assert one.submit(large_jobs.echo, PickleBuffer(data)).result(PATIENCE) == data


@pytest.mark.parametrize("method", METHODS)
def test_arrays_of_100_mb(method: str) -> None:
    """A large array goes there and comes back, writable on both sides, and neither side's writing touches the other."""
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(100_000_000 // 8)
    with ProcessPool(2, method) as pool:
        assert [pool.submit(large_jobs.total, array).result(PATIENCE) for _ in range(2)] == [len(array)] * 2
        assert not array.any()
        back = pool.submit(large_jobs.make_array, len(array)).result(PATIENCE)
        assert back.flags.writeable
        assert (back[0], back[-1]) == (0, len(array) - 1)
        back += 1
        assert pool.submit(large_jobs.total, back).result(PATIENCE) == back.sum() + len(array)
        del back


def test_frames_arrive(one: ProcessPool) -> None:
    """A frame of pandas goes there and comes back."""
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    frame = pandas.DataFrame({"a": numpy.arange(SIZE), "b": numpy.ones(SIZE), "c": "text"})
    back = one.submit(large_jobs.echo, {"frame": frame}).result(PATIENCE)["frame"]
    pandas.testing.assert_frame_equal(back, frame)
    back.loc[0, "a"] = 7


def test_arguments_are_as_they_were(one: ProcessPool) -> None:
    """Each call has the data as it was at its submission, whatever becomes of it later, on either side."""
    data = bytearray(SIZE)
    with Gate() as gate:
        first = one.submit(jobs.wait_at, gate.address)
        calls = []
        for data[0] in range(10):
            calls.append(one.submit(large_jobs.overwrite, data))
        data[0] = 100
        gate.open()
        first.result(PATIENCE)
        assert [call.result(PATIENCE) for call in calls] == list(range(1, 11))
    assert data[0] == 100


def test_functions_that_carry_data(one: ProcessPool) -> None:
    """A closure with large data in it travels as it does with little."""
    data = bytearray(os.urandom(SIZE))
    assert one.submit(lambda: data[5]).result(PATIENCE) == data[5]
    assert one.submit(lambda more: len(data) + len(more), data).result(PATIENCE) == 2 * SIZE


def test_many_at_a_time() -> None:
    """Many calls with large arguments and results at a time, more than may have segments, come out right."""
    with ProcessPool(2) as pool:
        blocks = [bytes([i]) * LARGE for i in range(segments.MOST_OPEN + 20)]
        futures = [pool.submit(large_jobs.echo, block) for block in blocks]
        assert [future.result(PATIENCE) for future in futures] == blocks
        wait_until(lambda: not in_use(pool))


def test_context_variables() -> None:
    """What a context variable carries may be large as well."""
    with ProcessPool(1, context=["pools.large_jobs:CARRIED"]) as pool:
        token = large_jobs.CARRIED.set(memoryview(os.urandom(SIZE)))
        try:
            assert pool.submit(large_jobs.carried, 5).result(PATIENCE) == large_jobs.CARRIED.get()[5]
        finally:
            large_jobs.CARRIED.reset(token)


def test_maps() -> None:
    """A map of large items, chunk by chunk, has all the values in order."""
    with ProcessPool(2) as pool:
        blocks = [bytes([i]) * LARGE for i in range(9)]
        assert list(pool.map(large_jobs.length, blocks, chunksize=2)) == [LARGE] * 9
        assert list(pool.map(large_jobs.echo, blocks)) == blocks


# -- who keeps what ---------------------------------------------------------------------------------------------------


def test_warm_segments(one: ProcessPool) -> None:
    """Call after call is written into the same few segments."""
    data = bytearray(SIZE)
    for _ in range(10):
        assert one.submit(large_jobs.length, data).result(PATIENCE) == SIZE
        wait_until(lambda: not lent(one))
    assert len(store_of(one)._opened) == 1


@with_proc
def test_warm_segments_of_results(one: ProcessPool) -> None:
    """A worker writes one result after the other into the same few segments, as long as nobody keeps them."""
    pid = one.submit(jobs.pid).result(PATIENCE)
    for _ in range(10):
        assert len(one.submit(large_jobs.make, SIZE).result(PATIENCE)) == SIZE
    assert memfds(pid) <= 4  # two segments, each with a mapping that has a descriptor of its own


def test_kept_in_the_worker(one: ProcessPool) -> None:
    """What a worker keeps of its arguments is not written over; dropped, it may be."""
    for byte in range(5):
        one.submit(large_jobs.keep, memoryview(bytes([byte]) * SIZE)).result(PATIENCE)
    for _ in range(5):
        one.submit(large_jobs.length, bytearray(b"x" * SIZE)).result(PATIENCE)
    assert one.submit(large_jobs.kept).result(PATIENCE) == [0, 1, 2, 3, 4]
    assert lent(one) >= 5
    one.submit(large_jobs.drop_kept).result(PATIENCE)
    wait_until(lambda: not lent(one))
    assert len(store_of(one)._opened) <= 7


def test_kept_results(one: ProcessPool) -> None:
    """Values that are kept are not written over, also where a view is all that is left of them, nor after the end."""
    views = [one.submit(large_jobs.make, SIZE, byte).result(PATIENCE)[5:6] for byte in range(80)]
    for _ in range(5):
        one.submit(large_jobs.make, SIZE, 255).result(PATIENCE)
    one.shutdown()
    assert [view[0] for view in views] == list(range(80))


@with_proc
def test_dropped_results_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without calls hears that its results were dropped, and frees their memory after a while."""
    monkeypatch.setattr(segments, "KEPT_FOR", 0.05)
    with ProcessPool(1, "fork") as pool:
        values = [pool.submit(large_jobs.make, SIZE).result(PATIENCE) for _ in range(5)]
        pid = pool.submit(jobs.pid).result(PATIENCE)
        assert memfds(pid) >= 5
        values.clear()
        wait_until(lambda: not memfds(pid))
        assert pool.submit(jobs.double, 2).result(PATIENCE) == 4


def test_dropped_results_are_told_after_a_long_call(one: ProcessPool) -> None:
    """What was dropped while the worker had a call is told when that has ended."""
    value = one.submit(large_jobs.make, SIZE).result(PATIENCE)
    with Gate() as gate:
        call = one.submit(jobs.wait_at, gate.address)
        gate.arrived()
        del value
        peer = one._staff._dispatching.peers[0]
        assert peer.baggage.has_news()
        gate.open()
        call.result(PATIENCE)
        wait_until(lambda: not peer.baggage.has_news())


def test_free_segments_expire(monkeypatch: pytest.MonkeyPatch, one: ProcessPool) -> None:
    """A pool without calls frees its memory after a while."""
    monkeypatch.setattr(segments, "KEPT_FOR", 0.05)
    one.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE)
    wait_until(lambda: not store_of(one)._opened)


def test_values_in_a_forked_child(one: ProcessPool, in_fork: Callable[..., Any]) -> None:
    """A value that a forked child may see is not written over, though this process drops it."""
    value = one.submit(large_jobs.make, SIZE, 7).result(PATIENCE)

    def look() -> bool:
        nonlocal value
        seen = value[0] == 7
        del value
        return seen

    assert in_fork(look)
    del value
    for _ in range(3):
        one.submit(large_jobs.make, SIZE, 8).result(PATIENCE)
    wait_until(lambda: not one._staff._dispatching.peers[0].baggage.has_news())


@pytest.mark.parametrize("end", ["pool.shutdown()", "del pool", "os._exit(0) if os.fork() == 0 else os.wait()", ""])
def test_values_outlive_the_program(run_script: Callable[..., Any], end: str) -> None:
    """A program that ends with values, views and constants alive ends without a word, however its pool ends."""
    found = run_script(f"""
import os, warnings
from parallel import ProcessPool
from pools import large_jobs

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of the fork
    pool = ProcessPool(1)
    values = [pool.submit(large_jobs.make, {SIZE}, byte).result() for byte in range(3)]
    values.append(values)
    constant = pool.constant(values[0])
    print(pool.submit(large_jobs.length, constant).result())
    {end}
    print(bytes(values[2][:2]))
""")
    assert (found.stdout, found.stderr) == (f"{SIZE}\nb'\\x02\\x02'\n", "")


# -- calls that don't come to their end -------------------------------------------------------------------------------


def test_cancelled_calls(one: ProcessPool) -> None:
    """A call that is cancelled in the queue lets go of its segment at once."""
    with Gate() as gate:
        first = one.submit(jobs.wait_at, gate.address)
        gate.arrived()
        calls = [one.submit(large_jobs.length, bytearray(SIZE)) for _ in range(5)]
        assert in_use(one) >= 4
        sent = [call for call in calls if not call.cancel()]
        assert in_use(one) == len(sent)
        gate.open()
        first.result(PATIENCE)
    assert one.submit(jobs.double, 1).result(PATIENCE) == 2
    wait_until(lambda: not in_use(one))


def test_cancelled_by_the_shutdown() -> None:
    """What is never sent leaves nothing behind."""
    with Gate() as gate:
        pool = ProcessPool(1)
        first = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        calls = [pool.submit(large_jobs.length, bytearray(SIZE)) for _ in range(5)]
        pool.shutdown(wait=False, cancel_futures=True)
        gate.open()
        pool.shutdown()
    first.result(PATIENCE)
    for call in calls:
        with pytest.raises(CancelledError):
            call.result(PATIENCE)


def test_unpicklable_arguments(one: ProcessPool) -> None:
    """Arguments that turn out to be unpicklable after a large part of them take no segment."""
    error = one.submit(large_jobs.length, [bytearray(SIZE), large_jobs.Unpicklable()]).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert not store_of(one)._opened


@with_proc
def test_unpicklable_results(one: ProcessPool) -> None:
    """The same of results."""
    error = one.submit(large_jobs.make_unpicklable, SIZE).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert one.submit(memfds).result(PATIENCE) == 0


def test_a_function_that_is_not_there(one: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments of a call that can't be begun are let go of."""
    one.submit(jobs.pid).result(PATIENCE)
    late = type(jobs.pid)(large_jobs.length.__code__, vars(large_jobs), "late")
    late.__qualname__, late.__module__ = "late", large_jobs.__name__
    monkeypatch.setattr(large_jobs, "late", late, raising=False)
    error = one.submit(late, bytearray(SIZE)).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    wait_until(lambda: not in_use(one))


def test_retries(tmp_path: Path) -> None:
    """An attempt that is made again has the arguments as they were, whether the first one failed or died."""
    registry = Registry({"pools": {"processes": {"kind": "process", "max_workers": 1}}})
    again = Retry((OSError, WorkerDiedError), attempts=2, wait_initial=0)
    with using(registry), registry:
        data = bytearray(SIZE)
        fails = task(pool="processes", retry=again)(large_jobs.fail_once)
        assert fails(str(tmp_path / "one"), data).result(PATIENCE) == 1
        dies = task(pool="processes", retry=again)(large_jobs.die_once)
        assert dies(str(tmp_path / "two"), data).result(PATIENCE) == SIZE
        pool = registry.pool("processes")
        assert isinstance(pool, ProcessPool)
        wait_until(lambda: not in_use(pool))


def test_timeouts() -> None:
    """A call that is killed as its time is over leaves nothing behind."""
    registry = Registry({"pools": {"processes": {"kind": "process", "max_workers": 1}}})
    with using(registry), registry:
        sleeps = task(pool="processes", timeout=0.2)(large_jobs.sleep_with)
        assert isinstance(sleeps(bytearray(SIZE)).exception(PATIENCE), TaskTimeoutError)
        pool = registry.pool("processes")
        assert isinstance(pool, ProcessPool)
        assert pool.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE) == SIZE
        wait_until(lambda: not in_use(pool))


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_retire(method: str) -> None:
    """Workers that run one call each bring their results, and take nothing along."""
    with ProcessPool(2, method, max_tasks_per_child=1) as pool:
        futures = [pool.submit(large_jobs.echo, bytes([i]) * SIZE) for i in range(6)]
        values = [future.result(PATIENCE) for future in futures]
        assert [value[-1] for value in values] == list(range(6))


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_killed_with_arguments(method: str) -> None:
    """A worker that dies with its arguments costs its call, and no memory."""
    with ProcessPool(1, method) as pool:
        for _ in range(3):
            assert isinstance(pool.submit(large_jobs.die_with, bytearray(SIZE)).exception(PATIENCE), WorkerDiedError)
        assert pool.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE) == SIZE
        wait_until(lambda: not in_use(pool))


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_killed_in_the_middle_of_an_answer(one: ProcessPool, share: float) -> None:
    """A worker that dies before its answer is out costs its call; what went ahead of it is gone."""
    for _ in range(2):
        error = one.submit(large_jobs.die_sending, memoryview(bytes(SIZE)), share).exception(PATIENCE)
        assert isinstance(error, WorkerDiedError)
    assert one.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE) == SIZE
    wait_until(lambda: not in_use(one))


def test_killed_after_an_answer(one: ProcessPool) -> None:
    """A worker that dies right after its answer costs no call, and the value stays."""
    future = one.submit(large_jobs.die_sending, memoryview(b"x" * SIZE), 1.0)
    assert future.result(PATIENCE) == b"x" * SIZE
    assert one.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE) == SIZE
    assert future.result() == b"x" * SIZE


def queued(pool: ProcessPool, fn: Callable[[Any], Any], known: Any, items: list[Any]) -> list[Any]:
    """Have one worker get calls of *fn* in one message, the cost of which it knows."""
    for _ in range(3):
        pool.submit(fn, known).result(PATIENCE)
    with Gate() as gate:
        first = pool.submit(jobs.wait_at, gate.address)
        gate.arrived()
        calls = [pool.submit(fn, item) for item in items]
        gate.open()
        first.result(PATIENCE)
    return calls


def test_killed_with_results_that_were_not_sent(one: ProcessPool) -> None:
    """Results that stand in the journal of a dead worker are read: one call fails, and no other."""
    for _ in range(10):
        calls = queued(one, large_jobs.make_or_die, 0, [SIZE, SIZE, -1, SIZE, SIZE])
        errors = [call.exception(PATIENCE) for call in calls]
        assert [type(error) for error in errors] == [type(None)] * 2 + [WorkerDiedError] + [type(None)] * 2
        assert all(call.result() == b"\7" * SIZE for call, error in zip(calls, errors, strict=True) if error is None)


def test_given_back(one: ProcessPool) -> None:
    """A call that its worker had not begun when that died has its arguments sent to the next."""
    for _ in range(10):
        calls = queued(one, large_jobs.length_or_die, b"", ["die", bytes(SIZE), b"small", bytes(SIZE)])
        assert isinstance(calls[0].exception(PATIENCE), WorkerDiedError)
        assert [call.result(PATIENCE) for call in calls[1:]] == [SIZE, 5, SIZE]
    wait_until(lambda: not in_use(one))


def test_taken_back() -> None:
    """A call behind a long one has its arguments sent to another worker; the first lets go of them."""
    with ProcessPool(2) as pool, Gate() as gate:
        for _ in range(3):
            pool.submit(large_jobs.length_or_die, b"").result(PATIENCE)
        holders = [pool.submit(jobs.wait_at, gate.address) for _ in range(2)]
        gate.arrived(2)
        with Gate() as other:
            calls = [pool.submit(large_jobs.length_or_die, item) for item in [other.address, bytes(SIZE)] * 2]
            calls += [pool.submit(large_jobs.length_or_die, bytes(SIZE)) for _ in range(2)]
            gate.open()
            for holder in holders:
                holder.result(PATIENCE)
            other.arrived(2)
            other.open()
        assert [call.result(PATIENCE) for call in calls] == [2, SIZE, 2, SIZE, SIZE, SIZE]
        wait_until(lambda: not lent(pool) and not in_use(pool))


def test_taken_from_a_long_call() -> None:
    """While a worker is in a long call, another does what was sent along with that."""
    with ProcessPool(2) as pool, Gate() as gate, Gate() as other:
        for _ in range(3):
            pool.submit(large_jobs.length_or_die, b"").result(PATIENCE)
        holders = [pool.submit(jobs.wait_at, end.address) for end in (gate, other)]
        gate.arrived()
        other.arrived()
        with Gate() as long:
            calls = [pool.submit(large_jobs.length_or_die, item) for item in [long.address, bytes(SIZE), bytes(SIZE)]]
            gate.open()
            long.arrived()
            other.open()
            assert [call.result(PATIENCE) for call in calls[1:]] == [SIZE, SIZE]
            long.open()
            assert calls[0].result(PATIENCE) == 2
        assert all(holder.result(PATIENCE) is None for holder in holders)
        wait_until(lambda: not lent(pool) and not in_use(pool))


def test_killed_again_and_again() -> None:
    """While workers are killed at random, each call has its own value or a death, and nothing is left."""
    chance = random.Random(5)
    deaths = 0
    with ProcessPool(2) as pool:
        pool.submit(jobs.pid).result(PATIENCE)
        for number in range(150):
            calls = {i: pool.submit(large_jobs.echo, bytes([i]) * (LARGE + number)) for i in range(chance.randrange(6))}
            if chance.random() < 0.3:
                peers = pool._staff._dispatching.peers
                for peer in peers[:1]:
                    peer.kill()
            for i, call in calls.items():
                error = call.exception(PATIENCE)
                deaths += error is not None
                assert error is None or isinstance(error, WorkerDiedError)
                assert error is not None or call.result() == bytes([i]) * (LARGE + number)
        wait_until(lambda: not in_use(pool))
    assert deaths


# -- when there is no room --------------------------------------------------------------------------------------------


def test_no_descriptors_in_the_worker(one: ProcessPool) -> None:
    """A worker without descriptors fails the calls whose data it can't receive, with that error, and goes on."""
    one.submit(large_jobs.leave_no_descriptors).result(PATIENCE)
    for _ in range(3):
        error = one.submit(large_jobs.length, bytearray(SIZE)).exception(PATIENCE)
        assert isinstance(error, SerializationError)
        assert "OSError" in str(error)
    assert one.submit(large_jobs.make, SIZE).result(PATIENCE) == bytes(SIZE)  # in band
    one.submit(large_jobs.leave_descriptors).result(PATIENCE)
    assert one.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE) == SIZE
    wait_until(lambda: not in_use(one))


def test_no_descriptors_here(one: ProcessPool) -> None:
    """Where this process has no descriptors, its data goes in band; results that come in segments are errors."""
    assert one.submit(jobs.double, 1).result(PATIENCE) == 2
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        sent = one.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE)
        error = one.submit(large_jobs.make, SIZE).exception(PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sent == SIZE
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, OSError)
    assert one.submit(large_jobs.make, SIZE).result(PATIENCE) == bytes(SIZE)


def test_data_that_can_neither_be_sent_nor_read(one: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call fails, and no other."""
    assert one.submit(jobs.double, 1).result(PATIENCE) == 2

    def refuse(*_: object) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "send_fds", refuse)
        patch.setattr(segments, "read", refuse)
        error = one.submit(large_jobs.length, bytearray(SIZE)).exception(PATIENCE)
    assert isinstance(error, SerializationError)
    assert "could not be sent" in str(error)
    assert one.submit(large_jobs.length, bytearray(SIZE)).result(PATIENCE) == SIZE


# -- constants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_constants(method: str) -> None:
    """A constant is sent to each worker once; the calls of a worker share it, and nobody else sees what they write."""
    with ProcessPool(1, method) as pool:
        data = bytearray(SIZE)
        constant = pool.constant(memoryview(data))
        data[0] = 50
        for want in (1, 2, 3):
            assert pool.submit(large_jobs.overwrite, constant).result(PATIENCE) == want
        assert isinstance(pool.submit(large_jobs.die).exception(PATIENCE), WorkerDiedError)
        assert pool.submit(large_jobs.overwrite, constant).result(PATIENCE) == 1  # another worker
        assert (len(store_of(pool)._opened), lent(pool)) == (1, 1)
        del constant
        wait_until(lambda: not in_use(pool))
        assert not pool._staff._dispatching.peers[0].baggage._introductions._known


def test_constants_anywhere(forked: ProcessPool) -> None:
    """Constants may stand anywhere in the arguments, beside large data, and in what a closure refers to."""
    one, two = forked.constant(memoryview(b"1" * SIZE)), forked.constant({"two": bytes(SIZE)})
    three = forked.constant("small")
    want = ((b"1" * SIZE, [{"two": bytes(SIZE)}], b"x" * SIZE), {"three": "small"})
    for _ in range(6):
        assert forked.submit(large_jobs.echo_all, one, [two], b"x" * SIZE, three=three).result(PATIENCE) == want
    carries: Callable[[], Any] = lambda: (three, one)  # noqa: E731  # a function that travels by value
    assert forked.submit(carries).result(PATIENCE) == ("small", b"1" * SIZE)


def test_constants_of_calls_that_are_left(one: ProcessPool) -> None:
    """A constant lives as long as a call that needs it, though nobody else refers to it."""
    with Gate() as gate:
        first = one.submit(jobs.wait_at, gate.address)
        gate.arrived()
        calls = [one.submit(large_jobs.overwrite, one.constant(bytearray(SIZE))) for _ in range(3)]
        gate.open()
        first.result(PATIENCE)
        assert [call.result(PATIENCE) for call in calls] == [1, 1, 1]
    wait_until(lambda: not in_use(one))


def test_constants_that_explode(one: ProcessPool) -> None:
    """A constant that can't be loaded fails the calls that ask for it, and no other."""
    constant = one.constant([process_jobs.Explosive(ValueError("bang")), bytearray(SIZE)])
    for _ in range(2):
        error = one.submit(large_jobs.length, constant).exception(PATIENCE)
        assert isinstance(error, SerializationError)
        assert "bang" in str(error)
    assert one.submit(jobs.double, 1).result(PATIENCE) == 2


def test_constants_that_can_not_be_pickled(one: ProcessPool) -> None:
    """What can't be pickled is no constant; and no call keeps what it has met on the way to its failure."""
    with pytest.raises(ValueError, match="not this one"):
        one.constant(large_jobs.Unpicklable())
    constant = one.constant(bytearray(SIZE))
    failed = one.submit(large_jobs.length, [constant, large_jobs.Unpicklable()])
    assert failed.exception(PATIENCE) is not None  # looked at: whoever reports it otherwise holds it for a moment
    del constant, failed
    gc.collect()  # the error knows where it was raised
    assert not in_use(one)


def test_constants_elsewhere() -> None:
    """In the pool's own process a constant is not the value."""
    import copy

    with ProcessPool(1) as pool:
        constant = pool.constant(5)
        assert isinstance(constant, Constant)
        with pytest.raises(RuntimeError, match="workers only"):
            copy.copy(constant)


# -- waiting for a segment --------------------------------------------------------------------------------------------


def test_writers_wait_for_segments() -> None:
    """Who waits for a segment in vain has a fresh one: no wait is longer than that takes."""
    store = segments.Store(0, patient=True)
    data = [memoryview(bytearray(segments.MAPPED))]
    first = store.write(data)
    second = store.write(data)
    assert first is not None and second is not None
    assert first.segment is not second.segment
    store.close()


def test_writers_take_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment that another thread gives back goes to the one who waits."""
    monkeypatch.setattr(segments, "WORTH_WAITING", PATIENCE)
    store = segments.Store(segments.MAPPED, patient=True)
    data = [memoryview(bytearray(segments.MAPPED))]
    leases = [store.write(data)]
    assert leases[0] is not None
    used = leases[0].segment.descriptor

    def give_back() -> None:
        wait_until(lambda: store._waiting)
        leases.clear()

    thread = threading.Thread(target=give_back)
    thread.start()
    again = store.write(data)
    thread.join(PATIENCE)
    assert again is not None and again.segment.descriptor == used
    del again
    store.close()

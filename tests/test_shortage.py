"""
Memory that is short: how much is free, and pools that start no more calls until there is enough.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import jobs
import pytest

from parallel import (
    ConfigError,
    Future,
    InlinePool,
    LoopPool,
    Pool,
    PoolBrokenError,
    PoolFullError,
    ProcessPool,
    Registry,
    TaskTimeoutError,
    ThreadPool,
    gather,
    kinds,
    shortage,
    task,
    using,
)
from parallel.config import from_mapping
from parallel.shortage import Shortage, free_memory
from parallel.sizes import sized

LONG = 30  # seconds; only a deadlock takes so long
TOO_MUCH = "1000TiB"  # more than any machine has: it is always short
GIB = 2**30

# -- how much is free -------------------------------------------------------------------------------------------------

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\nBuffers: 5 kB\n"
FREE = 8_000_000 * 1024
V2 = "0::/jobs/mine\n"
V1 = "4:memory:/jobs/mine\n2:cpu,cpuacct:/jobs/mine\n0::/\n"


def group(folder: str, limit: object, used: object, cached: int = 0, *, version: int = 2) -> dict[str, str]:
    """The files of a control group."""
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 5\n{names[2]} {cached}\nfile 7\n"
    return {
        f"sys/fs/cgroup/{folder}/{names[0]}": f"{limit}\n",
        f"sys/fs/cgroup/{folder}/{names[1]}": f"{used}\n",
        f"sys/fs/cgroup/{folder}/memory.stat": stat,
    }


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, FREE),
        ({"proc/self/cgroup": V2}, FREE),
        ({"proc/self/cgroup": V2, **group("jobs/mine", "max", 5)}, FREE),
        ({"proc/self/cgroup": V2, **group("jobs/mine", 4 * GIB, GIB)}, 3 * GIB),
        ({"proc/self/cgroup": V2, **group("jobs/mine", 4 * GIB, 2 * GIB, GIB)}, 3 * GIB),
        ({"proc/self/cgroup": V2, **group("jobs/mine", GIB, 2 * GIB)}, 0),
        ({"proc/self/cgroup": V2, **group("jobs/mine", 900 * GIB, GIB)}, FREE),
        # That of the group around it is the smaller one.
        ({"proc/self/cgroup": V2, **group("jobs/mine", 4 * GIB, GIB), **group("jobs", 5 * GIB, 4 * GIB)}, GIB),
        # In a container, the path may be the host's, and only its own group be there.
        ({"proc/self/cgroup": V2, **group("", 2 * GIB, GIB)}, GIB),
        ({"proc/self/cgroup": "0::/\n", **group("unified", 2 * GIB, GIB)}, GIB),
        ({"proc/self/cgroup": V1, **group("memory/jobs/mine", 4 * GIB, 3 * GIB, 5, version=1)}, GIB + 5),
        ({"proc/self/cgroup": V1, **group("memory", 2**63 - 4096, 3 * GIB, version=1)}, FREE),
        ({"proc/self/cgroup": V2, **group("jobs/mine", "much", "little")}, FREE),
        ({"proc/self/cgroup": V2, **group("jobs/mine", GIB, "little")}, FREE),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/mine/memory.max": "7"}, FREE),
        ({"proc/self/cgroup": "nonsense\n\x00"}, FREE),
    ],
)
def test_the_smaller_one_counts(files: dict[str, str], free: int, tmp_path: Path) -> None:
    """Of what the machine has and what the control groups leave, the smallest holds; what can't be read, doesn't."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert free_memory(tmp_path) == free


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: much\n"])
def test_a_system_that_does_not_tell(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is told, psutil is asked; without it nobody knows."""

    class Psutil:
        @staticmethod
        def virtual_memory() -> Any:
            return type("Memory", (), {"available": 12345})

    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(text)
    monkeypatch.setitem(sys.modules, "psutil", Psutil)
    assert free_memory(tmp_path) == 12345
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert free_memory(tmp_path) is None


def test_no_memory_is_written_as_any_size() -> None:
    """Nothing is free: that is no bytes."""
    assert sized(0) == "0B"


def test_this_machine() -> None:
    """Something is free, or this test would not run."""
    free = free_memory()
    assert free is None or 0 < free < 2**50


# -- whether a call may start -----------------------------------------------------------------------------------------


class Memory:
    """A machine's memory, as `free_memory` reads it."""

    def __init__(self) -> None:
        self.free: int | None = 0
        self.error: Exception | None = None
        self._read = threading.Semaphore(0)

    def __call__(self) -> int | None:
        self._read.release()
        if self.error is not None:
            raise self.error
        return self.free

    def wait_for_looks(self, count: int = 3) -> None:
        """Wait until it has been read so often: what waits for memory has been denied it by then."""
        while self._read.acquire(blocking=False):
            continue
        for _ in range(count):
            assert self._read.acquire(timeout=LONG)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A machine that has no memory left, until it is told otherwise."""
    made = Memory()
    monkeypatch.setattr(shortage, "free_memory", made)
    return made


class Clock:
    """Tells the time that it was set to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until it is set."""
    made = Clock()
    monkeypatch.setattr(shortage, "monotonic", made)
    return made


def starts(one: Shortage, running: int) -> int:
    """Start calls until one is held back; count them, up to ten."""
    for count in range(10):
        if one.holds_back(running + count):
            return count
    return 10


def test_while_it_is_short_only_one_runs(memory: Memory, clock: Clock) -> None:
    """If nothing runs, one may start; that is all."""
    one = Shortage("a pool", GIB)
    assert starts(one, 0) == 1
    assert one.is_short()
    memory.free = GIB - 1
    clock.now += 1
    assert starts(one, 1) == 0
    memory.free = GIB
    assert starts(one, 1) == 0, "the reading is fresh"
    clock.now += 1
    assert starts(one, 1) == 1
    assert not one.is_short()


def test_no_stampede(memory: Memory, clock: Clock) -> None:
    """Each call that was begun of late counts as if it were to take what has to be free; not for long."""
    memory.free = 4 * GIB
    one = Shortage("a pool", GIB)
    assert starts(one, 0) == 4
    clock.now += shortage.FRESH
    assert starts(one, 4) == 0, "they may not have taken their memory yet"
    assert starts(one, 1) == 3, "three of them have ended"
    clock.now += 2 * shortage.FRESH
    assert starts(one, 6) == 4
    memory.free = 100 * GIB
    clock.now += 1
    assert starts(one, 0) == 10


def test_what_can_not_be_read_any_more(memory: Memory, clock: Clock) -> None:
    """The last reading holds on: no file can be opened now, perhaps."""
    memory.free = 9 * GIB
    one = Shortage("a pool", GIB)
    assert starts(one, 1) == 9
    memory.free = None
    clock.now += 1
    assert starts(one, 1) == 9
    memory.error = MemoryError()
    clock.now += 1
    assert starts(one, 1) == 9


def test_a_shortage_is_told_once(memory: Memory, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged that calls run one at a time; again if it was over for a while, not if it wavers."""
    one = Shortage("thread pool 'io'", GIB)
    memory.free = 500_000_123
    for _ in range(3):
        assert not one.holds_back(0)
        one.tell()
        clock.now += shortage.SAME / 2
    text = "500MB of memory are free, and 1GiB should be (memory_free): its calls are run one at a time until there"
    assert [record.message for record in caplog.records] == [f"thread pool 'io': {text} is more"]
    clock.now += 2 * shortage.SAME
    assert not one.holds_back(0)
    one.tell()
    assert len(caplog.records) == 2


# -- pools ------------------------------------------------------------------------------------------------------------

Make: TypeAlias = Callable[..., Pool]
KINDS: dict[str, Make] = {"thread": ThreadPool, "process": ProcessPool, "loop": LoopPool}


class Kind:
    """A kind of pool, and how functions are made ready for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.make = KINDS[name]

    def job(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Make what the pool runs of a plain function."""
        return jobs.to_thread(fn) if self.name == "loop" else fn

    def hold(self, pool: Pool, gate: jobs.Gate, value: object = None) -> Future[Any]:
        """Submit a call that runs until the gate is opened."""
        return pool.submit(self.job(jobs.wait_at), gate.address, value)

    def task(self, **options: Any) -> Any:
        """Declare `wait_at` for the pool `p`."""
        return task(pool="p", **options)(self.job(jobs.wait_at))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind in turn."""
    return Kind(request.param)


@pytest.fixture
def gate() -> Iterator[jobs.Gate]:
    """A gate that is opened at the end."""
    with jobs.Gate() as gate:
        yield gate


def span() -> tuple[float, float]:
    """Return when the call began and when it ended, by a clock that all processes share."""
    began = time.monotonic()
    sum(range(10_000))
    return began, time.monotonic()


def test_one_at_a_time(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """While the machine is short for good, calls run one after the other, in order, and that is told once."""
    with kind.make(3, memory_free=TOO_MUCH) as pool:
        futures = [pool.submit(kind.job(span)) for _ in range(30)]
        spans = [future.result(LONG) for future in futures]
        if kind.name == "process":
            assert pool.stats().workers == 1, "a further one would take memory too"
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))
    assert ["one at a time" in record.message for record in caplog.records] == [True]


def test_they_start_again(kind: Kind, memory: Memory, gate: jobs.Gate) -> None:
    """What waits for memory starts as soon as there is some, while the first one still runs."""
    with kind.make(3, memory_free=1) as pool:
        first = kind.hold(pool, gate, "first")
        gate.arrived()
        others = [kind.hold(pool, gate, number) for number in range(2)]
        memory.wait_for_looks()
        stats = pool.stats()
        assert (stats.running, stats.queued) == (1, 2)
        assert not any(future.running() or future.done() for future in others)
        memory.free = GIB
        gate.arrived(2)
        assert pool.stats().running == 3
        gate.open()
        assert [future.result(LONG) for future in (first, *others)] == ["first", 0, 1]


def test_where_there_is_plenty_nothing_is_held_back(kind: Kind, gate: jobs.Gate) -> None:
    """As many calls run as may."""
    with kind.make(4, memory_free=1) as pool:
        futures = [kind.hold(pool, gate, number) for number in range(6)]
        gate.arrived(4)
        gate.open()
        assert [future.result(LONG) for future in futures] == [*range(6)]


def test_cancel(kind: Kind, gate: jobs.Gate) -> None:
    """A call that waits for memory is cancelled at once, and those behind it run."""
    with kind.make(3, memory_free=TOO_MUCH) as pool:
        first, second, third = (kind.hold(pool, gate, number) for number in range(3))
        gate.arrived()
        assert second.cancel()
        assert second.cancelled()
        gate.open()
        assert [first.result(LONG), third.result(LONG)] == [0, 2]


def test_shutdown_cancels(kind: Kind, memory: Memory, gate: jobs.Gate) -> None:
    """All that waits for memory is cancelled at once by a shutdown, and nothing hangs."""
    with kind.make(3, memory_free=1) as pool:
        first, *others = (kind.hold(pool, gate, number) for number in range(5))
        gate.arrived()
        memory.wait_for_looks()  # by now, workers wait with it
        pool.shutdown(wait=False, cancel_futures=True)
        for future in others:
            with pytest.raises(CancelledError):
                future.result(LONG)
        assert not first.done()
        gate.open()
    assert first.result() == 0
    assert pool.stats().running == 0


def test_shutdown_runs_what_waits(kind: Kind) -> None:
    """What was accepted is run, however short memory is."""
    pool = kind.make(3, memory_free=TOO_MUCH)
    futures = [pool.submit(kind.job(span)) for _ in range(10)]
    pool.shutdown()
    assert all(future.done() for future in futures)


def test_a_pool_that_is_dropped(kind: Kind) -> None:
    """Its calls run."""
    pool = kind.make(3, memory_free=TOO_MUCH)
    futures = [pool.submit(kind.job(span)) for _ in range(10)]
    del pool
    assert all(future.result(LONG) for future in futures)


def registry_of(kind: Kind, **options: Any) -> AbstractContextManager[Registry]:
    """Make a registry with the pool `p`, for a block."""
    return using({"pools": {"p": {"kind": kind.name, "max_workers": 3, "memory_free": 1, **options}}})


def test_deadline(kind: Kind, memory: Memory, gate: jobs.Gate) -> None:
    """The deadline of a call ends its waiting for memory."""
    with registry_of(kind):
        first = kind.task()(gate.address)
        gate.arrived()
        late = kind.task(deadline="100ms")(gate.address)
        with pytest.raises(TaskTimeoutError):
            late.result(LONG)
        gate.open()
        assert first.result(LONG) is None


def test_timeout(kind: Kind, memory: Memory, gate: jobs.Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a call counts from its start: it doesn't while it waits for memory."""
    monkeypatch.setattr(shortage, "FRESH", 0)  # the last reading with plenty doesn't hold on
    memory.free = GIB
    with registry_of(kind):
        with jobs.Gate() as ready:  # workers that have to be started first would take of its time
            started = [kind.task()(ready.address) for _ in range(3)]
            ready.arrived(3)
        gather(*started).result(LONG)
        memory.free = 0
        first = kind.task()(gate.address)
        gate.arrived()
        second = kind.task(timeout="1s")(("127.0.0.1", 9), "second")  # nobody is there
        memory.wait_for_looks(6)  # longer than that
        assert not second.done()
        memory.free = GIB
        assert second.result(LONG) == "second"
        gate.open()
        assert first.result(LONG) is None


def test_priority(kind: Kind, memory: Memory, gate: jobs.Gate) -> None:
    """Of the calls that wait for memory, the one with the highest priority is the first."""
    with registry_of(kind):
        moment = kind.job(span)
        first = kind.task()(gate.address)
        gate.arrived()
        usual = task(pool="p")(moment)()
        urgent = task(pool="p", priority=5)(moment)()
        memory.wait_for_looks()
        gate.open()
        assert urgent.result(LONG) < usual.result(LONG)
        assert first.result(LONG) is None


def test_back_pressure(kind: Kind, memory: Memory, gate: jobs.Gate) -> None:
    """A call that waits for memory is one that waits: it has its place under *max_pending*."""
    with kind.make(3, memory_free=1, max_pending=2, on_full="raise") as pool:
        first = kind.hold(pool, gate)
        gate.arrived()
        others = [kind.hold(pool, gate) for _ in range(2)]
        memory.wait_for_looks()
        with pytest.raises(PoolFullError):
            kind.hold(pool, gate)
        memory.free = GIB
        gate.arrived(2)
        more = kind.hold(pool, gate)
        gate.open()
        for future in (first, *others, more):
            future.result(LONG)


def test_fork(kind: Kind, memory: Memory, gate: jobs.Gate, in_fork: Callable[..., Any]) -> None:
    """In a forked child the pool begins anew; what waits for memory here goes on here."""
    with kind.make(2, memory_free=1) as pool:
        first, second = (kind.hold(pool, gate, number) for number in range(2))
        gate.arrived()
        memory.wait_for_looks()

        def child() -> Any:
            with pool:
                return [pool.submit(kind.job(jobs.double), number).result(LONG) for number in range(3)]

        assert in_fork(child) == [0, 2, 4]
        gate.open()
        assert [first.result(LONG), second.result(LONG)] == [0, 1]


AT_EXIT = """
import jobs
from parallel import LoopPool, ProcessPool, ThreadPool

def show(text):
    print(text, flush=True)

if __name__ == "__main__":
    pool = {{"thread": ThreadPool, "process": ProcessPool, "loop": LoopPool}}[{kind!r}](3, memory_free="1000TiB")
    job = jobs.to_async if {kind!r} == "loop" else lambda fn: fn
    futures = [pool.submit(job(show), f"call {{index}}") for index in range(5)]
"""


def test_exit(kind: Kind, run_script: Callable[..., Any]) -> None:
    """At the exit of the interpreter what waits for memory is run, in order."""
    done = run_script(AT_EXIT.format(kind=kind.name), timeout=LONG)
    assert done.stdout.split("\n")[:-1] == [f"call {index}" for index in range(5)]


INTERRUPTED = """
import asyncio
from parallel import LoopPool, ProcessPool, ThreadPool, sleep

def nap(text):
    print(text, flush=True)
    sleep(60)

async def doze(text):
    print(text, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    kind = {kind!r}
    pool = {{"thread": ThreadPool, "process": ProcessPool, "loop": LoopPool}}[kind](3, memory_free="1000TiB")
    futures = [pool.submit(doze if kind == "loop" else nap, "begun") for _ in range(5)]
    futures[-1].result()
"""


def test_interrupt(kind: Kind, run_script: Callable[..., Any]) -> None:
    """After a Ctrl-C nothing that waits for memory is begun, and the program ends."""
    done = run_script(INTERRUPTED.format(kind=kind.name), interrupt_at="begun", timeout=LONG, status=None)
    assert done.stdout.count("begun") == 1
    assert done.returncode != -signal.SIGABRT
    assert "KeyboardInterrupt" in done.stderr


# -- calls that wait for calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("helping", [True, False])
def test_nested_threads(helping: bool) -> None:
    """A call that waits for another one doesn't run meanwhile: that one starts, however short memory is."""

    @task(pool="p")
    def nest(depth: int) -> int:
        return 1 + sum(call.result() for call in [nest(depth - 1), nest(depth - 1)]) if depth else 0

    with registry_of(Kind("thread"), memory_free=TOO_MUCH, helping=helping):
        assert nest(4).result(LONG) == 15


def test_nested_coroutines() -> None:
    """So does a coroutine that awaits another one's call."""

    @task(pool="p")
    async def nest(depth: int) -> int:
        return 1 + sum(await asyncio.gather(nest(depth - 1), nest(depth - 1))) if depth else 0

    with registry_of(Kind("loop"), memory_free=TOO_MUCH):
        assert nest(4).result(LONG) == 15


def test_two_pools_that_wait_for_each_other() -> None:
    """Neither hangs."""
    one = {"kind": "thread", "max_workers": 2, "memory_free": TOO_MUCH}

    @task(pool="a")
    def there(depth: int) -> int:
        return 1 + back(depth).result() if depth else 0

    @task(pool="b")
    def back(depth: int) -> int:
        return 1 + there(depth - 1).result()

    with using({"pools": {"a": one, "b": one}}):
        assert [future.result(LONG) for future in [there(5), there(5)]] == [10, 10]


def test_a_straggler_runs_nothing_that_counts() -> None:
    """A thread whose call has overrun its time holds nothing back."""
    go = threading.Event()

    @task(pool="p", timeout="50ms")
    def slow() -> None:
        assert go.wait(LONG)

    with registry_of(Kind("thread"), memory_free=TOO_MUCH):
        late = slow()
        assert task(pool="p")(jobs.double)(2).result(LONG) == 4
        with pytest.raises(TaskTimeoutError):
            late.result()
        go.set()


def test_a_worker_that_is_killed(gate: jobs.Gate) -> None:
    """The next call starts when the one that ran is killed with its worker."""
    with ProcessPool(2, memory_free=TOO_MUCH) as pool:
        first = pool.submit(jobs.wait_at, gate.address)
        second = pool.submit(jobs.double, 2)
        gate.arrived()
        assert first.cancel(running=True)
        assert second.result(LONG) == 4


def test_a_broken_initializer(memory: Memory) -> None:
    """What waits for memory fails with the pool."""
    running, go = threading.Event(), threading.Event()

    def initializer() -> None:
        if running.is_set():
            raise ValueError("no")

    def run() -> bool:
        running.set()
        return go.wait(LONG)

    with ThreadPool(3, initializer=initializer, memory_free=1) as pool:
        first = pool.submit(run)
        assert running.wait(LONG)
        with pytest.raises(PoolBrokenError):
            pool.submit(jobs.double, 2).result(LONG)
        go.set()
        assert first.result(LONG)


# -- what may be said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error"),
    [("much", ValueError), (0, ValueError), (-1, ValueError), ("2G", ValueError), (2.5, TypeError), (True, TypeError)],
)
def test_wrong_sizes(kind: Kind, wrong: Any, error: type[Exception]) -> None:
    """It is a size, for a program and in a file."""
    with pytest.raises(error, match=r"^memory_free: expected a size such as"):
        kind.make(1, memory_free=wrong)
    with pytest.raises(ConfigError, match=r"pools\.p\.memory_free: expected a size such as"):
        from_mapping({"pools": {"p": {"kind": kind.name, "memory_free": wrong}}})


def test_sizes_in_a_file(kind: Kind) -> None:
    """A file says it as people do."""
    pool = from_mapping({"pools": {"p": {"kind": kind.name, "memory_free": "2GiB"}}}).pools["p"]
    assert pool.arguments() == {"memory_free": 2 * GIB}


def test_where_the_system_does_not_tell(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is an error, not a no that nobody hears."""
    monkeypatch.setattr(shortage, "free_memory", lambda: None)
    monkeypatch.setattr(kinds, "free_memory", lambda: None)
    with pytest.raises(ValueError, match=r"^memory_free: expected nothing, as this system doesn't tell how much"):
        kind.make(1, memory_free="1GiB")
    with pytest.raises(ConfigError, match=r"pools\.p\.memory_free: expected nothing, as this system doesn't"):
        from_mapping({"pools": {"p": {"kind": kind.name, "memory_free": "1GiB"}}})


def test_inline_calls_never_wait() -> None:
    """They run where they are made: that is said, not ignored."""
    with pytest.raises(ConfigError, match=r"pools\.p\.memory_free: kind 'inline' has no such option"):
        from_mapping({"pools": {"p": {"kind": "inline", "memory_free": "1GiB"}}})
    with pytest.raises(TypeError):
        InlinePool(memory_free=1)  # type: ignore[call-arg]  # that is the test

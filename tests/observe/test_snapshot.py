"""
`dump()`: who runs what, since when and where, of every kind of pool; also of workers that hang.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import io
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jobs
import pytest
from pools.process_jobs import wait_until

from parallel import LoopPool, ProcessPool, Registry, Retry, ThreadPool, dump, gather, task
from parallel.pools.process.stacks import PATIENCE, SIGNAL

LONG = 30.0

linux = pytest.mark.skipif(SIGNAL is None or not hasattr(os, "memfd_create"), reason="workers can't be asked here")


def dumped() -> str:
    """Return what is written now."""
    out = io.StringIO()
    dump(out)
    return out.getvalue()


def part_of(text: str, worker: str) -> str:
    """Return the lines about one worker."""
    found = re.search(rf"^  {re.escape(worker)}.*\n(    .*\n)*", text, re.MULTILINE)
    assert found is not None, text
    return found[0]


def hold_the_lock(seconds: int) -> None:
    """Sleep in C, until the time is over or a signal comes, and let no other thread of Python run."""
    ctypes.PyDLL(None).sleep(seconds)


def hang_at(address: tuple[str, int]) -> int:
    """Wait, some frames deep."""
    return deeper(address)


def deeper(address: tuple[str, int]) -> int:
    """Wait."""
    jobs.wait_at(address)
    return os.getpid()


async def hang_on(event: asyncio.Event) -> None:
    """Wait, some frames deep."""
    await hang_deeper(event)


async def hang_deeper(event: asyncio.Event) -> None:
    """Wait."""
    await event.wait()


def forget_the_handler(address: tuple[str, int]) -> None:
    """As a function would that takes signals for its own."""
    assert SIGNAL is not None
    faulthandler.unregister(SIGNAL - 1)
    jobs.wait_at(address)


def test_threads() -> None:
    """A worker is named, with what it runs, for how long, where that was called, and where it is."""
    with jobs.Gate() as gate, ThreadPool(2, name="io") as pool:
        future = pool.submit(hang_at, gate.address)
        gate.arrived()
        time.sleep(0.06)
        text = dumped()
        assert "thread pool 'io': 1 worker, 0 queued, 1 running, 0 done\n" in text
        (worker,) = pool.at_work()
        part = part_of(text, worker.name)
        seconds = re.search(r" for ([\d.]+) (m?s)", part)
        assert seconds is not None
        assert 0.05 < float(seconds[1]) * {"ms": 0.001, "s": 1}[seconds[2]] < LONG
        assert re.search(r"test_snapshot.py\", line \d+, in deeper\n\s+jobs.wait_at\(address\)", part)
        assert part.index("in hang_at") < part.index("in deeper") < part.index("in wait_at")
        assert "parallel/pools" not in part, "the library's own frames say nothing"
        gate.open()
        assert future.result(LONG) == os.getpid()
        assert f"{worker.name}: idle\n" in dumped()


def test_who_called() -> None:
    """Of a task, it is known where it was called."""
    with jobs.Gate() as gate:
        future = task(hang_at)(gate.address)
        gate.arrived()
        assert re.search(rf"{__name__}:hang_at for \S+ \w+ \(called at {re.escape(__file__)}:\d+\)", dumped())
        gate.open()
        future.result(LONG)


def test_two_that_wait_for_each_other() -> None:
    """The classic: two calls, two locks, in another order each. Both lines are there."""
    one, two = threading.Lock(), threading.Lock()
    met = threading.Barrier(2)

    def both(first: threading.Lock, second: threading.Lock) -> None:
        first.acquire()
        met.wait(LONG)
        second.acquire()

    with ThreadPool(2) as pool:
        futures = [pool.submit(both, one, two), pool.submit(both, two, one)]
        wait_until(lambda: dumped().count("    second.acquire()") == 2)
        one.release()
        two.release()
        gather(*futures).result(LONG)


@linux
def test_processes(kinds: Registry) -> None:
    """A worker process is asked where it is, and its call goes on as if nothing had been."""
    with jobs.Gate() as gate:
        future = kinds.pool("process").submit(hang_at, gate.address)
        gate.arrived()
        for _ in range(3):
            text = dumped()
            pid = kinds.pool("process").at_work()[0].process
            part = part_of(text, f"process {pid}:")
            assert re.match(rf"  process {pid}: {__name__}:hang_at for \S+ \w+", part)
            assert part.index("in hang_at") < part.index("in deeper") < part.index("in wait_at")
            assert "multiprocessing" not in part
            assert "parallel/pools" not in part
        gate.open()
        assert future.result(LONG) == pid


@linux
def test_a_process_that_hangs_in_c() -> None:
    """A call that lets no Python run in its process is asked all the same."""
    with ProcessPool(1) as pool:
        future = pool.submit(hold_the_lock, 60)
        wait_until(lambda: "in hold_the_lock" in dumped())
        wait_until(lambda: dumped() and future.done())  # if it was not asleep yet, the next look ends its sleep
        assert future.result() is None


@linux
def test_a_process_that_is_stopped() -> None:
    """It can't answer, and is not waited for; it says so."""
    with jobs.Gate() as gate, ProcessPool(1) as pool:
        future = pool.submit(hang_at, gate.address)
        gate.arrived()
        pid = pool.at_work()[0].process
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert "(it doesn't say where it is)" in part_of(dumped(), f"process {pid}:")
            assert time.monotonic() - began < 2 * PATIENCE + 5
        finally:
            os.kill(pid, signal.SIGCONT)
        gate.open()
        assert future.result(LONG) == pid


@linux
def test_a_process_without_the_handler() -> None:
    """It isn't sent the signal, which would end it."""
    with jobs.Gate() as gate, ProcessPool(1) as pool:
        future = pool.submit(forget_the_handler, gate.address)
        gate.arrived()
        assert "(it doesn't say where it is)" in dumped()
        gate.open()
        assert future.result(LONG) is None


@linux
def test_a_worker_that_dies_meanwhile() -> None:
    """Whoever is gone when asked is left out."""
    with ProcessPool(2) as pool:
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                dumped()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(10):
                future = pool.submit(os._exit, 1)
                assert future.exception(LONG) is not None
        finally:
            over.set()
            asking.join()


def test_coroutines() -> None:
    """Each is named, with what it awaits, however deep."""
    with LoopPool() as pool:

        async def make() -> asyncio.Event:
            return asyncio.Event()

        event = pool.submit(make).result(LONG)
        future = pool.submit(hang_on, event)
        wait_until(lambda: "in hang_deeper" in dumped())
        text = dumped()
        part = text[text.index("loop pool: ") :]
        assert part.index("in hang_on\n") < part.index("in hang_deeper\n")

        async def let_go() -> None:
            event.set()

        pool.submit(let_go).result(LONG)
        future.result(LONG)


def test_a_loop_that_is_blocked() -> None:
    """A coroutine that blocks its loop shows on the loop's thread."""

    async def block(address: tuple[str, int]) -> None:
        jobs.wait_at(address)

    with jobs.Gate() as gate, LoopPool(name="web") as pool:
        future = pool.submit(block, gate.address)
        gate.arrived()
        assert "in wait_at" in part_of(dumped(), "parallel-web, a daemon")
        gate.open()
        future.result(LONG)


def test_what_runs_inline(kinds: Registry) -> None:
    """What callers run themselves is told."""
    text = kinds.pool("inline").submit(dumped).result(LONG)
    assert "inline pool 'inline': 0 workers, 0 queued, 1 running" in text
    assert "  its caller: a call\n" in text


def test_calls_that_are_nowhere() -> None:
    """Those that wait for their next attempt are in no pool, and counted."""
    retry = Retry(on=ZeroDivisionError, attempts=2, wait_initial=30, wait_max=30, wait_jitter=0)
    future = task(jobs.divide, retry=retry)(1, 0)
    wait_until(lambda: "no pool: for a place, or for their next attempt: 0 workers, 1 queued" in dumped())
    future.cancel()


def test_a_pool_that_nobody_holds() -> None:
    """What it still runs is told under its name."""
    with jobs.Gate() as gate:
        future = ProcessPool(1, name="gone").submit(jobs.wait_at, gate.address)
        gate.arrived()
        gc.collect()
        assert "process pool 'gone': 1 worker, 0 queued, 1 running, 0 done\n" in dumped()
        gate.open()
        future.result(LONG)


def test_other_threads() -> None:
    """Threads that are none of ours follow."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="mine", daemon=True)
    thread.start()
    try:
        assert "in wait" in part_of(dumped(), "mine, a daemon")
    finally:
        over.set()
        thread.join()


def test_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """That is where it goes if nothing else is said."""
    dump()
    assert capsys.readouterr().err.startswith(f"parallel: process {os.getpid()}, Python ")


HANGS = """
import os, signal, sys, threading
from parallel import Registry, task, using

@task(pool="threads")
def hang(event):
    event.wait(30)

if __name__ == "__main__":
    with using(Registry({"observe": {"dump_signal": "SIGUSR1"}})):
        event = threading.Event()
        future = hang(event)
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        threading.Timer(4, event.set).start()
        print(future.result())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
def test_by_a_signal(run_script: Callable[..., Any]) -> None:
    """A program that hangs can be asked from outside, if its configuration says how; it goes on."""
    done = run_script(HANGS)
    assert done.stdout == "None\n"
    assert re.search(r"__main__:hang for [\d.]+ m?s", done.stderr)
    assert "in hang\n" in done.stderr
    assert "  MainThread\n" in done.stderr
    assert "print(future.result())" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
def test_a_signal_from_another_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Only the main thread can say what signals do: a registry that is first used elsewhere says that it can't."""
    with Registry({"observe": {"dump_signal": "SIGUSR2"}}) as registry:
        thread = threading.Thread(target=lambda: [registry.pool(name) for name in ("threads", "loop")])
        thread.start()
        thread.join()
    assert caplog.messages == ["observe.dump_signal: signal only works in main thread of the main interpreter"]

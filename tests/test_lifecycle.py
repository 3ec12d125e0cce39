"""
The end of a registry: shutdown with a timeout, draining, and what the program's end does with accepted calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from subprocess import CompletedProcess

import jobs
import pytest

from parallel import (
    ConfigError,
    DeadlockError,
    LoopPool,
    PoolShutdownError,
    ProcessPool,
    Registry,
    ThreadPool,
    completed,
    task,
    using,
)

LONG = 30  # seconds; only a deadlock takes so long
Runner = Callable[..., CompletedProcess[str]]
KINDS = ["thread", "process", "loop"]


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_with_a_timeout(kind: str) -> None:
    """It raises in time, says what is left, and goes on behind; a second one waits for the rest."""
    registry = Registry({"pools": {"here": {"kind": kind, "max_workers": 1}}})
    fn = jobs.to_async(jobs.wait_at) if kind == "loop" else jobs.wait_at
    with jobs.Gate() as gate:
        with using(registry):
            held = task(pool="here")(fn)(gate.address, "held").then(jobs.same)
        gate.arrived()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"still has something to do after 50ms: <.*Pool 'here' .*1 running"):
            registry.shutdown(timeout="50ms")
        assert time.monotonic() - began < LONG / 2
        with using(registry), pytest.raises(PoolShutdownError):
            task(pool="here")(jobs.nothing)()
        gate.open()
        registry.shutdown(timeout=LONG)
        assert held.done()


def test_shutdown_in_time() -> None:
    """Then a timeout changes nothing."""
    registry = Registry({})
    with using(registry):
        call = task(jobs.double)(2).then(jobs.double)
    registry.shutdown(timeout=LONG)
    assert call.result(timeout=0) == 8
    registry.shutdown(timeout=0)


def test_wrong_timeouts() -> None:
    """Nothing is shut down by a mistake."""
    registry = Registry({})
    with pytest.raises(ValueError, match="expected a duration"):
        registry.shutdown(timeout="soon")
    with pytest.raises(TypeError, match="expected a duration"):
        registry.drain(timeout=[])  # type: ignore[arg-type]  # that is the test
    assert not registry.is_shut


def test_drain() -> None:
    """All has ended, with all that follows, and the registry goes on."""
    with Registry({}) as registry:
        calls = [task(jobs.double)(index).then(jobs.double).then(jobs.double) for index in range(20)]
        registry.drain()
        assert all(call.done() for call in calls)
        calls = [task(jobs.double)(1).then(jobs.double)]
        registry.drain(timeout=LONG)
        assert all(call.done() for call in calls)
        registry.drain(timeout=0.5)


def test_drain_with_a_timeout() -> None:
    """It raises if something goes on, and changes nothing."""
    with Registry({"pools": {"here": {"kind": "thread"}}}) as registry, jobs.Gate() as gate:
        held = task(pool="here")(jobs.wait_at)(gate.address, "held")
        gate.arrived()
        with pytest.raises(TimeoutError, match="1 running"):
            registry.drain(timeout=0.01)
        gate.open()
        registry.drain(timeout=LONG)
        assert held.done()


@pytest.mark.parametrize("how", ["worker", "callback"])
def test_drain_from_inside(how: str) -> None:
    """Who would wait for itself is told."""
    with Registry({}) as registry:
        drain = task(registry.drain)() if how == "worker" else completed(1).then(lambda _: registry.drain())
        with pytest.raises(DeadlockError, match="a worker was to wait until its own registry has nothing to do"):
            drain.result(timeout=LONG)


def test_on_exit_is_checked() -> None:
    """In files and in constructors."""
    with pytest.raises(ConfigError, match=r"pools.threads.on_exit: expected 'wait' or 'cancel', found string 'kill'"):
        Registry({"pools": {"threads": {"on_exit": "kill"}}})
    for make in (ThreadPool, ProcessPool, LoopPool):
        with pytest.raises(ValueError, match="on_exit must be one of wait, cancel; found 'kill'"):
            make(on_exit="kill")  # type: ignore[arg-type]  # that is the test


CANCELS = """
import os, threading, time
from parallel import configure, current_task, sleep, task

{jobs}

if __name__ == "__main__":
    configure({{"pools": {{"here": {{"kind": {kind!r}, "max_workers": 1, "on_exit": {on_exit!r}}}}}}})
    calls = [wait(index) for index in range(4)]
    calls[0].add_done_callback(lambda call: os.write(1, b"first\\n"))  # at once: two may come at a time
    for call in calls[1:]:
        call.add_done_callback(lambda call: os.write(1, b"cancelled\\n" if call.cancelled() else b"run\\n"))
    while not calls[0].running():
        time.sleep(0.001)
    print("end", flush=True)
"""

BODIES = {
    "thread": "@task(pool='here')\ndef wait(index):\n    sleep({seconds} if index == 0 else 0)",
    "loop": "import asyncio\n@task(pool='here')\nasync def wait(index):\n"
    "    await asyncio.sleep({seconds} if index == 0 else 0)",
    "process": "@task(pool='here')\ndef wait(index):\n    time.sleep({seconds} if index == 0 else 0)",
}


@pytest.mark.parametrize("kind", KINDS)
def test_exit_cancels_what_a_pool_says(kind: str, run_script: Runner) -> None:
    """With `on_exit = "cancel"` what waits is cancelled, and what runs is asked to end, as far as the kind can."""
    script = CANCELS.format(jobs=BODIES[kind].format(seconds=1000), kind=kind, on_exit="cancel")
    done = run_script(script)
    assert sorted(done.stdout.split()) == sorted(["end", "first", *["cancelled"] * 3])


@pytest.mark.parametrize("kind", KINDS)
def test_exit_waits_otherwise(kind: str, run_script: Runner) -> None:
    """By default what was accepted is run."""
    script = CANCELS.format(jobs=BODIES[kind].format(seconds=0.2), kind=kind, on_exit="wait")
    done = run_script(script)
    assert done.stdout.split() == ["end", "first", "run", "run", "run"]


def test_exit_cancels_calls_in_back_off(run_script: Runner) -> None:
    """A call that waits for its next attempt is in no pool, and ends too."""
    done = run_script(
        """
import time
from parallel import Retry, configure, task
from parallel.registry import default_registry

configure({"pools": {"here": {"kind": "thread", "on_exit": "cancel"}}})

@task(pool="here", retry=Retry(wait_initial=1000, wait_max=1000, timeout=None))
def fails():
    raise OSError

call = fails()
call.add_done_callback(lambda call: print(call.cancelled()))
while not default_registry()._desk.counts().queued:
    time.sleep(0.001)
"""
    )
    assert done.stdout.split() == ["True"]


def test_exit_of_one_pool_leaves_the_others(run_script: Runner) -> None:
    """Calls of a pool that waits are run, also where another one cancels."""
    done = run_script(
        """
from parallel import configure, sleep, task

configure({"pools": {"a": {"kind": "thread", "on_exit": "cancel"}, "b": {"kind": "thread"}}})

@task(pool="a")
def endless():
    sleep(1000)

@task(pool="b")
def short():
    sleep(0.1)
    return "short"

endless(), short().then(print)
"""
    )
    assert done.stdout.split() == ["short"]


def test_a_timeout_lets_a_server_end(run_script: Runner) -> None:
    """So many seconds for what runs, then what waits is cancelled, and the program ends."""
    done = run_script(
        """
from parallel import Registry, sleep, task, using

@task(pool="here")
def endless():
    sleep(1000)

registry = Registry({"pools": {"here": {"kind": "thread", "max_workers": 1, "on_exit": "cancel"}}})
with using(registry):
    calls = [endless() for _ in range(5)]
try:
    registry.shutdown(timeout=0.05)
except TimeoutError as error:
    print(error)
    registry.shutdown(wait=False, cancel_futures=True)
print(sum(call.cancelled() for call in calls))
"""
    )
    assert done.stdout.splitlines()[0].startswith(
        "the registry still has something to do after 50ms: <ThreadPool 'here'"
    )
    assert done.stdout.split()[-1] == "4"


def test_two_threads_shut_down() -> None:
    """Both return when all has ended."""
    registry = Registry({})
    with jobs.Gate() as gate:
        with using(registry):
            held = task(jobs.wait_at)(gate.address, "held")
        gate.arrived()
        threads = [threading.Thread(target=registry.shutdown, kwargs={"timeout": wait}) for wait in (None, LONG)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert held.done()

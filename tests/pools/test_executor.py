"""
Kind `executor`: the contract on real executors, and what only this kind does.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jobs
import pytest
from pools import executors
from pools.clusters import wait_for
from pools.contract import LONG, Kind, PoolContract, gate, opened

from parallel import ConfigError, ExecutorPool, Pool, PoolBrokenError, Registry, TaskTimeoutError, task, using
from parallel.deaths import WorkerDiedError
from parallel.pools import foreign

__all__ = ["gate"]


def executor(factory: Callable[[int], Executor], *capabilities: str) -> Callable[..., Pool]:
    """Make pools on such executors."""

    def make(max_workers: int, **options: Any) -> Pool:
        return ExecutorPool(factory, {"max_workers": max_workers}, capabilities=capabilities, **options)

    return make


KINDS = [
    Kind("standard processes", executor(executors.processes, "running"), remote=True, starts=True, late=True),
    Kind("standard processes, untold", executor(executors.processes), remote=True, starts=True),
    Kind("standard threads", executor(ThreadPoolExecutor, "running"), remote=True, starts=True, late=True),
    Kind("loky", executor(executors.loky, "running"), remote=True, starts=True, late=True),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind in turn."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers that many tests use; its workers have been started."""
    with opened(kind, 2) as pool:
        with jobs.Gate() as gate:
            futures = [kind.hold(pool, gate) for _ in range(2)]
            gate.arrived(2)
        for future in futures:
            future.result(timeout=LONG)
        yield pool


@pytest.fixture
def pool(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers."""
    with opened(kind, 2) as pool:
        yield pool


class TestContract(PoolContract):
    """Every executor keeps the contract."""


@pytest.mark.skipif(not hasattr(concurrent.futures, "InterpreterPoolExecutor"), reason="from CPython 3.14 on")
def test_interpreters() -> None:
    """Calls run in interpreters of their own, in this process."""
    factory: Callable[[int], Executor] = getattr(concurrent.futures, "InterpreterPoolExecutor", ThreadPoolExecutor)
    with ExecutorPool(factory, {"max_workers": 2}, capabilities=["running"]) as pool:
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
        assert isinstance(pool.submit(jobs.divide, 1, 0).exception(timeout=LONG), ZeroDivisionError)
        assert pool.submit(os.getpid).result(timeout=LONG) == os.getpid()
        assert list(pool.map(jobs.double, range(100))) == list(range(0, 200, 2))


# -- executors of others ----------------------------------------------------------------------------------------------


OTHERS = """
import os, sys, time
from parallel import ExecutorPool, gather
from pools import executors
import jobs

if __name__ == "__main__":
    with ExecutorPool(executors.{factory}, {{"max_workers": 2}}, capabilities={capabilities}, max_workers=2) as pool:
        print(pool.submit(jobs.double, 2).result(timeout=60))
        error = pool.submit(jobs.divide, 1, 0).exception(timeout=60)
        print(type(error).__name__, "return a / b" in str(error.__cause__))
        print(sum(gather(*(pool.submit(jobs.double, n) for n in range(20))).result(timeout=60)))
        print(pool.submit(lambda: os.getpid()).result(timeout=60) != os.getpid())
        running = pool.submit(time.sleep, 1.0)
        waiting = [pool.submit(time.sleep, 0.1) for _ in range(8)]
        print(waiting[-1].cancel(), running.result(timeout=60))
        print(sum(pool.map(jobs.double, range(10))))
    print(pool.stats().workers)
"""


@pytest.mark.parametrize(
    ("factory", "capabilities"), [("mpi", ["running"]), ("single_node", ["running"]), ("parsl", [])]
)
def test_executors_of_others(factory: str, capabilities: list[str], run_script: Callable[..., Any]) -> None:
    """Values, errors, cancellations and maps go through mpi4py, executorlib and Parsl."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # Parsl looks there for its workers
    done = run_script(OTHERS.format(factory=factory, capabilities=capabilities), env={"PATH": path}, timeout=120)
    assert done.stdout.splitlines() == ["4", "ZeroDivisionError True", "380", "True", "True None", "90", "0"]


# -- what breaks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def one() -> Iterator[ExecutorPool]:
    """A pool on one process of the standard library."""
    with ExecutorPool(executors.processes, {"max_workers": 1}, capabilities=["running"]) as pool:
        yield pool


def test_a_broken_executor_is_made_anew(one: ExecutorPool, tmp_path: Path) -> None:
    """The call that it ran is blamed, with what the executor said; those that waited are run by the next one."""
    before = one.submit(executors.pid).result(timeout=LONG)
    dying = one.submit(executors.leave, str(tmp_path / "runs"), 9)
    waiting = [one.submit(executors.pid) for _ in range(50)]
    error = dying.exception(timeout=LONG)
    assert isinstance(error, WorkerDiedError)
    assert isinstance(error.__cause__, BrokenExecutor)
    assert "while it ran executors:leave" in str(error).replace("pools.", "")
    ended = [future.exception(timeout=LONG) for future in waiting]
    # The executor calls a call running that it has taken to hand: one or two beyond that which its process runs.
    assert sum(isinstance(each, WorkerDiedError) for each in ended) <= 2
    assert ended.count(None) >= 48
    assert waiting[-1].result() != before
    assert (tmp_path / "runs").read_text() == "."


def test_an_idempotent_call_is_run_again(tmp_path: Path) -> None:
    """Twice at most, as in a pool of processes."""
    with Registry({"pools": {"ex": {"kind": "executor", "factory": "pools.executors:processes"}}}) as registry:
        leave = task(pool="ex", idempotent=True)(executors.leave)
        with using(registry):
            assert leave(str(tmp_path / "twice"), 2).result(timeout=LONG) == 2
            error = leave(str(tmp_path / "ever"), 9).exception(timeout=LONG)
    assert isinstance(error, WorkerDiedError)
    assert (tmp_path / "ever").read_text() == "..."


def test_an_executor_that_always_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some in a row the pool is broken, with what the last one said."""
    monkeypatch.setattr(foreign, "PAUSES", (0.0,) * foreign.ATTEMPTS)
    executors.made.clear()
    with ExecutorPool(executors.fragile, capabilities=["running"]) as pool:
        errors = [pool.submit(jobs.nothing).exception(timeout=LONG)]
        with pytest.raises(PoolBrokenError, match="5 executors in a row have broken"):
            for _ in range(100):
                errors.append(pool.submit(jobs.nothing).exception(timeout=LONG))
                time.sleep(0.01)
    assert len(executors.made) == foreign.ATTEMPTS + 1
    assert {type(error) for error in errors} <= {WorkerDiedError, PoolBrokenError}


def test_a_factory_that_makes_something_else() -> None:
    """The pool is broken, and says what was made."""
    with ExecutorPool(executors.no_executor) as pool:  # type: ignore[arg-type]
        error = pool.submit(jobs.nothing).exception(timeout=LONG)
    assert isinstance(error, PoolBrokenError)
    assert "must make a concurrent.futures.Executor, found <object object" in str(error)


def test_an_executor_that_can_do_little() -> None:
    """Its futures can't be cancelled, its shutdown takes nothing; what is said beside each submit arrives."""
    with ExecutorPool(executors.Frugal, {"max_workers": 1}, {"times": 3}, capabilities=["running"]) as pool:
        slow = pool.submit(time.sleep, 0.05)
        began = time.monotonic()
        others = [pool.submit(jobs.double, n) for n in range(5)]
        assert others[0].cancel()
        assert slow.result(timeout=LONG) is None
        assert time.monotonic() - began >= 0.14
        assert [future.result(timeout=LONG) for future in others[1:]] == [2, 4, 6, 8]


AT_EXIT = """
from parallel import configure, task
import time

def show(text):
    time.sleep(0.02)
    print(text, flush=True)

if __name__ == "__main__":
    pools = {{"ex": {{"kind": "executor", "factory": "{factory}", "kwargs": {{"max_workers": 1}}}}}}
    configure({{"pools": pools}})
    futures = [task(pool="ex")(show)(f"call {{index}}") for index in range(10)]
    futures[-1].then(lambda _: print("then"))
"""


@pytest.mark.parametrize("factory", ["ProcessPoolExecutor", "ThreadPoolExecutor", "loky"])
def test_interpreter_exit(factory: str, run_script: Callable[..., Any]) -> None:
    """What was accepted is run, though executors shut themselves down at the exit: first comes what is ours."""
    factory = "loky:ProcessPoolExecutor" if factory == "loky" else f"concurrent.futures:{factory}"
    done = run_script(AT_EXIT.format(factory=factory), timeout=60)
    assert done.stdout.splitlines() == [*(f"call {index}" for index in range(10)), "then"]
    assert done.stderr == ""


def test_interrupt_at_the_end(run_script: Callable[..., Any]) -> None:
    """After a Ctrl-C that nobody handles, what waits is cancelled, and the program ends."""
    script = AT_EXIT.format(factory="concurrent.futures:ProcessPoolExecutor")
    began = time.monotonic()
    done = run_script(
        script.replace("0.02", "1.0").replace("range(10)", "range(100)") + "    futures[-1].result()\n",
        interrupt_at="call 0",
        status=None,
        timeout=60,
    )
    assert done.returncode in (1, 130, -2)
    assert "call 50" not in done.stdout
    assert time.monotonic() - began < 50


# -- ends -------------------------------------------------------------------------------------------------------------


def test_a_soft_timeout(one: ExecutorPool) -> None:
    """The future fails at once, its body goes on, and its place is taken until it ends."""
    with Registry({"pools": {"ex": {"kind": "executor", "factory": "pools.executors:processes"}}}) as registry:
        slow = task(pool="ex", timeout=0.2)(time.sleep)
        with using(registry):
            task(pool="ex")(jobs.nothing)().result(timeout=LONG)
            began = time.monotonic()
            with pytest.raises(TaskTimeoutError):
                slow(0.8).result(timeout=LONG)
            assert 0.15 < time.monotonic() - began < 0.7
            assert task(pool="ex")(jobs.double)(2).result(timeout=LONG) == 4


def test_stragglers(gate: jobs.Gate) -> None:
    """A call that has overrun its time, and can't be ended, is counted until its function ends."""
    said = {"kind": "executor", "factory": "pools.executors:processes", "capabilities": ["running"]}
    with Registry({"pools": {"one": said}}) as registry, using(registry):
        with pytest.raises(TaskTimeoutError):
            task(pool="one", timeout=0.3)(jobs.wait_at)(gate.address).result(timeout=LONG)
        stats = registry.pool("one").stats()
        assert (stats.running, stats.stragglers, stats.queued) == (0, 1, 0)
        registry.drain(LONG)  # nobody waits for it
        gate.open()
        wait_for(lambda: registry.pool("one").stats().stragglers == 0)
        assert task(pool="one")(jobs.double)(2).result(timeout=LONG) == 4


def test_stragglers_hold_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Who shuts the pool down doesn't wait for them; when they hold all places, it is told."""
    said = {"kind": "executor", "factory": "concurrent.futures:ThreadPoolExecutor", "kwargs": {"max_workers": 1}}
    held = jobs.Gate()
    with held:
        with Registry({"pools": {"one": said}}) as registry, using(registry):
            overrun = task(pool="one", timeout=0.2)(jobs.wait_at)(held.address)
            assert isinstance(overrun.exception(timeout=LONG), TaskTimeoutError)
            wait_for(lambda: "hold all of its 1 places" in caplog.text)
        held.open()


def test_a_factory_that_exits(one: ExecutorPool) -> None:
    """When an executor is made anew: the pool is broken, and no call waits."""
    made: list[Executor] = []

    def factory() -> Executor:
        if made:
            raise SystemExit("no licence")
        made.append(executors.processes(1))
        return made[0]

    with ExecutorPool(factory) as pool:
        assert isinstance(pool.submit(os._exit, 1).exception(timeout=LONG), WorkerDiedError)
        try:
            error = pool.submit(jobs.double, 2).exception(timeout=LONG)
        except PoolBrokenError as refused:  # it is known by now
            error = refused
    assert "its executor could not be made anew: SystemExit('no licence')" in str(error)


@pytest.mark.parametrize(
    ("module", "name"),
    [("multiprocessing.resource_tracker", "_resource_tracker"), ("multiprocessing.forkserver", "_forkserver")],
)
def test_fork_while_a_worker_is_started(module: str, name: str, in_fork: Callable[..., Any]) -> None:
    """By another thread: what starts processes is locked then, and the child has processes started all the same."""
    lock = getattr(importlib.import_module(module), name)._lock
    locked, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            locked.set()
            assert forked.wait(LONG)

    def child() -> Any:
        with ExecutorPool(executors.processes) as pool:
            return pool.submit(jobs.double, 2).result(timeout=LONG)

    with ExecutorPool(executors.processes) as pool:  # it has started what watches over processes, which outlives it
        assert pool.submit(jobs.double, 1).result(timeout=LONG) == 2
    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(LONG)
    try:
        assert in_fork(child) == 4
    finally:
        forked.set()
        thread.join()


def test_an_initializer_is_called_once(tmp_path: Path) -> None:
    """In each process, though the configuration of other pools has changed meanwhile."""
    file = tmp_path / "runs"
    said = {"kind": "executor", "factory": "pools.executors:processes", "kwargs": {"max_workers": 1}}
    said |= {"initializer": "pools.executors:note", "initargs": [str(file)]}
    with Registry({"pools": {"ex": said}}) as registry, using(registry):
        assert task(pool="ex")(jobs.double)(1).result(timeout=LONG) == 2
        registry.read_from({"pools": {"ex": said, "other": {"kind": "thread"}}}, None)
        assert task(pool="ex")(jobs.double)(2).result(timeout=LONG) == 4
    assert file.read_text() == "."


def test_a_timeout_that_kills(tmp_path: Path) -> None:
    """Where cancelling ends a call, a timeout and `cancel(running=True)` do."""
    pools = {"ex": {"kind": "executor", "factory": "pools.executors:Killing", "capabilities": ["running", "cancel"]}}
    with Registry({"pools": pools}) as registry, using(registry), jobs.Gate() as gate:
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            task(pool="ex", timeout=2)(time.sleep)(60).result(timeout=LONG)
        held = task(pool="ex")(jobs.wait_at)(gate.address, 1)
        gate.arrived()
        assert held.cancel(running=True)
        assert held.cancelled()
        registry.drain(LONG)
    assert time.monotonic() - began < 50


# -- what travels -----------------------------------------------------------------------------------------------------


def test_context_variables_and_initializers() -> None:
    """What the pool names comes along; the initializer runs once in each process."""
    jobs.INITIALIZED.clear()
    options: dict[str, Any] = {"initializer": jobs.remember, "initargs": ("once",)}
    token = executors.BROADCAST.set("mine")
    with ExecutorPool(
        executors.processes, {"max_workers": 1}, context=["pools.executors:BROADCAST"], **options
    ) as pool:
        assert pool.submit(executors.remembered).result(timeout=LONG) == "mine"
        assert [pool.submit(jobs.remembered).result(timeout=LONG) for _ in range(3)] == [["once"]] * 3
    executors.BROADCAST.reset(token)


def test_constants_travel_once(tmp_path: Path) -> None:
    """Each process loads one once, however many chunks it runs."""
    with Registry({"pools": {"ex": {"kind": "executor", "factory": "pools.executors:processes"}}}) as registry:
        mapped = task(pool="ex")(executors.with_counted)
        with using(registry):
            constant = {"counted": executors.Counted(str(tmp_path))}
            assert list(mapped.map(range(5_000), constants=constant, chunksize=50)) == list(range(5_000))
    loaded = Counter(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert 1 <= len(loaded) <= 2
    assert set(loaded.values()) == {1}


def test_nested_calls() -> None:
    """In a worker, the same pool and pools of processes run calls inline, on the thread at hand."""
    pools = {"ex": {"kind": "executor", "factory": "pools.executors:processes", "kwargs": {"max_workers": 1}}}
    with Registry({"pools": pools}) as registry, using(registry):
        outer, inner, other = executors.outer().result(timeout=LONG)
    assert outer[:2] == inner[:2] == other[:2]
    assert outer[0] != os.getpid()
    assert (outer[2], inner[2], other[2]) == ("executor pool 'ex'", "inline pool 'ex'", "inline pool 'processes'")


def test_what_cannot_travel(one: ExecutorPool) -> None:
    """It fails its own call, and says why."""
    refused = one.submit(jobs.same, (n for n in range(3)))
    assert "the arguments of jobs:same can't travel between processes" in str(refused.exception(timeout=LONG))
    back = one.submit(eval, "(n for n in range(3))")
    assert "the value of builtins:eval can't travel" in str(back.exception(timeout=LONG))


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ({}, "pools.ex.factory: required, found nothing"),
        ({"factory": "nowhere"}, "pools.ex.factory: expected an import string such as 'package.module:attribute'"),
        ({"factory": "a:b", "capabilities": ["fly"]}, "expected a list of capabilities, each 'running' or 'cancel'"),
        ({"factory": "a:b", "kwargs": 3}, "pools.ex.kwargs: expected a table of arguments"),
        ({"factory": "a:b", "preload": ["os"]}, "kind 'executor' has no such option, but 'process' has"),
    ],
)
def test_mistakes(said: dict[str, Any], mistake: str) -> None:
    """They are told when the configuration is read."""
    with pytest.raises(ConfigError) as caught:
        Registry({"pools": {"ex": {"kind": "executor", **said}}})
    assert mistake in str(caught.value)


def test_a_factory_is_imported_when_the_pool_opens() -> None:
    """Not before; then an error says where it was named."""
    registry = Registry({"pools": {"ex": {"kind": "executor", "factory": "nowhere.at.all:make"}}})
    with registry, pytest.raises(ConfigError, match=r"pools.ex.factory: expected something to import"):
        registry.pool("ex")


@pytest.mark.parametrize("wrong", [{"factory": 3}, {"capabilities": "running"}, {"max_workers": 0}])
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    """The constructor says what it takes."""
    with pytest.raises((TypeError, ValueError)):
        ExecutorPool(**{"factory": executors.processes, **wrong})

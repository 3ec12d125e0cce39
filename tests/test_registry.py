"""
The registry: named pools, where the configuration comes from, shutdown, forks, and the exit of the interpreter.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jobs
import pytest
from pools.process_jobs import wait_until

import parallel.registry
from parallel import (
    ConfigError,
    Future,
    LoopPool,
    PoolShutdownError,
    Registry,
    ThreadPool,
    UnknownPoolError,
    completed,
    configure,
    gather,
    task,
    using,
    wait,
)
from parallel.registry import default_registry

LONG = 30  # seconds; only a deadlock takes so long
Runner = Callable[..., CompletedProcess[str]]


def prefix(name: str, **options: object) -> dict[str, object]:
    """Describe a pool whose threads are called so."""
    return {"kind": "thread", "thread_name_prefix": name, **options}


@task(pool="here")
def where() -> str:
    """Return the thread's name."""
    return jobs.thread_name()


def in_time(fn: Callable[[], object]) -> None:
    """Call *fn* on a thread, and insist that it returns."""
    thread = threading.Thread(target=fn, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), f"{fn} hangs"


# -- pools by name ----------------------------------------------------------------------------------------------------


def test_built_in_pools(nowhere: Path) -> None:
    """Without any file there are `threads`, `processes` and `loop`."""
    registry = default_registry()
    assert [registry.pool(name).kind for name in ("threads", "processes", "loop")] == ["thread", "process", "loop"]


def test_opens_once() -> None:
    """A pool is opened at the first use, and there is one of each name, whoever asks first."""
    with using({}) as registry:
        meet = threading.Barrier(8)
        found: list[object] = []

        def ask() -> None:
            meet.wait(LONG)
            found.append(registry.pool("threads"))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert len(set(map(id, found))) == 1


def test_opening_starts_nothing() -> None:
    """Making a registry and opening its pools starts no thread and no process."""
    before = threading.active_count()
    with using({}) as registry:
        for name in ("threads", "processes", "loop"):
            registry.pool(name)
        assert threading.active_count() == before


def test_unknown_pool() -> None:
    """An unknown name raises UnknownPoolError, a LookupError, which lists the known ones and how to make one."""
    with using({"pools": {"mine": {"kind": "inline"}}}) as registry, pytest.raises(UnknownPoolError) as caught:
        registry.pool("yours")
    assert isinstance(caught.value, LookupError)
    assert "mine" in str(caught.value)
    assert "[pools.yours]" in str(caught.value)


def test_initializer_by_import_string() -> None:
    """An initializer that a configuration names is imported when the pool opens, not before."""
    pools = {
        "good": {"kind": "thread", "initializer": "jobs:remember", "initargs": [5], "max_workers": 1},
        "bad": {"kind": "thread", "initializer": "jobs:no_such_function"},
        "worse": {"kind": "thread", "initializer": "no_such_module:function"},
    }
    with using({"pools": pools}) as registry:
        jobs.INITIALIZED.clear()
        assert registry.pool("good").submit(jobs.remembered).result(timeout=LONG) == [5]
        for name, word in (("bad", "no_such_function"), ("worse", "no_such_module")):
            with pytest.raises(ConfigError, match=word) as caught:
                registry.pool(name)
            assert f"pools.{name}.initializer" in str(caught.value)
    jobs.INITIALIZED.clear()


def test_repr() -> None:
    """The repr tells where the configuration came from, which pools are open, and the state."""
    with using({"pools": {"here": prefix("x")}}) as registry:
        assert "none" in repr(registry)
        registry.pool("here")
        assert "here" in repr(registry)
        assert "running" in repr(registry)
    assert "shut down" in repr(registry)


# -- where the configuration comes from -------------------------------------------------------------------------------


def test_search_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configure() wins over $PARALLEL_CONFIG, which wins over the nearest file upward."""
    (nowhere / "parallel.toml").write_text('[pools.here]\nkind = "thread"\nthread_name_prefix = "file"\n')
    inside = nowhere / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert where().result(timeout=LONG).startswith("file")
    other = nowhere / "other.toml"
    other.write_text('[pools.here]\nkind = "thread"\nthread_name_prefix = "variable"\n')
    monkeypatch.setenv("PARALLEL_CONFIG", str(other))
    parallel.registry.reset()
    assert where().result(timeout=LONG).startswith("variable")
    configure({"pools": {"here": prefix("said")}})
    assert where().result(timeout=LONG).startswith("said")


def test_pyproject(nowhere: Path) -> None:
    """[tool.parallel] in pyproject.toml is read."""
    text = '[tool.parallel.pools.here]\nkind = "thread"\nthread_name_prefix = "project"\n'
    (nowhere / "pyproject.toml").write_text(text)
    assert where().result(timeout=LONG).startswith("project")


def test_file_is_read_at_the_first_call(nowhere: Path) -> None:
    """The file is read when the first pool is asked for, and a bad one fails that call."""
    registry = default_registry()
    (nowhere / "parallel.toml").write_text("[pools.here]\nkind = 'nonsense'\n")
    with pytest.raises(ConfigError, match="nonsense"):
        where()
    (nowhere / "parallel.toml").write_text('[pools.here]\nkind = "inline"\n')
    assert where().result(timeout=LONG) == threading.current_thread().name
    assert default_registry() is registry


def test_from_toml(nowhere: Path) -> None:
    """Registry.from_toml() reads a file for a block."""
    path = nowhere / "mine.toml"
    path.write_text('[pools.here]\nkind = "thread"\nthread_name_prefix = "mine"\n')
    with Registry.from_toml(path):
        assert where().result(timeout=LONG).startswith("mine")
    with pytest.raises(ConfigError, match="nope"):
        Registry.from_toml(nowhere / "nope.toml")


def test_configure_with_a_mistake_changes_nothing() -> None:
    """A bad configuration raises, and the registry before stays."""
    before = configure({"pools": {"here": prefix("before")}})
    with pytest.raises(ConfigError) as caught:
        configure({"pools": {"here": {"kind": "thread", "max_wokers": 3}, "b": {"kind": "thread", "max_workers": "x"}}})
    assert len(caught.value.mistakes) == 2
    assert default_registry() is before
    assert where().result(timeout=LONG).startswith("before")


def test_configure_again() -> None:
    """After a second configure() new calls go to the new pools, and those of the old ones are run."""
    configure({"pools": {"here": prefix("old", max_workers=1)}})
    with jobs.Gate() as gate:
        held = task(pool="here")(jobs.wait_at)(gate.address, "old")
        gate.arrived()
        queued = [where() for _ in range(5)]
        after = queued[-1].then(lambda name: name + "!")
        configure({"pools": {"here": prefix("new")}})
        assert where().result(timeout=LONG).startswith("new")
        gate.open()
        assert held.result(timeout=LONG) == "old"
    assert all(name.startswith("old") for name in gather(*queued).result(timeout=LONG))
    assert after.result(timeout=LONG).endswith("!")


def test_configure_without_arguments(nowhere: Path) -> None:
    """configure() without arguments searches again."""
    configure({"pools": {"here": prefix("said")}})
    (nowhere / "parallel.toml").write_text('[pools.here]\nkind = "thread"\nthread_name_prefix = "file"\n')
    configure()
    assert where().result(timeout=LONG).startswith("file")


def test_configure_many_times() -> None:
    """Fifty configurations with calls under way lose no call and leave nothing behind."""
    futures: list[Future[str]] = []
    for index in range(50):
        configure({"pools": {"here": prefix(f"n{index}x", max_workers=2)}})
        futures += [where() for _ in range(5)]
    names = gather(*futures).result(timeout=LONG)
    assert all(name.startswith(f"n{index // 5}x") for index, name in enumerate(names))


# -- using ------------------------------------------------------------------------------------------------------------


def test_using_a_block() -> None:
    """A registry counts in its block, and in what is called there; outside the one before does."""
    configure({"pools": {"here": prefix("outer")}})
    with using({"pools": {"here": prefix("inner")}}):
        assert where().result(timeout=LONG).startswith("inner")
        nested = task(pool="threads")(lambda: where().result(timeout=LONG))
        assert nested().result(timeout=LONG).startswith("inner")
        assert completed(1).then(lambda _: where()).result(timeout=LONG).startswith("inner")
    assert where().result(timeout=LONG).startswith("outer")


def test_using_is_per_context_and_thread() -> None:
    """Another thread, and another context, see the default registry."""
    configure({"pools": {"here": prefix("outer")}})
    outside = copy_context()
    with using({"pools": {"here": prefix("inner")}}):
        found: list[str] = []
        thread = threading.Thread(target=outside.run, args=(lambda: found.append(where().result(timeout=LONG)),))
        thread.start()
        thread.join(LONG)
        assert found[0].startswith("outer")
        assert outside.run(where).result(timeout=LONG).startswith("outer")
        assert where().result(timeout=LONG).startswith("inner")


def test_using_shuts_down_what_it_made() -> None:
    """A registry that using() made is shut down at the end; one that was given stays open."""
    with using({}) as registry:
        pool = registry.pool("threads")
    with pytest.raises(PoolShutdownError):
        pool.submit(jobs.nothing)
    with pytest.raises(PoolShutdownError):
        registry.pool("threads")
    with Registry({}) as kept:
        with using(kept):
            assert task(jobs.double)(1).result(timeout=LONG) == 2
        assert kept.pool("threads").submit(jobs.double, 1).result(timeout=LONG) == 2


def test_using_waits_for_its_calls() -> None:
    """At the end of the block all calls made in it, with all that follows, have ended."""
    with using({"pools": {"here": prefix("x")}}):
        ends = [where().then(jobs.double).then(len) for _ in range(20)]
    assert all(end.done() and end.exception() is None for end in ends)


def test_an_error_in_the_block_comes_out() -> None:
    """An Exception in the block is raised after its calls have run; an interrupt cancels what is queued."""
    with jobs.Gate() as gate:
        with (
            pytest.raises(KeyboardInterrupt),
            using({"pools": {"here": prefix("x", max_workers=1)}}) as registry,
        ):
            registry.pool("here").submit(jobs.wait_at, gate.address)
            gate.arrived()
            queued = where()
            threading.Timer(0.05, gate.open).start()
            raise KeyboardInterrupt
        assert queued.cancelled()
    with pytest.raises(ValueError, match="mine"), using({"pools": {"here": prefix("x")}}):
        call = where()
        raise ValueError("mine")
    assert call.exception() is None


def test_registry_entered_twice() -> None:
    """A registry may be entered again inside itself; the outer end shuts it down."""
    with Registry({"pools": {"here": prefix("x")}}) as registry:
        with registry:
            assert where().result(timeout=LONG)
        assert where().result(timeout=LONG)
    with pytest.raises(PoolShutdownError):
        registry.pool("here").submit(jobs.nothing)


# -- shutdown ---------------------------------------------------------------------------------------------------------


def test_shutdown_runs_chains_dry() -> None:
    """Chains that were accepted run to their end, later stages in pools that open only then too."""
    later = task(pool="later")(jobs.double)
    last = task(pool="loop")(jobs.async_double)
    with jobs.Gate() as gate, Registry({"pools": {"here": prefix("x"), "later": prefix("later")}}) as registry:
        start = registry.pool("here").submit(jobs.wait_at, gate.address, 1)
        end = start.then(later).then(last).then(later).catch(lambda _: 0).then(lambda x: x + 1)
        gate.arrived()
        closing = threading.Thread(target=registry.shutdown)
        closing.start()
        gate.open()
        closing.join(LONG)
        assert not closing.is_alive()
        assert end.done()
        assert end.result() == 9


def test_shutdown_refuses_calls_from_outside() -> None:
    """Once shutdown has begun calls from outside are refused, though calls under way still make calls."""
    inner = task(pool="here")(jobs.double)
    calls: list[Future[int]] = []

    def parent(address: tuple[str, int]) -> int:
        jobs.wait_at(address)
        value = inner(1).result(timeout=LONG)
        jobs.wait_at(second.address)
        return value + inner(2).result(timeout=LONG)

    with jobs.Gate() as gate, jobs.Gate() as second, Registry({"pools": {"here": prefix("x")}}) as registry:
        running = registry.pool("here").submit(parent, gate.address)
        gate.arrived()
        registry.shutdown(wait=False)
        with pytest.raises(PoolShutdownError):
            calls.append(inner(1))
        with pytest.raises(PoolShutdownError):
            registry.pool("other")
        gate.open()
        second.arrived()  # the call has made a call of its own meanwhile: outside is still outside
        with pytest.raises(PoolShutdownError):
            calls.append(inner(1))
        second.open()
        assert running.result(timeout=LONG) == 6


def test_worker_of_another_pool_is_outside() -> None:
    """A call in a pool that isn't the registry's own can't open pools of a registry that was shut down."""
    with Registry({"pools": {"here": prefix("x")}}) as registry:
        registry.shutdown()
        context = copy_context()
        with ThreadPool(1) as other:
            refused = other.submit(context.run, lambda: where().result(timeout=LONG))
            assert isinstance(refused.exception(timeout=LONG), PoolShutdownError)


def test_shutdown_twice_and_from_inside() -> None:
    """shutdown() may be called again, by calls and callbacks of its own too."""
    with Registry({"pools": {"here": prefix("x")}}) as registry:
        inside = registry.pool("here").submit(registry.shutdown)
        assert inside.exception(timeout=LONG) is None
        in_time(registry.shutdown)
        in_time(lambda: registry.shutdown(cancel_futures=True))
    with Registry({"pools": {"here": prefix("x")}}) as registry:
        promise: Future[int] = Future()
        after = promise.then(lambda _: registry.shutdown())
        promise.set_result(1)
        assert after.exception(timeout=LONG) is None
        in_time(registry.shutdown)
    with Registry({}) as registry:
        loop_call = registry.pool("loop").submit(jobs.to_async(registry.shutdown))
        assert loop_call.exception(timeout=LONG) is None
        in_time(registry.shutdown)


def test_shutdown_cancels() -> None:
    """cancel_futures=True cancels what is queued in all pools; what runs ends."""
    with jobs.Gate() as gate, Registry({"pools": {"here": prefix("x", max_workers=1)}}) as registry:
        held = registry.pool("here").submit(jobs.wait_at, gate.address, "held")
        gate.arrived()
        queued = [where() for _ in range(5)]
        after = queued[0].then(str)
        follows = held.then(str.upper)
        closing = threading.Thread(target=lambda: registry.shutdown(cancel_futures=True))
        closing.start()
        assert not wait([*queued, after], timeout=LONG).not_done
        assert all(future.cancelled() for future in (*queued, after))
        gate.open()
        closing.join(LONG)
        assert not closing.is_alive()
        assert held.result(timeout=LONG) == "held"
        assert follows.done()


def test_shutdown_of_an_unused_registry() -> None:
    """A registry without pools is shut down at once."""
    registry = Registry({})
    in_time(registry.shutdown)
    in_time(registry.shutdown)
    with pytest.raises(PoolShutdownError):
        registry.pool("threads")


def test_continuation_after_the_default_registry() -> None:
    """Once the default registry has been shut down, what would need its callback threads fails, and says why."""
    default_registry().shutdown()
    promise: Future[int] = Future()
    links = [promise.then(str), promise.finally_(jobs.nothing), gather(promise, completed(1)).then(str)]
    promise.set_result(1)
    for link in links:
        with pytest.raises(PoolShutdownError, match="callback threads"):
            link.result(LONG)
    assert default_registry().callbacks.counts().workers == 0


def test_continuation_after_another_registry() -> None:
    """The callback threads of the default registry stand in for those of one that has run dry."""
    with using({}) as registry:
        promise: Future[int] = Future()
    assert registry.callbacks is default_registry().callbacks
    with using(registry):
        text = promise.then(str)
    promise.set_result(1)
    assert text.result(LONG) == "1"


def test_shutdown_while_promises_are_pending() -> None:
    """A promise that nobody ends doesn't keep a registry from shutting down."""
    registry = Registry({})
    with using(registry):
        promise: Future[int] = Future()
        after = promise.then(str)
    in_time(registry.shutdown)
    promise.set_result(1)
    assert after.exception(timeout=LONG) is None or isinstance(after.exception(), PoolShutdownError)


def test_dropped_registry() -> None:
    """One that nobody holds any more is closed, with a warning; what it has accepted is run."""
    registry: Registry | None = Registry({"pools": {"here": prefix("x", max_workers=1)}})
    message = (
        r"nobody has shut down <Registry running \[configuration: the mapping given; open pools: <ThreadPool 'here'"
    )
    with jobs.Gate() as gate, pytest.warns(ResourceWarning, match=message):
        with using(registry):
            held = task(pool="here")(jobs.wait_at)(gate.address, "held")
            gate.arrived()
            calls = [where() for _ in range(5)]
        pool, ref = weakref.ref(registry.pool("here")), weakref.ref(registry)
        registry = None
        assert ref() is not None  # what runs there may call more
        gate.open()
        assert held.result(timeout=LONG) == "held"
        assert all(name.startswith("x") for name in gather(*calls).result(timeout=LONG))
        wait_until(lambda: pool() is None)


def test_dropped_registry_without_collector() -> None:
    """Nothing that a registry owns refers to it, and no task keeps it or its pools."""
    gc.collect()
    gc.disable()
    try:
        registry: Registry | None = Registry({"pools": {"here": prefix("x")}})
        registry.on("call_failed", lambda event: None)
        with using(registry):
            assert where().then(len).result(timeout=LONG)
        pool = weakref.ref(registry.pool("here"))
        with pytest.warns(ResourceWarning, match="nobody has shut down"):
            registry = None
            wait_until(lambda: pool() is None)
    finally:
        gc.enable()


def test_a_registry_that_opened_nothing_may_be_dropped() -> None:
    """It holds nothing that would have to be closed."""
    Registry({}).on("pool_opened", print)


def test_reset() -> None:
    """reset() shuts the default registry down and forgets it."""
    before = configure({"pools": {"here": prefix("before")}})
    call = where()
    parallel.registry.reset()
    assert call.done()
    with pytest.raises(PoolShutdownError):
        before.pool("here").submit(jobs.nothing)
    assert default_registry() is not before
    parallel.registry.reset()


# -- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child(in_fork: Callable[..., Any]) -> None:
    """A forked child has the same configuration and no open pool: tasks, chains and callbacks work there anew."""
    configure({"pools": {"here": prefix("forked", max_workers=2)}})
    assert where().then(len).result(timeout=LONG)
    chained = task(pool="loop")(jobs.async_double)

    def child() -> tuple[Any, ...]:
        assert default_registry().open_pools() == []
        ended = completed(1).then(lambda _: jobs.thread_name()).result(timeout=15)
        values = where().result(timeout=15)[:6], chained(2).then(jobs.double).result(timeout=15), ended
        parallel.registry.reset()
        return values

    for _ in range(2):
        name, value, callback = in_fork(child)
        assert (name, value) == ("forked", 8)
        assert callback.startswith("parallel-callback")
    assert where().result(timeout=LONG).startswith("forked")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_pools_held_across_a_fork(in_fork: Callable[..., Any]) -> None:
    """Pools of a registry that were looked up before the fork work in the child."""
    with using({}) as registry:
        threads, loop = registry.pool("threads"), registry.pool("loop")
        assert threads.submit(jobs.double, 1).result(timeout=LONG) == 2
        assert loop.submit(jobs.async_double, 1).result(timeout=LONG) == 2  # type: ignore[comparison-overlap]

        def child() -> tuple[Any, ...]:
            try:
                return (
                    threads.submit(jobs.double, 2).then(jobs.double).result(timeout=15),
                    loop.submit(jobs.async_double, 2).then(jobs.double).result(timeout=15),
                )
            finally:
                threads.shutdown()
                loop.shutdown()

        assert in_fork(child) == (8, 8)
        assert loop.submit(jobs.async_double, 1).result(timeout=LONG) == 2  # type: ignore[comparison-overlap]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_others_open_pools(in_fork: Callable[..., Any]) -> None:
    """A fork in the middle of other threads' opening and calling leaves no lock taken in the child."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with using({"pools": {"here": prefix("w")}}):
                where().then(len).result(timeout=LONG)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child() -> int:
        with using({"pools": {"here": prefix("c")}}):
            value = where().then(len).result(timeout=15)
        configure({"pools": {"here": prefix("c")}})
        return value + where().then(len).result(timeout=15)

    try:
        for _ in range(15):
            assert in_fork(child) > 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)


# -- the exit of the interpreter --------------------------------------------------------------------------------------

HEAD = """
import sys, threading, time, signal, os
import jobs
from parallel import *

def show(text):
    print(text, flush=True)
    return text

@task
def one(x):
    return show(f"one {x}")

@task(pool="loop")
async def two(x):
    return show(f"two {x}")

@task(pool="processes")
def three(x):
    return show(f"three {x}")
"""


@pytest.mark.parametrize(
    "last",
    ["pass", "sys.exit(0)", "threading.Thread(target=time.sleep, args=(0.05,)).start()", "registry = configure({})"],
)
def test_exit_runs_accepted_chains(last: str, run_script: Runner) -> None:
    """At the exit chains are run to their end, through pools that open only then."""
    done = run_script(
        HEAD
        + f"""
def warm():
    if sys.version_info[:2] == (3, 12):  # it starts no thread any more at its exit: only open pools go on
        gather(two(0), three(0), completed(0).then(abs)).result(timeout=20)

if __name__ == "__main__":
    warm()
    gate = threading.Event()
    first = task(gate.wait)(20)
    end = first.then(lambda _: 1).then(one).then(two).then(three).then(lambda _: show("last"))
    try:
        {last}
    finally:
        warm()
        show("end of the script")
        threading.Timer(0.05, gate.set).start()
""",
        timeout=40,
    )
    lines = done.stdout.splitlines()
    after = lines[lines.index("end of the script") + 1 :]
    assert after == ["one 1", "two one 1", "three two one 1", "last"]
    assert done.stderr == ""


def test_exit_after_an_error(run_script: Runner) -> None:
    """After an unhandled error what was accepted is run all the same; the status is 1, with one traceback."""
    done = run_script(HEAD + "\none(1).then(lambda _: show('then'))\nraise ValueError('mine')\n", status=1)
    assert done.stdout.splitlines() == ["one 1", "then"]
    assert done.stderr.count("Traceback") == 1


def test_exit_with_errors_in_calls(run_script: Runner) -> None:
    """Errors and SystemExit in calls and callbacks don't change the exit status."""
    done = run_script(
        HEAD
        + """
task(jobs.leave)()
task(jobs.interrupt)().then(show)
task(jobs.divide)(1, 0)
go = threading.Event()
late = task(lambda: go.wait(20) and show("one 1"))()
late.add_done_callback(lambda _: sys.exit(5))
go.set()
""",
    )
    assert done.stdout.split("\n")[0] == "one 1"


def test_submit_in_atexit(run_script: Runner) -> None:
    """A call made by an atexit function, when no thread can be started any more, raises and doesn't hang."""
    done = run_script(
        HEAD
        + """
import atexit
def late():
    try:
        one(2).result(timeout=10)
    except RuntimeError as error:
        print(type(error).__name__)
atexit.register(late)
one(1).result()
""",
        timeout=30,
    )
    assert done.stdout.splitlines()[0] == "one 1"
    assert len(done.stdout.splitlines()) == 2


def test_exit_in_a_daemon_thread_that_waits(run_script: Runner) -> None:
    """A daemon thread that waits for a future that never ends doesn't keep the interpreter."""
    run_script(HEAD + "\nthreading.Thread(target=Future().result, daemon=True).start()\none(1)\n", timeout=20)


def test_exit_with_a_pending_promise(run_script: Runner) -> None:
    """A promise that nobody ends doesn't keep the interpreter."""
    run_script(HEAD + "\npromise = Future()\nend = promise.then(show)\nboth = gather(promise, one(1))\n", timeout=20)


WAITS = {
    "result": "Future().result()",
    "result of a call": "task(time.sleep)(0.3).then(lambda _: time.sleep(0)).then(lambda _: Future()).result()",
    "exception": "Future().exception()",
    "wait": "wait([Future()])",
    "as_completed": "list(as_completed([Future()]))",
    "gather": "gather(Future(), Future()).result()",
    "standard wait": "__import__('concurrent.futures').futures.wait([Future()])",
    "map": "list(thread_pool.map(time.sleep, [0.3, 0.3])); Future().result()",
    "shutdown": "task(time.sleep)(0.6); default.shutdown()",
}


@pytest.mark.parametrize("how", WAITS)
def test_interrupt_ends_a_wait(how: str, run_script: Runner) -> None:
    """Ctrl-C ends a wait of the main thread within half a second, with one traceback."""
    done = run_script(
        HEAD
        + f"""
from parallel.registry import default_registry
default, thread_pool = default_registry(), ThreadPool(1)
start = []
def stamp(*_):
    start.append(time.monotonic())
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, stamp)
try:
    show("ready")
    {WAITS[how]}
finally:
    show(f"after {{time.monotonic() - start[0]:.2f}}")
""",
        interrupt_at="ready",
        status=None,
        timeout=30,
    )
    assert done.returncode in (1, 130, -signal.SIGINT)
    assert float(done.stdout.split("after ")[1]) < 0.5
    assert done.stderr.count("\nKeyboardInterrupt\n") == 1


LATE_WAITS = {
    "result": "Future().result()",
    "registry": "task(time.sleep)(3); default.shutdown()",
    "thread": "pool = ThreadPool(1); pool.submit(time.sleep, 3); pool.shutdown()",
    "loop": "pool = LoopPool(); pool.submit(asyncio.sleep, 3); pool.shutdown()",
    "process": "pool = ProcessPool(1); pool.submit(time.sleep, 3); pool.shutdown()",
    "executor": "pool = ExecutorPool(Threads); pool.submit(time.sleep, 3); pool.shutdown()",
}


@pytest.mark.parametrize("how", LATE_WAITS)
def test_interrupt_that_wakes_nobody(how: str, run_script: Runner) -> None:
    """A Ctrl-C that CPython tells the main thread of while that falls asleep is heard all the same."""
    done = run_script(
        HEAD
        + f"""
import _thread, asyncio
from concurrent.futures import ThreadPoolExecutor as Threads
from parallel import ExecutorPool, LoopPool, ProcessPool
from parallel.registry import default_registry

start = []
def interrupt():
    time.sleep(1)
    start.append(time.monotonic())
    _thread.interrupt_main()  # notes a signal, and wakes nobody

if __name__ == "__main__":
    default = default_registry()
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        {LATE_WAITS[how]}
    finally:
        show(f"after {{time.monotonic() - start[0]:.2f}}")
""",
        status=None,
        timeout=30,
    )
    assert float(done.stdout.split("after ")[1]) < 0.6, done.stderr


def test_interrupt_cancels_what_is_queued(run_script: Runner) -> None:
    """After an unhandled Ctrl-C the calls that have not been started are cancelled, and the program ends soon."""
    done = run_script(
        HEAD
        + """
with_one = configure({"pools": {"threads": {"kind": "thread", "max_workers": 1}}})
running = threading.Event()
first = task(lambda: (running.set(), time.sleep(0.2)))()
late = [one(x) for x in range(1000)]
running.wait(20)
show("ready")
Future().result()
""",
        interrupt_at="ready",
        status=None,
        timeout=30,
    )
    assert done.returncode in (1, 130, -signal.SIGINT)
    assert "one" not in done.stdout
    assert done.stderr.count("Traceback") == 1


def test_interrupt_with_processes(run_script: Runner) -> None:
    """Ctrl-C with busy worker processes ends the program within seconds, and leaves no process behind."""
    done = run_script(
        HEAD
        + """
@task(pool="processes")
def slow(x):
    time.sleep(0.2)
    return os.getpid()

if __name__ == "__main__":
    pids = {slow(x).result() for x in range(4)}
    calls = [slow(x) for x in range(200)]
    calls[0].result()
    print(*pids, flush=True)
    show("ready")
    gather(*calls).result()
""",
        interrupt_at="ready",
        status=None,
        timeout=20,
    )
    assert done.returncode in (1, 130, -signal.SIGINT)
    for pid in done.stdout.split()[:-1]:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert done.stderr.count("Traceback") == 1, done.stderr


def test_pool_alone_uses_the_default_registry() -> None:
    """What follows a call of a pool without a registry runs on the default registry's callback threads."""
    with LoopPool() as pool:
        name = pool.submit(jobs.async_double, 1).then(lambda _: jobs.thread_name()).result(timeout=LONG)
    assert name.startswith("parallel-callback")

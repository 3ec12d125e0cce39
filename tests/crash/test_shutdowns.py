"""
Shutdowns from anywhere: from workers, callbacks and many threads at once; and many registries at once.

Each returns, nobody waits for himself, and all that was accepted ends.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import jobs
import pytest

import parallel
from parallel import Future, PoolShutdownError, Registry, TaskGroup, gather, parallel_map, task, using, wait
from parallel.context import current_registry

LONG = 30  # seconds; only a deadlock takes so long
KINDS = ("thread", "process", "loop", "inline")
by_kind = pytest.mark.parametrize("kind", KINDS)


def make_registry() -> Registry:
    """Make one with a pool of each kind, named after it."""
    pools = {kind: {"kind": kind, "max_workers": 2} for kind in KINDS if kind != "inline"}
    return Registry({"pools": pools | {"inline": {"kind": "inline"}}})


def quick(kind: str) -> Any:
    """Return a task that doubles a number in a pool of that kind."""
    return task(pool=kind)(jobs.async_double if kind == "loop" else jobs.double)


def in_time(fn: Callable[[], Any]) -> Any:
    """Run *fn* on a thread, and return what it returns; fail if that takes too long."""
    ended: Future[Any] = Future()

    def run() -> None:
        try:
            ended.set_result(fn())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
    return ended.result(LONG)


def all_end(calls: list[Future[Any]]) -> None:
    """See that all *calls* end."""
    assert not wait(calls, LONG).not_done


# -- from inside ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", [False, True], ids=["run", "cancel"])
@pytest.mark.parametrize("what", ["registry", "pool"])
@pytest.mark.parametrize("kind", ["thread", "loop", "inline"])
def test_from_a_call(kind: str, what: str, cancel: bool) -> None:
    """A call may shut its own registry, or pool, down: that returns, and all calls end."""
    registry = make_registry()
    with using(registry):

        def close() -> str:
            (registry if what == "registry" else registry.pool(kind)).shutdown(cancel_futures=cancel)
            return "closed"

        calls = [quick(each)(i) for i in range(20) for each in KINDS]
        fn = jobs.to_async(close) if kind == "loop" else close
        closing: Future[Any] = in_time(lambda: registry.pool(kind).submit(fn))
        late = []
        with suppress(PoolShutdownError):
            late += [registry.pool(kind).submit(jobs.async_double if kind == "loop" else jobs.double, 1)]
    assert closing.result(LONG) == "closed"
    all_end(calls + late)
    if not cancel:
        assert [call.result() for call in calls] == [2 * i for i in range(20) for _ in KINDS]
    in_time(registry.shutdown)


ENDS = {
    "then": lambda future, fn: future.then(lambda _: fn()),
    "callback": lambda future, fn: future.add_done_callback(lambda _: fn()),
    "on_success": lambda future, fn: future.on_success(lambda _: fn()),
    "finally": lambda future, fn: future.finally_(fn),
}


@pytest.mark.parametrize("cancel", [False, True], ids=["run", "cancel"])
@pytest.mark.parametrize("how", ENDS)
@by_kind
def test_from_what_follows(kind: str, how: str, cancel: bool) -> None:
    """So may whatever follows a call, on whichever thread it runs."""
    registry = make_registry()
    closed = threading.Event()

    def close() -> None:
        registry.shutdown(cancel_futures=cancel)
        closed.set()

    def begin() -> None:
        with using(registry):
            ENDS[how](quick(kind)(1), close)

    with using(registry):
        calls = [quick(each)(i).then(jobs.double) for i in range(20) for each in KINDS]
    in_time(begin)
    assert closed.wait(LONG)
    all_end(calls)
    in_time(registry.shutdown)


@by_kind
def test_from_a_declared_handler(kind: str) -> None:
    """So may a handler that is declared with the task."""
    registry = make_registry()
    closed = threading.Event()

    def close(_: BaseException) -> None:
        registry.shutdown()
        closed.set()

    fails = task(pool=kind, on_failure=close)(jobs.to_async(jobs.divide) if kind == "loop" else jobs.divide)
    with using(registry):
        calls = [quick(each)(i) for i in range(20) for each in KINDS]
        failed: Future[Any] = in_time(lambda: fails(1, 0))
    assert isinstance(failed.exception(LONG), ZeroDivisionError)
    assert closed.wait(LONG)
    all_end(calls)
    in_time(registry.shutdown)


def test_from_a_worker_process() -> None:
    """A worker process that shuts its own default registry down leaves that of the program alone."""
    with make_registry() as registry:
        for _ in range(2):
            assert registry.pool("process").submit(shut_default_down).result(LONG) == 4
        assert registry.pool("process").submit(jobs.double, 2).result(LONG) == 4


def shut_default_down() -> int:
    """Use the default registry, and shut it down."""
    value = task(pool="threads")(jobs.double)(2).result(20)
    parallel.registry.reset()
    return value


# -- from many threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", [False, True], ids=["run", "cancel"])
@by_kind
def test_submitting_meanwhile(kind: str, cancel: bool) -> None:
    """While a registry is shut down, each submit raises, or its future ends."""
    for _ in range(3):
        registry = make_registry()
        meet = threading.Barrier(5)
        calls: list[Future[Any]] = []

        def submit(registry: Registry = registry, meet: threading.Barrier = meet) -> list[Future[Any]]:
            made = []
            with using(registry), suppress(PoolShutdownError):
                made.append(quick(kind)(0))
                meet.wait(LONG)
                for i in range(10**6):
                    call = quick(kind).submit(i)
                    made.append(call)
                    if i % 3 == 0:
                        made.append(call.then(jobs.double))
                    if i % 50 == 0:
                        wait([call], LONG)
            return made

        with jobs.frequent_switches(), ThreadPoolExecutor(4) as threads:
            submits = [threads.submit(submit) for _ in range(4)]
            meet.wait(LONG)
            in_time(lambda registry=registry: registry.shutdown(cancel_futures=cancel))  # type: ignore[misc]
            for one in submits:
                calls += one.result(LONG)
        all_end(calls)
        if not cancel:
            accepted = [call for call in calls if not isinstance(call.exception(), PoolShutdownError)]
            assert all(call.exception() is None for call in accepted)


@by_kind
def test_many_shutdowns(kind: str) -> None:
    """Many threads may shut one registry down at once: when any of them returns, all has ended."""
    registry = make_registry()
    with using(registry):
        calls = [quick(kind)(i).then(jobs.double) for i in range(50)]
    meet = threading.Barrier(8)

    def close() -> bool:
        meet.wait(LONG)
        registry.shutdown()
        return all(call.done() for call in calls)

    with ThreadPoolExecutor(8) as threads:
        assert [one.result(LONG) for one in [threads.submit(close) for _ in range(8)]] == [True] * 8
    assert [call.result() for call in calls] == [4 * i for i in range(50)]


@by_kind
def test_pools_opened_at_once(kind: str) -> None:
    """Many threads that open a pool at once get the same one; that is the one that is shut down."""
    for _ in range(5):
        with make_registry() as registry, ThreadPoolExecutor(8) as threads:
            meet = threading.Barrier(8)

            def call(registry: Registry = registry, meet: threading.Barrier = meet) -> tuple[int, Any]:
                meet.wait(LONG)
                with using(registry):
                    return id(registry.pool(kind)), quick(kind)(3).result(LONG)

            found = [one.result(LONG) for one in [threads.submit(call) for _ in range(8)]]
            assert set(found) == {(id(registry.pool(kind)), 6)}


# -- many registries --------------------------------------------------------------------------------------------------


def registry_of(number: int) -> Registry:
    """Make one whose threads are named by a number."""
    pool = {"kind": "thread", "max_workers": 1, "thread_name_prefix": f"mine-{number}"}
    return Registry({"pools": {"here": pool, "loop": {"kind": "loop"}}})


where = task(pool="here")(jobs.thread_name)


def test_a_registry_for_each_thread() -> None:
    """Threads with a registry each call in their own, nested blocks and what follows calls too."""
    meet = threading.Barrier(6)

    def run(number: int) -> list[str]:
        with registry_of(number) as mine:
            meet.wait(LONG)
            names = [where().result(LONG), where().then(lambda _: where()).result(LONG)]
            with registry_of(number + 100) as inner:
                assert current_registry() is inner
                names.append(where().result(LONG))
                names += parallel_map(pool="here")(name_of_thread)([0]).result(LONG)
            assert current_registry() is mine
            with TaskGroup():
                last = where()
            return [*names, last.result(LONG)]

    with ThreadPoolExecutor(6) as threads:
        found = [one.result(LONG) for one in [threads.submit(run, number) for number in range(6)]]
    for number, names in enumerate(found):
        inner = f"mine-{number + 100}"
        assert [name.rpartition("_")[0] for name in names] == [f"mine-{number}"] * 2 + [inner] * 2 + [f"mine-{number}"]


def name_of_thread(_: int) -> str:
    """Return the name of the thread."""
    return jobs.thread_name()


def test_a_registry_for_each_coroutine() -> None:
    """So do the tasks of one event loop, interleaved as they are."""

    async def run(number: int) -> list[str]:
        mine = registry_of(number)
        names = []
        with using(mine):
            for _ in range(5):
                names.append(await where())
                await asyncio.sleep(0)
                names.append(await task(pool="loop")(jobs.async_double)(1).then(lambda _: where()))
        await asyncio.to_thread(mine.shutdown)
        return names

    async def main() -> list[list[str]]:
        return await asyncio.gather(*map(run, range(6)))

    for number, names in enumerate(asyncio.run(main())):
        assert {name.rpartition("_")[0] for name in names} == {f"mine-{number}"}


def test_many_registries_at_once() -> None:
    """Registries come and go by the dozen, and leave nothing."""

    def run(number: int) -> int:
        with make_registry():
            return int(gather(*(quick(kind)(number) for kind in ("thread", "loop", "inline"))).result(LONG)[0])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(run, range(60))) == [2 * number for number in range(60)]


# -- at the exit ------------------------------------------------------------------------------------------------------

AT_EXIT = """
import sys, threading
import jobs, parallel
from crash.test_shutdowns import KINDS, make_registry, quick

if __name__ == "__main__":
    kind = {kind!r}
    registry = make_registry()
    made, refused = [], threading.Event()
    with parallel.using(registry):
        def submit():
            with parallel.using(registry):
                try:
                    while True:
                        call = quick(kind)(len(made))
                        made.append(call)
                        call.result(20)
                except RuntimeError as error:
                    refused.set()

        quick(kind)(0).result()
        thread = threading.Thread(target=submit, daemon={daemon})
        thread.start()

    @threading._register_atexit
    def late():
        with parallel.using(registry):
            call = quick("thread")(1).then(quick("loop"))
        call.add_done_callback(lambda _: print("late", flush=True))

    import atexit
    @atexit.register
    def last():
        if refused.wait(20):
            print("refused", all(call.done() for call in made), flush=True)
"""


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2), reason="CPython 3.12.0 and 3.12.1 start no thread at exit"
)
@pytest.mark.parametrize("kind", ["thread", "process", "loop"])
def test_submitting_at_exit(kind: str, run_script: Callable[..., Any]) -> None:
    """A thread that goes on submitting while the program ends is refused in the end, and all its futures end."""
    done = run_script(AT_EXIT.format(kind=kind, daemon=True), timeout=40)
    assert done.stdout.split() == ["late", "refused", "True"], done.stdout + done.stderr

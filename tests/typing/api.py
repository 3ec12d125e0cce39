"""
The public API as users write it; checked by mypy and pyright, never run.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, assert_type

from parallel import (
    CallFilter,
    Future,
    InlinePool,
    LoopPool,
    MapFuture,
    PoolStats,
    ProcessPool,
    Registry,
    RegistryStats,
    Settled,
    TaskGroup,
    ThreadPool,
    as_completed,
    completed,
    configure,
    detached,
    dump,
    first,
    gather,
    parallel_map,
    per_worker,
    race,
    result_of,
    settle,
    task,
    unresolved,
    using,
    wait,
)
from parallel.events import CallFailed, CallStarted, Event
from parallel.graphs import Graph
from parallel.testing import inline

# -- tasks ------------------------------------------------------------------------------------------------------------


@task
def scale(x: int, factor: str = "", *, unit: str = "") -> float:
    return float(x)


@task(pool="threads")
async def fetch(x: int) -> str:
    return str(x)


@task
def encode(text: str) -> bytes:
    return text.encode()


@task
def now() -> float:
    return 0.0


@task()
def three(a: int, b: str, c: float) -> None: ...


assert_type(scale(1), Future[float])
assert_type(scale(1, factor="a", unit="m"), Future[float])
assert_type(scale.local(1), float)
assert_type(scale.options(pool="io")(1, "a"), Future[float])
assert_type(fetch(1), Future[str])
assert_type(now(), Future[float])
assert_type(scale.map([1]), MapFuture[float])
assert_type(scale.map(range(3), ["a"]), MapFuture[float])
assert_type(three.map([1], ["a"], [1.0]), MapFuture[None])
assert_type(fetch.map([1]), MapFuture[str])
assert_type(scale.submit(1), Future[float])
assert_type(encode.submit(fetch(1)), Future[bytes])
assert_type(three.submit(1, fetch(1), scale(1)), Future[None])
assert_type(now.submit(), Future[float])
assert_type(encode(result_of(fetch(1))), Future[bytes])
assert_type(scale.name, str)


@task
def look(future: Future[str]) -> bool:
    return future.done()


assert_type(look(unresolved(fetch(1))), Future[bool])

assert_type(fetch.then(len)(1), Future[int])
assert_type(fetch.then(encode)(1), Future[bytes])
assert_type(fetch.then(encode).then(len).map([1]), MapFuture[int])
assert_type(task(lambda: 3)(), Future[int])


@task
class Point:
    def __init__(self, x: int) -> None:
        self.x = x


class Shop:
    @task
    def price(self, x: int) -> str:
        return ""

    @task
    async def order(self, x: int) -> str:
        return ""

    @task
    @staticmethod
    def tax(x: int) -> str:
        return ""

    @task(pool="threads")
    @classmethod
    def open(cls, x: int) -> str:
        return ""

    @parallel_map
    def weigh(self, x: int) -> str:
        return ""

    @parallel_map
    @staticmethod
    def pack(x: int) -> str:
        return ""

    @parallel_map
    @classmethod
    def label(cls, x: int) -> str:
        return ""


assert_type(Shop().price(1), Future[str])
assert_type(Shop().price.map([1]), MapFuture[str])
assert_type(Shop().price.then(len)(1), Future[int])
assert_type(Shop().price.local(1), str)
assert_type(Shop().order(1), Future[str])
assert_type(Shop.tax(1), Future[str])
assert_type(Shop().tax(1), Future[str])
assert_type(Shop.open(1), Future[str])
assert_type(Shop().open(1), Future[str])
assert_type(Shop().weigh([1]), MapFuture[str])
assert_type(Shop().label([1]), MapFuture[str])
assert_type(Shop().pack([1]), MapFuture[str])
assert_type(Shop.pack([1]), MapFuture[str])

# -- maps -------------------------------------------------------------------------------------------------------------


@parallel_map
def shrink(path: int, factor: float = 0) -> str:
    return ""


@parallel_map(pool="loop")
async def load(x: int) -> str:
    return ""


assert_type(shrink([1]), MapFuture[str])
assert_type(shrink([1], [2.0]), MapFuture[str])
assert_type(shrink([1]).result(), list[str])
assert_type(iter(shrink([1])), Iterator[str])
assert_type(shrink.local([1]), list[str])
assert_type(shrink.submit(1, factor=2.0), Future[str])
assert_type(shrink.options(pool="io")([1]), MapFuture[str])
assert_type(load([1]), MapFuture[str])
assert_type(load([1]).then(len), Future[int])
assert_type(parallel_map(len)(["a"]), MapFuture[int])

# -- futures ----------------------------------------------------------------------------------------------------------


def is_bad(error: ValueError) -> None: ...


number: Future[int] = completed(1)
assert_type(number.result(), int)
assert_type(number.result(timeout=1.5), int)
assert_type(number.exception(), BaseException | None)
assert_type(number.then(str), Future[str])
assert_type(number.then(fetch), Future[str])
assert_type(number.then(fetch).then(encode), Future[bytes])
assert_type(number.then(str, pool="io"), Future[str])
assert_type(number.catch(repr), Future[int | str])
assert_type(number.catch(ValueError, is_bad), Future[int | None])
assert_type(number.catch((OSError, KeyError), repr), Future[int | str])
assert_type(number.finally_(print), Future[int])
assert_type(number.on_success(print).on_failure(print), Future[int])
assert_type(number.then(lambda n: n + 0.5), Future[float])


async def pause(n: int) -> bytes:
    return b""


assert_type(number.then(pause), Future[bytes])


async def main() -> None:
    assert_type(await number, int)
    assert_type(await scale(1), float)
    assert_type(await gather(number, fetch(1)), tuple[int, str])
    assert_type(await asyncio.wrap_future(number), int)
    async for one in as_completed([number]):
        assert_type(one, Future[int])
    async for other in as_completed([standard], timeout=3):
        assert_type(other, concurrent.futures.Future[int])
    assert_type(await anext(as_completed([number])), Future[int])


text = completed("a")
assert_type(gather(number), Future[tuple[int]])
assert_type(gather(number, text), Future[tuple[int, str]])
assert_type(gather(number, text, scale(1)), Future[tuple[int, str, float]])
assert_type(gather(*[number]), Future[tuple[int, ...]])
assert_type(gather(number, text, number, text, number), Future[tuple[Any, ...]])
assert_type(gather(*[number], return_exceptions=True), Future[tuple[int | BaseException, ...]])
assert_type(settle(number, text), Future[tuple[Settled[int], Settled[str]]])
assert_type(settle(number, text).result()[1].result(), str)
assert_type(race(number, number), Future[int])
assert_type(race(number, text), Future[int | str])
assert_type(first(*[number]), Future[int])
assert_type(list(as_completed([number], timeout=3)), list[Future[int]])
assert_type(wait([number]).done, set[Future[int]])

coming: Iterator[Future[int]] = as_completed([number])
coming_async: AsyncIterator[Future[int]] = as_completed([number])
as_completed([number]).close()
for ended in as_completed([number]):
    assert_type(ended, Future[int])

standard: concurrent.futures.Future[int] = number
assert_type(gather(standard, text), Future[tuple[int, str]])

# -- pools and registries ---------------------------------------------------------------------------------------------


def plain(x: int, *, y: str = "") -> float:
    return 0.0


with ThreadPool(4, thread_name_prefix="io", initializer=print, initargs=("hello",)) as threads:
    assert_type(threads.submit(plain, 1, y="a"), Future[float])
    assert_type(threads.map(plain, [1]), Iterator[float])
    assert_type(threads.stats().queued, int)
with ProcessPool(2, mp_context="spawn", max_tasks_per_child=3) as processes:
    assert_type(processes.submit(plain, 1), Future[float])
with LoopPool(max_workers=3) as loop:
    assert_type(loop.submit(pause, 1), Future[bytes])
assert_type(InlinePool().submit(plain, 1), Future[float])

executor: concurrent.futures.Executor = ThreadPool()

with Registry.from_toml("parallel.toml") as registry:
    assert_type(registry, Registry)
with using({"pools": {"threads": {"max_workers": 3}}}) as used:
    assert_type(used, Registry)
with using(registry), using(Path("parallel.toml")):
    pass
with using(profile="test") as found:
    assert_type(found, Registry)
assert_type(configure("parallel.toml", profile="test"), Registry)
mapping: dict[str, Any] = {}
configure(mapping)


@registry.on("call_failed")
def page(event: CallFailed) -> int:
    assert_type(event.error, BaseException)
    assert_type(event.task, str)
    return 0


assert_type(page(CallFailed("threads", "shop:sell", OSError())), int)
registry.on("pool_opened", lambda event: print(event.kind, event.pool))
registry.on("call_retried", lambda event: print(event.wait + 0.5))
registry.on("call_ended", lambda event: print(event.started_at, event.state))
registry.on("worker_started", lambda event: print(event.worker.upper()))
with registry.events(most=10) as events:
    assert_type(next(events), Event)
    for event in events:
        if isinstance(event, CallStarted):
            assert_type(event.attempt, int)
assert_type(registry.stats(), RegistryStats)
assert_type(registry.stats().pools["io"], PoolStats)
assert_type(registry.stats().pools["io"].failed, int | None)
registry.off("call_failed", page)
registry.reload()
registry.drain(timeout="5s")
registry.shutdown(timeout=5, cancel_futures=True)
assert_type(registry.config.to_toml(), str)
with inline() as every:
    assert_type(every, Registry)

# -- chains of tasks, limits, shields ---------------------------------------------------------------------------------


def log_bad(error: Exception) -> None: ...


async def pause_for(error: Exception) -> int:
    return 0


assert_type(fetch.then(encode).catch(log_bad)(1), Future[bytes | None])
assert_type(fetch.catch(ValueError, is_bad)(1), Future[str | None])
assert_type(fetch.catch((OSError, KeyError), repr).then(len)(1), Future[int])
assert_type(fetch.catch(pause_for)(1), Future[str | int])
assert_type(fetch.finally_(now)(1), Future[str])
assert_type(scale.finally_(print)(1, factor="a"), Future[float])
assert_type(scale.finally_(print).map([1]), MapFuture[float])
assert_type(fetch.then(encode).local(1), bytes)
assert_type(Shop().price.catch(log_bad).finally_(print)(1), Future[str | None])
assert_type(number.with_timeout(2), Future[int])
assert_type(number.with_timeout("250ms").shield().then(str), Future[str])
assert_type(number.catch(pause_for), Future[int])
# -- what a worker keeps ----------------------------------------------------------------------------------------------


@per_worker
def table() -> dict[str, int]:
    return {}


@per_worker
def connection() -> Iterator[bytes]:
    yield b""


assert_type(table(), dict[str, int])
assert_type(connection(), bytes)
assert_type(connection.local(), bytes)

# -- groups -----------------------------------------------------------------------------------------------------------

with TaskGroup(timeout="5m", limit=4) as group:
    assert_type(group, TaskGroup)
    assert_type(scale(1), Future[float])
    assert_type(group.cancel(), None)
    assert_type(group.cancelled, bool)
    assert_type(group.timeout, float | None)
    assert_type(group.limit, int | None)
    with detached() as nothing:
        assert_type(nothing, None)


async def use_group() -> float:
    async with TaskGroup(timeout=2.5) as group:
        assert_type(group, TaskGroup)
        return await scale(1)
    return 0.0  # the block may take back the cancellation of a call that it has cancelled itself


# -- what can be seen -------------------------------------------------------------------------------------------------

dump()
assert_type(completed(3).tree(), Graph)
assert_type(completed(3).tree().mermaid(), str)
logging.getLogger().addFilter(CallFilter())

"""
What a function can ask about its own call: `current_task()`, `checkpoint()`, `sleep()`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import jobs
import pytest

from parallel import (
    DeadlockError,
    NoTaskError,
    Registry,
    Retry,
    TaskTimeoutError,
    ThreadPool,
    checkpoint,
    current_task,
    sleep,
    task,
    using,
)

LONG = 30  # seconds; only a deadlock takes so long
HERE = pytest.mark.parametrize("pool", ["one", "loop", "inline"])


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """A registry with a pool of each kind."""
    pools = {"one": {"kind": "thread", "max_workers": 1}, "inline": {"kind": "inline"}}
    with using({"pools": pools}) as made:
        yield made


def facts() -> tuple[Any, ...]:
    """Tell all about the call that this runs in."""
    now = current_task()
    return now.name, now.id, now.attempt, now.pool, now.deadline, now.cancelled


@HERE
@pytest.mark.parametrize("options", [{}, {"timeout": LONG}])
def test_facts(pool: str, options: Any) -> None:
    """A call knows its task, its number, its attempt, its pool, its deadline, and that it may go on."""
    fn = task(pool=pool, **options)(jobs.to_async(facts) if pool == "loop" else facts)
    name, first, attempt, label, deadline, cancelled = fn().result(LONG)
    assert name == fn.name
    assert attempt == 1
    assert pool in label
    assert deadline is None
    assert cancelled is False
    assert fn().result(LONG)[1] != first


@HERE
def test_attempts_share_the_number(pool: str) -> None:
    """The attempts of one call are numbered from 1, and share its id."""
    seen: list[tuple[int, int]] = []

    def body() -> None:
        seen.append((current_task().id, current_task().attempt))
        if len(seen) < 3:
            raise OSError

    retry = Retry(OSError, wait_initial=0, wait_max=0, wait_jitter=0)
    task(pool=pool, retry=retry)(jobs.to_async(body) if pool == "loop" else body)().result(LONG)
    assert [attempt for _, attempt in seen] == [1, 2, 3]
    assert len({number for number, _ in seen}) == 1


def test_submitted_function() -> None:
    """A function that was submitted as it is has no name, but all the rest."""
    with ThreadPool(1, name="io") as pool:
        name, _, attempt, label, deadline, _ = pool.submit(facts).result(LONG)
    assert (name, attempt, label, deadline) == ("", 1, "thread pool 'io'", None)


def test_repr() -> None:
    """Its repr tells the task, the pool and the attempt."""
    text = task(pool="one")(lambda: repr(current_task()))().result(LONG)
    assert "in thread pool 'one', attempt 1>" in text


def test_outside() -> None:
    """Outside of calls current_task() raises, checkpoint() does nothing, and sleep() sleeps."""
    with pytest.raises(NoTaskError, match="no call is running"):
        current_task()
    checkpoint()
    sleep("1ms")


def test_nested_and_after() -> None:
    """An inline call inside another has a task of its own; afterwards it is the outer one's again."""

    def outer() -> tuple[str, str, str]:
        before = current_task().name
        inside = inner().result()
        return before, inside, current_task().name

    inner = task(pool="inline")(lambda: current_task().name)
    outer_task = task(pool="one")(outer)
    assert outer_task().result(LONG) == (outer_task.name, inner.name, outer_task.name)


def test_helped_call_has_its_own() -> None:
    """A call that its waiter runs has a task of its own."""

    def outer() -> tuple[str, str]:
        return inner().result(), current_task().name

    inner = task(pool="one")(lambda: current_task().name)
    outer_task = task(pool="one")(outer)
    assert outer_task().result(LONG) == (inner.name, outer_task.name)


def test_threads_and_coroutines_of_a_coroutine() -> None:
    """What a coroutine awaits, and the threads that it uses by asyncio, belong to its call."""

    @task
    async def body() -> list[str]:
        async def inner() -> str:
            return current_task().name

        return [
            current_task().name,
            await asyncio.create_task(inner()),
            await asyncio.to_thread(lambda: current_task().name),
        ]

    assert body().result(LONG) == [body.name] * 3


def test_coroutine_that_outlives_its_call() -> None:
    """A task that a coroutine leaves behind runs in no call any more, when that is forgotten."""
    ended, told = threading.Event(), threading.Event()
    seen: list[object] = []

    @task
    async def body() -> None:
        async def later() -> None:
            while not ended.is_set():
                await asyncio.sleep(0.001)
            try:
                seen.append(current_task())
            except NoTaskError as error:
                seen.append(error)
            told.set()

        kept.append(asyncio.create_task(later()))

    kept: list[Any] = []
    body().result(LONG)
    ended.set()
    assert told.wait(LONG)
    assert isinstance(seen[0], NoTaskError)


def test_process() -> None:
    """In a worker process nobody is asked to stop: checkpoint() does nothing there."""
    assert task(pool="processes")(checked_pid)().result(LONG) != os.getpid()


def checked_pid() -> int:
    """Return the id of the process."""
    checkpoint()
    sleep(0)
    return os.getpid()


@pytest.mark.parametrize("pool", ["one", "loop"])
@pytest.mark.parametrize("options", [{}, {"timeout": LONG}])
def test_cancelled_is_seen(pool: str, options: Any) -> None:
    """A call that somebody cancels sees it."""
    begun = threading.Event()

    def body() -> None:
        begun.set()
        while not current_task().cancelled:
            pass
        checkpoint()

    future = task(pool=pool, **options)(jobs.to_thread(body) if pool == "loop" else body)()
    assert begun.wait(LONG)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(LONG)


@pytest.mark.parametrize("options", [{}, {"timeout": LONG}])
def test_sleep_ends_with_the_call(options: Any) -> None:
    """sleep() raises as soon as the call is cancelled."""
    begun = threading.Event()

    def body() -> None:
        begun.set()
        sleep("1h")

    future = task(pool="one", **options)(body)()
    assert begun.wait(LONG)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(LONG)


def test_sleep_ends_with_the_timeout() -> None:
    """sleep() raises when the call's time is over; a later sleep() raises at once."""
    ended = threading.Event()

    def body() -> None:
        for _ in range(2):
            with pytest.raises(CancelledError):
                sleep("1h")
        ended.set()

    assert isinstance(task(pool="one", timeout=0.03)(body)().exception(LONG), TaskTimeoutError)
    assert ended.wait(LONG)


@pytest.mark.parametrize("wrong", [-1, "soon", float("inf"), float("nan"), None])
def test_wrong_sleep(wrong: Any) -> None:
    """What is no time to wait is refused."""
    with pytest.raises((TypeError, ValueError)):
        sleep(wrong)


def test_sleep_on_a_loop() -> None:
    """In a coroutine of a pool's loop sleep() raises: it would hold up all that runs there. Elsewhere it sleeps."""

    async def body() -> None:
        sleep(0.001)

    text = r"was to sleep\(0\.001\), .*; use `await asyncio\.sleep\(\.\.\.\)`"
    with pytest.raises(DeadlockError, match=text):
        task(body)().result(LONG)
    asyncio.run(body())  # outside of calls, as in a notebook's cell

    async def caller() -> None:
        task(pool="inline")(sleep)(0.001).result()
        await asyncio.to_thread(sleep, 0.001)

    with using({"pools": {"inline": {"kind": "inline"}}}):
        asyncio.run(caller())
        task(caller)().result(LONG)

"""
Where maps are made and read: in task groups, on the thread of an event loop, and from sources that are slow there.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import aclosing
from contextvars import copy_context
from pathlib import Path
from typing import Any, cast

import pytest
from clocks import LONG
from pools.process_jobs import PATIENCE

from parallel import (
    DeadlockError,
    GroupClosedError,
    TaskGroup,
    WorkerDiedError,
    checkpoint,
    current_task,
    task,
)

KINDS = ["thread", "process", "inline", "loop"]

pytestmark = pytest.mark.usefixtures("kinds")


def odd(x: int) -> int:
    """Refuse odd items."""
    if x % 2:
        raise ValueError(x)
    return x


async def odd_later(x: int) -> int:
    """Refuse them after others have had their turn."""
    await asyncio.sleep(0)
    return odd(x)


def mapped(kind: str) -> Any:
    """Return the task that refuses odd items, in a pool of that kind."""
    return task(pool=kind)(odd_later if kind == "loop" else odd)


# -- in a task group --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [{}, {"timeout": 600}, {"limit": 2}])
def test_failures_that_are_dealt_with(kind: str, said: dict[str, Any]) -> None:
    """What is skipped, or collected, does not fail the group, whether anybody has taken the values yet or not."""
    with TaskGroup(**said):
        skipped = mapped(kind).map(range(20), errors="skip")
        collected = mapped(kind).map(range(20), errors="collect")
        assert list(mapped(kind).stream(range(20), errors="skip")) == list(range(0, 20, 2))
    assert skipped.result(0) == list(range(0, 20, 2))
    assert [end.value for end in collected.result(0)] == [None if x % 2 else x for x in range(20)]


@pytest.mark.parametrize("kind", KINDS)
def test_failures_that_are_not(kind: str) -> None:
    """A map that fails, fails the group, with the failure that the map has, once."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        failed = mapped(kind).map(range(20))
    assert list(caught.value.exceptions) == [failed.exception(0)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_fails_in_a_group(kind: str) -> None:
    """It raises where it is read; that is the block's error."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        list(mapped(kind).stream(range(20)))
    assert [(type(error), error.args) for error in caught.value.exceptions] == [(ValueError, (1,))]


def die_at_seven(x: int) -> int:
    """End its worker process."""
    if x == 7:
        os.kill(os.getpid(), 9)
    return x


def test_deaths_in_a_group() -> None:
    """A death costs its item, not the group."""
    with TaskGroup():
        ends = task(pool="process")(die_at_seven).map(range(20), errors="collect")
    assert isinstance(ends.result(0)[7].error, WorkerDiedError)
    assert [end.value for end in ends.result(0)] == [None if x == 7 else x for x in range(20)]


def wait_until_asked(file: str) -> None:
    """Go on until the call is to stop; say so in a file."""
    try:
        while True:
            checkpoint()
            time.sleep(0.001)
    finally:
        Path(file).write_text("stopped", encoding="utf-8")


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_group_waits_for_what_runs(kind: str, tmp_path: Path) -> None:
    """When it is cancelled, the items that run are asked to stop, and have by its end; nothing else begins."""
    file = tmp_path / "stopped"
    with TaskGroup() as group:
        begun = task(pool=kind)(wait_until_asked).map([str(file)] * 100)
        while not begun._flow.awaited()[0].running():
            time.sleep(0.001)
        group.cancel()
    assert begun.cancelled()
    assert file.read_text("utf-8") == "stopped"


def call_on(x: int) -> int:
    """Make a call and leave it to itself."""
    task(pool="thread")(time.sleep)(0.02)
    return x


def test_what_items_call_belongs_to_the_group() -> None:
    """The calls of the items end before the group does."""
    threads = task(pool="thread")(call_on)
    with TaskGroup() as group:
        threads.map(range(10))
    assert "0 running or queued" in repr(group)


def test_a_map_in_a_group_that_has_closed(tmp_path: Path) -> None:
    """It is refused, and has let go of its journal."""
    journal = tmp_path / "runs.sqlite"
    doubled: Any = task(pool="thread")(odd)
    with TaskGroup():
        mapped_here = threading.Event()
        errors: list[BaseException] = []

        def later() -> None:
            mapped_here.wait(LONG)
            try:
                doubled.map([2, 4], journal=journal)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=copy_context().run, args=(later,))
        thread.start()
    mapped_here.set()
    thread.join()
    assert [type(error) for error in errors] == [GroupClosedError]
    assert doubled.map([2, 4], journal=journal).result(PATIENCE) == [2, 4]


# -- on the thread of a loop ------------------------------------------------------------------------------------------


async def itself(x: int) -> int:
    """Return it after others have had their turn."""
    await asyncio.sleep(0)
    return x


WAITS: dict[str, Callable[[Any], Any]] = {
    "result": lambda one: one.map(range(5)).result(),
    "iteration": lambda one: list(one.map(range(5))),
    "as_completed": lambda one: list(one.map(range(5)).as_completed()),
    "stream": lambda one: list(one.stream(range(5))),
}


@pytest.mark.parametrize("how", WAITS)
def test_blocking_the_loop_that_has_to_run_the_items(how: str) -> None:
    """It raises, where it would have hung."""
    mapped_there = task(pool="loop")(itself)

    async def block() -> str:
        with pytest.raises(DeadlockError, match="await"):
            WAITS[how](mapped_there)
        return "raised"

    assert task(pool="loop")(block)().result(PATIENCE) == "raised"


def test_blocking_it_for_what_others_bring() -> None:
    """Items on threads need no loop: to wait for them is allowed there."""

    async def block() -> list[int]:
        return task(pool="thread")(odd).map([2, 4]).result()

    assert task(pool="loop")(block)().result(PATIENCE) == [2, 4]


def test_awaiting_on_the_loop_that_runs_the_items() -> None:
    """That is the way to do it."""

    async def wait() -> list[Any]:
        one = task(pool="loop")(itself)
        return [await one.map(range(3)), [x async for x in one.map(range(3))], [x async for x in one.stream(range(3))]]

    assert task(pool="loop")(wait)().result(PATIENCE) == [[0, 1, 2]] * 3


# -- left early on a loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["aclose", "aclosing", "async with", "cancel"])
def test_leaving_a_stream_on_a_loop(how: str, tmp_path: Path) -> None:
    """The source is closed by then, and so is the journal; there are no more values."""
    journal = tmp_path / "runs.sqlite"
    closed: list[bool] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(0, 10_000, 2)
        finally:
            closed.append(True)

    async def leave() -> None:
        stream = task(pool="loop")(itself).stream(numbers(), journal=journal)
        if how == "aclosing":
            async with aclosing(stream):
                assert await anext(stream) == 0
        elif how == "async with":
            async with stream:
                assert await anext(stream) == 0
        elif how == "aclose":
            assert await anext(stream) == 0
            await stream.aclose()
            await stream.aclose()
        else:
            reader = asyncio.create_task(_read(stream))
            await asyncio.sleep(0.05)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await stream.aclose()
        assert closed == [True]
        assert [value async for value in stream] == []
        again = task(pool="loop")(itself).stream([0, 2], journal=journal)
        assert [value async for value in again] == [0, 2]

    asyncio.run(asyncio.wait_for(leave(), LONG))


async def _read(stream: Any) -> None:
    async for _ in stream:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("how", ["aclose", "close"])
def test_closing_a_stream_that_another_coroutine_reads(how: str) -> None:
    """What runs is cancelled, and so is the other's wait: these were not all values."""
    begun = threading.Event()

    async def wait_for_ever(x: int) -> int:
        begun.set()
        return cast(int, await asyncio.get_running_loop().create_future())

    async def read() -> list[int]:
        stream = task(pool="loop")(wait_for_ever).stream(range(3))
        reader = asyncio.create_task(_collect(stream))
        await asyncio.to_thread(begun.wait, LONG)
        if how == "close":
            stream.close()
        else:
            await stream.aclose()
        return await reader

    with pytest.raises(CancelledError):
        asyncio.run(asyncio.wait_for(read(), LONG))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_closing_a_stream_that_another_thread_reads(kind: str) -> None:
    """The same, with items that come to their end when they are asked to."""
    stream: Any = task(pool=kind)(until_asked).stream(range(100))
    closing = threading.Timer(0.1, stream.close)
    closing.start()
    with pytest.raises(CancelledError):
        list(stream)
    closing.join()
    assert list(stream) == []


def test_closing_it_while_a_coroutine_waits_for_a_thread() -> None:
    """The coroutine hears of it when what runs has come to its end."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(x: int) -> int:
        begun.set()
        go_on.wait(LONG)
        return x

    async def read() -> None:
        stream = task(pool="thread")(wait).stream(range(3))
        reader = asyncio.create_task(_collect(stream))
        await asyncio.to_thread(begun.wait, LONG)
        stream.close()
        go_on.set()
        await reader

    with pytest.raises(CancelledError):
        asyncio.run(asyncio.wait_for(read(), LONG))


def until_asked(x: int) -> int:
    """Return when the call is to stop."""
    while not current_task().cancelled:
        time.sleep(0.001)
    return x


def test_a_stream_that_is_closed_before_it_is_read() -> None:
    """It has no values, as a generator's that is closed."""
    one = task(pool="thread")(odd)
    stream = one.stream([2, 4])
    stream.close()
    assert list(stream) == []
    with one.stream([2, 4]) as stream:
        assert next(stream) == 2
    assert list(stream) == []


async def _collect(stream: Any) -> list[int]:
    return [value async for value in stream]

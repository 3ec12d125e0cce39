"""
`per_worker`: made once on each worker, closed at its end.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent
from typing import Any

import jobs
import pytest

from parallel import (
    InlinePool,
    LoopPool,
    PerWorker,
    ProcessPool,
    ThreadPool,
    UnsuitableFunctionError,
    gather,
    parallel_map,
    per_worker,
    task,
    using,
)

LONG = 30  # seconds; only a deadlock takes so long

log: list[str] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    """Nothing has been made, nor closed."""
    log.clear()


def here() -> str:
    """Name this worker."""
    return f"{os.getpid()}/{threading.get_ident()}"


@per_worker
def table() -> dict[str, str]:
    """Make a table that tells who made it."""
    log.append("made")
    return {"maker": here()}


@per_worker
def connection() -> Iterator[str]:
    """Open and close something."""
    log.append("open")
    yield here()
    log.append(f"closed {here()}")


folders: list[Path] = []


def use_folder(path: Path) -> None:
    """Say where this process makes its file; a fork server may be older than the test."""
    folders.append(path)


@per_worker
def opened_file() -> Iterator[Path]:
    """Make a file that says how often this was done, and is told of the end."""
    path = folders[-1] / f"{os.getpid()}"
    with path.open("a") as file:
        file.write("open\n")
    yield path
    with path.open("a") as file:
        file.write("closed\n")


def maker(_: object = None) -> str:
    """Tell who made this worker's table."""
    assert table() is table()
    assert table()["maker"] == here()
    return here()


def file_of(_: object) -> Path:
    """Return this worker's file."""
    return opened_file()


def test_once_on_each_thread() -> None:
    """Two workers never share one, and each has but one."""
    with ThreadPool(3) as pool, jobs.Gate() as gate:
        held = [pool.submit(jobs.wait_at, gate.address, None) for _ in range(2)]
        gate.arrived(2)
        gate.open()
        gather(*held).result(LONG)
        makers = set(pool.map(maker, range(50), timeout=LONG))
    assert len(log) == len(makers) <= 3


def test_closed_with_its_worker() -> None:
    """What a generator does after its value is done on the worker's thread, when that ends."""
    with ThreadPool(1) as pool:
        worker = pool.submit(connection).result(LONG)
        assert pool.submit(connection).result(LONG) == worker
        assert log == ["open"]
    assert log == ["open", f"closed {worker}"]


def test_on_a_loop() -> None:
    """All coroutines of a loop share one; it is closed when the loop has ended."""

    async def use() -> str:
        return connection()

    with LoopPool() as pool:
        (worker,) = {pool.submit(use).result(LONG) for _ in range(5)}
    assert log == ["open", f"closed {worker}"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_in_processes(method: str, tmp_path: Path) -> None:
    """A worker process makes one of its own, and closes it when it leaves."""
    start = multiprocessing.get_context(method)
    with ProcessPool(2, mp_context=start, initializer=use_folder, initargs=(tmp_path,)) as pool:
        used = set(pool.map(file_of, range(20), timeout=LONG))
    assert used <= set(tmp_path.iterdir())
    assert {path.read_text() for path in used} == {"open\nclosed\n"}


def test_inherited_by_no_child(in_fork: Callable[..., Any]) -> None:
    """A forked child doesn't use what its parent has opened, nor closes it."""
    mine = connection()
    try:
        assert in_fork(lambda: connection() != mine)
        assert log == ["open"]
    finally:
        connection_is_over()


def connection_is_over() -> None:
    """Close what this thread keeps."""
    from parallel.kept import close_kept

    close_kept()


def test_by_value() -> None:
    """A closure travels by value, and is the same resource in all calls of a worker."""
    made = per_worker(lambda: {"maker": here()})
    with ProcessPool(1) as pool:
        first, second = (pool.submit(lambda: (id(made()), made()["maker"])).result(LONG) for _ in range(2))
    assert first == second


def test_as_an_argument() -> None:
    """It can be handed to a call; the worker has its own."""
    with ProcessPool(1) as pool:
        assert pool.submit(use, table).result(LONG) != here()


def use(resource: PerWorker[dict[str, str]]) -> str:
    """Ask who made it."""
    return resource()["maker"]


def test_a_failure_is_tried_again() -> None:
    """What it raises comes out of the call; the next one makes it anew."""
    tries: list[int] = []

    @per_worker
    def second_time() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError
        return len(tries)

    with ThreadPool(1) as pool:
        assert isinstance(pool.submit(second_time).exception(LONG), ConnectionError)
        assert [pool.submit(lambda: second_time()).result(LONG) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize("how", ["raises", "yields again"])
def test_a_close_that_fails_is_logged(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """The worker ends in peace, and the others are closed too."""

    @per_worker
    def broken() -> Iterator[int]:
        yield 1
        if how == "raises":
            raise ConnectionError("lost")
        yield 2

    with ThreadPool(1) as pool:
        pool.submit(lambda: (connection(), broken())).result(LONG)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "broken" in caplog.text
    assert log[-1].startswith("closed")


def test_closed_in_reverse_order() -> None:
    """What was made with the help of another is closed before that."""
    order: list[str] = []

    @per_worker
    def ground() -> Iterator[str]:
        yield "ground"
        order.append("ground")

    @per_worker
    def roof() -> Iterator[str]:
        yield ground() + "roof"
        order.append("roof")

    with ThreadPool(1) as pool:
        assert pool.submit(lambda: roof()).result(LONG) == "groundroof"
    assert order == ["roof", "ground"]


def test_without_a_value() -> None:
    """A generator has to yield one."""

    @per_worker
    def empty() -> Iterator[int]:
        yield from ()

    with pytest.raises(RuntimeError, match="without a value"):
        empty()


def needs(x: int) -> int:
    """Take an argument."""
    return x


@pytest.mark.parametrize("wrong", [3, jobs.async_double, needs, table, task(jobs.nothing)])
def test_what_cannot_be_kept(wrong: Any) -> None:
    """No function, a coroutine function, one with arguments, or one that is declared already."""
    with pytest.raises((TypeError, UnsuitableFunctionError)):
        per_worker(wrong)


def test_looks_like_its_function() -> None:
    """It keeps name and documentation, and tells what it is."""
    assert table.__name__ == "table"
    assert table.__doc__ == "Make a table that tells who made it."
    assert repr(table).endswith("test_resources:table>")
    assert table.local() is not table.local()


def test_with_tasks_and_maps() -> None:
    """Tasks and maps use it like any function; inline, it is the caller's."""
    with using({"pools": {"threads": {"kind": "thread", "max_workers": 2}}}):
        assert len(set(parallel_map(maker)(range(20)).result(LONG))) <= 2
        assert task(maker)().result(LONG) != here()
    with InlinePool() as pool:
        assert pool.submit(maker).result() == here()
    connection_is_over()


def test_closed_at_the_exit(run_script: Callable[[str], CompletedProcess[str]]) -> None:
    """What the main thread has made is closed at the program's end; what workers have, when they end."""
    script = """
        from parallel import per_worker, task

        @per_worker
        def thing():
            print("open", flush=True)
            yield 1
            print("closed", flush=True)

        thing()
        task(thing)().result()
        """
    assert run_script(dedent(script)).stdout.split() == ["open", "open", "closed", "closed"]

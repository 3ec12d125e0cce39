"""
What a function in a worker process can ask about its call: `current_task()`, `checkpoint()`, `sleep()`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import jobs
import pytest
from pools import process_jobs
from pools.process_jobs import wait_until

from parallel import Future, NoTaskError, ProcessPool, Registry, Retry, TaskGroup, current_task, gather, task, using

LONG = 30  # seconds; only a deadlock takes so long
METHODS = ["fork", "forkserver", "spawn"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with a pool of one process."""
    with using({"pools": {"one": {"kind": "process", "max_workers": 1}}}) as made:
        yield made


@pytest.mark.parametrize("options", [{}, {"retry": Retry(OSError)}, {"timeout": LONG}])
def test_facts(registry: Registry, options: Any) -> None:
    """A call knows its function, its number, its attempt, its pool, and that it may go on."""
    fn = task(pool="one", **options)(process_jobs.facts_of_call)
    first, second = fn().result(LONG), fn().result(LONG)
    assert first[0] == "pools.process_jobs:facts_of_call"
    assert first[2:] == (1, "process pool 'one'", None, False)
    assert first[1] != second[1]


def test_facts_of_a_lambda(registry: Registry) -> None:
    """A function that travels by value has its name as well."""
    name, pool = task(pool="one")(lambda: (current_task().name, current_task().pool))().result(LONG)
    assert (name, pool) == (f"{__name__}:test_facts_of_a_lambda.<locals>.<lambda>", "process pool 'one'")


def test_facts_of_a_coroutine(registry: Registry) -> None:
    """A coroutine that a worker runs is in a call, too."""

    async def body() -> str:
        return current_task().pool

    assert task(pool="one")(body)().result(LONG) == "process pool 'one'"


def test_attempts_share_the_number(registry: Registry, tmp_path: Path) -> None:
    """The attempts of a call are numbered from 1, and share its id."""
    retry = Retry(OSError, wait_initial=0, wait_max=0, wait_jitter=0)
    seen = task(pool="one", retry=retry)(process_jobs.facts_of_third_attempt)(str(tmp_path / "note")).result(LONG)
    assert [attempt for _, attempt in seen] == [1, 2, 3]
    assert len({number for number, _ in seen}) == 1


def test_calls_of_a_batch_are_told_apart() -> None:
    """Of many calls that travel together each has a number of its own."""
    with ProcessPool(1) as pool:
        pool.submit(process_jobs.facts_of_call).result(LONG)
        seen = [future.result(LONG)[1] for future in [pool.submit(process_jobs.facts_of_call) for _ in range(200)]]
    assert len(set(seen)) == len(seen)


def initializer_in_no_call() -> None:
    """Note whether the initializer runs in a call."""
    try:
        current_task()
    except NoTaskError:
        os.environ["IN_NO_CALL"] = "yes"


def test_initializer_is_in_no_call() -> None:
    """The initializer of a worker runs in no call."""
    with ProcessPool(1, initializer=initializer_in_no_call) as pool:
        assert pool.submit(os.getenv, "IN_NO_CALL").result(LONG) == "yes"


@pytest.mark.parametrize("how", ["looks", "checks", "sleeps"])
@pytest.mark.parametrize("options", [{}, {"retry": Retry(OSError)}])
def test_cancel_asks(registry: Registry, tmp_path: Path, how: str, options: Any) -> None:
    """cancel() of a running call says False, and asks the function, which ends at once if it looks."""
    note = tmp_path / "note"
    future = task(pool="one", **options)(process_jobs.work_until_asked)(str(note), how)
    wait_until(note.exists)
    assert future.cancel() is False
    if how == "looks":
        assert future.result(LONG) == "asked"
    else:
        with pytest.raises(CancelledError):
            future.result(LONG)
        assert future.cancelled()


@pytest.mark.parametrize("method", METHODS)
def test_asked_without_shared_memory(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is asked where processes can't share memory, whatever the start method."""
    monkeypatch.setattr("parallel.pools.process.peer.make_memory", lambda: None)
    note = tmp_path / "note"
    with ProcessPool(1, method) as pool:
        future = pool.submit(process_jobs.work_until_asked, str(note), "sleeps")
        wait_until(note.exists)
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(LONG)
        assert pool.submit(jobs.double, 4).result(LONG) == 8


def test_only_that_call_is_asked(tmp_path: Path) -> None:
    """A call that comes to a worker with the news that another is to stop goes on."""
    note = tmp_path / "note"
    with ProcessPool(1) as pool:
        asked = pool.submit(process_jobs.work_until_asked, str(note), "looks")
        others = [pool.submit(process_jobs.facts_of_call) for _ in range(20)]
        wait_until(note.exists)
        asked.cancel()
        assert asked.result(LONG) == "asked"
        assert not any(other.result(LONG)[-1] for other in others)


def test_many_calls_come_while_it_sleeps(tmp_path: Path) -> None:
    """What a worker is sent while its call sleeps is run afterwards, however much it is."""
    note = tmp_path / "note"
    with ProcessPool(1) as pool:
        asked = pool.submit(process_jobs.work_until_asked, str(note), "sleeps")
        wait_until(note.exists)
        others = [pool.submit(len, b"x" * size) for size in range(0, 400_000, 10_000)]
        asked.cancel()
        assert [other.result(LONG) for other in others] == list(range(0, 400_000, 10_000))


def test_group_asks(registry: Registry, tmp_path: Path) -> None:
    """A group that is cancelled asks those of its calls that run in processes."""
    note = tmp_path / "note"
    with TaskGroup() as group:
        future = task(pool="one")(process_jobs.work_until_asked)(str(note), "sleeps")
        wait_until(note.exists)
        group.cancel()
    assert future.cancelled()


def test_gather_asks(registry: Registry, tmp_path: Path) -> None:
    """When one of gathered calls fails, those that run in processes are asked."""
    note = tmp_path / "note"
    promise: Future[None] = Future()
    running = task(pool="one")(process_jobs.work_until_asked)(str(note), "checks")
    both = gather(promise, running)
    wait_until(note.exists)
    promise.set_exception(OSError())
    assert isinstance(both.exception(LONG), OSError)
    wait_until(running.done)


def test_pause_ends_by_itself(registry: Registry) -> None:
    """sleep() in a worker that nobody asks lasts as long as it says."""
    slept = task(pool="one")(process_jobs.time_of_sleep)("50ms").result(LONG)
    assert 0.05 <= slept < LONG


def test_deadline_is_inherited(registry: Registry) -> None:
    """A call that a worker makes ends with the deadline of the call that it is made in."""
    fn = task(pool="one", deadline=LONG)(process_jobs.left_of_deadline)
    mine, nested = fn().result(LONG)
    assert 0 < nested <= mine <= LONG


def test_deadline_ends_what_is_called(registry: Registry, tmp_path: Path) -> None:
    """A call that outlasts the deadline of the one around it ends with that, in the worker as well."""
    note = tmp_path / "note"
    began = time.monotonic()
    error = task(pool="one", deadline="500ms")(process_jobs.nested_overrun)(str(note)).exception(LONG)
    assert type(error).__name__ == "TaskTimeoutError"
    assert time.monotonic() - began < LONG


def test_no_deadline_for_the_next_call(registry: Registry) -> None:
    """The deadline of one call is not that of the next."""
    fn = task(pool="one")(process_jobs.left_of_deadline)
    assert fn.options(deadline=LONG)().result(LONG)[0] is not None
    assert fn().result(LONG) == (None, None)

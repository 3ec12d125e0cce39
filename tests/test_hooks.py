"""
Functions that are told what happens in a registry.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, cast

import jobs
import pytest
from attrs import evolve
from pools.process_jobs import wait_until

from parallel import ConfigError, Registry, Retry, configure, gather, task, using
from parallel.context import current_registry
from parallel.events import CallCancelled, CallFailed, CallRetried, CallSucceeded, Event, PoolClosed, PoolOpened

LONG = 30  # seconds; only a deadlock takes so long
NAME = f"{__name__}:divide"

heard: SimpleQueue[Event] = SimpleQueue()


def hear(event: Event) -> None:
    """Remember an event; what a configuration names."""
    heard.put(event)


async def hear_later(event: Event) -> None:
    """The same, as a coroutine."""
    await asyncio.sleep(0)
    heard.put(event)


not_a_function = 3


@task(pool="thread")
def divide(a: float, b: float) -> float:
    """Divide."""
    return a / b


def events(registry: Registry, *names: str) -> Callable[[], Any]:
    """Hear some events; returns what waits for the next."""
    queue: SimpleQueue[Event] = SimpleQueue()
    for name in names:
        registry.on(cast(Any, name), queue.put)
    return lambda: queue.get(timeout=LONG)


@pytest.mark.parametrize("kind", ["thread", "process", "loop", "inline"])
def test_calls_of_every_kind(kind: str, kinds: Registry) -> None:
    """How each call ends is told, with its task, its pool and its value or error."""
    next_one = events(kinds, "call_succeeded", "call_failed")
    fn = task(pool=kind)(jobs.to_async(jobs.divide) if kind == "loop" else jobs.divide)
    assert fn(6, 3).result(timeout=LONG) == 2
    assert evolve(next_one(), call_id=0) == CallSucceeded(kind, fn.name, 2)
    failed = fn(1, 0)
    assert isinstance(failed.exception(timeout=LONG), ZeroDivisionError)
    event = next_one()
    assert (type(event), event.pool, event.task) == (CallFailed, kind, fn.name)
    assert event.error is failed.exception()


def test_cancelled_calls() -> None:
    """One that is cancelled has neither."""
    with Registry({"pools": {"thread": {"kind": "thread", "max_workers": 1}}}) as registry, jobs.Gate() as gate:
        next_one = events(registry, "call_cancelled", "call_failed", "call_succeeded")
        held = task(pool="thread")(jobs.wait_at)(gate.address, 1)
        gate.arrived()
        assert divide(1, 1).cancel()
        assert evolve(next_one(), call_id=0) == CallCancelled("thread", NAME)
        gate.open()
        assert held.result(timeout=LONG) == 1
        assert evolve(next_one(), call_id=0) == CallSucceeded("thread", "jobs:wait_at", 1)


@pytest.mark.parametrize("kind", ["thread", "process", "loop", "inline"])
def test_attempts(kind: str, kinds: Registry) -> None:
    """Each failed attempt that is followed by another is told, then how the call ends."""
    next_one = events(kinds, "call_retried", "call_failed")
    retry = Retry(on=ZeroDivisionError, attempts=3, wait_initial=0, wait_jitter=0)
    fn = jobs.to_async(jobs.divide) if kind == "loop" else jobs.divide
    call = task(pool=kind, retry=retry)(fn)(1, 0)
    assert isinstance(call.exception(timeout=LONG), ZeroDivisionError)
    told = [next_one() for _ in range(3)]
    assert [type(each) for each in told] == [CallRetried, CallRetried, CallFailed]
    assert [(each.attempt, each.wait) for each in told[:2]] == [(1, 0.0), (2, 0.0)]


def test_events_come_in_order(kinds: Registry) -> None:
    """One after the other, however many threads make calls."""
    told: list[int] = []
    busy = threading.Lock()

    def note(event: CallSucceeded) -> None:
        assert busy.acquire(blocking=False)
        told.append(cast(int, event.value))
        busy.release()

    kinds.on("call_succeeded", note)
    one = task(pool="inline")(jobs.same)
    for index in range(500):
        one(index)
    kinds.drain(LONG)
    assert [value[0][0] for value in cast(Any, told)] == list(range(500))


def test_items_of_a_map(kinds: Registry) -> None:
    """Each is a call."""
    next_one = events(kinds, "call_succeeded", "call_failed")
    found = divide.map([1.0, 2.0, 3.0], [1.0, 0.0, 1.0], errors="collect").result(timeout=LONG)
    assert len(found) == 3
    told = sorted((next_one() for _ in range(3)), key=lambda event: str(type(event)))
    assert [type(each) for each in told] == [CallFailed, CallSucceeded, CallSucceeded]


def test_pools_are_told() -> None:
    """When they are asked for first, and when they take no more calls."""
    with Registry({"pools": {"a": {"kind": "thread"}}}) as registry:
        next_one = events(registry, "pool_opened", "pool_closed")
        registry.pool("a")
        registry.pool("a")
        assert next_one() == PoolOpened("a", "thread")
        registry.read_from({"pools": {"a": {"kind": "inline"}}}, None)
        assert next_one() == PoolClosed("a", "thread")
        registry.pool("a")
        assert next_one() == PoolOpened("a", "inline")
    assert next_one() == PoolClosed("a", "inline")


def test_an_error_in_a_hook(kinds: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and changes nothing else: neither the call nor the next hook."""

    def bad(event: CallFailed) -> None:
        raise LookupError(event.task)

    def leaves(event: CallFailed) -> None:
        raise SystemExit

    kinds.on("call_failed", bad)
    kinds.on("call_failed", leaves)
    next_one = events(kinds, "call_failed")
    with caplog.at_level(logging.ERROR, "parallel"):
        assert isinstance(divide(1, 0).exception(timeout=LONG), ZeroDivisionError)
        assert type(next_one()) is CallFailed
    assert [record.message.split(":")[0] for record in caplog.records] == ["exception in a hook for call_failed"] * 2


def test_a_hook_is_no_look(kinds: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A failure that nobody else looks at is reported as ever."""
    next_one = events(kinds, "call_failed")
    with caplog.at_level(logging.ERROR, "parallel"):
        divide(1, 0)
        event = next_one()
        del event
        wait_until(lambda: "nobody has looked at the error" in caplog.text)


def test_a_hook_that_calls_tasks(kinds: Registry) -> None:
    """Its calls go to the same registry, and tell no hooks: nothing goes round in circles."""
    told: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
    count: list[Event] = []

    def again(event: CallFailed) -> None:
        count.append(event)
        told.put((current_registry(), divide(1, 0).exception(timeout=LONG)))

    kinds.on("call_failed", again)
    assert divide(1, 0).exception(timeout=LONG) is not None
    registry, error = told.get(timeout=LONG)
    assert registry is kinds
    assert isinstance(error, ZeroDivisionError)
    kinds.drain(LONG)
    assert len(count) == 1


def test_taking_a_hook_back(kinds: Registry) -> None:
    """From then on it hears nothing, and calls cost what they did."""
    count: list[Event] = []
    kinds.on("call_succeeded", count.append)
    assert divide(1, 1).result(timeout=LONG) == 1
    kinds.drain(LONG)
    kinds.off("call_succeeded", count.append)
    kinds.off("call_succeeded", print)
    assert divide(1, 1).result(timeout=LONG) == 1
    kinds.drain(LONG)
    assert len(count) == 1
    assert type(divide(1, 1)).__name__ == "Future"


def test_as_a_decorator(kinds: Registry) -> None:
    """The function stays what it is."""
    came = threading.Event()

    @kinds.on("call_succeeded")
    def note(event: CallSucceeded) -> str:
        came.set()
        return event.task

    divide(1, 1)
    assert came.wait(LONG)
    assert note(CallSucceeded("a", "b", 1)) == "b"


def test_wrong_events(kinds: Registry) -> None:
    """The known ones are told."""
    with pytest.raises(
        ValueError, match=r"no event 'call_faild' \(did you mean 'call_failed'\?\); known: call_succeeded, "
    ):
        kinds.on(cast(Any, "call_faild"), print)
    with pytest.raises(ValueError, match="no event 3"):
        kinds.on(cast(Any, 3), print)
    with pytest.raises(TypeError, match="expected a function that is called with each event, found 3"):
        kinds.on("call_failed", cast(Any, 3))


def test_hooks_of_a_configuration() -> None:
    """A file names them: one, or several; they are imported when the first pool is needed."""
    on = {"call_failed": f"{__name__}:hear", "call_succeeded": [f"{__name__}:hear_later", "no.such:thing"]}
    with (
        using({"pools": {"thread": {"kind": "thread"}}, "on": on}),
        pytest.raises(ConfigError, match=r"on\.call_succeeded: expected something to import, found 'no.such:thing'"),
    ):
        divide(1, 1)
    on["call_succeeded"] = f"{__name__}:hear_later"
    with using({"pools": {"thread": {"kind": "thread"}}, "on": on}) as registry:
        gather(divide(1, 1), divide(1, 0).catch(ZeroDivisionError, repr)).result(timeout=LONG)
        assert {type(heard.get(timeout=LONG)) for _ in range(2)} == {CallSucceeded, CallFailed}
        registry.read_from({"pools": {"thread": {"kind": "thread"}}}, None)
        assert divide(1, 1).result(timeout=LONG) == 1
        registry.drain(LONG)
    assert heard.empty()


@pytest.mark.parametrize(
    ("on", "problem"),
    [
        (
            {"call_faild": "a:b"},
            r"on.call_faild: unknown event \(did you mean 'call_failed'\?\); known: call_succeeded, ",
        ),
        (
            {"call_failed": "a.b"},
            r"on.call_failed: expected an import string .*found string 'a.b' \(did you mean 'a:b'",
        ),
        ({"call_failed": ["a:b", 3]}, r"on.call_failed: expected an import string .*found integer 3"),
        (3, "on: expected a table, found integer 3"),
    ],
)
def test_wrong_hooks_in_a_configuration(on: object, problem: str) -> None:
    """They are mistakes as any other."""
    with pytest.raises(ConfigError, match=problem):
        Registry({"on": on})
    with pytest.raises(ConfigError, match=f"on.call_failed: expected a function, found '{__name__}:not_a_function'"):
        configure({"on": {"call_failed": f"{__name__}:not_a_function"}}).pool("threads")

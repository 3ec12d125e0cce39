"""
Events of steps: of each call all of them come, in order, to hooks and streams; of its registry, and of no other.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jobs
import pytest
from observe import seen_jobs
from pools.process_jobs import wait_until

from parallel import (
    PoolShutdownError,
    ProcessPool,
    Registry,
    Retry,
    TaskTimeoutError,
    ThreadPool,
    gather,
    parallel_map,
    task,
    trail,
    using,
)
from parallel.events import (
    CallCreated,
    CallEnded,
    CallEvent,
    CallQueued,
    CallRetried,
    CallStarted,
    Event,
    PoolClosed,
    PoolOpened,
    PoolResized,
    WorkerEnded,
    WorkerStarted,
)
from parallel.tidings import EventStream

LONG = 30.0
KINDS = ["thread", "process", "loop", "inline"]
FOUR = {"pools": {kind: {"kind": kind} for kind in KINDS}}


def told_by(body: Callable[[Registry], object], source: Any = None) -> list[Event]:
    """What a registry tells of what *body* does in it, to its end."""
    with Registry(source or FOUR) as registry, using(registry):
        stream = registry.events()
        body(registry)
    return list(stream)


def names(events: list[Event], of: str | None = None) -> list[str]:
    """The names of events; of one task."""
    return [event.event for event in events if of is None or (isinstance(event, CallEvent) and event.task == of)]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_call(kind: str) -> None:
    """Made, queued, begun, ended: one event each, in order, with who ran it and when."""
    fn = jobs.async_double if kind == "loop" else jobs.double
    before = time.time()
    events = told_by(lambda registry: registry.pool(kind).submit(fn, 2).result(LONG))
    steps = [event for event in events if isinstance(event, CallEvent)]
    assert [type(step) for step in steps] == [CallCreated, CallQueued, CallStarted, CallEnded]
    created, queued, started, ended = steps
    assert isinstance(created, CallCreated)
    assert isinstance(started, CallStarted)
    assert isinstance(ended, CallEnded)
    assert {step.pool for step in steps} == {kind}
    assert {step.task for step in steps} == {f"jobs:{fn.__name__}"}
    assert {step.call_id for step in steps} == {created.call_id}
    assert (created.parent, created.follows, created.items) == (None, None, 0)
    assert before - 0.01 <= created.at <= queued.at <= started.at <= ended.at <= time.time() + 0.01
    assert (ended.state, ended.error, ended.attempt, ended.started_at) == ("succeeded", None, 1, started.at)
    assert started.worker == ended.worker
    if kind == "process":
        assert started.worker.startswith("process ")
    elif kind == "inline":
        assert started.worker == threading.current_thread().name
    else:
        assert started.worker.startswith("parallel-")


@pytest.mark.parametrize("kind", KINDS)
def test_pools_and_their_workers(kind: str) -> None:
    """A pool opens, its workers come and go, it closes; all is told by its registry alone."""
    fn = jobs.to_async(jobs.double) if kind == "loop" else jobs.double

    def body(registry: Registry) -> None:
        with ThreadPool(1) as other:
            other.submit(jobs.double, 1).result(LONG)
        registry.pool(kind).submit(fn, 2).result(LONG)

    events = [event for event in told_by(body) if not isinstance(event, CallEvent)]
    assert {event.pool for event in events} == {kind}
    assert events[0] == PoolOpened(kind, kind, at=events[0].at)
    assert PoolClosed in map(type, events)
    started = [event.worker for event in events if isinstance(event, WorkerStarted)]
    ended = [event.worker for event in events if isinstance(event, WorkerEnded)]
    assert sorted(started) == sorted(ended)
    assert len(started) == (kind != "inline")
    assert all(event.death == "" for event in events if isinstance(event, WorkerEnded))


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_retries(kind: str) -> None:
    """Each attempt is queued and begins; the last one ends the call."""
    retry = Retry(on=ZeroDivisionError, attempts=3, wait_initial=0.01, wait_jitter=0)
    events = told_by(lambda _: task(jobs.divide, pool=kind, retry=retry)(1, 0).exception(LONG))
    one = ["call_queued", "call_started", "call_retried"]
    assert names(events, "jobs:divide") == ["call_created", *one, *one, "call_queued", "call_started", "call_ended"]
    assert [event.attempt for event in events if isinstance(event, CallRetried)] == [1, 2]
    assert [event.attempt for event in events if isinstance(event, CallStarted)] == [1, 2, 3]
    (ended,) = (event for event in events if isinstance(event, CallEnded))
    assert (ended.state, type(ended.error), ended.attempt) == ("failed", ZeroDivisionError, 3)
    seconds = ended.queued_at - events[0].at
    assert seconds >= 0.02, "what it waited between attempts is no time in the queue"


@pytest.mark.parametrize("kind", ["thread", "process", "loop"])
def test_a_call_that_overruns(kind: str) -> None:
    """It ends when its time is over, whatever its body does."""
    nap = seen_jobs.later_nap if kind == "loop" else seen_jobs.nap
    events = told_by(lambda _: task(nap, pool=kind, timeout=0.1)(4.0).exception(LONG))
    (ended,) = (event for event in events if isinstance(event, CallEnded))
    assert (ended.state, type(ended.error)) == ("failed", TaskTimeoutError)
    assert ended.started_at is not None
    assert 0.05 < ended.at - ended.started_at < 3.5
    assert names(events, ended.task)[-1] == "call_ended"


def test_a_call_that_never_begins() -> None:
    """What is cancelled in the queue ends so, on nobody."""

    def body(registry: Registry) -> None:
        pool = registry.pool("one")
        with jobs.Gate() as gate:
            first = pool.submit(jobs.wait_at, gate.address)
            gate.arrived()
            assert pool.submit(jobs.double, 1).cancel()
            gate.open()
            first.result(LONG)

    events = told_by(body, {"pools": {"one": {"kind": "thread", "max_workers": 1}}})
    assert names(events, "jobs:double") == ["call_created", "call_ended"]
    (ended,) = (event for event in events if isinstance(event, CallEnded) and event.task == "jobs:double")
    assert (ended.state, ended.error, ended.worker, ended.started_at) == ("cancelled", None, "", None)


def test_a_worker_that_dies() -> None:
    """Its death is told, and so is the end of its call."""
    events = told_by(lambda registry: registry.pool("process").submit(os._exit, 3).exception(LONG))
    (ended,) = (event for event in events if isinstance(event, CallEnded))
    assert (ended.state, type(ended.error).__name__) == ("failed", "WorkerDiedError")
    deaths = [event.death for event in events if isinstance(event, WorkerEnded) and event.death]
    assert deaths == ["exited with status 3"]
    assert ended.worker.startswith("process ")


def test_who_makes_and_follows_whom() -> None:
    """Calls in calls name their parent; what follows a call names that, also on the callback threads."""

    def outer(number: int) -> int:
        return task(jobs.double, pool="process")(number).then(jobs.add).result(LONG)

    events = told_by(lambda _: task(outer, pool="thread")(1).result(LONG))
    created = {event.task: event for event in events if isinstance(event, CallCreated)}
    one, two, three = (created[name] for name in (f"{__name__}:{outer.__qualname__}", "jobs:double", "jobs:add"))
    assert (one.parent, one.follows) == (None, None)
    assert (two.parent, two.follows) == (one.call_id, None)
    assert three.follows == two.call_id
    assert three.pool == ""
    assert names(events, "jobs:add") == ["call_created", "call_queued", "call_started", "call_ended"]


@pytest.mark.parametrize("kind", ["thread", "process", "loop"])
def test_a_stream_that_comes_late(kind: str) -> None:
    """Pools and workers that were there before are known by their names and kinds all the same."""
    fn = jobs.async_double if kind == "loop" else jobs.double
    with Registry(FOUR) as registry:
        pool = registry.pool(kind)
        pool.submit(fn, 1).result(LONG)
        (worker,) = pool.at_work()
        stream = registry.events()
        pool.submit(fn, 2).result(LONG)
    events = list(stream)
    started = next(event for event in events if isinstance(event, CallStarted))
    assert started.worker == worker.name
    closed = next(event for event in events if isinstance(event, PoolClosed))
    assert (closed.pool, closed.kind) == (kind, kind)


def test_maps() -> None:
    """They are seen in pieces, each with the number of its items."""
    events = told_by(lambda _: sum(parallel_map(jobs.double, pool="process")(range(1000))))
    created = [event for event in events if isinstance(event, CallCreated)]
    assert sum(event.items for event in created) == 1000
    assert Counter(names(events))["call_ended"] == len(created)


def test_arguments_that_are_waited_for() -> None:
    """A call is queued once its arguments are there."""
    with jobs.Gate() as gate:

        def body(_: Registry) -> None:
            slow = task(jobs.wait_at, pool="thread")(gate.address, 3)
            gate.arrived()
            double = task(jobs.double, pool="thread")(slow)
            time.sleep(0.06)
            gate.open()
            assert double.result(LONG) == 6

        events = told_by(body)
    of_double = [event for event in events if isinstance(event, CallEvent) and event.task == "jobs:double"]
    assert of_double[1].at - of_double[0].at > 0.05


def test_a_pool_that_is_resized() -> None:
    """That is told."""

    def body(registry: Registry) -> None:
        pool = registry.pool("process")
        assert isinstance(pool, ProcessPool)
        pool.max_workers = 7

    resized = [event for event in told_by(body) if isinstance(event, PoolResized)]
    assert [(event.pool, event.max_workers) for event in resized] == [("process", 7)]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_many_calls(kind: str) -> None:
    """None is lost, none told twice, and each has its steps in order."""

    def body(registry: Registry) -> None:
        pool = registry.pool(kind)
        gather(*(pool.submit(jobs.double, number) for number in range(3000))).result(LONG)

    events = [event for event in told_by(body) if isinstance(event, CallEvent)]
    assert len({event.call_id for event in events}) == 3000
    steps: dict[int, list[str]] = {}
    for event in events:
        steps.setdefault(event.call_id, []).append(event.event)
    assert set(map(tuple, steps.values())) == {("call_created", "call_queued", "call_started", "call_ended")}


def test_a_storm_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes calls faster than they can be told of looks after that himself: what waits is bounded."""
    monkeypatch.setattr(trail, "BEHIND", 1000)
    monkeypatch.setattr(trail, "PULSE", 3600)
    with Registry(FOUR) as registry:
        stream = registry.events()
        pool = registry.pool("inline")
        for number in range(1000):
            pool.submit(jobs.double, number)
            assert trail.current is not None
            assert len(trail.current.noted) < 2000
        with stream:
            assert sum(isinstance(next(stream), CallEnded) for _ in range(3600)) > 800


# -- hooks ------------------------------------------------------------------------------------------------------------


def test_hooks() -> None:
    """They get the steps that they are for, and no others; when the last has gone nobody follows."""
    with Registry(FOUR) as registry, using(registry):
        started: list[CallStarted] = []
        ended: list[CallEnded] = []
        registry.on("call_started", started.append)
        registry.on("call_ended", ended.append)
        registry.pool("thread").submit(jobs.double, 1).result(LONG)
        wait_until(lambda: len(started) == len(ended) == 1)
        registry.off("call_started", started.append)
        assert trail.current is not None
        registry.off("call_ended", ended.append)
        assert trail.current is None


def test_hooks_are_told_to_the_end() -> None:
    """What happens last before the shutdown is told before it returns."""
    ended: list[CallEnded] = []
    with Registry(FOUR) as registry, using(registry):
        registry.on("call_ended", ended.append)
        futures = [registry.pool("thread").submit(jobs.double, 1) for _ in range(100)]
    assert len(ended) == len(futures)


def test_hooks_that_make_calls() -> None:
    """Their calls, and what those make, are not told: that would go on for ever."""
    made: list[int] = []

    def again(event: CallCreated) -> None:
        made.append(event.call_id)
        assert task(nested, pool="thread")().result(LONG) == 4

    def nested() -> int:
        return task(jobs.double, pool="thread")(2).then(jobs.same).then(lambda _: 4).result(LONG)

    with Registry(FOUR) as registry, using(registry):
        registry.on("call_created", again)
        task(jobs.nothing, pool="thread")().result(LONG)
    assert len(made) == 1


def test_hooks_of_a_configuration() -> None:
    """A file may name them."""
    seen_jobs.heard.clear()
    with Registry({**FOUR, "on": {"call_started": "observe.seen_jobs:hear"}}) as registry:
        registry.pool("thread").submit(jobs.double, 1).result(LONG)
    assert [type(event) for event in seen_jobs.heard] == [CallStarted]


HOOK_AT_EXIT = """
from parallel import task
from parallel.registry import default_registry

default_registry().on("call_ended", lambda event: print(event.task, event.state))

@task(pool="threads")
def last():
    pass

last()
"""


def test_hooks_at_the_exit(run_script: Callable[..., Any]) -> None:
    """The last call of a program is told."""
    done = run_script(HOOK_AT_EXIT)
    assert done.stdout == "__main__:last succeeded\n"
    assert done.stderr == ""


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_waits() -> None:
    """Its reader gets each event as it comes, and ends with the registry."""
    read: list[Event] = []
    with Registry(FOUR) as registry:
        stream = registry.events()
        reader = threading.Thread(target=lambda: read.extend(stream))
        reader.start()
        registry.pool("thread").submit(jobs.double, 1).result(LONG)
        wait_until(lambda: "call_ended" in names(read))
        assert reader.is_alive()
    reader.join(LONG)
    assert not reader.is_alive()
    assert names(read)[-2:] == ["pool_closed", "worker_ended"]


def test_a_stream_that_is_closed() -> None:
    """It ends for whoever reads it, and nobody follows any more."""
    with Registry(FOUR) as registry:
        registry.pool("thread")
        with registry.events() as stream:
            assert trail.current is not None
            reader = threading.Thread(target=list, args=[stream])
            reader.start()
            stream.close()
            reader.join(LONG)
            assert not reader.is_alive()
        assert trail.current is None
        assert list(stream) == []


def test_two_streams() -> None:
    """Each gets all."""
    with Registry(FOUR) as registry:
        one, two = registry.events(), registry.events()
        registry.pool("thread").submit(jobs.double, 1).result(LONG)
    assert names(list(one)) == names(list(two))


def test_a_stream_that_nobody_reads() -> None:
    """It keeps the last, and counts what it dropped; one that is forgotten takes no room."""
    with Registry(FOUR) as registry:
        stream = registry.events(most=10)
        forgotten = registry.events()
        del forgotten
        gc.collect()
        gather(*(registry.pool("thread").submit(jobs.double, 1) for _ in range(50))).result(LONG)
    left = list(stream)
    assert len(left) == 10
    assert stream.dropped >= 4 * 50 - 10
    assert "pool_closed" in names(left)


def test_bad_streams() -> None:
    """What can't be is refused."""
    with Registry(FOUR) as registry, pytest.raises(ValueError, match="most must be 1 or more, found 0"):
        registry.events(most=0)
    with pytest.raises(PoolShutdownError):
        registry.events()


def test_in_a_forked_child(in_fork: Callable[..., Any]) -> None:
    """A parent's stream is at its end there; a hook goes on."""
    with Registry(FOUR) as registry, using(registry):
        stream = registry.events()
        ended: list[Event] = []
        registry.on("call_ended", ended.append)
        task(jobs.double, pool="thread")(2).result(LONG)

        def child() -> tuple[int, int]:
            ended.clear()
            task(jobs.double, pool="thread")(2).result(LONG)
            wait_until(lambda: len(ended))
            return len(list(stream)), len(ended)

        assert in_fork(child) == (0, 1)


STREAM_AT_EXIT = """
import threading
from parallel import task
from parallel.registry import default_registry

stream = default_registry().events()
threading.Thread(target=lambda: print(*(event.event for event in stream if event.pool))).start()

@task(pool="threads")
def last():
    pass

last()
"""


def test_a_stream_at_the_exit(run_script: Callable[..., Any]) -> None:
    """Whoever reads it doesn't keep the program from ending."""
    done = run_script(STREAM_AT_EXIT)
    assert done.stdout.split()[-1] in ("worker_ended", "call_ended")
    assert "call_started call_ended" in done.stdout


def test_registries_are_told_apart() -> None:
    """What happens in another is not told."""
    with Registry(FOUR) as one, Registry(FOUR) as two:
        stream: EventStream = one.events()
        two.pool("thread").submit(jobs.double, 1).then(jobs.same).result(LONG)
        one.pool("thread").submit(jobs.add, 1).result(LONG)
    assert {event.task for event in stream if isinstance(event, CallEvent)} == {"jobs:add"}

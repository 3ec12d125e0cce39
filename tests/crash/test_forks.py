"""
Forks while pools are open, calls run, and other threads hold locks of the library.

The child has the configuration and none of the parent's workers: all kinds work there anew, and what was pending raises
instead of hanging. The parent notices nothing.
"""

from __future__ import annotations

import io
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import jobs
import pytest
from crash import fork_jobs
from crash.locks import inner_lock, locks_of_package

import parallel.bars
import parallel.context
import parallel.observe.statistics
import parallel.pools.base
import parallel.pools.distant.telling
import parallel.pools.distant.worker
import parallel.pools.process.launching
import parallel.pools.process.starting
import parallel.registry
import parallel.runs
import parallel.storage
import parallel.trail
import parallel.unseen
from parallel import (
    ForkedError,
    Future,
    Registry,
    TaskGroup,
    as_completed,
    completed,
    gather,
    parallel_map,
    task,
    using,
    wait,
)
from parallel.context import current_registry
from parallel.deadlines import Deadline
from parallel.limits import Limits
from parallel.pools.distant.connection import CONNECTION
from parallel.timer import TIMER

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
LONG = 30  # seconds; only a deadlock takes so long
SOON = 10  # seconds; as LONG, in a child, so that it tells by itself what hangs
KINDS = ("thread", "process", "loop", "inline")
CONFIG: Final = {
    "pools": {
        "thread": {"kind": "thread", "max_workers": 1},
        "ranked": {"kind": "thread", "max_workers": 1, "memory_free": "1kB"},
        "gated": {"kind": "thread", "max_workers": 1, "max_pending": 5},
        "process": {"kind": "process", "max_workers": 1},
        "loop": {"kind": "loop", "max_workers": 1},
        "executor": {"kind": "executor", "factory": "concurrent.futures:ThreadPoolExecutor", "max_workers": 1},
        "inline": {"kind": "inline"},
    },
}


@task(pool="thread", limit=3, rate="1000000/s")
def limited(x: int) -> int:
    """A task whose calls take places."""
    return x + 1


@task(pool="thread", timeout=20)
def timed(x: int) -> int:
    """A task that the timer looks after."""
    return x + 1


@task(pool="loop")
async def looped(x: int) -> int:
    """A task of an event loop."""
    return x + 1


@parallel_map(pool="thread")
def mapped(x: int) -> int:
    """A map."""
    return x + 1


class World:
    """
    A program in the middle of its work: a registry with an open pool of each kind, and calls that are at the gate.

    Attributes:
        running: A call of each kind that runs.
        queued: One that waits behind it.
    """

    def __init__(self, gate: jobs.Gate) -> None:
        self.steps: list[parallel.trail.Step] = []
        self.trail = parallel.trail.follow(self.steps.extend)
        self.registry = Registry(CONFIG)
        with using(self.registry):
            pools = self.pools = {name: self.registry.pool(name) for name in CONFIG["pools"]}
            self.tasks = {name: task(pool=name)(jobs.async_double if name == "loop" else jobs.double) for name in pools}
            assert [each(2).result(LONG) for each in self.tasks.values()] == [4] * len(pools)
            assert completed(1).then(jobs.double).result(LONG) == 2
            waits: dict[str, Callable[..., Any]] = {"loop": jobs.to_thread(fork_jobs.wait_at)}
            busy = [name for name in pools if name != "inline"]
            self.running = [pools[name].submit(waits.get(name, fork_jobs.wait_at), gate.address) for name in busy]
            gate.arrived(len(busy))
            self.queued = [pools[name].submit(waits.get(name, fork_jobs.wait_at), gate.address) for name in busy]
            self.promises: list[Future[int]] = [Future() for _ in range(4)]
            self.watched = self.promises[0]
            self.watch = self.watched._condition
            self.gathered = gather(*self.promises[1:3])
            self.coming = as_completed([self.promises[3], completed(1)])
            assert next(self.coming).result() == 1
            self.map = mapped(range(20))
            self.group = TaskGroup()
            self.deadline = Deadline(600)
            self.file = io.StringIO()
            self.printed = parallel.bars._Printed(self.file, cast(Any, None))
            self.printed._line = "the parent's"
            parallel.bars._stage._printed.append(self.printed)
            self.closed = Registry({})
            self.closed.shutdown()
            self.run_of_call = parallel.runs.run_of(self.running[0])
            self.run_of_call._event()

    def use(self) -> list[str]:
        """Use everything, in a child; return what went wrong."""
        wrong: list[str] = []
        for step in (
            self._use_pending,
            self._use_promises,
            self._use_map_at_work,
            self._use_printed,
            self._use_pools,
            self._use_tasks,
            self._use_group,
            self._use_map,
            self._use_new,
            self._drop,
            self._end,
        ):
            try:
                step()
            except BaseException as error:
                wrong.append(f"{step.__name__}: {type(error).__name__}: {error}")
        return wrong

    def _use_pending(self) -> None:
        for future in self.running + self.queued[::2]:
            raises_forked(future)
        for future in self.queued:
            future.cancel()
            assert future.done()
        self.run_of_call.cancel(kill=True)

    def _use_promises(self) -> None:
        for promise in self.promises:
            promise.set_result(1)
        assert wait([self.watched], SOON).not_done == set()
        assert self.watched.result(SOON) == 1
        assert self.gathered.result(SOON) == (1, 1)
        assert next(self.coming).result(SOON) == 1

    def _use_map_at_work(self) -> None:
        raises_forked(self.map)
        with pytest.raises(ForkedError):
            list(self.map)

    def _use_printed(self) -> None:
        assert self.file.getvalue() == ""
        self.printed.write("the child's\n")
        assert self.file.getvalue() == "the child's\n"

    def _use_pools(self) -> None:
        with using(self.registry):
            calls = {name: each(3) for name, each in self.tasks.items()}
            assert {name: call.result(SOON) for name, call in calls.items()} == dict.fromkeys(calls, 6)
            assert calls["process"].then(jobs.double).then(self.tasks["thread"]).result(SOON) == 24
            for pool in self.pools.values():
                fn: Any = jobs.async_double if pool.kind == "loop" else jobs.double
                assert pool.submit(fn, 1).result(SOON) == 2
                pool.stats()
                repr(pool)

    def _use_tasks(self) -> None:
        with using(self.registry):
            assert gather(*(limited(x) for x in range(10))).result(SOON) == tuple(range(1, 11))
            assert timed(1).then(looped).result(SOON) == 3
            assert timed.options(deadline=600)(1).result(SOON) == 2
            self.registry.on("call_succeeded", print)
            self.registry.off("call_succeeded", print)
            assert timed(1).result(SOON) == 2

    def _use_group(self) -> None:
        with using(self.registry), TaskGroup(timeout=600, limit=2) as group:
            calls = [timed(x) for x in range(5)]
        assert [call.result(SOON) for call in calls] == [1, 2, 3, 4, 5]
        del group

    def _use_map(self) -> None:
        with using(self.registry):
            assert list(mapped(range(50))) == list(range(1, 51))
            assert list(mapped.stream(range(50))) == list(range(1, 51))

    def _use_new(self) -> None:
        with Registry(CONFIG):
            assert timed(1).then(looped).result(SOON) == 3
        assert parallel.task(jobs.double)(2).result(SOON) == 4
        assert parallel.registry.default_registry() is current_registry()

    def _drop(self) -> None:
        failed: Future[None] = Future()
        failed.set_exception(ValueError("nobody looks"))
        del failed
        self.running.clear()
        self.queued.clear()
        del self.gathered, self.coming, self.map

    def _end(self) -> None:
        self.registry.shutdown()
        self.closed.shutdown()
        parallel.registry.reset()
        parallel.pools.base._at_exit()
        parallel.unseen._at_exit()


def raises_forked(future: Future[Any]) -> None:
    """See that a pending future of the parent's raises."""
    with pytest.raises(ForkedError):
        future.result(SOON)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A program in the middle of its work."""
    with jobs.Gate() as gate:
        made = World(gate)
        yield made
        parallel.trail.leave(made.steps.extend)
        gate.open()
        for future in made.running + made.queued:
            future.result(LONG)
        made.registry.shutdown()
        parallel.registry.reset()


# -- locks that are held ----------------------------------------------------------------------------------------------

WORLDS: Final[dict[str, Callable[[World], Any]]] = {
    "parallel.bars:_Stage._lock": lambda world: parallel.bars._stage._lock,
    "parallel.bars:_Printed._lock": lambda world: world.printed._lock,
    "parallel.combine:_Roll._lock": lambda world: world.coming._roll._lock,
    "parallel.company:Company._lock": lambda world: world.group._lock,
    "parallel.context:_renewing": lambda world: parallel.context._renewing,
    "parallel.deadlines:Deadline._lock": lambda world: world.deadline._lock,
    "parallel.following:CallbackThreads._lock": lambda world: world.registry._callbacks._lock,
    "parallel.gates:Gate._lock": lambda world: world.pools["gated"].gate._lock,
    "parallel.hooks:Hooks._lock": lambda world: world.registry._hooks._lock,
    "parallel.hooks:Hooks._turn": lambda world: world.registry._hooks._turn,
    "parallel.limits:Limits._lock": lambda world: limits_of(limited, world)._lock,
    "parallel.meetings:Meeting._lock": lambda world: world.gathered.feeds[0]._meeting._lock,
    "parallel.outcomes:Watch.lock": lambda world: world.watch,
    "parallel.pools.crew:Crew._lock": lambda world: world.pools["thread"]._engine._lock,
    "the lock of the callback threads": lambda world: world.registry.callbacks._lock,
    "parallel.pools.desk:Desk._lock": lambda world: world.registry._desk._lock,
    "parallel.pools.distant.connection:Connection._lock": lambda world: CONNECTION._lock,
    "parallel.pools.distant.telling:_lock": lambda world: parallel.pools.distant.telling._lock,
    "parallel.pools.distant.worker:_lock": lambda world: parallel.pools.distant.worker._lock,
    "parallel.pools.handing:Tally._lock": lambda world: world.pools["process"]._handed._lock,
    "the tally of a loop": lambda world: world.pools["loop"]._engine.handed._lock,
    "parallel.pools.looping:LoopingEngine._lock": lambda world: world.pools["loop"]._engine._lock,
    "parallel.pools.process.books:Books.lock": lambda world: world.pools["process"]._engine._books.lock,
    "parallel.pools.process.dispatching:Dispatching.gate": lambda world: (
        world.pools["process"]._engine._dispatching.gate
    ),
    "parallel.pools.process.launching:_lock": lambda world: parallel.pools.process.launching._lock,
    "parallel.pools.process.servers:Server._lock": lambda world: parallel.pools.process.launching._shared.server._lock,
    "parallel.pools.process.starting:_lock": lambda world: parallel.pools.process.starting._lock,
    "parallel.pools.process.starting:tracker._lock": lambda world: (
        multiprocessing.resource_tracker._resource_tracker._lock
    ),
    "parallel.pools.process.starting:server._lock": lambda world: multiprocessing.forkserver._forkserver._lock,
    "parallel.pools.sparing:SparingCrew._enough": lambda world: world.pools["ranked"]._engine._enough,
    "parallel.registry:Registry._drained": lambda world: world.closed._drained,
    "parallel.registry:Registry._lock": lambda world: world.registry._lock,
    "parallel.registry:_default_lock": lambda world: parallel.registry._default_lock,
    "parallel.runs:Run._asked": lambda world: world.run_of_call._asked,
    "parallel.runs:_events": lambda world: parallel.runs._events,
    "parallel.streams:MapFuture._turn": lambda world: world.map._turn,
    "parallel.timer:Timer.lock": lambda world: TIMER.lock,
    "parallel.observing:Observation._lock": lambda world: world.registry._observation._lock,
    "parallel.observe.shared:Shared._lock": lambda world: parallel.observe.statistics._counting._lock,
    "parallel.trail:_lock": lambda world: parallel.trail._lock,
    "parallel.trail:Trail._turn": lambda world: world.trail._turn,
    "parallel.unseen:_lock": lambda world: parallel.unseen._lock,
}
"""How to come by each lock."""


SAME: Final = {
    "parallel.gates:Gate._room": "parallel.gates:Gate._lock",
    "parallel.groups:TaskGroup._lock": "parallel.company:Company._lock",
    "parallel.outcomes:Watch._standard": "parallel.outcomes:Watch.lock",
    "parallel.pools.crew:Crew._quiet": "parallel.pools.crew:Crew._lock",
    "parallel.pools.desk:Desk._quiet": "parallel.pools.desk:Desk._lock",
    "parallel.pools.handing:Tally._quiet": "parallel.pools.handing:Tally._lock",
    "parallel.pools.intake:Intake._lock": "parallel.pools.crew:Crew._lock",
    "parallel.pools.intake:Intake._quiet": "parallel.pools.crew:Crew._lock",
    "parallel.pools.looping:LoopingEngine._quiet": "parallel.pools.looping:LoopingEngine._lock",
    "parallel.pools.process.engine:Staff._lock": "parallel.pools.process.books:Books.lock",
    "parallel.pools.process.engine:Staff._quiet": "parallel.pools.process.books:Books.lock",
    "parallel.timer:Timer._gone": "parallel.timer:Timer.lock",
}
"""Where one of these is kept besides: by a subclass, or in a condition."""

HARMLESS: Final = {
    "parallel.attempts:Attempt._claim": "nobody waits for it: who doesn't get it at once goes away",
    "parallel.call:Call._turn": "the thread that waits there is in the call, and forks nothing; limits forget the call",
    "parallel.interrupts:Bell._lock": "of the program `parallel map`, which ends in its own process",
    "parallel.tidings:EventStream._arrived": "in the child a stream ends before it looks",
    "parallel.outcomes:LockType": "only its type is wanted",
    "parallel.outcomes:_RLock": "only its type is wanted",
    "parallel.outcomes:waiter.event": "the thread's own that waits there",
    "parallel.pools.distant.bridge:Bridge._tried": "the child has another engine",
    "parallel.pools.distant.board:Board._came": "of the actor, in a process of its own",
    "parallel.pools.distant.board:BoardLine._lock": "a worker of Ray's may not be forked; a child of it tells nothing",
    "parallel.pools.distant.board:Board.listen.came": "of the actor, in a process of its own",
    "parallel.pools.distant.connection:_Keeper._started": "the child has another connection, or none",
    "parallel.pools.distant.connection:_Keeper._leaving": "the child has another connection, or none",
    "parallel.pools.distant.telling:_look_on.wait": "the thread's own that waits there",
    "parallel.pools.distant.worker:Supplied._lock": "the child forgets what has come; a call in it has all it needs",
    "parallel.pools.intake:Intake._queue": "the child looks into it without waiting, and leaves it",
    "parallel.pools.process.segments:Store._wait_for.freed": "the thread's own that waits there",
    "parallel.pools.process.worker:Outlet._lock": "a child of a worker has no outlet: see `test_fork_inside_a_call`",
    "parallel.pools.workers:Worker.begun": "between a worker and who starts it; neither is in the child",
    "parallel.states:State.sleep.lock": "the thread's own that waits there; it is made to be held",
    "parallel.registry:Registry.drain.dry": "the thread's own that waits there",
    "parallel.storage:SQLITE": "who forks waits for it, and holds it in the fork: see `test_journal`",
    "parallel.timer:Timer._inbox": "the child has another one",
    "parallel.trail:Trail._over": "the child has no trail",
}
"""Locks that can't matter in a forked child, and why."""


def limits_of(one: Any, world: World) -> Limits:
    with using(world.registry):
        return one(1).terms.limits[0]


@contextmanager
def held_elsewhere(guard: Any) -> Iterator[None]:
    """Have another thread hold the lock of *guard* during the block."""
    lock = inner_lock(guard)
    holds, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holds.set()
            forked.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(LONG)
    try:
        yield
    finally:
        forked.set()
        thread.join(LONG)


@pytest.mark.parametrize("lock", WORLDS)
def test_fork_while_a_lock_is_held(lock: str, world: World, in_fork: Callable[..., Any]) -> None:
    """The child works, whichever lock another thread held at the fork; so does the parent, afterwards."""
    guard = WORLDS[lock](world)
    with held_elsewhere(guard):
        assert in_fork(world.use, timeout=LONG) == []
    assert [future.done() for future in world.running] == [False] * 6


def test_locks_are_all_known() -> None:
    """Each lock that the package makes is held in the test above, or there is a reason why it can't matter."""
    named = {lock for lock in WORLDS if lock.startswith("parallel.")}
    assert locks_of_package() == named | set(SAME) | set(HARMLESS)
    assert set(SAME.values()) <= named


# -- who forks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "process", "inline"])
def test_fork_inside_a_call(kind: str, kinds: Registry) -> None:
    """A call may fork: its child is no worker, and has what every child has."""
    assert kinds.pool(kind).submit(fork_jobs.fork_and_use, kind).result(LONG) == ""
    assert kinds.pool(kind).submit(jobs.double, 2).result(LONG) == 4


def test_fork_inside_a_coroutine(kinds: Registry) -> None:
    """So may a coroutine; its child has left the loop behind."""
    assert kinds.pool("loop").submit(jobs.to_async(fork_jobs.fork_and_use), "loop").result(LONG) == ""
    assert kinds.pool("loop").submit(jobs.async_double, 2).result(LONG) == 4  # type: ignore[comparison-overlap]


def test_fork_inside_a_callback(kinds: Registry) -> None:
    """So may a callback."""
    end = kinds.pool("process").submit(jobs.double, 1).then(lambda _: fork_jobs.fork_and_use("thread"))
    assert end.result(LONG) == ""
    assert kinds.pool("process").submit(jobs.double, 1).then(jobs.double).result(LONG) == 4

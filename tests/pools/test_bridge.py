"""
What a bridge makes of what an engine tells: here the test is the engine, and chooses the order.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import jobs
import pytest

from parallel import PoolBrokenError, Registry, TaskTimeoutError, WorkerDiedError, task, using
from parallel.pools.distant.driver import Driver, Events, Loss
from parallel.pools.distant.packets import Packet, Supply
from parallel.pools.distant.pool import DistantPool
from parallel.pools.distant.worker import run

PATIENCE = 10.0


class ByHand(Driver):
    """An engine that does what the test says."""

    window, capacity, workers = 4, 2, 1

    def __init__(self) -> None:
        self.sent: dict[int, tuple[Packet, tuple[Supply, ...]]] = {}
        self.withdrawn: set[int] = set()
        self.asked: set[int] = set()
        self._changed = threading.Condition()

    async def open(self, events: Events) -> None:
        self.events = events
        self._loop = asyncio.get_running_loop()

    def send(self, packet: Packet, supplies: tuple[Supply, ...], priority: int) -> None:
        with self._changed:
            self.sent[packet.number] = packet, supplies
            self._changed.notify_all()

    def withdraw(self, number: int) -> None:
        with self._changed:
            self.withdrawn.add(number)
            self._changed.notify_all()

    def ask(self, number: int) -> None:
        with self._changed:
            self.asked.add(number)
            self._changed.notify_all()

    async def close(self) -> None:
        pass

    def wait_until(self, fact: Callable[[], object]) -> None:
        """Wait until something is so of what was sent, withdrawn, or asked to stop."""
        with self._changed:
            assert self._changed.wait_for(fact, PATIENCE)

    def tell(self, fn: Callable[..., object], *args: object) -> None:
        """Tell the bridge something, and wait until it has heard."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (fn(*args), done.set()))
        assert done.wait(PATIENCE)

    def run(self, number: int) -> None:
        """Run a call here, and bring its answer."""
        packet, supplies = self.sent.pop(number)
        attached = [(supply.key, supply.bundle) for supply in supplies]
        self.tell(self.events.answered, number, run(packet, *attached))


class HandPool(DistantPool):
    """A pool of that engine."""

    kind = "by hand"

    def __init__(self) -> None:
        self.driver = ByHand()
        super().__init__(
            initializer=None,
            initargs=(),
            context=(),
            max_pending=None,
            on_full="block",
            on_exit="wait",
            name="",
            callbacks=None,
            configuration=None,
        )

    def _new_driver(self) -> ByHand:
        return self.driver


@pytest.fixture
def pool() -> Iterator[HandPool]:
    with HandPool() as pool:
        yield pool


def only(driver: ByHand) -> int:
    """Wait for a call, and return its number."""
    driver.wait_until(lambda: driver.sent)
    [number] = driver.sent
    return number


def test_a_call(pool: HandPool) -> None:
    """A worker lacks what is to be known of the pool first, and says so."""
    future = pool.submit(jobs.double, 2)
    first = only(pool.driver)
    pool.driver.run(first)
    second = only(pool.driver)
    assert second != first
    pool.driver.run(second)
    assert future.result(PATIENCE) == 4


def test_names(pool: HandPool) -> None:
    """The engine is told the name of the function, of a map too."""
    futures = [pool.submit(jobs.double, 2), pool.submit(pool.run_chunk, jobs.divide, [], False, {})]
    pool.driver.wait_until(lambda: len(pool.driver.sent) == 2)
    assert [packet.name for packet, _ in pool.driver.sent.values()] == ["jobs:double", "jobs:divide"]
    while not all(future.done() for future in futures):
        for number in list(pool.driver.sent):
            pool.driver.run(number)


def test_pieces_of_a_large_cluster(pool: HandPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The more workers there are, the longer is a piece of a map: a scheduler takes only so many in a second."""
    assert pool.piece_time == 20_000_000
    monkeypatch.setattr(ByHand, "capacity", 100)
    assert pool.piece_time == 100_000_000
    future = pool.submit(pool.run_chunk, time.sleep, [0.01] * 50, False, {})
    pool.driver.run(only(pool.driver))
    pool.driver.run(only(pool.driver))
    assert 5 < len(future.result(PATIENCE).values) < 20


def test_withdrawn_as_it_begins(pool: HandPool) -> None:
    """A call that the engine drops though it was heard to begin is cancelled: its future ends."""
    future = pool.submit(jobs.double, 2)
    number = only(pool.driver)
    pool.shutdown(wait=False, cancel_futures=True)
    pool.driver.wait_until(lambda: pool.driver.withdrawn == {number})
    pool.driver.tell(pool.driver.events.began, number)
    assert future.running()
    pool.driver.tell(pool.driver.events.withdrawn, number)
    with pytest.raises(CancelledError):
        future.result(PATIENCE)


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_late(pool: HandPool, limit: str) -> None:
    """A call that overruns its time where it can't be killed has its function told so; its answer counts no more."""
    late = task(jobs.double).options(pool="hand", **{limit: 0.2})
    with Registry({"pools": {"hand": {"kind": "thread"}}}) as registry, using(registry):
        registry._pools["hand"] = pool
        future = late(2)
        number = only(pool.driver)
        pool.driver.tell(pool.driver.events.began, number)
        with pytest.raises(TaskTimeoutError):
            future.result(PATIENCE)
        pool.driver.wait_until(lambda: pool.driver.asked == {number})
        pool.driver.run(number)


def test_old_news(pool: HandPool) -> None:
    """What comes of an earlier sending counts no more, and what comes twice counts once."""
    future = pool.submit(jobs.double, 2)
    first = only(pool.driver)
    packet = pool.driver.sent[first]
    pool.driver.run(first)
    second = only(pool.driver)
    events = pool.driver.events
    for tell in (events.began, events.withdrawn):
        pool.driver.tell(tell, first)
    pool.driver.tell(events.lost, first, Loss(True))
    pool.driver.tell(events.failed, first, ValueError())
    assert not future.done()
    assert not future.running()
    pool.driver.run(second)
    assert future.result(PATIENCE) == 4
    pool.driver.sent[second] = packet
    pool.driver.run(second)
    assert future.result(PATIENCE) == 4


@pytest.mark.parametrize("begun", [True, None])
def test_lost(pool: HandPool, begun: bool | None) -> None:
    """A call that had begun, or may have, is blamed for the death of its worker: it is not run twice."""
    future = pool.submit(jobs.double, 2)
    pool.driver.tell(pool.driver.events.lost, only(pool.driver), Loss(begun, "worker 7"))
    with pytest.raises(WorkerDiedError, match="worker 7"):
        future.result(PATIENCE)


def test_lost_again_and_again(pool: HandPool) -> None:
    """One that had not begun is sent again, under a number of its own; three times at most."""
    future, numbers = pool.submit(jobs.double, 2), set[int]()
    for _ in range(3):
        assert not future.done()
        number = only(pool.driver)
        numbers.add(number)
        pool.driver.sent.clear()
        pool.driver.tell(pool.driver.events.lost, number, Loss(False))
    with pytest.raises(WorkerDiedError):
        future.result(PATIENCE)
    assert len(numbers) == 3


def test_broken(pool: HandPool) -> None:
    """An engine that can't go on ends all calls, what waits here too; its news count no more."""
    futures: list[Any] = [pool.submit(jobs.double, n) for n in range(10)]
    pool.driver.wait_until(lambda: len(pool.driver.sent) == 4)
    begun = next(iter(pool.driver.sent))
    pool.driver.tell(pool.driver.events.began, begun)
    pool.driver.tell(pool.driver.events.broke, "the cable was cut", None)
    for future in futures:
        assert "the cable was cut" in str(future.exception(PATIENCE))
    with pytest.raises(PoolBrokenError, match="the cable was cut"):
        pool.submit(jobs.double, 1)

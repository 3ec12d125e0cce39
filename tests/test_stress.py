"""
Under pressure: 200,000 calls whose threads take turns as often as can be, while others wait, cancel and listen.

Each submitting thread hands what it has submitted to the others in lots; all that they were told is counted at the end.
"""

from __future__ import annotations

import concurrent.futures
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final

import pytest
from jobs import frequent_switches

from parallel import (
    Future,
    Registry,
    Retry,
    Task,
    TaskGroup,
    TaskTimeoutError,
    ThreadPool,
    as_completed,
    gather,
    sleep,
    task,
    using,
    wait,
)
from parallel.pools.crew import Crew

pytestmark = pytest.mark.slow

LONG = 50.0  # seconds; only a deadlock takes so long
LOT: Final = 100  # calls that are handed on at a time
CALLS: Final = 200_000
SUBMITTERS: Final = 4
Lot = list[Future[Any]]


class Odd(Exception):
    """What every seventh call raises."""


class Tally:
    """Counts from many threads: appending to a list is atomic, so that counting costs no lock."""

    def __init__(self) -> None:
        self.runs: list[None] = []
        self.done: list[None] = []
        self.succeeded: list[None] = []
        self.failed: list[None] = []
        self.followed: list[None] = []
        self.cancelled: list[None] = []  # by a cancel() that said so

    def run(self, number: int) -> int:
        """Be the body of a call."""
        self.runs.append(None)
        if number % 7 == 0:
            raise Odd(number)
        return number

    def follow(self, number: int) -> int:
        """Be what follows a call."""
        self.followed.append(None)
        return -number

    def listen(self, future: Future[Any]) -> None:
        """Add a callback of each sort."""
        future.add_done_callback(lambda _: self.done.append(None))
        future.on_success(lambda _: self.succeeded.append(None))
        future.on_failure(lambda _: self.failed.append(None))

    def cancel(self, future: Future[Any]) -> None:
        """Cancel, if that can be."""
        before = future.done()
        if future.cancel() and not before:
            self.cancelled.append(None)


def wait_for_results(lot: Sequence[Future[Any]]) -> None:
    """Wait for each, one after the other."""
    for future in lot:
        with suppress(Odd, CancelledError, TaskTimeoutError):
            future.result(LONG)


def wait_for_all(lot: Sequence[Future[Any]]) -> None:
    """Wait for all at once, in the ways of both libraries."""
    assert not wait(lot, LONG).not_done
    assert not concurrent.futures.wait(lot, LONG).not_done


def take_in_their_way(lot: Sequence[Future[Any]]) -> None:
    """Take each as it comes, with the standard library."""
    assert set(concurrent.futures.as_completed(lot, LONG)) == set(lot)


def take_in_our_way(lot: Sequence[Future[Any]]) -> None:
    """Take each as it comes."""
    assert set(as_completed(lot, LONG)) == set(lot)


def gather_all(lot: Sequence[Future[Any]]) -> None:
    """Wait for one future of all."""
    assert len(gather(*lot, return_exceptions=True).result(LONG)) == len(lot)


WAITERS: Final = (wait_for_results, wait_for_all, take_in_their_way, take_in_our_way, gather_all)


class Crowd:
    """Threads that each do something with every lot that comes to them; what they raise is raised at the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._mail: list[queue.SimpleQueue[Lot | None]] = []
        self._problems: list[BaseException] = []

    def add(self, work: Callable[[Lot], object]) -> queue.SimpleQueue[Lot | None]:
        """Start a thread; return where its lots are to be put."""
        mail: queue.SimpleQueue[Lot | None] = queue.SimpleQueue()
        self._mail.append(mail)
        self.start(lambda: self._read(mail, work))
        return mail

    @staticmethod
    def _read(mail: queue.SimpleQueue[Lot | None], work: Callable[[Lot], object]) -> None:
        while (lot := mail.get(timeout=LONG)) is not None:
            work(lot)

    def start(self, run: Callable[[], object]) -> threading.Thread:
        """Start a thread that has no mail."""

        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self._problems.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def end(self) -> None:
        """Have them end with what they have, and see that they did."""
        for mail in self._mail:
            mail.put(None)
        for thread in self._threads:
            thread.join(LONG)
            assert not thread.is_alive(), "it hangs"
        assert self._problems == []


def press(
    calls: int, submit: Callable[[int], Future[Any]], tally: Tally
) -> tuple[list[Future[Any]], list[Future[Any]]]:
    """
    Submit *calls* from several threads, while others wait for them, listen to and cancel them.

    Returns:
        The calls, and what was chained to each.
    """
    made: list[Future[Any]] = []
    chained: list[Future[Any]] = []
    crowd = Crowd()
    waiters = [crowd.add(work) for work in WAITERS]
    cancellers = [crowd.add(lambda lot: [tally.cancel(future) for future in lot[::-5]]) for _ in range(2)]

    def submit_part(part: int) -> None:
        lot: Lot = []
        for number in range(part, calls, SUBMITTERS):
            lot.append(future := submit(number))
            tally.listen(future)
            chained.append(future.then(tally.follow))
            if len(lot) == LOT:
                hand_on(lot)
                lot = []
        hand_on(lot)

    def hand_on(lot: Lot) -> None:
        made.extend(lot)
        number = len(made) // LOT
        cancellers[number % len(cancellers)].put(lot)
        waiters[number % len(waiters)].put(lot)
        if lot:
            concurrent.futures.wait(lot[-1:], LONG)  # or they would all be cancelled long before their turn comes

    submitters = [crowd.start(lambda part=part: submit_part(part)) for part in range(SUBMITTERS)]  # type: ignore[misc]
    for thread in submitters:
        thread.join(LONG)
    crowd.end()
    return made, chained


def check(calls: int, made: list[Future[Any]], chained: list[Future[Any]], tally: Tally) -> None:
    """See that every future has ended, once, and that all who were to be told of it were, once."""
    assert len(made) == len(chained) == calls
    assert all(future.done() for future in [*made, *chained])
    ends = Counter(end_of(future) for future in made)
    assert sum(ends.values()) == calls
    assert ends["cancelled"] == len(tally.cancelled)
    assert len(tally.done) == calls
    assert len(tally.succeeded) == ends["value"]
    assert len(tally.failed) == ends["Odd"] + ends["TaskTimeoutError"]
    followed = Counter(end_of(future) for future in chained)
    assert (followed["value"], len(tally.followed)) == (ends["value"], ends["value"])
    assert followed == ends
    assert ends["value"] and ends["Odd"]


def end_of(future: Future[Any]) -> str:
    """Name the end of a future that has ended."""
    if future.cancelled():
        return "cancelled"
    error = future.exception(0)
    return "value" if error is None else type(error).__name__


def test_calls_of_a_pool() -> None:
    """However threads take turns, every call of a pool ends once, and everybody is told once."""
    calls = CALLS * 3 // 4
    tally = Tally()
    with frequent_switches(), ThreadPool(4) as pool:
        made, chained = press(calls, lambda number: pool.submit(tally.run, number), tally)
    check(calls, made, chained, tally)
    assert len(tally.runs) == calls - len(tally.cancelled)


@pytest.mark.parametrize(
    "terms", [{"timeout": 30}, {"limit": 3}, {"priority": 1}, {"timeout": 30, "limit": 2}], ids=str
)
def test_calls_of_tasks(terms: dict[str, Any]) -> None:
    """The same holds for the calls of a task under terms."""
    calls = CALLS // 16
    tally = Tally()
    work: Task[[int], int] = task(**terms)(tally.run)
    with frequent_switches(), Registry({"pools": {"threads": {"kind": "thread", "max_workers": 4}}}) as registry:
        made, chained = press(calls, in_context_of(registry, work), tally)
    check(calls, made, chained, tally)
    assert len(tally.runs) == calls - len(tally.cancelled)


def in_context_of(registry: Registry, work: Task[[int], int]) -> Callable[[int], Future[int]]:
    """Make calls in a registry from threads that know of none."""

    def call(number: int) -> Future[int]:
        with using(registry):
            return work(number)

    return call


# -- a walk over all terms --------------------------------------------------------------------------------------------

WALKS: dict[str, Any] = {
    "unobserved": "ignore",
    "pools": {
        "one": {"kind": "thread", "max_workers": 1},
        "few": {"kind": "thread", "max_workers": 3},
        "blocks": {"kind": "thread", "max_workers": 2, "max_pending": 5},
        "runs": {"kind": "thread", "max_workers": 2, "max_pending": 5, "on_full": "run"},
        "loop": {"kind": "loop", "max_workers": 3},
    },
}
TERMS: list[dict[str, Any]] = [
    {},
    {"timeout": 0.02},
    {"deadline": 0.05},
    {"priority": 1},
    {"retry": Retry(on=ConnectionError, attempts=3, wait_initial=0.001, wait_jitter=0)},
    {"limit": 1},
    {"limit": 2, "timeout": 1, "deadline": 3},
    {"rate": "2000/s"},
]


def walk(depth: int, seed: float) -> int:
    """Fail, sleep, or call others at random and wait for them in one of many ways."""
    chance = random.Random(seed)
    step = chance.randrange(8)
    if depth == 0 or step == 0:
        return depth
    if step == 1:
        raise ConnectionError
    if step == 2:
        sleep(chance.random() * 0.004)
        return depth
    calls = [chance.choice(walkers)(depth - 1, chance.random()) for _ in range(chance.randrange(1, 3))]
    how = chance.randrange(7)
    if how == 0:
        return sum(call.result() for call in calls)
    if how == 1:
        return sum(gather(*calls).result())
    if how == 2:
        calls[0].cancel()
        return sum(call.exception() is None for call in calls if not call.cancelled())
    if how == 3:
        with TaskGroup(timeout=2):
            chance.choice(walkers)(depth - 1, chance.random())
        return depth
    if how == 4:
        return len(wait(calls).done)
    if how == 5:
        return calls[0].then(lambda _: chance.choice(walkers)(depth - 1, seed)).catch(lambda _: 0).result()
    return next(iter(as_completed(calls))).result()


async def walk_on_loop(depth: int, seed: float) -> int:
    """Fail, or call others at random and await them."""
    chance = random.Random(seed)
    step = chance.randrange(4)
    if depth == 0 or step == 0:
        return depth
    if step == 1:
        raise ConnectionError
    calls = [chance.choice(walkers)(depth - 1, chance.random()) for _ in range(chance.randrange(1, 3))]
    return sum([await call for call in calls])


walkers: list[Any] = [task(pool=pool, **terms)(walk) for pool in ("one", "few", "blocks", "runs") for terms in TERMS]
walkers += [task(pool="loop", **terms)(walk_on_loop) for terms in TERMS[:3]]


@pytest.mark.parametrize("seed", [1, 2])
def test_calls_under_all_terms_that_wait_for_each_other(seed: int) -> None:
    """Whatever waits for whatever, under whichever terms: each call ends, and the registry runs dry."""

    def user(number: int) -> int:
        chance = random.Random(seed * 100 + number)
        ended = 0
        for _ in range(40):
            calls = [chance.choice(walkers)(4, chance.random()) for _ in range(5)]
            if chance.random() < 0.3:
                chance.choice(calls).cancel()
            ended += len(wait(calls, timeout=LONG).done)
        return ended

    registry = Registry(WALKS)
    with registry, frequent_switches(), ThreadPool(4) as users:
        assert list(users.map(user, range(4), timeout=LONG * 4)) == [200] * 4
    assert registry._desk is not None
    assert not registry._desk._calls
    for name in ("one", "few", "blocks", "runs"):
        crew = registry._pools[name]._engine
        assert isinstance(crew, Crew)
        assert crew._spare == 0

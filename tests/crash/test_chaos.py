"""
Everything that can go wrong with a process pool, at random and all at once: each call ends, and as it should.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import jobs
import pytest
from crash import kill_jobs
from pools import process_jobs
from pools.process_jobs import PATIENCE

from parallel import Future, ProcessPool, Registry, SerializationError, TaskTimeoutError, WorkerDiedError, task, using

SECONDS: Final = float(os.environ.get("CHAOS_SECONDS", "20"))
"""How long each run takes; more for who looks for something rare."""

AT_ONCE: Final = 40
"""Calls in flight: enough for messages of many calls, few enough that each is soon in a worker."""

BIG: Final = 1 << 20
"""Bytes that fit into no socket."""

Check = Callable[[Future[Any]], bool]


def gives(value: object) -> Check:
    """It has that value."""
    return lambda future: future.exception() is None and future.result() == value


def fails(kind: type[BaseException]) -> Check:
    """It has failed so."""
    return lambda future: isinstance(future.exception(), kind)


class Chaos:
    """A pool, those who do harm to it, and those who use it."""

    def __init__(self, pool: ProcessPool, seed: int) -> None:
        self.pool = pool
        self.chance = random.Random(seed)
        self.kills = 0
        self._stop = threading.Event()
        self._villain = threading.Thread(target=self._do_harm, args=(random.Random(seed + 1),))
        self._calls: list[Callable[[], tuple[Future[Any], Check]]] = [
            *[self._short] * 20,
            partial(self._submit, fails(ZeroDivisionError), jobs.divide, 1, 0),
            partial(self._submit, fails(SerializationError), jobs.same, jobs.Unpicklable()),
            partial(self._submit, fails(SerializationError), threading.Lock),
            partial(self._submit, fails(WorkerDiedError), os._exit, 0),
            partial(self._submit, fails(WorkerDiedError), process_jobs.die),
            partial(self._submit, fails(WorkerDiedError), kill_jobs.crash),
            partial(self._submit, fails(WorkerDiedError), process_jobs.leave_half_an_answer),
            partial(self._submit, gives("deadly"), process_jobs.make_deadly),
            partial(self._submit, gives(bytes(BIG)), bytes, BIG),
            partial(self._submit, gives(BIG), process_jobs.size, bytes(BIG)),
            self._overrunning,
            self._cancelled,
            self._short_with_terms,
        ]

    def run(self, seconds: float) -> None:
        """Make calls for so long, and look at the end of each."""
        self._villain.start()
        innocent = 0
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                made = [self.chance.choice(self._calls)() for _ in range(AT_ONCE)]
                for future, check in made:
                    with suppress(Exception):
                        future.exception(PATIENCE)
                    assert future.done(), f"{future!r} has not ended"
                    if not check(future):
                        assert isinstance(future.exception(), WorkerDiedError), f"{future!r} has not ended so"
                        innocent += 1
        finally:
            self._stop.set()
            self._villain.join()
        assert innocent <= self.kills

    def _submit(self, check: Check, fn: Callable[..., Any], *args: Any) -> tuple[Future[Any], Check]:
        return self.pool.submit(fn, *args), check

    def _short(self) -> tuple[Future[Any], Check]:
        number = self.chance.randrange(1000)
        return self._submit(gives(2 * number), jobs.double, number)

    def _short_with_terms(self) -> tuple[Future[Any], Check]:
        return task(pool="process", timeout=600, idempotent=True)(jobs.double)(4), gives(8)

    def _overrunning(self) -> tuple[Future[Any], Check]:
        return task(pool="process", timeout=0.02)(time.sleep)(600), fails(TaskTimeoutError)

    def _cancelled(self) -> tuple[Future[Any], Check]:
        future = self.pool.submit(time.sleep, 600)
        timer = threading.Timer(self.chance.random() * 0.02, future.cancel, kwargs={"running": True})
        timer.start()
        future.add_done_callback(lambda _: timer.cancel())
        return future, lambda ended: ended.cancelled()

    def _do_harm(self, chance: random.Random) -> None:
        """Kill workers, and stop others for a while, at random moments."""
        while not self._stop.wait(chance.random() * 0.1):
            peers = [peer for peer in list(self.pool._staff._roster.staff) if peer.ready and not peer.dead]
            if not peers:
                continue
            victim = chance.choice(peers).target
            with suppress(OSError):  # it was closed in this moment
                if chance.random() < 0.5:
                    victim.send(signal.SIGSTOP)
                    self._stop.wait(chance.random() * 0.05)
                    victim.send(signal.SIGCONT)
                else:
                    self.kills += victim.send(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_chaos(method: str) -> None:
    """Each call has the value or the error that it should have; a kill from outside costs one call at most."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    pools = {"pools": {"process": {"kind": "process", "max_workers": 3, "mp_context": method, "kill_grace": 0.1}}}
    with using(Registry(pools)) as registry, registry:
        pool = registry.pool("process")
        assert isinstance(pool, ProcessPool)
        Chaos(pool, seed).run(SECONDS)
        pool.idle()
        assert pool.stats().queued == pool.stats().running == 0

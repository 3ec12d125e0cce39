"""
How the process pool gives calls to workers: many in a message, and each begun once, whatever becomes of the worker.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import jobs
import pytest
from pools import process_jobs
from pools.process_jobs import PATIENCE, die, is_gone, wait_until

from parallel import ProcessPool, WorkerDiedError
from parallel.errors import SerializationError
from parallel.pools.process import board, ears, reactor

NOWHERE = ("", 0)


@pytest.fixture
def one() -> Iterator[ProcessPool]:
    """A pool of one worker."""
    with ProcessPool(1) as pool:
        yield pool


def warm(pool: ProcessPool, path: Path) -> None:
    """Have the pool know that `note` is short, so that it sends many at a time, and forget that it was called."""
    for _ in range(100):
        pool.submit(process_jobs.note, str(path), 0).result(PATIENCE)
    wait([pool.submit(process_jobs.note, str(path), 0) for _ in range(200)], PATIENCE)
    pool.idle()
    path.unlink()


def noted(path: Path) -> Counter[int]:
    """Count how often each body ran."""
    return Counter(map(int, path.read_text().split()))


def busy_with(pool: ProcessPool, gate: jobs.Gate, calls: int = 1) -> list[Any]:
    """Hold workers of the pool until the gate opens."""
    held = [pool.submit(jobs.wait_at, gate.address) for _ in range(calls)]
    gate.arrived(calls)
    return held


def most_in_flight(pool: ProcessPool) -> int:
    """Return how many calls the worker with the most has."""
    return max((len(peer.inflight) for peer in pool._staff._dispatching.peers), default=0)


# -- deaths in a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_in_a_batch(method: str, tmp_path: Path) -> None:
    """Of fifty calls in one message, some of which have ended, a kill costs the one that runs; each body runs once."""
    path = tmp_path / "notes"
    with ProcessPool(1, method) as pool:
        warm(pool, path)
        stopped = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(stopped, signal.SIGSTOP)  # so that what comes now is in one queue
        futures = [pool.submit(process_jobs.note, str(path), i, i == 30) for i in range(50)]
        os.kill(stopped, signal.SIGCONT)
        failed = {i: error for i, future in enumerate(futures) if (error := future.exception(PATIENCE)) is not None}
        assert list(failed) == [30]
        assert isinstance(failed[30], WorkerDiedError)
        assert "killed by SIGKILL" in str(failed[30])
        assert [future.result() for i, future in enumerate(futures) if i != 30] == [i for i in range(50) if i != 30]
    assert noted(path) == dict.fromkeys(range(50), 1)


def test_killed_from_outside_at_any_moment(tmp_path: Path) -> None:
    """A worker killed at a random moment costs one call at most, and no body runs twice."""
    chance = random.Random(3)
    path = tmp_path / "notes"
    with ProcessPool(2) as pool:
        warm(pool, path)
        number = 0
        for _ in range(15):
            futures = []
            for _ in range(300):
                number += 1
                futures.append(pool.submit(process_jobs.note, str(path), number))
            peers = pool._staff._dispatching.peers
            victim = chance.choice(list(peers)).pid if peers else 0
            futures[chance.randrange(100)].result(PATIENCE)
            if victim and not is_gone(victim, 0):
                os.kill(victim, signal.SIGKILL)
            errors = [error for future in futures if (error := future.exception(PATIENCE)) is not None]
            assert len(errors) <= 1
            assert all(isinstance(error, WorkerDiedError) for error in errors)
    assert max(noted(path).values()) == 1
    assert sum(noted(path).values()) >= number - 15


def test_killed_in_the_middle_of_an_answer(one: ProcessPool) -> None:
    """Half a message of results is none: the call that had written it is blamed, the others run elsewhere."""
    one.submit(jobs.double, 1).result(PATIENCE)
    futures = [one.submit(jobs.double, i) for i in range(20)]
    death = one.submit(process_jobs.leave_half_an_answer)
    more = [one.submit(jobs.double, i) for i in range(20)]
    assert isinstance(death.exception(PATIENCE), WorkerDiedError)
    assert [future.result(PATIENCE) for future in futures + more] == [i * 2 for i in range(20)] * 2


def test_killed_in_the_middle_of_a_message(one: ProcessPool) -> None:
    """A worker that dies with half of a message read has begun none of it: another one runs it."""
    worker = one.submit(jobs.pid).result(PATIENCE)
    os.kill(worker, signal.SIGSTOP)
    futures = [one.submit(process_jobs.size, "x" * (8 << 20)) for _ in range(3)]
    wait_until(lambda: any(peer.outbox for peer in one._staff._roster.staff))
    os.kill(worker, signal.SIGKILL)
    assert [future.result(PATIENCE) for future in futures] == [8 << 20] * 3


def test_results_that_were_not_sent_are_kept(one: ProcessPool, tmp_path: Path) -> None:
    """What ended before the worker was killed in a long call has its value, and is not run again."""
    path = tmp_path / "notes"
    warm(one, path)
    with jobs.Gate() as gate:
        futures = [
            one.submit(process_jobs.note_and_wait, str(path), i, *(gate.address if i == 9 else NOWHERE))
            for i in range(10)
        ]
        gate.arrived()
        os.kill(one._staff._dispatching.peers[0].pid, signal.SIGKILL)
        assert isinstance(futures[9].exception(PATIENCE), WorkerDiedError)
        assert [future.result(PATIENCE) for future in futures[:9]] == list(range(9))
    assert noted(path) == dict.fromkeys(range(10), 1)


# -- long calls -------------------------------------------------------------------------------------------------------


def test_long_call_holds_nothing_back(tmp_path: Path) -> None:
    """In a batch, neither the results before a long call wait for it, nor the calls behind it."""
    path = tmp_path / "notes"
    with ProcessPool(2) as pool, jobs.Gate() as gate:
        for _ in range(200):
            pool.submit(process_jobs.note_and_wait, str(path), 0, *NOWHERE).result(PATIENCE)
        path.unlink()
        futures = [
            pool.submit(process_jobs.note_and_wait, str(path), i, *(gate.address if i == 20 else NOWHERE))
            for i in range(200)
        ]
        gate.arrived()
        others = [future for i, future in enumerate(futures) if i != 20]
        assert not wait(others, PATIENCE).not_done
        assert not futures[20].done()
        gate.open()
        assert futures[20].result(PATIENCE) == 20
        # The worker that gave calls back takes new ones.
        assert [pool.submit(jobs.double, i).result(PATIENCE) for i in range(50)] == [i * 2 for i in range(50)]
    assert noted(path) == dict.fromkeys(range(200), 1)


def test_long_calls_do_not_queue_behind_each_other() -> None:
    """No call waits in a busy worker, as long as nobody knows that the calls are short."""
    with ProcessPool(2) as pool, jobs.Gate() as gate:
        held = busy_with(pool, gate, 2)
        queued = [pool.submit(jobs.wait_at, gate.address) for _ in range(5)]
        assert most_in_flight(pool) == 1
        assert all(future.cancel() for future in queued)
        gate.open()
        wait(held, PATIENCE)


def test_killing_one_of_a_batch(tmp_path: Path) -> None:
    """`cancel(running=True)` ends a call that travels with others, and costs none of those."""
    path = tmp_path / "notes"
    with ProcessPool(1) as pool, jobs.Gate() as gate:
        for _ in range(200):
            pool.submit(process_jobs.note_and_wait, str(path), 0, *NOWHERE).result(PATIENCE)
        path.unlink()
        futures = [
            pool.submit(process_jobs.note_and_wait, str(path), i, *(gate.address if i == 20 else NOWHERE))
            for i in range(60)
        ]
        gate.arrived()
        assert futures[20].cancel(running=True)
        assert [future.result(PATIENCE) for i, future in enumerate(futures) if i != 20] == [*range(20), *range(21, 60)]
    assert noted(path) == dict.fromkeys(range(60), 1)


# -- calls that end early ---------------------------------------------------------------------------------------------


def test_cancelled_calls_drop_their_arguments(one: ProcessPool) -> None:
    """What a queued call was to be sent is let go when it is cancelled."""
    with jobs.Gate() as gate:
        held = busy_with(one, gate)
        future = one.submit(process_jobs.size, bytes(1 << 20))
        assert "_work" in future.__dict__
        assert future.cancel()
        assert "_work" not in future.__dict__
        gate.open()
        wait(held, PATIENCE)
    assert one.submit(jobs.double, 2).result(PATIENCE) == 4


def test_unpicklable_argument_among_others(one: ProcessPool) -> None:
    """Arguments that can't be pickled fail their own call, in the middle of a burst."""
    futures = [one.submit(process_jobs.echo, threading.Lock() if i == 25 else i) for i in range(50)]
    assert isinstance(futures[25].exception(PATIENCE), SerializationError)
    assert [future.result(PATIENCE) for i, future in enumerate(futures) if i != 25] == [i for i in range(50) if i != 25]


# -- atoms and others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(10**30), 10**4000, 1.5, float("inf"), "", "ü\udc80\0", "x" * 5000, b"", b"x" * 5000,
        bytearray(b"abc"), (1, (2,)), [1, [2]], {"a": {1}}, 1j, process_jobs.Number(5), range(3),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_values_stay_what_they_are(one: ProcessPool, value: Any) -> None:
    """Arguments and values come out with their very types, whichever way they travel."""
    for _ in range(2):
        back = one.submit(process_jobs.echo, value).result(PATIENCE)
        assert back == value and type(back) is type(value)
    assert [future.result(PATIENCE) for future in [one.submit(process_jobs.echo, value) for _ in range(20)]] == [
        value
    ] * 20


# -- interrupts -------------------------------------------------------------------------------------------------------


class Interruption(Exception):
    """What a signal handler raises."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_waits_lose_nothing() -> None:
    """A handler that raises at any moment of a wait costs no call its value."""
    chance = random.Random(1)

    def handler(*_: object) -> None:
        raise Interruption

    with ProcessPool(2) as pool:
        pool.submit(jobs.double, 1).result(PATIENCE)
        before = signal.signal(signal.SIGALRM, handler)
        end = time.monotonic() + 2
        number = 0
        try:
            while time.monotonic() < end:
                number += 1
                future = pool.submit(jobs.double, number)
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.random() * 8e-5 + 1e-6)
                    future.result(PATIENCE)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interruption:
                    pass
                with suppress(Interruption):
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert future.result(PATIENCE) == number * 2
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_handler_that_waits_in_a_wait(one: ProcessPool) -> None:
    """A signal handler may submit to the only worker, and wait, while its thread waits for that worker."""
    got: list[int] = []
    with jobs.Gate() as gate:

        def handler(*_: object) -> None:
            inner = one.submit(jobs.double, 4)
            gate.open()
            got.append(inner.result(PATIENCE))

        before = signal.signal(signal.SIGALRM, handler)
        try:
            future = one.submit(jobs.wait_at, gate.address, "ran")
            gate.arrived()
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            assert future.result(PATIENCE) == "ran"
            wait_until(lambda: got)
        finally:
            signal.signal(signal.SIGALRM, before)
    assert got == [8]


def test_timeout_of_a_wait_is_kept(one: ProcessPool) -> None:
    """A wait that listens itself ends in time."""
    with jobs.Gate() as gate:
        held = busy_with(one, gate)
        for seconds in (0, 0.05, 0.4):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                held[0].result(seconds)
            assert seconds <= time.monotonic() - began < seconds + 0.3
        gate.open()
        wait(held, PATIENCE)


def test_crowd_of_waiters() -> None:
    """Threads that wait for calls one by one, and others that make many, lose nothing."""
    with ProcessPool(2) as pool:
        wrong: list[object] = []

        def use(base: int) -> None:
            for i in range(60):
                if pool.submit(process_jobs.echo, (base, i)).result(PATIENCE) != (base, i):
                    wrong.append((base, i))
            many = [pool.submit(process_jobs.echo, [base, i]) for i in range(300)]
            wrong.extend(i for i, future in enumerate(many) if future.result(PATIENCE) != [base, i])

        threads = [threading.Thread(target=use, args=(base,)) for base in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert pool.idle() == 5 * 360


# -- cost of doing nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "in a long call"])
def test_sleeps_until_something_happens(state: str) -> None:
    """Neither an idle pool nor one in a long call takes time of the CPU."""
    with ProcessPool(2) as pool, jobs.Gate() as gate:
        wait([pool.submit(jobs.nothing) for _ in range(500)], PATIENCE)
        held = busy_with(pool, gate, 2) if state != "idle" else []
        rounds = pool._staff._round_done
        seen: list[int] = []
        pool._staff._reactor._round_done = lambda: (seen.append(1), rounds())[1]
        threading.Event().wait(0.1)
        seen.clear()
        threading.Event().wait(0.3)
        assert len(seen) <= 2
        gate.open()
        wait(held, PATIENCE)


@pytest.mark.slow
def test_memory_of_a_sliding_window() -> None:
    """Many calls, few of them pending at a time, leave the parent's memory where it was."""
    with ProcessPool(2) as pool:

        def run(calls: int) -> None:
            window: list[Any] = []
            for number in range(calls):
                window.append(pool.submit(process_jobs.echo, number))
                if len(window) == 500:
                    for future in window:
                        future.result(PATIENCE)
                    window.clear()
            wait(window, PATIENCE)

        run(20_000)
        before = process_jobs.resident()
        run(60_000)
        assert process_jobs.resident() - before < 5 << 20


# -- where the system has less to offer -------------------------------------------------------------------------------


@pytest.fixture(params=["no memfd", "no shared memory", "no eventfd", "no epoll"])
def poor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that lacks something."""
    if request.param == "no memfd":
        monkeypatch.delattr(os, "memfd_create")
    elif request.param == "no shared memory":
        monkeypatch.setattr("parallel.pools.process.peer.make_memory", lambda: None)
    elif request.param == "no eventfd":
        monkeypatch.delattr(ears.os, "eventfd")
    else:
        monkeypatch.delattr(reactor.select, "epoll")
    return str(request.param)


def test_fallbacks(poor: str, tmp_path: Path) -> None:
    """Without the better means a pool does the same, and a death costs one call as well."""
    path = tmp_path / "notes"
    with ProcessPool(2) as pool:
        assert [pool.submit(jobs.double, i).result(PATIENCE) for i in range(20)] == [i * 2 for i in range(20)]
        futures = [pool.submit(process_jobs.note, str(path), i, i == 30) for i in range(100)]
        failed = [i for i, future in enumerate(futures) if future.exception(PATIENCE) is not None]
        assert failed == [30]
        assert isinstance(pool.submit(die).exception(PATIENCE), WorkerDiedError)
        worker = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: all(peer.pid != worker for peer in pool._staff._roster.staff))
        assert pool.submit(process_jobs.size, bytes(1 << 20)).result(PATIENCE) == 1 << 20
    assert noted(path) == dict.fromkeys(range(100), 1)


def test_max_tasks_with_batches() -> None:
    """A worker is sent no more calls than it may run, also in batches."""
    with ProcessPool(2, max_tasks_per_child=40) as pool:
        wait([pool.submit(jobs.pid) for _ in range(50)], PATIENCE)
        pids = Counter(future.result(PATIENCE) for future in [pool.submit(jobs.pid) for _ in range(500)])
    assert max(pids.values()) <= 40
    assert board.SIZE >= board.JOURNAL

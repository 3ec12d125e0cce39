"""
What the calls of `test_machine` do, in whatever thread, coroutine or process they run.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future as StandardFuture
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jobs

from parallel import Future, Task, sleep, task

PATIENCE = 60.0  # seconds; only a deadlock takes so long


class BoomError(Exception):
    """What fails on purpose; it has the number of the call."""


class Act(NamedTuple):
    """
    What one call does.

    Attributes:
        does: `value`, `error`, `flaky`, `hold`, `obey`, `nest` or `wait`.
        number: The call's own; its value, or what its error has.
        home: The process of the test.
        log: The file in which other processes note what they run.
        gate: Where it waits, if it does: the number of a `HoldingGate`.
        address: The same for another process.
        fails: How many attempts fail, of a flaky one.
        place: What limits it, for counting how many run at a time.
        inner: What the call does that it makes, and the kind of pool which that goes to.
    """

    does: str
    number: int
    home: int
    log: str
    gate: int = 0
    address: tuple[str, int] = ("", 0)
    fails: int = 0
    place: str = ""
    inner: tuple[str, Act] | None = None

    @property
    def is_at_home(self) -> bool:
        """Whether this is the process of the test."""
        return os.getpid() == self.home

    def value(self, given: tuple[Any, ...] = ()) -> Any:
        """Return what it returns when it does nothing special."""
        return (self.number, *given) if given else self.number


class HoldingGate:
    """Holds calls until it is opened: threads by an event, coroutines by promises, processes by a socket."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self._lock = threading.Lock()
        self._promises: list[StandardFuture[None]] = []
        self._socket: jobs.Gate | None = None

    def promise(self) -> StandardFuture[None]:
        """Return what ends when the gate is opened, for one who may cancel it."""
        promise: StandardFuture[None] = StandardFuture()
        with self._lock:
            if not self.is_open.is_set():
                self._promises.append(promise)
                return promise
        promise.set_result(None)
        return promise

    def address(self) -> tuple[str, int]:
        """Return where a process waits."""
        if self._socket is None:
            self._socket = jobs.Gate()
        return self._socket.address

    def open(self) -> None:
        """Let all go on, those to come too."""
        with self._lock:
            self.is_open.set()
            promises, self._promises = self._promises, []
        for promise in promises:
            if promise.set_running_or_notify_cancel():
                promise.set_result(None)
        if self._socket is not None:
            self._socket.open()


GATES: dict[int, HoldingGate] = {}
RUNS: list[int] = []  # the numbers of the calls that ran here; appending is atomic
MADE: list[Future[Any]] = []  # the calls that calls made
BUSY: Counter[str] = Counter()  # bodies under a limit that run now, by limit, and under `LOCK`
MOST: Counter[str] = Counter()  # the most at a time
LOCK = threading.Lock()


@contextmanager
def body(act: Act) -> Generator[None]:
    """Note that the call runs, and how many run with it."""
    if not act.is_at_home:
        log = os.open(act.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # short writes at the end are atomic
        os.write(log, b"%d\n" % act.number)
        os.close(log)
        yield
        return
    RUNS.append(act.number)
    with LOCK:
        BUSY[act.place] += 1
        MOST[act.place] = max(MOST[act.place], BUSY[act.place])
    try:
        yield
    finally:
        with LOCK:
            BUSY[act.place] -= 1


def runs(log: Path) -> Counter[int]:
    """Count how often each call has run, here and in other processes."""
    text = ""
    with suppress(FileNotFoundError):
        text = log.read_text()
    return Counter([*RUNS, *map(int, text.split())])


def run(act: Act, *given: Any) -> Any:
    """Do as *act* says."""
    with body(act):
        match act.does:
            case "hold" if act.is_at_home:
                assert GATES[act.gate].is_open.wait(PATIENCE)
            case "hold":
                jobs.wait_at(act.address)
            case "obey":
                sleep(PATIENCE)
                raise AssertionError("nobody asked it to stop")
            case "nest":
                return "nest", call_inside(act).result(PATIENCE)
            case "wait":
                return "waited", given[0].result()
            case _:
                fail_if_said(act)
        return act.value(given)


async def async_run(act: Act, *given: Any) -> Any:
    """Do as *act* says."""
    with body(act):
        match act.does:
            case "hold" if act.is_at_home:
                await asyncio.wrap_future(GATES[act.gate].promise())
            case "hold":
                jobs.wait_at(act.address)
            case "obey":
                await asyncio.sleep(PATIENCE)
                raise AssertionError("nobody asked it to stop")
            case "nest":
                return "nest", await call_inside(act)
            case "wait":
                return "waited", await given[0]
            case _:
                await asyncio.sleep(0)
                fail_if_said(act)
        return act.value(given)


def fail_if_said(act: Act) -> None:
    """Fail if this attempt is to."""
    if act.does == "error" or (act.does == "flaky" and runs(Path(act.log))[act.number] <= act.fails):
        raise BoomError(act.number)


def call_inside(act: Act) -> Future[Any]:
    """Make the call that is made inside a call."""
    assert act.inner is not None
    kind, inner = act.inner
    future = task_of(kind)(inner)
    if act.is_at_home:
        MADE.append(future)
    return future


Runner = Callable[..., Any] | Callable[..., Coroutine[Any, Any, Any]]


def _tasks(run: Runner, *kinds: str) -> dict[str, Task[..., Any]]:
    """Declare one task for each kind, so that each has limits of its own."""
    return {kind: task(pool=kind)(run) for kind in kinds}


PLAIN = _tasks(run, "thread", "gated", "process", "inline")
COROUTINES = _tasks(async_run, "thread", "gated", "process", "inline", "loop")


def task_of(kind: str, *, is_coroutine: bool = False) -> Task[..., Any]:
    """Return the task of a kind of pool; a loop runs coroutines only."""
    return COROUTINES[kind] if is_coroutine or kind == "loop" else PLAIN[kind]

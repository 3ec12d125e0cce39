"""
Chaos: calls of all sorts, on several pools, from several threads, while workers are killed and stopped from outside.

    python tests/crash/chaos.py [--seconds 60] [--seed N]

A run is a series of epochs, each from a seed of its own, so that `--seed` of a failure repeats it as the first one.

    epoch: registry, pools ──▶ submitters: `Menu` makes a `Case` ──▶ its future ends ──▶ `Judge`: may it end so?
                           └─▶ killer: a signal to a random worker, now and then
           all is shut     ──▶ notes of the bodies: none ran more often than it may ──▶ census: nothing is left

It holds that:
- every future ends, and as its call may: values are right, errors are of the right type;
- a kill from outside costs one call at most, and that one is told by which signal;
- a body runs once for each attempt, and not at all if its call was cancelled in the queue or could not be sent;
- after each epoch no process, thread, descriptor or file is left, and the parent's memory is where it was.

The exit status is 0 if all of that held; else 1, with what did not on the standard output. A hang shows all stacks.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import faulthandler
import gc
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[1]))  # for `jobs` and `pools`, here and in workers

import chaos_jobs as bodies
import jobs
from pools import process_jobs

from parallel import (
    Future,
    PoolShutdownError,
    ProcessPool,
    Registry,
    Retry,
    SerializationError,
    TaskTimeoutError,
    WorkerDiedError,
    gather,
    task,
    using,
)
from parallel.pools.process import launching

METHODS: Final = ("fork", "forkserver", "spawn")
EPOCH: Final = 4.0  # seconds; so many runs have some epochs, and leaks show as a trend
PATIENCE: Final = 30.0  # seconds; only a deadlock takes so long
LONG: Final = 30.0  # seconds; what a body takes that is to be ended before
WINDOW: Final = 40  # calls of a submitter that may be pending
GROWTH: Final = 64 << 20  # bytes that the parent may have more than after its first epochs; a leak has no such bound
FIRST: Final = 3  # epochs until the memory counts
OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)
AT_ONCE: Final = {"wait_initial": 0, "wait_max": 0, "wait_jitter": 0}

Judge = Callable[[Any, BaseException | None], bool]
"""Tells whether a call may end with that value or error."""


# -- how a call may end -----------------------------------------------------------------------------------------------


def gives(expected: Any) -> Judge:
    """Judge that a call has this value, of this type."""
    return lambda value, error: error is None and type(value) is type(expected) and value == expected


def fails(kind: type[BaseException]) -> Judge:
    """Judge that a call fails with exactly this type."""
    return lambda value, error: type(error) is kind


def dies(*statuses: int) -> Judge:
    """Judge that the worker of a call dies so."""
    return lambda value, error: isinstance(error, WorkerDiedError) and error.exit_code in statuses


def either(*judges: Judge) -> Judge:
    """Judge that one of *judges* agrees."""
    return lambda value, error: any(judge(value, error) for judge in judges)


class Case:
    """
    A call that was made.

    Attributes:
        runs: How often its body may run at least and at most.
        is_one: It is queued once, so its body has not run if the shutdown of its pool has cancelled it.
        may_be_cancelled: By a shutdown.
    """

    __slots__ = ("future", "is_one", "judge", "may_be_cancelled", "number", "runs", "what")

    def __init__(
        self,
        number: int,
        what: str,
        future: Future[Any],
        judge: Judge,
        runs: tuple[int, int] = (1, 1),
        is_one: bool = True,
    ) -> None:
        self.number = number
        self.what = what
        self.future = future
        self.judge = judge
        self.runs = runs
        self.is_one = is_one
        self.may_be_cancelled = False

    def __repr__(self) -> str:
        return f"<Case {self.number} {self.what}: {self.future!r}>"


# -- what is called ---------------------------------------------------------------------------------------------------


class Menu:
    """Makes calls of all sorts; each submitter has its own, as it has its own random numbers."""

    def __init__(self, chance: random.Random, numbers: Iterator[int]) -> None:
        self._chance = chance
        self._numbers = numbers
        self._dishes: list[tuple[int, Callable[[int, str], Case]]] = [
            (30, self._quick),
            (6, self._nap),
            (3, self._spin),
            (3, self._drift),
            (8, self._fail),
            (1, self._recurse),
            (3, self._unsendable),
            (2, self._explosive),
            (2, self._unsendable_value),
            (2, self._death),
            (2, self._exit),
            (4, self._look),
            (4, self._make),
            (3, self._echo),
            (2, self._timeout),
            (1, self._deadline),
            (4, self._cancel),
            (2, self._cancel_running),
            (2, self._retry),
            (3, self._chain),
            (2, self._catch),
            (2, self._gather),
            (2, self._nested),
            (2, self._outer),
            (1, self._leave_child),
        ]

    def order(self) -> list[Case]:
        """Make a call; or many short ones of one sort, which travel together."""
        pool = self._chance.choice(METHODS)
        if self._chance.random() < 0.1:
            return [self._quick(next(self._numbers), pool) for _ in range(self._chance.randrange(100))]
        weights = [weight for weight, _ in self._dishes]
        dish = self._chance.choices(self._dishes, weights)[0][1]
        case = dish(next(self._numbers), pool)
        case.what += f" ({pool})"
        return [case]

    def simple(self, pool: ProcessPool) -> Case:
        """Make a call of a pool that has no registry."""
        number, chance = next(self._numbers), self._chance
        step = chance.randrange(10)
        if step == 0:
            return Case(number, "pool: leave", pool.submit(bodies.leave, number, 5), dies(5))
        if step == 1:
            return Case(number, "pool: nap", pool.submit(bodies.nap, number, chance.random() * 0.05), gives(number * 3))
        if step == 2:
            data = bodies.pattern(number, self._size())
            return Case(number, "pool: echo", pool.submit(bodies.echo, number, data), gives(data))
        return Case(number, "pool: quick", pool.submit(bodies.quick, number), gives(number * 3))

    def _size(self) -> int:
        """A number of bytes, of any magnitude."""
        return int(10 ** (self._chance.random() * 6.5))

    def _call(self, fn: Callable[..., Any], pool: str, *args: Any, **terms: Any) -> Future[Any]:
        return task(pool=pool, **terms)(fn)(*args)

    def _quick(self, number: int, pool: str) -> Case:
        terms = {"priority": self._chance.randrange(3)} if self._chance.random() < 0.1 else {}
        return Case(number, "quick", self._call(bodies.quick, pool, number, **terms), gives(number * 3))

    def _nap(self, number: int, pool: str) -> Case:
        return Case(number, "nap", self._call(bodies.nap, pool, number, self._chance.random() * 0.2), gives(number * 3))

    def _spin(self, number: int, pool: str) -> Case:
        return Case(
            number, "spin", self._call(bodies.spin, pool, number, self._chance.random() * 0.05), gives(number * 3)
        )

    def _drift(self, number: int, pool: str) -> Case:
        future = self._call(bodies.drift, pool, number, self._chance.random() * 0.02)
        return Case(number, "drift", future, gives(number * 3))

    def _fail(self, number: int, pool: str) -> Case:
        name = self._chance.choice(list(bodies.ERRORS))
        return Case(number, f"fail {name}", self._call(bodies.fail, pool, number, name), fails(bodies.ERRORS[name][1]))

    def _recurse(self, number: int, pool: str) -> Case:
        return Case(number, "recurse", self._call(bodies.recurse, pool, number), fails(RecursionError))

    def _unsendable(self, number: int, pool: str) -> Case:
        raised = self._chance.choice((ValueError, SystemExit, KeyboardInterrupt))
        what = self._chance.choice((threading.Lock(), process_jobs.RaisesInReduce(raised)))
        future = self._call(bodies.echo, pool, number, what)
        return Case(number, "unsendable", future, fails(SerializationError), (0, 0))

    def _explosive(self, number: int, pool: str) -> Case:
        what = process_jobs.Explosive(self._chance.choice((ValueError("damp"), SystemExit(4), KeyboardInterrupt())))
        return Case(number, "explosive", self._call(bodies.echo, pool, number, what), fails(SerializationError), (0, 0))

    def _unsendable_value(self, number: int, pool: str) -> Case:
        fn = self._chance.choice((bodies.return_unpicklable, bodies.return_explosive))
        return Case(number, fn.__name__, self._call(fn, pool, number), fails(SerializationError))

    def _death(self, number: int, pool: str) -> Case:
        if self._chance.random() < 0.5:
            status = self._chance.choice((0, 1, 77))
            return Case(number, "leave", self._call(bodies.leave, pool, number, status), dies(status))
        how = self._chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT))
        return Case(number, f"be killed by {how}", self._call(bodies.be_killed, pool, number, how), dies(-how))

    def _exit(self, number: int, pool: str) -> Case:
        return Case(number, "exit", self._call(bodies.quit_program, pool, number, 3), fails(SystemExit))

    def _look(self, number: int, pool: str) -> Case:
        data = bodies.pattern(number, self._size())
        kind = self._chance.choice((bytes, bytearray, lambda data: array.array("B", data)))
        sent = kind(data)
        seen = (type(sent).__name__, len(data), zlib.crc32(data))

        def judge(value: Any, error: BaseException | None) -> bool:
            assert bytes(sent) == data, "the worker changed what is the sender's"
            return error is None and value == seen

        return Case(number, f"look {seen[:2]}", self._call(bodies.look, pool, number, sent), judge)

    def _make(self, number: int, pool: str) -> Case:
        size, kind = self._size(), self._chance.choice((bytes, bytearray))
        future = self._call(bodies.make, pool, number, size, kind)

        def judge(value: Any, error: BaseException | None) -> bool:
            return error is None and type(value) is kind and value == bodies.pattern(number, size)

        return Case(number, f"make {kind.__name__} {size}", future, judge)

    def _echo(self, number: int, pool: str) -> Case:
        data = bodies.pattern(number, self._size())
        value = self._chance.choice((data, [data, data], {"one": bytearray(data), "two": number}))
        return Case(number, f"echo {len(data)}", self._call(bodies.echo, pool, number, value), gives(value))

    def _timeout(self, number: int, pool: str) -> Case:
        timeout = 0.01 + self._chance.random() * 0.3
        if self._chance.random() < 0.5:
            future = self._call(bodies.nap, pool, number, LONG, timeout=timeout)
            return Case(number, f"timeout {timeout:.3f}", future, fails(TaskTimeoutError), (0, 1))
        future = self._call(bodies.nap, pool, number, timeout * self._chance.random() * 2, timeout=timeout)
        judge = either(gives(number * 3), fails(TaskTimeoutError))
        return Case(number, f"timeout {timeout:.3f}, close", future, judge, (0, 1))

    def _deadline(self, number: int, pool: str) -> Case:
        future = self._call(bodies.nap, pool, number, LONG, deadline=0.01 + self._chance.random() * 0.5)
        return Case(number, "deadline", future, fails(TaskTimeoutError), (0, 1))

    def _cancel(self, number: int, pool: str) -> Case:
        future = self._call(bodies.nap, pool, number, self._chance.random() * 0.05)
        self._pause()
        if future.cancel():
            return Case(number, "cancelled", future, fails(CancelledError), (0, 0))
        # It was asked to stop; if its worker dies before it has begun, it is not given to another one.
        judge = either(gives(number * 3), fails(CancelledError))
        return Case(number, "cancelled too late", future, judge, (0, 1))

    def _cancel_running(self, number: int, pool: str) -> Case:
        seconds = self._chance.choice((0.01, 0.1, LONG))
        future = self._call(bodies.nap, pool, number, seconds)
        self._pause()
        self._pause()
        if future.cancel(running=True):
            return Case(number, f"killed in {seconds} s", future, fails(CancelledError), (0, 1))
        return Case(number, f"killed in {seconds} s, too late", future, gives(number * 3))

    def _pause(self) -> None:
        if self._chance.random() < 0.7:
            time.sleep(self._chance.random() ** 3 * 0.1)

    def _retry(self, number: int, pool: str) -> Case:
        how = self._chance.choice(("raise", "die", "overstay"))
        times = self._chance.choice((1, 1, 2, 5))
        attempts = times + 1 if times < 5 else 3
        retry = Retry(on=(ConnectionError, WorkerDiedError, TaskTimeoutError), attempts=attempts, **AT_ONCE)
        terms = {"retry": retry} | ({"timeout": 0.2} if how == "overstay" else {})
        future = self._call(bodies.fail_at_first, pool, number, times, how, **terms)
        # A busy machine may take the whole of an attempt's time, and a kill from outside may take any attempt.
        last = {"raise": fails(ConnectionError), "die": dies(1), "overstay": fails(TaskTimeoutError)}[how]
        good = either(gives(number * 3), last) if how == "overstay" else gives(number * 3)
        judge = last if times == 5 else either(good, last)
        return Case(number, f"retry {how} {times}", future, judge, (0 if how == "overstay" else 1, attempts), False)

    def _chain(self, number: int, pool: str) -> Case:
        future = self._call(bodies.quick, pool, number).then(bodies.inner).then(bodies.triple)
        return Case(number, "chain", future, gives(number * 27), is_one=False)

    def _catch(self, number: int, pool: str) -> Case:
        future = self._call(bodies.fail, pool, number, "odd").catch(jobs.OtherArgumentsError, lambda error: error.code)
        return Case(number, "catch", future, gives(404), is_one=False)

    def _gather(self, number: int, pool: str) -> Case:
        more = [task(pool=pool)(bodies.triple)(each) for each in range(self._chance.randrange(1, 30))]
        future = gather(self._call(bodies.quick, pool, number), *more)
        return Case(number, "gather", future, gives((number * 3, *range(0, len(more) * 3, 3))), is_one=False)

    def _nested(self, number: int, pool: str) -> Case:
        return Case(number, "nested", bodies.nested.options(pool=pool)(number), gives(number * 6 + 3))

    def _outer(self, number: int, pool: str) -> Case:
        return Case(number, "outer", bodies.outer(number, pool), gives(number * 6 + 3), is_one=False)

    def _leave_child(self, number: int, pool: str) -> Case:
        return Case(number, "leave child", self._call(bodies.leave_child, pool, number), gives(number * 3))


# -- the notes of the bodies ------------------------------------------------------------------------------------------


class Notes:
    """The file in which the bodies write who runs where, read from where the last look ended."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path
        self._offset = 0
        self.runs: Counter[int] = Counter()
        self.workers: set[int] = set()

    def read(self) -> None:
        """Take in what has come since."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        for line in text.splitlines():
            number, pid = map(int, line.split())
            self.runs[number] += 1
            self.workers.add(pid)

    def clear(self) -> None:
        """Forget what the epoch that has ended left."""
        self.runs.clear()
        self.workers.clear()


# -- who disturbs -----------------------------------------------------------------------------------------------------


def parent_of(pid: int) -> int:
    """Return the parent's id of a process that has not ended; 0 if it has."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def fork_server() -> int:
    """Return the id of the process that starts those of the forkserver method; -1 if there is none."""
    found = launching.helper()
    return -1 if found is None else found[0]


class Killer(threading.Thread):
    """Sends signals to workers that have run something, now and then, until it is told to stop."""

    def __init__(self, chance: random.Random, notes: Notes) -> None:
        super().__init__(name="killer", daemon=True)
        self._chance = chance
        self._notes = notes
        self._end = threading.Event()
        self.kills = 0
        self.problem: str | None = None

    def run(self) -> None:
        """Disturb."""
        try:
            while not self._end.wait(0.01 + self._chance.random() * 0.15):
                self._disturb()
        except BaseException:
            self.problem = traceback.format_exc()

    def stop(self) -> None:
        """End the disturbance."""
        self._end.set()
        self.join()

    def _disturb(self) -> None:
        self._notes.read()
        ours = (os.getpid(), fork_server())
        workers = sorted(pid for pid in self._notes.workers if pid != ours[0] and parent_of(pid) in ours)
        if not workers:
            return
        pid = self._chance.choice(workers)
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if parent_of(pid) in ours:  # not another one, which got the number of one that has ended
                self._hit(handle)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)

    def _hit(self, handle: int) -> None:
        if self._chance.random() < 0.3:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            self._end.wait(self._chance.random() * 0.2)
            signal.pidfd_send_signal(handle, signal.SIGCONT)
        else:
            self.kills += 1
            signal.pidfd_send_signal(handle, self._chance.choice(OUTSIDE))


# -- who submits ------------------------------------------------------------------------------------------------------


class Book:
    """
    What was found in an epoch; lists are appended to from all threads.

    Attributes:
        losses: Calls that a kill from outside has cost.
        ledger: For each call: its number, what it was, how often its body may have run.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.losses: list[str] = []
        self.ledger: list[tuple[int, str, int, int]] = []

    def close(self, case: Case) -> None:
        """Wait until a call ends, and see whether it may end so."""
        value, error = None, None
        try:
            value = case.future.result(PATIENCE)
        except BaseException as raised:
            error = raised
            if isinstance(raised, TimeoutError) and not case.future.done():
                hang(f"{case!r} has not ended after {PATIENCE:g} s")
        least, most = case.runs
        if case.may_be_cancelled and isinstance(error, CancelledError | PoolShutdownError):
            least, most = 0, 0 if case.is_one and not case.judge(value, error) else most
        elif not self._is_right(case, value, error):
            self.problems.append(f"{case!r} ended with {shortened(value if error is None else error)}")
            least, most = 0, most
        elif error is not None:
            least = min(least, 1)
        if is_lost(error):
            least = 0
        self.ledger.append((case.number, case.what, least, most))

    def _is_right(self, case: Case, value: Any, error: BaseException | None) -> bool:
        if case.judge(value, error):
            return True
        if is_lost(error):
            self.losses.append(case.what)
            return True
        return False

    def compare(self, runs: Counter[int]) -> None:
        """See whether each body ran as often as it may."""
        for number, what, least, most in self.ledger:
            if not least <= runs[number] <= most:
                self.problems.append(f"the body of {number} {what} ran {runs[number]} times, not {least} to {most}")


def is_lost(error: BaseException | None) -> bool:
    """Tell whether a call was lost to a kill from outside."""
    return isinstance(error, WorkerDiedError) and error.exit_code in [-each for each in OUTSIDE]


def shortened(value: object) -> str:
    """Show a value, which may be large, or an error with its cause."""
    if isinstance(value, BaseException):
        return "".join(traceback.format_exception(value))[-3000:]
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}... ({len(text)})"


class Submitter(threading.Thread):
    """Makes calls until the time is over, and looks at how they end, the oldest first."""

    def __init__(self, chance: random.Random, menu: Menu, registry: Registry, book: Book, end: float) -> None:
        super().__init__(name="submitter", daemon=True)
        self._chance = chance
        self._menu = menu
        self._registry = registry
        self._book = book
        self._end = end
        self._window: deque[Case] = deque()

    def run(self) -> None:
        """Make calls."""
        try:
            with using(self._registry):
                while time.monotonic() < self._end:
                    if self._chance.random() < 0.01:
                        self._live_through_a_pool()
                    self._window.extend(self._menu.order())
                    if len(self._window) > self._chance.randrange(1, WINDOW):
                        self._close_some()
                while self._window:
                    self._book.close(self._window.popleft())
        except BaseException:
            self._book.problems.append(traceback.format_exc())

    def _close_some(self) -> None:
        for _ in range(self._chance.randrange(1, len(self._window) + 1)):
            self._book.close(self._window.popleft())

    def _live_through_a_pool(self) -> None:
        """Use a pool that lives for a short time, and ends in one of many ways."""
        chance = self._chance
        pool = ProcessPool(
            chance.randrange(1, 3),
            chance.choice(METHODS),
            max_tasks_per_child=chance.choice((None, 3, 20)),
        )
        cases = [self._menu.simple(pool) for _ in range(chance.randrange(40))]
        end = chance.choice(("wait", "leave", "cancel", "cancel and leave", "drop", "race"))
        racers: list[threading.Thread] = []
        if end == "race":
            raced: list[Case] = []
            racers = [threading.Thread(target=self._race, args=(pool, raced), name="racer") for _ in range(2)]
            for racer in racers:
                racer.start()
        if end == "drop":
            del pool
        else:
            pool.shutdown(wait=end in ("wait", "cancel", "race"), cancel_futures=end.startswith("cancel"))
        for racer in racers:
            racer.join()
        if end == "race":
            cases += raced
        for case in cases:
            case.may_be_cancelled = end.startswith("cancel")
            self._book.close(case)

    def _race(self, pool: ProcessPool, raced: list[Case]) -> None:
        menu = Menu(random.Random(len(raced)), self._menu._numbers)
        try:
            for _ in range(40):
                raced.append(menu.simple(pool))
        except PoolShutdownError:
            return


# -- what is left -----------------------------------------------------------------------------------------------------


def helpers() -> set[int]:
    """The processes of multiprocessing itself, which live as long as the program."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    return {fork_server(), (tracker and tracker._resource_tracker._pid) or -1}


def children() -> list[str]:
    """The processes that this one has started, or had the fork server start."""
    ours = {os.getpid(), fork_server()}
    found: list[str] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in helpers() and parent_of(int(entry.name)) in ours:
            found.append(f"process {entry.name}")
    return found


def descriptors() -> list[str]:
    """The kinds of what is open, as numbers and inodes differ from time to time."""
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append("descriptor " + os.readlink(f"/proc/self/fd/{name}").partition(":[")[0])
    return found


def files() -> list[str]:
    """Temporary files, in a folder of this run, and shared memory; `pymp-*` is multiprocessing's folder."""
    found = [each for each in Path(tempfile.gettempdir()).iterdir() if not each.name.startswith("pymp-")]
    shared = Path("/dev/shm")
    if shared.is_dir():
        found += [each for each in shared.iterdir() if each.name.startswith(("psm_", "parallel"))]
    return [f"file {each}" for each in found]


def census() -> Counter[str]:
    """Count all that may be left."""
    threads = [f"thread {thread.name}" for thread in threading.enumerate()]
    return Counter([*threads, *children(), *descriptors(), *files()])


def left_over(before: Counter[str]) -> Counter[str]:
    """Return what there is more than *before*, once what is on its way out has gone."""
    deadline = time.monotonic() + 15
    while (left := census() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    return left


def resident() -> int:
    """Return what memory this process has, without that which is free already."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return process_jobs.resident()


def hang(what: str) -> None:
    """Show where everybody is, and end the program; its workers end with it."""
    print(f"HANG: {what}", flush=True)
    faulthandler.dump_traceback(sys.stdout, all_threads=True)
    for line in children():
        print(line, *(Path(f"/proc/{line.split()[1]}/{name}").read_text()[:200] for name in ("wchan", "stat")))
    sys.stdout.flush()
    os._exit(3)


# -- the run ----------------------------------------------------------------------------------------------------------


def configuration(chance: random.Random) -> dict[str, Any]:
    """Describe a pool for each start method, and one of threads."""
    pools: dict[str, Any] = {"threads": {"kind": "thread", "max_workers": 3}}
    for method in METHODS:
        pools[method] = {"kind": "process", "mp_context": method, "max_workers": chance.randrange(1, 4)}
        if chance.random() < 0.4:
            # To start a worker takes as long as hundreds of calls: fewer for each would measure that.
            pools[method]["max_tasks_per_child"] = chance.choice((10, 30, 100))
    return {"unobserved": "ignore", "pools": pools}


def live_through(seed: int, seconds: float, notes: Notes, numbers: Iterator[int]) -> tuple[Book, int]:
    """Run one epoch; return what was found, and how many workers were killed."""
    chance = random.Random(seed)
    book = Book()
    registry = Registry(configuration(chance))
    killer = Killer(random.Random(chance.random()), notes)
    end = time.monotonic() + seconds
    submitters = []
    for _ in range(3):
        own = random.Random(chance.random())
        submitters.append(Submitter(own, Menu(own, numbers), registry, book, end))
    killer.start()
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join()
    killer.stop()
    last = random.Random(chance.random())
    with using(registry):
        late = [case for _ in range(last.randrange(60)) for case in Menu(last, numbers).order()]
    cancels = chance.random() < 0.3
    registry.shutdown(cancel_futures=cancels)
    for case in late:
        case.may_be_cancelled = cancels
        book.close(case)
    if killer.problem is not None:
        book.problems.append(killer.problem)
    return book, killer.kills


def verdict(book: Book, kills: int, notes: Notes) -> list[str]:
    """Return what was not as it should be in an epoch that has ended."""
    notes.read()
    book.compare(notes.runs)
    if len(book.losses) > kills:
        book.problems.append(f"{kills} kills cost {len(book.losses)} calls: {Counter(book.losses)}")
    return book.problems


def warm_up() -> None:
    """Start what multiprocessing keeps, and what this library does."""
    for method in METHODS:
        with ProcessPool(1, method) as pool:
            pool.submit(bodies.triple, 1).then(bodies.triple).result(PATIENCE)


def run(seconds: float, seed: int, folder: Path) -> Iterable[str]:
    """Run epochs, and yield what was not as it should be; a hang ends the program."""
    os.environ[bodies.NOTES] = str(folder / "notes")
    notes = Notes(folder / "notes")
    numbers = itertools.count(1)
    warm_up()
    before = census()
    sizes: list[int] = []
    end = time.monotonic() + seconds
    for epoch in itertools.count(seed):
        faulthandler.dump_traceback_later(EPOCH + PATIENCE + 15, exit=True)  # before who runs this gives up
        began = time.monotonic()
        book, kills = live_through(epoch, min(EPOCH, seconds), notes, numbers)
        found = verdict(book, kills, notes)
        found += [f"left behind: {what} ({count})" for what, count in left_over(before).items()]
        sizes.append(resident())
        if len(sizes) > FIRST and sizes[-1] - max(sizes[:FIRST]) > GROWTH:
            found.append(f"the parent grew: {[size >> 20 for size in sizes]} MB")
        print(
            f"seed {epoch}: {time.monotonic() - began:.1f} s, {len(book.ledger)} calls, {kills} kills,"
            f" {len(book.losses)} calls lost to them, {sizes[-1] >> 20} MB, {len(found)} problems",
            flush=True,
        )
        yield from (f"seed {epoch}: {problem}" for problem in found)
        notes.clear()
        for mark in folder.glob("mark-*"):
            mark.unlink()
        if time.monotonic() >= end:
            return


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Make calls of all sorts while their workers are killed and stopped.")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, help="of the first epoch (default: another one each time)")
    asked = parser.parse_args()
    seed = random.randrange(1_000_000) if asked.seed is None else asked.seed
    print(f"CPython {sys.version.split()[0]}: --seconds {asked.seconds:g} --seed {seed}", flush=True)
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    faulthandler.enable()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    # After multiprocessing, which has priority -100, has removed its own folder, which is in there.
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-200)
    (folder / "t").mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "t")
    problems = 0
    for problem in run(asked.seconds, seed, folder):
        problems += 1
        print(problem, flush=True)
    faulthandler.cancel_dump_traceback_later()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""
What the tests of process pools run in workers, and how they look at processes.
"""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from jobs import wait_at

from parallel import ProcessPool, checkpoint, current_task, sleep, task
from parallel.pools.process import wire

PATIENCE = 60.0  # seconds; only a deadlock takes so long
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("process_jobs.VARIABLE", default="unset")
LOCK: Any = None
COUNT = 0


# -- looking at processes -------------------------------------------------------------------------------------------


def is_gone(pid: int, patience: float = PATIENCE) -> bool:
    """Tell whether the process has ended before *patience* was out."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience)[0])
    finally:
        os.close(handle)


def wait_until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once *condition* holds; for what happens in other processes, and tells nobody."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


# -- ways to die ------------------------------------------------------------------------------------------------------


def die(how: int = signal.SIGKILL) -> NoReturn:
    """Be killed."""
    os.kill(os.getpid(), how)
    raise AssertionError("still here")


def leave(status: int = 0) -> NoReturn:
    """Leave without a goodbye."""
    os._exit(status)


def raise_pid() -> NoReturn:
    """Fail, with the id of the process that runs this."""
    raise OSError(os.getpid())


def die_once(marker: str) -> str:
    """Be killed the first time, and say so the second."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return "second"
    die()


def leave_half_an_answer() -> NoReturn:
    """Begin an answer, and be killed in the middle of it."""
    for descriptor in range(3, 64):
        try:
            is_socket = os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
        except OSError:
            continue
        if is_socket:
            os.write(descriptor, wire.HEAD.pack(1000, 0) + b"half")
    die()


class Deadly:
    """Its end is the end of its process."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        return str, ("deadly",)

    def __del__(self) -> None:
        die()


def make_deadly() -> Deadly:
    """Return what kills the worker once it is dropped."""
    return Deadly()


# -- values that do not travel ----------------------------------------------------------------------------------------


class Explosive:
    """It can be pickled, and raises *error* when it is loaded."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return explode, (self.error,)


def explode(error: BaseException) -> NoReturn:
    """Raise *error*."""
    raise error


class ExplosiveError(Exception):
    """It can be loaded in the process that made it, and nowhere else."""

    def __reduce__(self) -> Any:
        return make_at_home, (os.getpid(), self.args)


def make_at_home(pid: int, args: tuple[Any, ...]) -> ExplosiveError:
    """Load an `ExplosiveError`."""
    if pid != os.getpid():
        raise ValueError("not at home")
    return ExplosiveError(*args)


class RaisesInReduce:
    """Its pickling raises *error*."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("while it was pickled")


class HttpError(Exception):
    """It builds its text from its argument, as many do."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def raise_http(status: int) -> NoReturn:
    """Raise it."""
    raise HttpError(status)


def raise_noted() -> NoReturn:
    """Raise an error with a note and a cause."""
    error = ValueError("outer")
    error.add_note("seen at night")
    try:
        raise KeyError("inner")
    except KeyError as inner:
        raise error from inner


def raise_textless() -> NoReturn:
    """Raise an error that can't tell its text, nor travel."""

    class TextlessError(Exception):
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __str__(self) -> str:
            raise SystemExit("no text")

        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    raise TextlessError


def raise_group() -> NoReturn:
    """Raise a group of errors."""
    raise ExceptionGroup("both", [ValueError(1), OSError(2, "no such file")])


def make_explosive(error: BaseException) -> Explosive:
    """Return what can't be loaded."""
    return Explosive(error)


def raise_explosive() -> NoReturn:
    """Raise what can't be loaded in another process."""
    raise ExplosiveError("boom")


def nest(depth: int) -> Any:
    """Return a list in a list in a list..."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def recurse() -> Any:
    """Call itself for ever."""
    return recurse()


def too_much() -> NoReturn:
    """Run out of memory."""
    raise MemoryError


class TooMuch:
    """Its pickling runs out of memory."""

    def __reduce__(self) -> Any:
        raise MemoryError


def make_too_much() -> TooMuch:
    """Return it."""
    return TooMuch()


# -- functions of all kinds -------------------------------------------------------------------------------------------


def double(x: Any) -> Any:
    """Return twice *x*."""
    return x * 2


def decorated(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap *fn*, so that its name is bound to something that pickle can't tell from it."""

    @wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return ("wrapped", fn(*args, **kwargs))

    return wrapper


@task(pool="processes")
@decorated
def twice_decorated(x: int) -> Any:
    """Be a task, of a wrapper, of a function."""
    return x + 1


class Counter:
    """Something with methods."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, x: int) -> int:
        return self.start + x

    def plus(self, x: int) -> int:
        """Add *x*."""
        return self.start + x

    @task(pool="processes")
    def tasked(self, x: int) -> int:
        """Add *x*, as a task."""
        return self.start + x

    @classmethod
    def make(cls, start: int) -> int:
        """Return what a new one starts with."""
        return cls(start).start

    @staticmethod
    def static(x: int) -> int:
        """Return it."""
        return x

    class Inner:
        """A class in a class."""

        def who(self) -> str:
            """Tell the class."""
            return type(self).__qualname__


def rebound() -> str:
    """Be the function that a test binds something else to the name of."""
    return "the first"


async def loop_id() -> int:
    """Return what tells this worker's event loop from another."""
    await asyncio.sleep(0)
    return id(asyncio.get_running_loop())


def make_coroutine(x: int) -> Any:
    """Return a coroutine, without being an async function."""

    async def later() -> int:
        await asyncio.sleep(0)
        return x

    return later()


def set_variable(value: str) -> str:
    """Return what the variable was, and set it."""
    before = VARIABLE.get()
    VARIABLE.set(value)
    return before


def loaded_modules() -> list[str]:
    """Return the modules of this process."""
    return sorted(sys.modules)


def size(data: bytes) -> int:
    """Return how long it is."""
    return len(data)


def echo(data: Any) -> Any:
    """Return it."""
    return data


def sigint_myself() -> str:
    """Get a Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def is_sigint_ignored_by_programs() -> bool:
    """Tell whether a program that a call starts ignores Ctrl-C."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        os.execv(
            sys.executable,
            [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"],
        )
    os.close(writer)
    with os.fdopen(reader) as out:
        text = out.read()
    os.waitpid(pid, 0)
    return text.strip() == "True"


def fork_a_sleeper() -> int:
    """Leave a child behind that outlives this process, and return its id."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def fork_a_sleeper_and_die(path: str) -> NoReturn:
    """Leave a child behind, note its id, and die."""
    pid = fork_a_sleeper()
    Path(path).write_text(str(pid))
    die()


def print_late(text: str) -> None:
    """Print without flushing."""
    sys.stdout.write(text)


def start_a_process() -> int:
    """Start a child of the worker's own, and return its exit code."""
    process = multiprocessing.get_context("spawn").Process(target=leave, args=(7,))
    process.start()
    process.join()
    return process.exitcode or 0


def use_a_pool() -> list[int]:
    """Use a process pool inside a worker."""
    with ProcessPool(2) as pool:
        return [future.result(PATIENCE) for future in [pool.submit(double, i) for i in range(4)]]


def own_threads() -> list[str]:
    """Return the names of the threads of this process, the main one excepted."""
    return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]


def count() -> int:
    """Return how many calls this worker has run."""
    global COUNT
    COUNT += 1
    return COUNT


# -- initializers -----------------------------------------------------------------------------------------------------


def keep_lock(lock: Any) -> None:
    """Remember a lock of multiprocessing."""
    global LOCK
    LOCK = lock


def use_lock() -> bool:
    """Use it."""
    with LOCK:
        return True


def initializer_that_fails(text: str) -> NoReturn:
    """Fail."""
    raise ValueError(text)


def initializer_that_dies_with_note(path: str) -> NoReturn:
    """Note one more start, and die."""
    with open(path, "a") as file:
        file.write("x")
    leave(9)


def pickled_size(value: object) -> int:
    """Return how many bytes it pickles to."""
    return len(pickle.dumps(value))


# -- bodies that are counted ------------------------------------------------------------------------------------------


class Number(int):
    """An int that is none."""


def note(path: str, number: int, deadly: bool = False) -> int:
    """Write a line that says that this body ran, in one step; then die, or return the number."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    if deadly:
        die()
    return number


def note_and_wait(path: str, number: int, host: str, port: int) -> int:
    """As `note`; then wait at the gate of that address, if there is one."""
    note(path, number)
    if host:
        wait_at((host, port))
    return number


def resident() -> int:
    """Return how much memory this process has, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def facts_of_call() -> tuple[str, int, int, str, float | None, bool]:
    """Tell all about the call that this runs in."""
    now = current_task()
    return now.name, now.id, now.attempt, now.pool, now.deadline, now.cancelled


def facts_of_third_attempt(note: str) -> list[tuple[int, int]]:
    """Fail twice; return the id and the number of each attempt."""
    now = current_task()
    with open(note, "a") as file:
        print(now.id, now.attempt, file=file)
    with open(note) as file:
        seen = [(int(line.split()[0]), int(line.split()[1])) for line in file]
    if len(seen) < 3:
        raise OSError
    return seen


def work_until_asked(note: str, how: str) -> str:
    """Tell by a file that it runs, then work until asked to stop, which it finds out in one of three ways."""
    with open(note, "w") as file:
        file.write("runs")
    if how == "looks":
        while not current_task().cancelled:
            time.sleep(0.001)
        return "asked"
    while True:
        if how == "sleeps":
            sleep(3600)
        else:
            checkpoint()


def time_of_sleep(how_long: str) -> float:
    """Return the seconds that `sleep` takes."""
    began = time.monotonic()
    sleep(how_long)
    return time.monotonic() - began


def left_of_deadline() -> tuple[float | None, float | None]:
    """Return what is left of this call's deadline, and of that of a call that it makes."""
    return current_task().deadline, task(pool="threads")(lambda: current_task().deadline)().result(60)


def nested_overrun(note: str) -> None:
    """Wait for a call that takes for ever, and note how it ends."""
    task(pool="threads")(sleep)(3600).result(60)

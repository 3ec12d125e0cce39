"""
What the chaos runs in workers: bodies that note that they ran, and then do well, badly, or die.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import jobs
from pools import process_jobs

from parallel import RemoteError, task

NOTES: Final = "CHAOS_NOTES"
"""The variable that names the file in which each body notes its number and its process."""


def note(number: int) -> None:
    """Write down, in one step, that the body of call *number* has begun in this process."""
    descriptor = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number} {os.getpid()}\n".encode())
    os.close(descriptor)


# -- that do well -----------------------------------------------------------------------------------------------------


def quick(number: int) -> int:
    """Do nothing to speak of."""
    note(number)
    return number * 3


def nap(number: int, seconds: float) -> int:
    """Take a while without the CPU."""
    note(number)
    time.sleep(seconds)
    return number * 3


def spin(number: int, seconds: float) -> int:
    """Take a while of the CPU."""
    note(number)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        zlib.crc32(b"x" * 1000)
    return number * 3


async def drift(number: int, seconds: float) -> int:
    """Take a while in an event loop."""
    note(number)
    await asyncio.sleep(seconds)
    return number * 3


def look(number: int, data: Any) -> tuple[str, int, int]:
    """Tell what came: its type, its length and its check sum. What can be changed is changed here after that."""
    note(number)
    view = memoryview(data).cast("B")
    seen = (type(data).__name__, len(view), zlib.crc32(view))
    if not view.readonly and len(view):
        view[0] ^= 0xFF
    return seen


def pattern(number: int, size: int) -> bytes:
    """Make bytes that tell one call from another."""
    return (number.to_bytes(8, "big") * (size // 8 + 1))[:size]


def make(number: int, size: int, kind: type[bytes] | type[bytearray]) -> bytes | bytearray:
    """Return a big value."""
    note(number)
    return kind(pattern(number, size))


def echo(number: int, data: Any) -> Any:
    """Return a big value that came."""
    note(number)
    return data


def leave_child(number: int) -> int:
    """Leave a process behind that lives a little longer than the call, and has all of its descriptors."""
    note(number)
    if os.fork() == 0:
        time.sleep(0.1)
        os._exit(0)
    return number * 3


def triple(value: int) -> int:
    """Follow a call."""
    return value * 3


# -- that do badly ----------------------------------------------------------------------------------------------------


class Nameless(Exception):
    """Its constructor takes a keyword that it does not hand on, and no default."""

    def __init__(self, *, where: str) -> None:
        super().__init__()
        self.where = where


def _fresh_unpicklable() -> BaseException:
    return jobs.UnpicklableError("broken pipe dream")


ERRORS: Final[dict[str, tuple[Callable[[], BaseException], type[BaseException]]]] = {
    "plain": (lambda: ValueError("plain"), ValueError),
    "odd": (lambda: jobs.OtherArgumentsError(404, "not found"), jobs.OtherArgumentsError),
    "nameless": (lambda: Nameless(where="here"), Nameless),
    "frozen": (lambda: jobs.FrozenError(7), jobs.FrozenError),
    "falsy": (lambda: jobs.FalsyError("false"), jobs.FalsyError),
    "weird": (lambda: jobs.WeirdError("weird"), jobs.WeirdError),
    "unpicklable": (_fresh_unpicklable, RemoteError),
    "explosive": (lambda: process_jobs.ExplosiveError("boom"), RemoteError),
    "http": (lambda: process_jobs.HttpError(503), process_jobs.HttpError),
    "group": (lambda: ExceptionGroup("two", [ValueError(1), KeyError(2)]), ExceptionGroup),
    "exit": (lambda: SystemExit(3), SystemExit),
    "interrupt": (lambda: KeyboardInterrupt(), KeyboardInterrupt),
    "stop": (lambda: StopIteration(4), StopIteration),
    "memory": (lambda: MemoryError(), MemoryError),
}
"""How each is made, and as what it arrives."""


def fail(number: int, name: str) -> NoReturn:
    """Raise one of `ERRORS`."""
    note(number)
    raise ERRORS[name][0]()


def recurse(number: int) -> Any:
    """Call itself until that fails."""
    note(number)
    return process_jobs.recurse()


def return_unpicklable(number: int) -> object:
    """Return what can't be sent."""
    note(number)
    return threading.Lock()


def return_explosive(number: int) -> object:
    """Return what can be sent, but not be loaded."""
    note(number)
    return process_jobs.Explosive(ValueError("on arrival"))


# -- that die ---------------------------------------------------------------------------------------------------------


def leave(number: int, status: int) -> NoReturn:
    """Leave without a word."""
    note(number)
    os._exit(status)


def quit_program(number: int, status: int) -> NoReturn:
    """Do what ends a program; here it ends the call."""
    note(number)
    sys.exit(status)


def be_killed(number: int, how: int) -> None:
    """Kill this process; some signals take a moment to come."""
    note(number)
    os.kill(os.getpid(), how)
    signal.pause()


# -- that do well in the end ------------------------------------------------------------------------------------------


def _attempt(number: int) -> int:
    """Count the attempts of a call, over processes: 0 is the first."""
    marks = Path(os.environ[NOTES]).parent
    for attempt in range(100):
        try:
            os.close(os.open(marks / f"mark-{number}-{attempt}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return attempt
    raise AssertionError("tried a hundred times")


def forget(number: int) -> None:
    """Drop the marks of the attempts of a call."""
    for mark in Path(os.environ[NOTES]).parent.glob(f"mark-{number}-*"):
        mark.unlink()


def fail_at_first(number: int, times: int, how: str) -> int:
    """Fail, die or overstay so many times, then do well."""
    note(number)
    if _attempt(number) >= times:
        return number * 3
    if how == "die":
        os._exit(1)
    if how == "overstay":
        time.sleep(60)
    raise ConnectionError(number)


# -- tasks ------------------------------------------------------------------------------------------------------------


@task(pool="forkserver")
def inner(value: int) -> int:
    """Be called by another call."""
    return value * 3


@task(pool="forkserver")
def nested(number: int) -> int:
    """Call others from a worker and wait for them."""
    note(number)
    return sum(inner(each).result() for each in (number, number + 1))


@task(pool="threads")
def outer(number: int, pool: str) -> int:
    """Call others, which run in processes, from a thread of this process and wait for them."""
    note(number)
    calls = [inner.options(pool=pool)(each) for each in (number, number + 1)]
    return sum(call.result() for call in calls)

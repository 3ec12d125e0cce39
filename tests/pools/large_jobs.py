"""
What the tests of large data run in the workers of process pools.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import jobs

from parallel.context import this
from parallel.pools.process.wire import Part

KEPT: list[Any] = []
CARRIED: ContextVar[Any] = ContextVar("large_jobs.CARRIED")


@dataclass
class Photo:
    """Something with a large part."""

    name: str
    pixels: Any


class Unpicklable:
    """It can't be pickled, and says so only after what stands before it has been."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("not this one")


def echo(value: Any) -> Any:
    return value


def echo_all(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def overwrite(data: Any) -> int:
    """Change the data, and return what stands in it then."""
    data[0] += 1
    return int(data[0])


def carried(place: int) -> int:
    return int(CARRIED.get()[place])


def length(data: Any) -> int:
    return len(data)


def make(size: int, byte: int = 0) -> memoryview:
    return memoryview(bytes([byte]) * size)


def make_array(count: int) -> Any:
    import numpy

    return numpy.arange(count, dtype="f8")


def total(array: Any) -> float:
    array += 1
    return float(array.sum())


def keep(value: Any) -> None:
    KEPT.append(value)


def kept() -> list[int]:
    return [value[0] for value in KEPT]


def drop_kept() -> None:
    KEPT.clear()


def make_unpicklable(size: int) -> Any:
    return [bytearray(size), Unpicklable()]


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


def die_with(data: Any) -> NoReturn:
    die()


def length_or_die(data: Any) -> int:
    """Die of a text that says so, wait at the gate of an address, else return the length."""
    if type(data) is str:
        die()
    if type(data) is tuple:
        jobs.wait_at(data)
    return len(data)


def make_or_die(size: int) -> memoryview:
    return make(size, 7) if size >= 0 else die()


def die_sending(data: Any, share: float) -> Any:
    """Return *data*, and die when that part of the answer is sent: its segment has gone ahead."""

    def send(parts: list[Part]) -> None:
        frame = b"".join(parts)
        server._sock.sendall(frame[: int(len(frame) * share)])
        die()

    server: Any = this.worker.server
    server._send = send
    return data


def fail_once(marker: str, data: Any) -> int:
    """Fail the first time, having changed the data; then return its length."""
    data[0] += 1
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return int(data[0])
    raise OSError("the first time")


def die_once(marker: str, data: Any) -> int:
    """Die the first time, then return the length."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return len(data)
    die()


def sleep_with(data: Any) -> None:
    threading.Event().wait(60)


def leave_no_descriptors() -> None:
    """Let this process open no more files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def leave_descriptors() -> None:
    """Let this process open files again."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def memfds(pid: int | None = None) -> int:
    """Count the segments that a process has open, this one by default."""
    folder = f"/proc/{pid or os.getpid()}/fd"
    count = 0
    for name in os.listdir(folder):
        try:
            count += "memfd:parallel " in os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue
    return count

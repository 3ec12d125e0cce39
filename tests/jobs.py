"""
Functions, tasks and exceptions that worker processes can import.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

from parallel import ThreadPool, parallel_map, task

PATIENCE = 30.0  # seconds; only a deadlock takes so long
VARIABLE: ContextVar[str] = ContextVar("jobs.VARIABLE", default="unset")
INITIALIZED: list[object] = []
AT_ONCE = {"wait_initial": 0, "wait_max": 0, "wait_jitter": 0}
"""What a `Retry` is told that is to wait for nothing."""


# -- functions ------------------------------------------------------------------------------------------------------


def nothing() -> None:
    """Do nothing."""


def double(x: Any) -> Any:
    """Return twice *x*."""
    return x * 2


def add(a: Any, b: Any = 1) -> Any:
    """Return the sum."""
    return a + b


def same(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments."""
    return args, kwargs


def takes_words(timeout: Any, priority: Any, key: Any, pool: Any, fn: Any, self: Any = None) -> dict[str, Any]:
    """Return arguments that are called as options are."""
    return {"timeout": timeout, "priority": priority, "key": key, "pool": pool, "fn": fn, "self": self}


def divide(a: float, b: float) -> float:
    """Divide; by zero, fail."""
    return a / b


def pid() -> int:
    """Return the id of the process that runs this."""
    return os.getpid()


def thread_name() -> str:
    """Return the name of the thread that runs this."""
    return threading.current_thread().name


def variable() -> str:
    """Return the value of `VARIABLE` here."""
    return VARIABLE.get()


def raises(error: BaseException) -> NoReturn:
    """Raise *error*."""
    raise error


def remember(value: object) -> None:
    """Be an initializer: note *value*."""
    INITIALIZED.append(value)


def remembered(_: object = None) -> list[object]:
    """Return what the initializer noted in this worker's process."""
    return list(INITIALIZED)


def bad_initializer() -> None:
    """Be an initializer that fails."""
    raise ValueError("no such device")


async def async_double(x: Any) -> Any:
    """Return twice *x*, after a turn of the loop."""
    await asyncio.sleep(0)
    return x * 2


def to_async(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make the coroutine function that does what *fn* does, on the loop itself."""

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return run


def to_thread(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make the coroutine function that does what *fn* does, on a thread: for those that block."""

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(fn, *args, **kwargs)

    return run


# -- meeting across threads and processes ---------------------------------------------------------------------------


class Gate:
    """
    Holds calls until it is opened, in whatever thread or process they run; a context manager.

    The calls run `wait_at(gate.address)`; `arrived(n)` returns when *n* of them are there.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.settimeout(PATIENCE)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._inside: list[socket.socket] = []

    def arrived(self, count: int = 1) -> None:
        """Wait until *count* calls more are there."""
        for _ in range(count):
            self._inside.append(self._listener.accept()[0])

    def open(self) -> None:
        """Let all calls go on, those to come too."""
        for end in (self._listener, *self._inside):  # shut down, as a forked child may have them open as well
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._inside.clear()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


def wait_at(address: tuple[str, int], value: Any = None) -> Any:
    """Wait at the gate, then return *value*."""
    with suppress(ConnectionError), socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.recv(1)  # an error: it is open
    return value


class Held:
    """A call of a pool of its own that runs until it is let go."""

    def __init__(self) -> None:
        self.pool = ThreadPool(1)
        self.running = threading.Event()
        self.go = threading.Event()
        self.future = self.pool.submit(self._run)
        assert self.running.wait(PATIENCE)

    def _run(self) -> str:
        self.running.set()
        assert self.go.wait(PATIENCE)
        return "held"

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.pool.shutdown()


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def without_gc() -> Iterator[None]:
    """Free nothing but what is no longer referred to."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# -- values that are hard to handle ---------------------------------------------------------------------------------


class OtherArgumentsError(Exception):
    """Its constructor takes other arguments than it hands on, so unpickling it as usual fails."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class FalsyError(Exception):
    """It is false, and it is an error all the same."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class FrozenError(Exception):
    """Its attributes can't be set, `__traceback__` included."""

    code: int = 3


class WeirdError(Exception):
    """It can't be compared, hashed or asked for its truth."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __bool__(self) -> bool:
        raise AssertionError("asked for its truth")


class Weird:
    """A value as `WeirdError`; like an array, it is neither true nor equal to anything."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __bool__(self) -> bool:
        raise AssertionError("asked for its truth")


class Unpicklable:
    """It can't travel."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("this one stays at home")


class UnpicklableError(Exception):
    """An error that can't travel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def make_unpicklable() -> Unpicklable:
    """Return what can't travel."""
    return Unpicklable()


def raise_unpicklable() -> NoReturn:
    """Raise what can't travel."""
    raise UnpicklableError("broken pipe dream")


def raise_other_arguments() -> NoReturn:
    """Raise what can't be made again from its arguments."""
    raise OtherArgumentsError(404, "not found")


def raise_falsy() -> NoReturn:
    """Raise what is false."""
    raise FalsyError("false, but true")


def raise_frozen() -> NoReturn:
    """Raise what can't be changed."""
    raise FrozenError(7)


def leave() -> NoReturn:
    """Try to leave the program."""
    raise SystemExit(3)


def interrupt() -> NoReturn:
    """Do as if Ctrl-C came."""
    raise KeyboardInterrupt


# -- tasks ----------------------------------------------------------------------------------------------------------


@task(pool="processes")
def remote_double(x: int) -> int:
    """Return twice *x*, from another process."""
    return x * 2


@task(pool="processes")
def remote_pid() -> int:
    """Return the id of a worker process."""
    return os.getpid()


@task(pool="processes")
def remote_words(timeout: int, priority: int, key: int, pool: int) -> list[int]:
    """Return arguments that are called as options are."""
    return [timeout, priority, key, pool]


@task(pool="processes")
def apply(fn: Callable[..., Any], *args: Any) -> Any:
    """Call *fn*, a declared function, in another process: the plain function there and then."""
    return fn.local(*args) if hasattr(fn, "local") else fn(*args)  # type: ignore[attr-defined]


@task
def local_double(x: int) -> int:
    """Return twice *x*, from a thread."""
    return x * 2


@task
async def loop_double(x: int) -> int:
    """Return twice *x*, from the loop."""
    await asyncio.sleep(0)
    return x * 2


@parallel_map
def squares(x: int) -> int:
    """Return the square of *x*."""
    return x * x


@parallel_map(pool="threads")
def thread_squares(x: int) -> int:
    """Return the square of *x*."""
    return x * x


class First:
    """One of two classes with a method of the same name."""

    @task(pool="processes")
    @staticmethod
    def who() -> str:
        """Tell who this is."""
        return "First"

    @task(pool="processes")
    def me(self) -> str:
        """Tell who this is."""
        return f"{type(self).__name__}.me of First"

    @task(pool="processes")
    @classmethod
    def kind(cls) -> str:
        """Tell which class this is."""
        return f"{cls.__name__}.kind of First"


class Second:
    """The other class with a method of the same name."""

    @task(pool="processes")
    @staticmethod
    def who() -> str:
        """Tell who this is."""
        return "Second"

    @task(pool="processes")
    def me(self) -> str:
        """Tell who this is."""
        return f"{type(self).__name__}.me of Second"

    @task(pool="processes")
    @classmethod
    def kind(cls) -> str:
        """Tell which class this is."""
        return f"{cls.__name__}.kind of Second"

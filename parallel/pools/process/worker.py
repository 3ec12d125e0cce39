"""
The worker's side of a process pool: one call after the other, until the stream ends.

    socket ──▶ frame ──▶ function, looked up or loaded ──▶ called ──▶ value or error ──▶ frame ──▶ socket
       │
       └─▶ a watching thread: the pool's process is gone ──▶ this one goes too, whatever it is doing

Guarantees:
- Whatever a call raises, SystemExit and KeyboardInterrupt included, ends that call only. So does a function that can't
  be found, arguments that can't be loaded, a value that can't be pickled.
- A worker leaves in order only when it is told to, by the end of the stream: then what multiprocessing runs at the end
  of a process runs, and the standard streams are flushed.
- Nothing outlives the pool: an idle worker leaves at once when the pool's process dies, a busy one after `GRACE`.
- Loaded here is only what calls need: no cloudpickle, no asyncio, no attrs before a call asks for them.

State: all of it belongs to the one thread that serves, except the socket's descriptor, which the watcher looks at.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
from _thread import start_new_thread
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from socket import socket
from types import CoroutineType, FrameType
from typing import Any, Final, TypeVar, cast

from parallel.context import enter_worker_process, plain_function, this
from parallel.coroutines import run_coroutine
from parallel.kept import close_kept
from parallel.pools.process.failures import pack_error
from parallel.pools.process.pickling import dumps, loads
from parallel.pools.process.references import resolve
from parallel.pools.process.wire import (
    BROKEN,
    CALL,
    FAILED,
    HELLO,
    NOT_FOUND,
    RESULT,
    UNREADABLE,
    UNSENDABLE,
    Frame,
    Inbox,
    Part,
    keep_from_forks,
    pack,
)

GRACE: Final = 0.5
"""Seconds between the death of the pool's process and that of a busy worker; an idle one needs them to clean up."""


T = TypeVar("T")


class Setup:
    """
    What a worker does before its first call.

    It is pickled apart from the process that carries it: an initializer that can't be loaded is to break the pool with
    its own error, not to end the worker with a riddle.
    """

    def __init__(
        self,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        main_by_value: bool,
        configuration: bytes | None,
    ) -> None:
        self._load: Callable[[], Any] = lambda: (initializer, initargs)
        self.main_by_value = main_by_value
        self.configuration = configuration

    def __getstate__(self) -> tuple[bytes, bool, bytes | None]:
        return dumps(self._load(), self.main_by_value), self.main_by_value, self.configuration

    def __setstate__(self, state: tuple[bytes, bool, bytes | None]) -> None:
        packed, self.main_by_value, self.configuration = state
        self._load = lambda: loads(packed)

    def run(self) -> None:
        """Call the initializer; what it raises comes out."""
        initializer, initargs = self._load()
        if initializer is not None:
            initializer(*initargs)


def run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """Call *fn* with each tuple of arguments of a chunk, one after the other."""
    plain = plain_function(fn)
    return [plain(*args) for args in chunk]


def work(sock: socket, setup: Setup) -> None:
    """Serve the pool at the other end of *sock*; the target of the process."""
    # Under fork, the context is that of the thread that forked: nobody's business here.
    Context().run(_work, sock, setup)


def _work(sock: socket, setup: Setup) -> None:
    keep_from_forks(sock)
    signal.signal(signal.SIGINT, _leave_it_to_the_pool)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `starting.without_interrupts`
    _report_crashes()
    enter_worker_process(setup.configuration)
    this.worker = _Sleeper()
    start_new_thread(_watch, (sock.fileno(),))
    try:
        if _set_up(sock, setup):
            _serve(sock, setup.main_by_value)
    except ConnectionError:
        pass  # nobody is there any more who wants to know
    finally:
        close_kept()


def _set_up(sock: socket, setup: Setup) -> bool:
    """Run the initializer and say hello, or why not."""
    try:
        setup.run()
    except BaseException as error:  # whatever it is, the pool has to tell whoever waits
        _send(sock, pack(BROKEN, 0, *pack_error(error, setup.main_by_value)))
        return False
    _send(sock, pack(HELLO, 0))
    return True


def _serve(sock: socket, main_by_value: bool) -> None:
    inbox = Inbox()
    while inbox.read(sock):
        while (frame := inbox.cut()) is not None:
            _serve_one(sock, frame, main_by_value)


def _serve_one(sock: socket, frame: Frame, main_by_value: bool) -> None:
    # What the call leaves behind is dropped after the answer is out: a `__del__` may be the end of this process.
    parts, _left_behind = _answer(frame, main_by_value)
    _send(sock, parts)


def _send(sock: socket, parts: list[Part]) -> None:
    for part in parts:
        sock.sendall(part)


def _answer(frame: Frame, main_by_value: bool) -> tuple[list[Part], object]:
    """Run one call; return the frame to send back, and what the call made."""
    kind, call_id, function, arguments = frame
    problem = NOT_FOUND
    try:
        fn = resolve(bytes(function)) if kind == CALL else loads(function)
        problem = UNREADABLE
        args, kwargs = loads(arguments)
        problem = FAILED
        value = copy_context().run(_call, fn, args, kwargs)
        problem = UNSENDABLE
        return pack(RESULT, call_id, b"", dumps(value, main_by_value)), (args, kwargs, value)
    except BaseException as error:  # each is an answer; this process goes on
        return pack(problem, call_id, *pack_error(error, main_by_value)), error


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value: object = fn(*args, **kwargs)
    if type(value) is CoroutineType:
        return run_coroutine(cast("Coroutine[Any, Any, Any]", value))
    return value


class _Sleeper:
    """How a worker process waits for a future of some pool of its own: it sleeps, and its place stays empty."""

    running: Any = None

    def wait(self, future: Any, timeout: float | None) -> bool:
        return bool(future.sleep(timeout))

    def check(self, futures: Iterable[Any], /) -> None:
        """Pools that run in this process have threads of their own."""

    def lend(self, awaited: Any = None) -> None:
        """Nobody could take the place: the pool, in another process, has as many workers as it may have."""

    def unlend(self) -> None:
        """It was not lent."""

    def replace(self) -> None:
        """Nobody could take the place here, either."""

    def come_back(self) -> None:
        """It was not replaced."""


def _leave_it_to_the_pool(signum: int, frame: FrameType | None) -> None:
    """
    Do nothing about a Ctrl-C: the pool's process gets it as well, and decides.

    SIG_IGN would do the same here, but also in every program that a call starts.
    """


def _report_crashes() -> None:
    try:
        faulthandler.enable()
    except (AttributeError, OSError, RuntimeError, ValueError):
        return  # standard error is closed, or no file: there is nowhere to report to


def _watch(descriptor: int) -> None:
    """End this process when the pool's end of the socket is gone."""
    hangup = select.poll()
    hangup.register(descriptor, 0)  # no events: then it wakes for a hang-up only
    hangup.poll()
    time.sleep(GRACE)
    os._exit(1)

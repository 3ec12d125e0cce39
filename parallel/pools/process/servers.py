"""
Fork servers, and processes that are started in an environment and a directory of their own.

    ServedProcess ───▶ Server ──socket──▶ `nursery` ──▶ fork
    SpawnedProcess ──▶ a fresh interpreter

Both are started by `programs`.

The protocol, on a socket that only this process and the server have:

    server     (threads,)                       once: it is ready, and has so many threads
    server     (module, error, words)           once: that module can't be loaded; see `failures`
    pool       descriptors, {variable: value}   start a worker: where its data come, where to tell, what it inherits
    server     process id, exit code            to where it is to tell

State of a `Server`: guarded by its lock, which is held while the server starts, and while it forks: only threads that
start workers wait for it. `_closed` is written once. `_servers`, all of them, is for forked children, which have none.

Source: what a worker is sent, `popen_forkserver.py` and `popen_spawn_posix.py` of `multiprocessing`, CPython 3.11 to
3.14. Where those can't be imported, this can't be, either.
"""

from __future__ import annotations

import io
import logging
import marshal
import os
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import forkserver, popen_forkserver, popen_spawn_posix, resource_tracker, spawn, util
from multiprocessing import process as processes
from multiprocessing import reduction as reductions
from multiprocessing.context import ForkServerContext as ForkServerContext  # who imports this has these
from multiprocessing.context import ForkServerProcess, SpawnProcess, set_spawning_popen
from multiprocessing.context import SpawnContext as SpawnContext
from multiprocessing.process import BaseProcess
from socket import SHUT_RDWR, send_fds, socket, socketpair
from types import FunctionType
from typing import Any, Final, NamedTuple

from parallel.pools.process.programs import Program, start
from parallel.pools.process.replies import error_of
from parallel.pools.process.surroundings import PreloadFailed, Surroundings
from parallel.pools.process.wire import Inbox, close_kept, keep_from_forks
from parallel.weak import WeakSet

LOGGER = logging.getLogger("parallel")

LEAVING: Final = 1.0
"""Seconds that a server gets to leave when its socket has closed, before it is killed; it takes a millisecond."""

# What is used of these is not public, and so not typed.
_processes: Any = processes
_reduction: Any = reductions
_set_spawning_popen: Any = set_spawning_popen
_spawn: Any = spawn
_util: Any = util
_forkserver: Any = forkserver
_tracker: Any = resource_tracker


class Server:
    """A process that forks workers; started by the first that is wanted, and again if it has died."""

    def __init__(self, label: str, surroundings: Surroundings) -> None:
        """
        Make one that has not been started.

        Args:
            label: Whose it is, for messages.
            surroundings: Those of its process, and of all that it forks.
        """
        self._label = label
        self._surroundings = surroundings
        self._lock = threading.Lock()
        self._sock: socket | None = None
        self._process: Program | None = None
        self._closed = False
        _servers.add(self)

    def fork(self, descriptors: list[int], env: Mapping[str, str]) -> tuple[int, int, int]:
        """
        Start a worker.

        Args:
            descriptors: What it inherits.
            env: Variables that it sets before anything else.

        Returns:
            Where its exit code will be told, where it reads what it is to run, and its process id.

        Raises:
            OSError, EOFError: It can't be started; the next try may succeed.
            PreloadFailed: It will never be.
            RuntimeError: The server has been closed.
        """
        with self._lock, ExitStack() as undo:
            sock = self._open()
            try:
                with _pipes(undo) as pipes:
                    inherited = [pipes.source, pipes.teller, _tracker.getfd(), *descriptors]
                    send_fds(sock, [marshal.dumps(dict(env))], inherited)
                pid = _forkserver.read_signed(pipes.sentinel)
            except BaseException:
                if self._process is None or self._process.has_ended():
                    self._drop()
                raise
            undo.pop_all()
            return pipes.sentinel, pipes.data, pid

    def close(self) -> None:
        """End it, and start none any more."""
        self.give_up()
        with self._lock:
            self._drop()

    def give_up(self) -> None:
        """Start none any more, and have whoever waits for it to load its modules fail; never waits."""
        self._closed = True
        sock = self._sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)

    def abandon(self) -> None:
        """In a forked child: it is the parent's. `wire` has the child close the socket."""
        self._lock = threading.Lock()
        self._sock = None
        self._process = None

    def helper(self) -> tuple[int, int] | None:
        """Return its process id and the socket's descriptor; None if it is not running."""
        if self._process is None or self._sock is None:
            return None
        return self._process.pid, self._sock.fileno()

    def _open(self) -> socket:
        if self._closed:
            raise RuntimeError("the fork server has been closed")
        if self._process is not None and self._process.has_ended():
            self._drop()
        if self._sock is None:
            try:
                self._start()
            except BaseException:
                self._drop(patience=0)  # it has no children yet
                raise
        assert self._sock is not None, "it has been started"
        return self._sock

    def _start(self) -> None:
        ours, theirs = socketpair()
        self._sock = ours
        keep_from_forks(ours)
        keep_from_forks(theirs)
        try:
            if self._closed:  # (*) after `_sock` was written: who gives up does it the other way round
                raise RuntimeError("the fork server has been closed")
            self._process = _start_server(theirs.fileno(), self._surroundings)
        finally:
            close_kept(theirs)
        inbox = Inbox()
        while (report := inbox.cut()) is None:
            if not inbox.read(ours):
                raise EOFError("its fork server has ended at its start")
        (first, *parts), _ = report
        if parts:
            raise PreloadFailed(first) from error_of(*parts)
        if first > 1:
            LOGGER.warning(
                "%s: what it preloads has started threads in its fork server (%d); a worker has none of them, and may "
                "find the locks taken that they held when it was forked",
                self._label,
                first - 1,
            )

    def _drop(self, patience: float = LEAVING) -> None:
        sock, process = self._sock, self._process
        self._sock = self._process = None
        if sock is not None:
            close_kept(sock)
        if process is not None:
            process.end(patience)


def _start_server(descriptor: int, surroundings: Surroundings) -> Program:
    enter = "" if surroundings.cwd is None else f"import os; os.chdir({surroundings.cwd!r}); "
    code = (
        f"{enter}import sys; sys.path[:] = {_search_path()!r}; from parallel.pools.process.nursery import main; "
        f"main({descriptor}, {_rooms_of_main()!r}, {surroundings.preload!r})"
    )
    command = [_spawn.get_executable(), *_util._args_from_interpreter_flags(), "-c", code]
    # Nothing of *env* but defaults if it is plain: those are for each pool to say.
    env = os.environ if surroundings.is_plain else {**os.environ, **surroundings.env}
    return Program(start(command, [descriptor], env, quiet=True))


def _rooms_of_main() -> tuple[str, ...]:
    """
    Name the modules of this library whose names the main module uses.

    Each worker would load them with that module, which takes longer than its start.
    """
    values = list(vars(sys.modules["__main__"]).values())
    named = {getattr(value, "__module__", None) for value in values if isinstance(value, type | FunctionType)}
    return tuple(sorted(name for name in named if isinstance(name, str) and name.startswith("parallel.")))


def _search_path() -> list[str]:
    """Return where this process looks for modules; as multiprocessing does, with the name of the first folder."""
    return [entry if entry or _processes.ORIGINAL_DIR is None else _processes.ORIGINAL_DIR for entry in sys.path]


class ServedProcess(ForkServerProcess):
    """A process that a server of ours forks."""

    server: Server
    surroundings: Surroundings

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return _ServedPopen(process_obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return _as(ForkServerProcess, self)


class SpawnedProcess(SpawnProcess):
    """A process that is spawned in an environment and a directory of its own."""

    surroundings: Surroundings

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return _SpawnedPopen(process_obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return _as(SpawnProcess, self)


def _as(cls: type[BaseProcess], process: BaseProcess) -> tuple[Any, ...]:
    """Pickle a process as one of multiprocessing's: the worker has no use for how it was started."""
    state = {key: value for key, value in vars(process).items() if key not in ("server", "surroundings")}
    return object.__new__, (cls,), state


def _pickled(popen: object, process: Any) -> bytes:
    """Pickle what a worker is sent, as multiprocessing does."""
    preparation = _spawn.get_preparation_data(process._name)
    if process.surroundings.cwd is not None:
        preparation["dir"] = process.surroundings.cwd
    data = io.BytesIO()
    _set_spawning_popen(popen)
    try:
        _reduction.dump(preparation, data)
        _reduction.dump(process, data)
    finally:
        _set_spawning_popen(None)
    return data.getvalue()


class _ServedPopen(popen_forkserver.Popen):
    """How multiprocessing sees a process that a server of ours has forked."""

    _fds: list[int]

    def _launch(self, process_obj: Any) -> None:
        data = _pickled(self, process_obj)
        surroundings: Surroundings = process_obj.surroundings
        server: Server = process_obj.server
        env: Mapping[str, str] = surroundings.env if surroundings.is_plain else {}
        self.sentinel, source, self.pid = server.fork(self._fds, env)
        # That end stays open until this process has ended: its other one is how the worker learns of that.
        stays = os.dup(source)
        self.finalizer = _util.Finalize(self, _util.close_fds, (stays, self.sentinel))
        with open(source, "wb") as pipe:
            pipe.write(data)


class _SpawnedPopen(popen_spawn_posix.Popen):
    """How multiprocessing sees a process that was spawned in an environment of its own."""

    _fds: list[int]

    def _launch(self, process_obj: Any) -> None:
        tracker = _tracker.getfd()
        data = _pickled(self, process_obj)
        surroundings: Surroundings = process_obj.surroundings
        with ExitStack() as undo:
            with _pipes(undo) as pipes:
                command = _spawn.get_command_line(tracker_fd=tracker, pipe_handle=pipes.source)
                descriptors = [*self._fds, tracker, pipes.source, pipes.teller]
                self.pid = start(command, descriptors, {**os.environ, **surroundings.env})
            self.sentinel = pipes.sentinel
            undo.pop_all()
        self.finalizer = _util.Finalize(self, _util.close_fds, (pipes.sentinel, pipes.data))
        with open(pipes.data, "wb", closefd=False) as pipe:
            pipe.write(data)


class _Pipes(NamedTuple):
    """
    The ends of two pipes, between this process and a worker.

    Attributes:
        sentinel: Ours, which ends with the worker.
        data: Ours, through which it is told what to run.
        teller: The worker's, at the other end of the sentinel.
        source: The worker's, where the data come.
    """

    sentinel: int
    data: int
    teller: int
    source: int


@contextmanager
def _pipes(undo: ExitStack) -> Generator[_Pipes]:
    """Open two pipes. The worker's ends are closed after the block, ours by *undo*."""
    with ExitStack() as theirs:
        sentinel, teller = os.pipe()
        undo.callback(os.close, sentinel)
        _close_with(theirs, io.FileIO(teller, "w"))
        source, data = os.pipe()
        undo.callback(os.close, data)
        _close_with(theirs, io.FileIO(source))
        yield _Pipes(sentinel, data, teller, source)


def _close_with(stack: ExitStack, end: io.FileIO) -> None:
    """Have the end of a pipe closed with *stack*, and in forked children: these would hold it while they live."""
    keep_from_forks(end)
    stack.callback(close_kept, end)


_servers: WeakSet[Server] = WeakSet()


def _after_fork_in_child() -> None:
    for server in _servers:
        server.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

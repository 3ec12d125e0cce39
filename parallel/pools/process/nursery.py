"""
The process in which the workers of a pool are forked: it has loaded what they need, and runs nothing else.

    pool ──▶ socket: descriptors of one worker, and its environment ──▶ fork ──▶ its process id, and later its exit code
      ▲         └── end of it: the pool is gone, and so is this process
      └── at the start: the modules are loaded, or why not

It is a fork server as that of multiprocessing; but each pool that wants it has its own, which is started in the pool's
environment and directory, tells what a preloaded module has raised, and ends with the pool. A module that starts
processes when it is imported gets an error, as a main module would.

The protocol: see `servers`. Each request is answered before the next one comes.

Source: the idea, and how a worker learns what it is to run, `multiprocessing/forkserver.py` of CPython 3.11 to 3.14.
"""

from __future__ import annotations

import atexit
import gc
import marshal
import os
import selectors
import signal
import sys
import threading
from importlib import import_module
from multiprocessing import forkserver, resource_tracker, spawn, util
from multiprocessing import process as processes
from socket import recv_fds, socket
from types import FrameType
from typing import Any, Final, NoReturn, cast

import parallel.pools.process.worker  # noqa: F401  # pyright: ignore[reportUnusedImport]  # for its children
from parallel.pools.process.failures import pack_error
from parallel.pools.process.surroundings import PreloadFailed, load
from parallel.pools.process.wire import pack

# What is used of these is not public, and so not typed.
_forkserver: Any = forkserver
_tracker: Any = resource_tracker
_spawn: Any = spawn
_util: Any = util
_atexit: Any = atexit

REQUEST: Final = 1 << 16
"""Bytes of a request at most: a worker's few variables."""

DESCRIPTORS: Final = 64
"""Of a request at most; a worker has three pipes and sockets, and what its arguments hold."""


def main(descriptor: int, rooms: tuple[str, ...], preload: tuple[str, ...]) -> NoReturn:
    """
    Serve the pool at the other end of that socket; the target of the process.

    Args:
        descriptor: The socket.
        rooms: Modules of this library that the workers load with the main module.
        preload: Modules that the pool wants to be loaded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the children's, until they have a handler
    code = 1
    try:
        sock = socket(fileno=descriptor)
        for name in rooms:
            import_module(name)
        if _loads(sock, preload):
            Nursery(sock).serve()
        code = 0
    except ConnectionError:
        code = 0  # the pool is gone
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        _util._flush_std_streams()  # as its children do at their end
        os._exit(code)  # what preloaded modules have registered for the exit is none of this process's business


def _loads(sock: socket, preload: tuple[str, ...]) -> bool:
    """Load the modules, and tell the pool: how many threads there are then, or what has failed."""
    current: Any = processes.current_process()
    current._inheriting = True  # so whoever starts a process now is told about the guard of main modules
    try:
        for name in preload:
            load(name)
    except PreloadFailed as failure:
        error = cast(BaseException, failure.__cause__)
        sock.sendall(pack((failure.module, *pack_error(error, main_by_value=False)))[0])
        return False
    finally:
        del current._inheriting
    gc.freeze()  # what is here is for ever: no collection in a child copies its pages
    sock.sendall(pack((_threads(),))[0])
    return True


def _threads() -> int:
    """Count the threads of this process; where the system does not tell, those of Python."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


class Nursery:
    """Forks workers, and tells how they have ended."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._tellers: dict[int, int] = {}  # by the worker's process id: where its exit code is written
        self._bell, wake = os.pipe()
        for end in (self._bell, wake):
            os.set_blocking(end, False)
        self._wake = wake
        self._own_handlers = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, _do_nothing)}
        self._own_handlers[signal.SIGINT] = signal.default_int_handler
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the pool is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._bell in ready:
                    os.read(self._bell, 4096)
                    self._reap()
                if self._sock in ready and not self._answer(selector):
                    return

    def _answer(self, selector: selectors.BaseSelector) -> bool:
        """Fork one worker; False if the pool is gone."""
        request, descriptors, _, _ = recv_fds(self._sock, REQUEST, DESCRIPTORS)
        if not request:
            return False
        read_end, teller, *others = descriptors
        try:
            pid = os.fork()
        except OSError:
            os.close(teller)  # that tells it
        else:
            if pid == 0:
                selector.close()
                self._be_worker(marshal.loads(request), read_end, teller, others)
            self._tellers[pid] = teller
            _tell(teller, pid)
        for descriptor in (read_end, *others):
            os.close(descriptor)
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            teller = self._tellers.pop(pid, None)
            if teller is not None:  # else a preloaded module has started it
                _tell(teller, os.waitstatus_to_exitcode(status))
                os.close(teller)

    def _be_worker(self, env: dict[str, str], read_end: int, teller: int, others: list[int]) -> NoReturn:
        """In the child: run what multiprocessing sends through *read_end*."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number, handler in self._own_handlers.items():
                signal.signal(number, handler)
            self._sock.close()
            for descriptor in (self._bell, self._wake, teller, *self._tellers.values()):
                os.close(descriptor)
            os.environ.update(env)
            _atexit._clear()  # what the preloaded modules have registered is not this process's
            _atexit.register(_util._exit_function)  # as multiprocessing does
            # The tracker is the pool's; the others are where arguments look for descriptors.
            _tracker._resource_tracker._fd, *_forkserver._forkserver._inherited_fds = others
            code = _spawn._main(read_end, os.dup(read_end))
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            _atexit._run_exitfuncs()
            _util._flush_std_streams()
            os._exit(code)


def _tell(descriptor: int, number: int) -> None:
    try:
        _forkserver.write_signed(descriptor, number)  # what `Popen` of multiprocessing reads
    except BrokenPipeError:
        return  # nobody wants to know


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Have SIGCHLD ring the bell: a signal that is ignored doesn't."""

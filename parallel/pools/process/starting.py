"""
What multiprocessing needs to start a worker where its own way would fail.

- A program that came by standard input says that its file is `<stdin>`, and each worker would try to run that:
  `hidden_main_file`. What `__main__` defines travels by value then, so no worker needs it.
- When a script has come to its end, the interpreter takes the file from `__main__`, and the workers that are started
  for the calls that are left would not know it: it is put back.
- A forked child believes the fork server of its parent to be its own child, and fails to wait for it; besides, the
  server would not end with the parent. The child forgets it, and has one of its own when it needs one.
- What another thread of the parent was starting at the fork leaves the locks of the fork server and of the resource
  tracker held in the child, for ever: it gets new ones.
- A Ctrl-C hits the fork server and the workers as well, and would print a traceback while they import:
  `without_interrupts`, until they have a handler of their own.
- Descriptors that run out in the middle of a start are not all closed again: `check_room`.

State: `_hidden`, guarded by `_lock`, which nobody holds for longer than a look.

Source: `multiprocessing/spawn.py`, `forkserver.py` and `popen_fork.py` of CPython 3.11 to 3.13.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from parallel.context import MAIN_FILE

ROOM: Final = 24
"""Descriptors that the start of a worker takes at most: sockets, its board, pipes, and copies of what it inherits."""


class _Hidden:
    """The file's name while it is hidden, and by how many starts."""

    name: str | None = None
    starts = 0


_hidden = _Hidden()
_lock = threading.RLock()


@contextmanager
def hidden_main_file(main_by_value: bool) -> Generator[None]:
    """While in this block, have multiprocessing believe that `__main__` has no file, if none can be imported."""
    if not main_by_value:
        if MAIN_FILE is not None:
            vars(sys.modules["__main__"]).setdefault("__file__", MAIN_FILE)
        yield
        return
    with _lock:
        if _hidden.starts == 0:
            _hidden.name = vars(sys.modules["__main__"]).pop("__file__", None)
        _hidden.starts += 1
    try:
        yield
    finally:
        with _lock:
            _hidden.starts -= 1
            if _hidden.starts == 0 and _hidden.name is not None:
                sys.modules["__main__"].__file__ = _hidden.name


@contextmanager
def without_interrupts() -> Generator[None]:
    """In this block, have SIGINT wait: a process started here is born so, and no Ctrl-C hits it while it imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main_file_was_forgotten() -> bool:
    """Tell whether the interpreter has just taken the file from `__main__`; it does so once."""
    return MAIN_FILE is not None and "__file__" not in vars(sys.modules["__main__"])


def check_room() -> None:
    """
    See that there are descriptors enough for one more worker.

    Raises:
        OSError: There are not.
    """
    taken: list[int] = []
    try:
        while len(taken) < ROOM:
            taken += os.pipe()
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _after_fork_in_child() -> None:
    """Show the main file again, let go of the parent's fork server, and of what its threads have locked."""
    global _lock
    _lock = threading.RLock()
    if _hidden.name is not None:
        sys.modules["__main__"].__file__ = _hidden.name
    _hidden.starts = 0
    tracker: Any = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if tracker is not None:
        tracker._lock = threading.RLock()
    if server is None:
        return
    server._lock = threading.RLock()
    if server._forkserver_pid is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

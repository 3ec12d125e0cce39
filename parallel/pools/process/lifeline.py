"""
How a worker learns that the pool's process is no more, and what becomes of it then.

    the pool's process dies ──┬──▶ the socket hangs up ──▶ idle: the end of the stream, and it leaves in order
                              │                      └──▶ a watching thread: after `GRACE`, KILL for whoever is left
                              └──▶ a pipe hangs up ──▶ the system itself sends a signal, to the worker and to what its
                                                       calls have started; busy: KILL, idle: SIGIO

The thread can't do anything while a call is in code that keeps the interpreter to itself. So, where the system can do
that (Linux), it is asked for a signal that ends a busy worker without its help. The signal that comes while it is idle
has a handler that does nothing, so that it can clean up; children, which have none, end by it.

The pipe is that of multiprocessing, which has one for each process, only for its end. Under fork, and only there, the
workers that are forked later hold it as well: then they end one after the other, the youngest first. If a process that
the user has forked holds it, there is only the thread.

State: of a `Lifeline`, the main thread's; `_is_cut` is set by a signal handler.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time
from _thread import start_new_thread
from socket import socket
from types import FrameType
from typing import Any, Final

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

GRACE: Final = 1.0
"""Seconds between the death of the pool's process and that of a worker, if nothing ends it sooner; an idle one needs
them to clean up."""

_CAN_SIGNAL: Final = hasattr(fcntl, "F_SETSIG") and hasattr(os, "O_ASYNC") and hasattr(signal, "SIGIO")


class Lifeline:
    """What ties a worker to the pool's process. It is busy when this is made."""

    def __init__(self, sock: socket) -> None:
        """
        Watch the pool's end of *sock*.

        Raises:
            ConnectionResetError: The pool's process is no more.
        """
        self._sock = sock
        self._leads = hasattr(os, "getpgrp") and os.getpgrp() == os.getpid()
        self._pipe: int | None = None
        self._is_cut = False
        parent = multiprocessing.parent_process()
        if _CAN_SIGNAL and parent is not None:
            signal.signal(signal.SIGIO, self._on_signal)
            self._tie(parent.sentinel)
        start_new_thread(self._watch, ())

    def tighten(self) -> None:
        """
        From now on the worker is busy.

        Raises:
            ConnectionResetError: The pool's process is no more.
        """
        if self._pipe is not None:
            fcntl.fcntl(self._pipe, fcntl.F_SETSIG, signal.SIGKILL)
            if self._is_cut:  # (*) after the signal was changed: none that came before it goes unseen
                raise ConnectionResetError

    def loosen(self) -> None:
        """From now on it is idle."""
        if self._pipe is not None:
            fcntl.fcntl(self._pipe, fcntl.F_SETSIG, 0)

    def untie(self) -> None:
        """The worker leaves in order; what its calls have started goes on, unless the pool's process is no more."""
        if self._pipe is not None:
            fcntl.fcntl(self._pipe, fcntl.F_SETOWN, 0)
        if self._leads and _has_hung_up(self._sock.fileno()):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is hit too, and is not through
            os.killpg(0, signal.SIGTERM)

    def _tie(self, pipe: int) -> None:
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpid() if self._leads else os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        self._pipe = pipe
        if _has_hung_up(pipe):  # then there was no signal
            raise ConnectionResetError

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._is_cut = True

    def _watch(self) -> None:
        """On a thread of its own: end this process, and what its calls have started, when the pool's end is gone."""
        if hasattr(select, "poll"):
            _wait_for_end(self._sock.fileno())
        else:  # Windows, where multiprocessing has a handle of that process
            parent = multiprocessing.parent_process()
            assert parent is not None, "it has started this one"
            parent.join()
        time.sleep(GRACE)
        if self._leads:
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def _has_hung_up(descriptor: int) -> bool:
    return _wait_for_end(descriptor, 0)


def _wait_for_end(descriptor: int, timeout: float | None = None) -> bool:
    """Wait until nobody is left on the other end; not for what comes from there."""
    ends = select.poll()
    ends.register(descriptor, 0)  # no events: then it wakes for a hang-up only
    return bool(ends.poll(timeout))

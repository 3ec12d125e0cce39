"""
Ctrl-C, once and twice, for a command that has something to bring to its end.

    SIGINT ──▶ the interpreter's C handler ──▶ pipe ──▶ the watching thread ──▶ count, and the bell
                                                           └── it should be over, and isn't ──▶ os._exit
    the bell, from any thread ──▶ pipe ──▶ select, with whatever else is waited for

No exception comes out of nowhere: the command looks at `count` where it can act on it. So nothing is left half done by
the first Ctrl-C, and the second has an effect whatever the main thread is in, be it code that looks at no signal.

State: of a `Bell`, `_is_rung`, a hint, and its pipe, which `_lock` keeps from being closed while it is written. Of
`Interrupts`, `count`, and when it has to be over: written by the watching thread, and by `leave` before it wakes that.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Final, Protocol, Self

PATIENCE: Final = 2.0
"""Seconds that a command may take to end once it has to: the workers that it kills get one of these for their own end.
A thread can't be killed, and would hold it as long as it likes."""

STATUS: Final = 128 + signal.SIGINT
"""The exit status of what was interrupted, as shells tell of it."""

_LOOK: Final = b"\0"
"""What wakes the watching thread without being a signal."""


class HasDescriptor(Protocol):
    """What `select` takes."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Bell:
    """Wakes a thread that waits for descriptors; a context manager."""

    def __init__(self) -> None:
        self._read, self._write = _pipe()
        self._lock = threading.RLock()  # a signal handler, or a finalizer, may ring in the middle of a ring
        self._is_open = True
        self._is_rung = False

    def ring(self) -> None:
        """Wake it, from any thread; or let it not sleep, next time."""
        if self._is_rung:
            return
        with self._lock:
            if self._is_open:
                self._is_rung = True
                _write_one(self._write, _LOOK)

    def wait(self, to_read: Sequence[HasDescriptor], to_write: Sequence[HasDescriptor] = ()) -> bool:
        """Wait until it rings, or one of these has something to read, or room; True if one of *to_write* has."""
        waited = [self._read, *(one.fileno() for one in to_read)]
        ready, writable, _ = select.select(waited, [one.fileno() for one in to_write], [])
        if self._read in ready:
            os.read(self._read, 4096)
            self._is_rung = False  # (*) the pipe is empty by now, and whoever waited looks around after this only:
            # who has found it rung has left before what there is to see
        return bool(writable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_open = False
            os.close(self._read)
            os.close(self._write)


class Interrupts:
    """
    Counts Ctrl-C in a block, on the main thread. After the second one the program ends soon, by force if need be.

    Where SIGINT is ignored, as in what a shell runs behind, it stays so.

    Args:
        bell: Is rung at each.

    Attributes:
        count: How often it came.
    """

    def __init__(self, bell: Bell) -> None:
        self.count = 0
        self._bell = bell
        self._status = STATUS
        self._end: float | None = None  # when it has to be over; None: there is no hurry
        self._is_ours = False

    def leave(self, status: int) -> None:
        """See that the program is over soon: in two seconds it ends by force, with *status*."""
        self._status = status
        self._hurry()
        _write_one(self._write, _LOOK)

    def __enter__(self) -> Self:
        self._read, self._write = _pipe()
        self._thread = threading.Thread(target=self._watch, name="parallel-interrupts")
        self._thread.start()
        self._is_ours = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        if self._is_ours:
            self._before = signal.signal(signal.SIGINT, _leave_it_to_the_pipe)
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            _watched.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
        os.close(self._write)  # which ends the thread
        self._thread.join()
        os.close(self._read)

    def release(self) -> None:
        """Have Ctrl-C be what it was; in a forked child too, which is none of ours."""
        if self._is_ours:
            self._is_ours = False
            _watched.remove(self)
            signal.set_wakeup_fd(self._fd_before)
            signal.signal(signal.SIGINT, self._before)

    def _hurry(self) -> None:
        if self._end is None:
            self._end = time.monotonic() + PATIENCE

    def _watch(self) -> None:
        while select.select([self._read], [], [], self._left())[0]:
            came = os.read(self._read, 4096)
            if not came:
                return
            self.count += came.count(signal.SIGINT)
            if self.count > 1:
                self._hurry()
            if self.count > 2:
                break
            if came.count(signal.SIGINT):
                self._bell.ring()
        os._exit(self._status)

    def _left(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), 0)


_watched: Final[list[Interrupts]] = []
"""Those of which a forked child must know nothing: its Ctrl-C would be written to the same pipe."""


def _leave_it_to_the_pipe(signum: int, frame: FrameType | None) -> None:
    """Do nothing: with it, the interpreter's C handler writes to the pipe."""


def _pipe() -> tuple[int, int]:
    """Make a pipe whose writing never blocks."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write


def _write_one(descriptor: int, byte: bytes) -> None:
    try:
        os.write(descriptor, byte)
    except BlockingIOError:
        return  # it is full: whoever reads it wakes anyway


def _after_fork_in_child() -> None:
    for interrupts in list(_watched):
        interrupts.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

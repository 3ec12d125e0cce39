"""
How workers are ended by force, with the processes that their calls have started.

    expect(), but it doesn't leave ──┐
                            begin() ─┴──▶ TERM to all of them ──▶ some are left after the grace ──▶ KILL

A worker leads a session, and with it a process group, of its own: what its calls start belongs to that, unless it asks
for another. One signal reaches all of them, also when the worker itself is dead; walking the tree of processes would
miss those whose parent is gone. A session, and not only a group, because a background group that reads the terminal is
stopped by that, for ever; without a terminal it gets an error. So the workers don't get a Ctrl-C of the terminal, or a
Ctrl-Z: the pool's process decides.

Guarantees:
- No signal hits a process that has got the number of a dead one: signals go to a handle of the process where the system
  has such; else to a number of which it is known that nobody else has it.
- No more workers are dying at a time than may work: beyond that the first of them gets no more grace.
- Nothing here blocks.

State: of a `Killing`, the reader's own.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from parallel.pools.process.wire import close_kept, keep_from_forks

TERMINATE: Final = signal.SIGTERM
KILL: Final = getattr(signal, "SIGKILL", TERMINATE)
"""Where there is no SIGKILL, as on Windows, the other one can't be caught either."""

_GO_ON: Final[int | None] = getattr(signal, "SIGCONT", None)
"""A process that was stopped sees no other signal but KILL until it is told to go on."""

_TO_GROUP: Final = 1 << 2
"""PIDFD_SIGNAL_PROCESS_GROUP of Linux 6.9 and later: the process of the handle stands for the group that it leads."""

LEAVE: Final = 5.0
"""
Seconds that a worker may take to leave once it has been told to: what its functions do at its exit needs some. Without
a bound, a thread that a call has left there would keep the whole program.
"""

LOGGER: Final = logging.getLogger("parallel")

open_handle: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
"""Opens the handle of a process, where there are such; tests take it away."""


class Target:
    """
    A worker's process and those that its calls have started, as what signals are sent to.

    Attributes:
        pid: The worker's process id.
        is_reaped: The worker has exited, and somebody has asked for its exit code: its number may be another's by now.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.is_reaped = False
        self._handle = _open(pid)
        keep_from_forks(self)

    @property
    def handle(self) -> int | None:
        """A descriptor that can be read once the worker has exited; None: there are none here."""
        return self._handle

    def send(self, number: int) -> bool:
        """Send a signal to all of them; False if none is left. 0 is no signal, and only asks."""
        return self._send_to_group(number) or self.send_to_worker(number)

    def has_exited(self, timeout: float = 0) -> bool:
        """Tell whether the worker has exited; where there are handles, wait so many seconds for that."""
        if self._handle is None:
            return not _exists(self.pid)
        exits = select.poll()
        exits.register(self._handle, select.POLLIN)
        return bool(exits.poll(timeout * 1000))

    def close(self) -> None:
        """Let go of it; no signal may be sent any more."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _send_to_group(self, number: int) -> bool:
        if self._handle is not None:
            try:
                _send_by_handle(self._handle, number, _TO_GROUP)
                return True
            except ProcessLookupError:
                return False
            except OSError:
                pass  # EINVAL: the system is too old for this
        if not hasattr(os, "killpg") or (self._may_be_another() and _exists(self.pid)):
            return False  # no group has that number as long as a new process has it
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def send_to_worker(self, number: int) -> bool:
        """Send a signal to the worker alone; False if it is gone. 0 is no signal, and only asks."""
        try:
            if self._handle is not None:
                _send_by_handle(self._handle, number)
            elif self.is_reaped:
                return False
            else:
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _may_be_another(self) -> bool:
        """Tell whether the worker's number may be that of another process."""
        return self.is_reaped if self._handle is None else not self.send_to_worker(0)


def _open(pid: int) -> int | None:
    if open_handle is None:
        return None
    try:
        handle = open_handle(pid)
    except OSError:  # it is dead already; or there are no descriptors left, or the system forbids it
        return None
    try:
        _send_by_handle(handle, 0)
    except ProcessLookupError:
        pass  # dead by now
    except OSError:  # some sandboxes have one half of it only
        os.close(handle)
        return None
    return handle


def _send_by_handle(handle: int, number: int, flags: int = 0) -> None:
    send: Any = signal.pidfd_send_signal
    send(handle, number, None, flags)


def _exists(pid: int) -> bool:
    if not hasattr(os, "killpg"):
        return False  # Windows, where a 0 would be a Ctrl-C; who asks there knows the exit code
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is somebody else's
    return True


class Killing:
    """Ends targets, one step after the other."""

    def __init__(self, grace: float, most: int) -> None:
        """
        Make one.

        Args:
            grace: Seconds between TERM and KILL.
            most: How many may be dying at a time.
        """
        self._grace = grace
        self._most = most
        self._due: dict[Target, float] = {}  # those that have got TERM, in that order, and when they get KILL
        self._expected: dict[Target, float] = {}  # those that were told to leave, in that order, and by when
        self._buried: set[Target] = set()  # those of them whose worker has exited: they are closed at the end

    @property
    def is_over(self) -> bool:
        """Whether nobody is left who has got TERM, and may get KILL."""
        return not self._due

    def expect(self, target: Target) -> None:
        """See to it that a worker leaves that has been told to: a call may have left a thread in it that never ends."""
        self._expected[target] = time.monotonic() + LEAVE

    def begin(self, target: Target) -> None:
        """End a target, from now on; nothing happens if that has begun."""
        if target in self._due:
            return
        target.send(TERMINATE)
        if _GO_ON is not None:
            target.send(_GO_ON)
        self._due[target] = time.monotonic() + self._grace
        if self._grace == 0 or len(self._due) > self._most:
            self._finish(next(iter(self._due)))

    def bury(self, target: Target, *, spare: bool) -> None:
        """
        Note that the worker of a target has been reaped; unless they are to be spared, end what it has left behind.

        Nobody may use the target after that.
        """
        target.is_reaped = True
        self._expected.pop(target, None)
        if target.send(0) and (target in self._due or not spare):
            self._buried.add(target)
            self.begin(target)
        else:
            self._due.pop(target, None)
            close_kept(target)

    def all_due(self) -> float:
        """Go on with those whose time is over; return the seconds until that of the next is, or infinity."""
        if not (self._due or self._expected):
            return math.inf
        now = time.monotonic()
        for target in _overdue(self._expected, now):
            del self._expected[target]
            self.begin(target)  # before that is told: a filter of the user's may raise
            LOGGER.warning(
                "worker process %d is ended by force: it should have left %g s ago, and a thread that a call has left "
                "there, or something that is done at its exit, keeps it",
                target.pid,
                LEAVE,
            )
        for target in _overdue(self._due, now):
            self._finish(target)
        return min((due - now for dues in (self._due, self._expected) for due in dues.values()), default=math.inf)

    def _finish(self, target: Target) -> None:
        del self._due[target]
        target.send(KILL)
        if target in self._buried:
            self._buried.remove(target)
            close_kept(target)


def _overdue(dues: dict[Target, float], now: float) -> list[Target]:
    return [target for target, due in dues.items() if due <= now]

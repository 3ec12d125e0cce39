"""
The pool's side of one worker: its process, its socket, and the call that it runs.

    hire() ──▶ not ready ──HELLO──▶ free ◀──▶ has a call ──▶ dismissed, or dead ──▶ bury()

A call is in one worker at a time, and a worker has one call at a time. Who gives it a call, under the pool's lock, is
its only sender until the frame is out: that thread sends what fits, the reader the rest.

State: of a `Peer`, guarded by the pool's lock: `call`, `ready`, `done`. Else it belongs to the sender (`outbox`), then
to the reader. `sender` and `dead` are how the two agree on who buries: each writes its own before it reads the other's.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import process as processes
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from signal import SIGKILL
from socket import SHUT_WR, socket, socketpair
from typing import Any, Final, NamedTuple, cast

from parallel.futures import Future
from parallel.pools.process.starting import check_room, hidden_main_file, main_file_was_forgotten, without_interrupts
from parallel.pools.process.wire import Frame, Inbox, Part, close_kept, handing, keep_from_forks, push
from parallel.pools.process.worker import Setup, work
from parallel.runs import Run

REAPING: Final = 0.5
"""Seconds that a worker gets to exit after its end of the socket closed, before it is killed. Most take 1 ms."""

_numbers = itertools.count(1)


class Call:
    """A call on its way: the work of its future."""

    __slots__ = ("call_id", "name", "parts", "sent_before")

    def __init__(self, name: str, call_id: int, parts: list[Part]) -> None:
        self.name = name
        self.call_id = call_id
        self.parts = parts
        self.sent_before = False  # to a worker that died without having read it


class Given(NamedTuple):
    """A call that was started, and its future."""

    future: Future[Any]
    call: Call
    run: Run


class Peer:
    """
    A worker, as its pool sees it.

    Attributes:
        pid: Its process id.
        given: The call that it has, if any.
        sender: The thread that is about to send it its call; 0: none.
        outbox: What is left of that call's frame.
        unread: The worker died before it had read all that was sent.
        ready: It has said hello.
        dead: Its socket has ended.
        done: Calls that it has answered.
    """

    def __init__(self, process: BaseProcess, sock: socket) -> None:
        self.process = process
        self.pid = process.pid or 0
        self.sock = sock
        self.inbox = Inbox()
        self.outbox: list[Part] = []
        self.given: Given | None = None
        self.sender = 0
        self.ready = False
        self.dead = False
        self.unread = False
        self.done = 0

    def take(self, given: Given) -> None:
        """Have it that call; the calling thread is to `send` it then."""
        self.sender = threading.get_ident()
        self.outbox = list(given.call.parts)
        self.given = given

    def send(self) -> bool:
        """Send of its call what fits now; True if nothing is left, or nobody there to read it."""
        try:
            return push(self.sock, self.outbox)
        except OSError:
            self.unread = True
            self.outbox = []
            return True

    def read(self) -> bool | None:
        """Read once; None if nothing is there, False at the end of the stream."""
        try:
            return self.inbox.read(self.sock)
        except BlockingIOError:
            return None
        except OSError:  # ECONNRESET: it is gone, and had not read all
            self.unread = True
            return False

    def cut(self) -> Frame | None:
        """Return the next frame that has been read whole."""
        return self.inbox.cut()

    def hand_back(self, call_id: int) -> Given:
        """Take away the call that it has answered."""
        given, self.given = self.given, None
        assert given is not None and given.call.call_id == call_id, "a worker answers what it was asked, once"
        return given

    def free(self) -> bool:
        """Tell whether it can be given a call."""
        return self.ready and not self.dead and self.given is None and not self.sender

    def left_unread(self) -> bool:
        """Tell of a dead worker whether it can't have read all of its call, so that it has not started it."""
        return self.unread or bool(self.outbox)

    def dismiss(self) -> None:
        """Tell it that no more calls come: it leaves in order."""
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            return  # it has left already

    def kill(self) -> None:
        """End it now, whatever it does; its socket ends then."""
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, SIGKILL)

    def has_exited(self) -> bool:
        """
        Tell whether the process has ended, after its sentinel said so.

        The sentinel of a forkserver's child ends with the forkserver too, and the child may be in good health.
        """
        if self.process.exitcode is None:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return True  # the number belongs to somebody else's process by now
        return False

    def bury(self) -> int | None:
        """Wait until the process has exited, free all that it took, and return its exit code."""
        process = self.process
        if process.exitcode is None:
            process.join(REAPING)
        if process.exitcode is None:
            self.kill()
            process.join(REAPING)
        code = process.exitcode
        close_kept(self.sock)
        if code is not None:
            process.close()
        return code


def hire(context: BaseContext, setup: Setup, name: str) -> Peer:
    """
    Start a worker. Takes milliseconds: no lock may be held.

    Raises:
        OSError: There is no room for it. Nothing of it is left then. Besides, whatever pickling the setup raises.
    """
    check_room()
    ours, theirs = socketpair()
    keep_from_forks(ours)
    keep_from_forks(theirs)
    try:
        ours.setblocking(False)
        make = cast("Callable[..., BaseProcess]", context.Process)  # type: ignore[attr-defined]  # each context has it
        process = make(target=work, args=(theirs, setup), name=f"{name}-worker-{next(_numbers)}", daemon=False)
        with handing(theirs), hidden_main_file(setup.main_by_value), without_interrupts():
            process.start()
    except BaseException:
        close_kept(ours)
        raise
    finally:
        close_kept(theirs)
    # The pool joins its workers itself, before multiprocessing would do it at exit, when their calls could not end.
    processes._children.discard(process)  # type: ignore[attr-defined]  # there is no public way to say so
    peer = Peer(process, ours)
    if not setup.main_by_value and main_file_was_forgotten():
        peer.kill()  # the script came to its end in the middle of the start: this one may not know the main module
        peer.bury()
        return hire(context, setup, name)
    return peer

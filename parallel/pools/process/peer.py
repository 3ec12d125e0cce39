"""
The pool's side of one worker: its process, its socket, its board, and the calls that it has.

    hire() ──▶ not ready ──HELLO──▶ free ◀──▶ has calls ──▶ dismissed, or dead ──▶ bury()

A call is in one worker at a time. A worker numbers its calls from 1 on; it has been sent those to `sent`, and has
answered those to `answered`. Those between are in `inflight`, in that order.

State of a `Peer`: what the gate guards (see `dispatching`), what belongs to the reader, and a few words that one thread
writes and others read; it is said beside each.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from multiprocessing import process as processes
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from socket import SHUT_WR, socket, socketpair
from typing import Any, Final, NamedTuple

from parallel.futures import Future
from parallel.pools.process.baggage import Baggage
from parallel.pools.process.board import BASE, BEGAN, STARTED, Board, Carried, make_memory
from parallel.pools.process.costs import TARGET, Known
from parallel.pools.process.ears import Ear
from parallel.pools.process.killing import KILL, Target
from parallel.pools.process.launching import Launcher
from parallel.pools.process.packing import Item
from parallel.pools.process.starting import check_room, hidden_main_file, main_file_was_forgotten, without_interrupts
from parallel.pools.process.wire import Frame, Inbox, Part, close_kept, handing, keep_from_forks, push
from parallel.pools.process.worker import Setup, work
from parallel.runs import Run

REAPING: Final = 0.5
"""Seconds that a worker gets to exit after its end of the socket closed, before it is killed. Most take 1 ms."""

_numbers = itertools.count(1)


class Given(NamedTuple):
    """
    A call that a worker was given.

    Attributes:
        number: Which of the worker's calls it is.
        future: Its future.
        known: Its function.
        item: Its arguments, on the wire.
        run: Its attempt, if it has terms; then it is alone in its worker. None: it may travel with others.
    """

    number: int
    future: Future[Any]
    known: Known
    item: Item
    run: Run | None


class Recall(NamedTuple):
    """
    Calls that a worker was told not to begin.

    Attributes:
        first: The number of the first of them.
        end: That of the first one behind them.
    """

    first: int
    end: int


class Peer:
    """
    A worker, as its pool sees it.

    Attributes:
        pid: Its process id.
        target: What signals are sent to: its process and those that its calls have started.
        inflight: The calls that it has. Appended to under the gate; taken from the left by the reader, and by a leader
            that has the gate; from the right by the reader, under the gate.
        sent: The number of the last call that it was given. Changed under the gate.
        answered: The number of the last call that it has answered. Changed by the reader, or by a leader that has the
            gate.
        ended: How many calls it has answered; those that were taken back have a number, but don't count.
        references: The numbers of the functions whose references it has been sent. Changed under the gate.
        cost: Nanoseconds that one of its calls takes, as far as is known. Changed under the gate.
        outbox: What is left to be sent. Belongs to the sender, then to the reader.
        sent_bytes: How many bytes it has been sent on its socket. Belongs to who sends.
        asked: The numbers of calls that it is still to be told to stop. Changed under the gate.
        sender: The thread that is to send it something without the gate, or could be interrupted while it does;
            0: none. Nobody else gives it anything then.
        burst: The thread that has sent its last call itself; 0: the reader did.
        sent_at: When it was sent something, by `time.monotonic_ns`.
        ready: It has said hello, and was not dismissed. Changed under the gate.
        dead: Its socket has ended. Written by the reader.
        killed: The pool ends it by force. Written by whoever does.
        forsaken: Whoever was sending it a call was interrupted, and has no future of it. Written by the reader.
        problem: What has come of it can't be read, because of this; the call that it belongs to fails so.
        unread: It died before it had read all that was sent.
        recall: What it was told not to begin, until it has said that it doesn't.
        taken: What it was told not to begin has been queued again.
        limit: How many calls it is given at most; None: any number.
        leaves: It is given no more calls, and is dismissed when those that it has have ended. Written by the reader.
        rested: How many calls it had been given when it was seen idle, and when that was; None: it was busy. The
            reader's.
        condemned: The number of the call that it is to be killed in.
        look_at: When the reader is to look at its board, by `time.monotonic_ns`; None: not at all.
        seen: How many results of its next message have been seen in its journal already.
        baggage: What travels beside its calls and answers.
        ear: What a leader listens with; None: nobody leads it.
        leader: The thread that waits for its socket itself; 0: the reader does. See `leading`.
        reads: Counts what the reader does with its socket, twice each: odd while it is at it.
    """

    def __init__(self, process: BaseProcess, sock: socket, board: Board, baggage: Baggage) -> None:
        self.process = process
        self.pid = process.pid or 0
        self.target = Target(self.pid)
        self.sock = sock
        self.board = board
        self.words = board.words
        self.baggage = baggage
        self.inbox = Inbox()
        self.inflight: deque[Given] = deque()
        self.sent = 0
        self.answered = 0
        self.ended = 0
        self.references: set[int] = set()
        self.cost = TARGET
        self.outbox: list[Part] = []
        self.sent_bytes = 0
        self.asked: list[int] = []
        self.sender = 0
        self.burst = 0
        self.sent_at = 0
        self.ready = False
        self.dead = False
        self.killed = False
        self.forsaken = False
        self.problem: BaseException | None = None
        self.unread = False
        self.recall: Recall | None = None
        self.taken = False
        self.limit: int | None = None
        self.leaves = False
        self.rested: tuple[int, float] | None = None
        self.condemned = 0
        self.look_at: int | None = None
        self.seen = 0
        self.ear: Ear | None = None
        self.leader = 0
        self.reads = 0

    def is_idle(self) -> bool:
        """Tell whether it has no call: by the books, or by its own word, which is faster."""
        return self.sent == self.answered or (self.board.is_shared and self.words[BASE] == self.sent + 1)

    def is_outgoing(self) -> bool:
        """Tell whether it gets no more calls."""
        return self.leaves or (self.limit is not None and self.ended + len(self.inflight) >= self.limit)

    def takes_calls(self) -> bool:
        """Under the gate: tell whether it may be sent anything now."""
        return not (self.sender or self.dead or self.outbox or self.recall is not None)

    def unstarted(self) -> int:
        """Count the calls that it has not begun."""
        return self.sent - max(self.words[STARTED], self.answered)

    def send(self) -> bool:
        """Send of the outbox what fits now; True if nothing is left, or nobody there to read it."""
        try:
            self.sent_bytes += push(self.sock, self.outbox)
            return not self.outbox
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

    def in_call(self) -> bool:
        """Tell whether it has begun the first of its calls; of a dead one: whether that is to blame."""
        if not self.board.is_shared:
            return not (self.unread or self.outbox)
        return bool(self.words[STARTED] == self.answered + 1)

    def running(self) -> tuple[Given, int] | None:
        """Return the call that it is in, and when it began that; from any thread: None if that can't be told."""
        try:
            begun, began = self.words[STARTED], self.words[BEGAN]
        except ValueError:
            return None  # it was just buried
        given = next(iter(list(self.inflight)), None)
        if given is None or (self.board.is_shared and begun != given.number):
            return None
        return given, began if self.board.is_shared else self.sent_at

    def traffic(self) -> tuple[int, int]:
        """Count the bytes that it has been sent, and that have come from it, in segments too."""
        sent, received = self.baggage.carried()
        return self.sent_bytes + sent, self.inbox.received + received

    def dismiss(self) -> None:
        """Tell it that no more calls come: it leaves in order."""
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            return  # it has left already

    def kill(self) -> None:
        """End it now, whatever it does, and what its calls have started; its socket ends then."""
        self.killed = True
        self.target.send(KILL)

    @property
    def end(self) -> int:
        """What can be read once the process has ended: its handle, else the sentinel, which a child of it may hold."""
        return self.process.sentinel if self.target.handle is None else self.target.handle

    def has_exited(self) -> bool:
        """
        Tell whether the process has ended, after `end` said so.

        A sentinel ends a moment before its process, and that of a forkserver's child with the forkserver too: then the
        child may be in good health.
        """
        if self.target.handle is not None:
            return True
        self.process.join(REAPING)
        return self.process.exitcode is not None and self.target.has_exited()

    def bury(self) -> int | None:
        """
        Wait until the process has exited, and free all that it took but its board, its target and its baggage.

        Returns:
            Its exit code.
        """
        process = self.process
        self.target.has_exited(REAPING)  # a child that it has left behind may hold the sentinel, by which `join` waits
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

    def drop(self) -> None:
        """End it now, and forget it: it has no calls, and nobody listens to it."""
        self.kill()
        self.bury()
        self.board.close()
        self.baggage.close()
        close_kept(self.target)


def hire(launcher: Launcher, setup: Setup, name: str, kept: int) -> Peer:
    """
    Start a worker. Takes milliseconds: no lock may be held.

    Args:
        context: How it is started.
        setup: What it does before its first call.
        name: For its process.
        kept: The most bytes of free segments that it may keep.

    Raises:
        OSError: There is no room for it. Nothing of it is left then.
        PreloadFailed: No worker can ever be started. Besides, whatever pickling the setup raises.
    """
    check_room()
    memory = make_memory()
    try:
        peer = _start(launcher, setup, name, kept, memory)
    finally:
        if memory is not None:
            os.close(memory)
    if not setup.main_by_value and main_file_was_forgotten():
        peer.drop()  # the script came to its end in the middle of the start: this one may not know the main module
        return hire(launcher, setup, name, kept)
    return peer


def _start(launcher: Launcher, setup: Setup, name: str, kept: int, memory: int | None) -> Peer:
    baggage = Baggage(kept)
    try:
        return _start_with(baggage, launcher, setup, name, memory)
    except BaseException:
        baggage.close()
        raise
    finally:
        baggage.packed_off()


def _start_with(baggage: Baggage, launcher: Launcher, setup: Setup, name: str, memory: int | None) -> Peer:
    board = Board(memory)
    ours, theirs = socketpair()
    keep_from_forks(ours)
    keep_from_forks(theirs)
    try:
        ours.setblocking(False)
        args = (theirs, baggage.luggage, Carried(memory), setup)
        process = launcher.process(work, args, f"{name}-worker-{next(_numbers)}")
        if not launcher.forks:
            resource_tracker.ensure_running()  # the start of that would let interrupts through again
        with handing(theirs, baggage.luggage.sock), hidden_main_file(setup.main_by_value), without_interrupts():
            process.start()
    except BaseException:
        close_kept(ours)
        board.close()
        raise
    finally:
        close_kept(theirs)
    # The pool joins its workers itself, before multiprocessing would do it at exit, when their calls could not end.
    processes._children.discard(process)  # type: ignore[attr-defined]  # there is no public way to say so
    return Peer(process, ours, board, baggage)

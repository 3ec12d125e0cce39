"""
The passage of segments between a pool and one of its workers: their descriptors, on a socket pair of their own.

    send(lease) ──▶ descriptor ──▶ socket ──▶ receive(number) ──▶ private mapping ──▶ objects that keep it alive
         │                                                                                │ the last one dies
         ▼                                                                                ▼
    lent, until take_back(numbers) ◀────────── in some message ◀────────────────────── released()

The descriptor travels before the message that needs it. It is in the socket then, so it reaches the other side though
its sender dies right after; and when both have died, the kernel closes it. (A path, `/proc/PID/fd/N`, would be as fast,
but a worker could not leave before its last result has been read, and one that is killed would take it along.) A
socket of its own keeps `recvmsg` out of the way of all other messages.

Guarantees:
- Neither side ever waits here: a socket that is full means that the data goes in band.
- The receiver maps privately, and writable: whatever it writes is its own, page by page. It closes the descriptor at
  once; Python's mapping keeps one, so past `MOST_MAPPED` living ones data is copied instead.
- Released is what no object refers to. What a forked child may refer to is released for good: its segment is not
  written again. Nor is what a worker had that has died: it may have had children.

State: `_lent`, changed by the thread that may send; `_received` by the one that receives; `released` and `_holds`, by
single atomic steps, as a mapping may die anywhere. There is no lock.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from mmap import ACCESS_COPY, mmap
from typing import Final

from parallel.pools.process.buffers import offsets
from parallel.pools.process.segments import POSSIBLE, Lease, read
from parallel.pools.process.wire import close_kept, keep_from_forks

MOST_MAPPED: Final = 64
"""Living mappings of a process, each with a descriptor, beyond which large data is copied as it arrives."""

MOST_LENT: Final = 32
"""
Segments that the other side may have before the first of them is given up as a gift, and its descriptor closed: what
many large results cost the worker if the program keeps them all.
"""

_NUMBER: Final = 8
"""Bytes of a message on the socket: the number of the descriptor that it carries."""

_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def sockets() -> tuple[socket.socket, socket.socket] | tuple[None, None]:
    """Return the two ends for a passage, the second for the other process; None where descriptors can't travel."""
    return socket.socketpair() if POSSIBLE else (None, None)


class News:
    """
    Numbers that the other side is to be told. They may come up anywhere, between any two steps of a thread.

    Attributes:
        numbers: Those that were not told yet.
        wake: Called after each, so that it is told soon; None: whoever tells them looks by himself.
    """

    __slots__ = ("numbers", "wake")

    def __init__(self) -> None:
        self.numbers: deque[int] = deque()
        self.wake: Callable[[], object] | None = None

    def note(self, number: int) -> None:
        """Have *number* told."""
        self.numbers.append(number)
        if self.wake is not None:
            self.wake()

    def take(self) -> list[int]:
        """Return those that were not told yet: to be told now."""
        numbers: list[int] = []
        while self.numbers:
            numbers.append(self.numbers.popleft())
        return numbers


class Passage:
    """
    One side's end.

    Attributes:
        released: What the other side is to be told: the numbers by which came what nobody here refers to any more,
            negative if a forked child may.
        sent_bytes: How much has been sent, and
        received_bytes: received.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        """
        Make an end.

        Args:
            sock: An end, as `sockets` made it; the passage closes it.
        """
        self._sock = sock
        self._sent = 0  # the number of the last one; each is sent under a number of its own
        self._lent: dict[int, Lease] = {}  # by that number, the longest lent first
        self._received = 0  # the number of the last one that was taken out of the socket
        self.released = News()
        self.sent_bytes = 0
        self.received_bytes = 0
        if sock is not None:
            sock.setblocking(False)
            keep_from_forks(sock)

    def __repr__(self) -> str:
        state = "in band" if self._sock is None else f"{len(self._lent)} lent"
        return f"<{type(self).__name__} [{state}]>"

    # -- sending: one thread at a time ---------------------------------------------------------------------------------

    def send(self, lease: Lease) -> int:
        """Send a descriptor, and return the number by which the next message is to call it; 0 if it can't be sent."""
        if self._sock is None:
            return 0
        self._sent = number = self._sent + 1
        self._lent[number] = lease  # first: who is interrupted here, has lent too much rather than too little
        try:
            socket.send_fds(self._sock, [number.to_bytes(_NUMBER, "little")], [lease.segment.descriptor])
        except OSError:  # the socket is full, or nobody is there
            del self._lent[number]
            return 0
        if len(self._lent) > MOST_LENT:
            self._lent.pop(next(iter(self._lent))).spoil()
        self.sent_bytes += lease.size
        return number

    def take_back(self, numbers: Iterable[int]) -> None:
        """Note what the other side has released; the thread that may send does."""
        for number in numbers:
            lease = self._lent.pop(abs(number), None)
            if lease is not None and number < 0:
                lease.spoil()

    # -- receiving: one thread at a time -------------------------------------------------------------------------------

    def receive(self, number: int, sizes: Sequence[int]) -> list[memoryview]:
        """
        Return the parts that the other side has sent by that number: writable, and this process's own.

        Raises:
            OSError, EOFError: They can't be had.
        """
        begins, end = offsets(sizes)
        self.received_bytes += end
        descriptor = self._descriptor(number)
        try:
            memory = memoryview(self._map(descriptor, number, end))
        finally:
            os.close(descriptor)
        return [memory[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]

    def skip(self, number: int) -> None:
        """Release what the other side has sent by that number, if it was not received: nobody will ask for it."""
        if number > self._received:
            with suppress(OSError, EOFError):
                os.close(self._descriptor(number))
                self.released.note(number)

    def close(self) -> None:
        """Close it: the other side has died, or is about to. What it has is never written again."""
        if self._sock is not None:
            close_kept(self._sock)
        self.released.wake = None  # what lives on of it does not keep alive whoever is woken
        for lease in self._lent.values():
            lease.spoil()
        self._lent.clear()

    def _descriptor(self, wanted: int) -> int:
        """Take that descriptor out of the socket, and those before it: nobody has asked for them."""
        if self._sock is None or wanted <= self._received:
            raise OSError(errno.EBADF, "the large part of it did not come")
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._sock, _NUMBER, 1, _CLOSE_ON_EXEC)
            if not message:
                raise EOFError("the sender is gone")
            self._received = number = int.from_bytes(message, "little")
            if number == wanted and descriptors:
                return descriptors[0]
            for descriptor in descriptors:
                os.close(descriptor)
            self.released.note(number)
            if number == wanted:  # there was no room for the descriptor, and it is lost
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _map(self, descriptor: int, number: int, size: int) -> mmap | bytearray:
        if len(_holds) < MOST_MAPPED:
            try:
                memory = mmap(descriptor, size, access=ACCESS_COPY)
            except OSError:  # no descriptor for its own use, or no room for one more mapping
                pass
            else:
                hold = _Hold(memory, _let_go)
                hold.number, hold.released = number, self.released
                _holds.add(hold)
                return memory
        try:
            return read(descriptor, size)
        finally:
            self.released.note(number)


class _Hold(weakref.ref[mmap]):
    """
    Sees a mapping die.

    Attributes:
        number: By which the mapped segment came; negative if a forked child may see it still.
        released: Where to say so; None in such a child.
    """

    __slots__ = ("number", "released")

    number: int
    released: News | None

    __hash__ = object.__hash__  # that of a mapping can't be asked for any more when it has died
    __eq__ = object.__eq__


_holds: set[_Hold] = set()
"""One for each living mapping."""


def _let_go(hold: _Hold, holds: set[_Hold] = _holds) -> None:
    """Run when a mapping dies: on whatever thread, between any two steps of it, at the interpreter's end too."""
    holds.discard(hold)
    if hold.released is not None:
        hold.released.note(hold.number)


def _share_all() -> None:
    """At a fork: the child sees the same segments, for as long as it likes."""
    for hold in list(_holds):
        hold.number = -abs(hold.number)


def _tell_nobody() -> None:
    """In the child: the other sides are the parent's."""
    for hold in list(_holds):
        hold.released = None


if hasattr(os, "register_at_fork"):
    # Twice, as another thread may receive something in between.
    os.register_at_fork(before=_share_all, after_in_parent=_share_all, after_in_child=_tell_nobody)

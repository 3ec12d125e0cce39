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
- Released is what no object refers to. What a forked child may refer to is never released, nor is what a worker had
  that has died: it may have had children.

State: `_lent`, changed by the thread that may send; `_released` and `_holds`, by single atomic steps, as a mapping may
die anywhere. There is no lock.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
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


class Passage:
    """One side's end."""

    def __init__(self, sock: socket.socket | None) -> None:
        """
        Make an end.

        Args:
            sock: An end, as `sockets` made it; the passage closes it.
        """
        self._sock = sock
        self._sent = 0  # the number of the last one; each is sent under a number of its own
        self._lent: dict[int, Lease] = {}  # by that number, the longest lent first
        self._released: deque[int] = deque()
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
        return number

    def take_back(self, numbers: Iterable[int]) -> None:
        """Note what the other side has released."""
        for number in numbers:
            self._lent.pop(number, None)

    # -- receiving: one thread at a time -------------------------------------------------------------------------------

    def receive(self, number: int, sizes: Sequence[int]) -> list[memoryview]:
        """
        Return the parts that the other side has sent by that number: writable, and this process's own.

        Raises:
            OSError, EOFError: They can't be had.
        """
        begins, end = offsets(sizes)
        descriptor = self._descriptor(number)
        try:
            memory = memoryview(self._map(descriptor, number, end))
        finally:
            os.close(descriptor)
        return [memory[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]

    def released(self) -> list[int]:
        """Return what has been released since the last time: to be told to the other side. Any thread may ask."""
        numbers: list[int] = []
        while self._released:
            numbers.append(self._released.popleft())
        return numbers

    def close(self) -> None:
        """Close it: the other side has died, or is about to. What it has is never written again."""
        if self._sock is not None:
            close_kept(self._sock)
        for lease in self._lent.values():
            lease.spoil()
        self._lent.clear()

    def _descriptor(self, wanted: int) -> int:
        """Take that descriptor out of the socket, and those before it: their messages were never read."""
        if self._sock is None:
            raise OSError(errno.EBADF, "segments can't be received here")
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._sock, _NUMBER, 1, _CLOSE_ON_EXEC)
            if not message:
                raise EOFError("the sender is gone")
            if not descriptors:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            number = int.from_bytes(message, "little")
            if number == wanted:
                return descriptors[0]
            os.close(descriptors[0])
            self._released.append(number)

    def _map(self, descriptor: int, number: int, size: int) -> mmap | bytearray:
        if len(_holds) < MOST_MAPPED:
            try:
                memory = mmap(descriptor, size, access=ACCESS_COPY)
            except OSError:  # no descriptor for its own use, or no room for one more mapping
                pass
            else:
                hold = _Hold(memory, _let_go)
                hold.number, hold.released = number, self._released
                _holds.add(hold)
                return memory
        copy = read(descriptor, size)
        self._released.append(number)
        return copy


class _Hold(weakref.ref[mmap]):
    """
    Sees a mapping die.

    Attributes:
        number: By which the mapped segment came.
        released: Where to say so; None if others may see the segment still.
    """

    __slots__ = ("number", "released")

    number: int
    released: deque[int] | None

    __hash__ = object.__hash__  # that of a mapping can't be asked for any more when it has died
    __eq__ = object.__eq__


_holds: set[_Hold] = set()
"""One for each living mapping."""


def _let_go(hold: _Hold, holds: set[_Hold] = _holds) -> None:
    """Run when a mapping dies: on whatever thread, between any two steps of it, at the interpreter's end too."""
    holds.discard(hold)
    if hold.released is not None:
        hold.released.append(hold.number)


def _release_none() -> None:
    """At a fork: the child sees the same segments, for as long as it likes."""
    for hold in list(_holds):
        hold.released = None


if hasattr(os, "register_at_fork"):
    # Twice, as another thread may receive something in between.
    os.register_at_fork(before=_release_none, after_in_parent=_release_none)

"""
The wire between a pool and one of its workers: frames on a stream socket.

    | two lengths | marshalled: many calls, or many answers | one large payload, or nothing |     one frame

    from      marshalled
    pool      (first number, [function, [item, ...], function, [item, ...]], [(function, its reference), ...], facts)
    pool      (..., True)                 the same, and when each call begins and ends is to be told: see `trail`
    pool      (number, None, None, None)  the call of that number is to stop
    pool      (NEWS, [released, ...], [constant that is gone, ...], constant or None)     see `baggage`
    worker    (ANSWERS, first number, [result, ...], [function, calls, nanoseconds, ...])
    worker    (..., times)                the same, and when each has begun and ended: an array's bytes
    worker    (HELLO,)                    ready for calls
    worker    (BROKEN, error, words, what)  the initializer failed, or *what* else; see `failures`
    worker    (HEAVY,)                    it takes more memory than a worker may: it should be replaced
    worker    (RETURNED, number)          calls from that number on are given back: see `looking`
    worker    (LOG, record, number)       a log record, pickled, and the call that it is of; 0: none: see `logs`
    worker    (RELEASED, [number, ...])   see `baggage`

    facts     None                        about a call that travels alone: (id, attempt, moment of its deadline or None)
    item      a tuple of atoms            the arguments themselves
              bytes                       (args, kwargs), pickled; if no reference was sent, the first of args is the
                                          function, pickled; behind them the values of context variables, if any are set
              [bytes, ...]                the same, and where its large data is: see `parcels`
    result    an atom                     the value itself
              (RESULT, bytes)             the value, pickled
              (POSTED, bytes, ...)        the same, and where its large data is
              (FAILED, error, words)      the function raised; likewise
              (NOT_FOUND, ...)            no such function in the worker
              (UNREADABLE, ...)           the arguments can't be loaded
              (UNSENDABLE, ...)           the value can't be pickled

Calls have no ids: a worker numbers those that it is sent, for ever, and answers in that order. In the place of a large
item, or of the bytes of an item or result, stands None: it follows as it is. Only the last one of a frame may be large.

Guarantees:
- What is marshalled is made of tuples, lists and atoms of exactly these types: nothing of the user's runs, nothing can
  fail, and nothing comes out changed (of a bytearray, marshal makes bytes). Each payload is pickled on its own: one
  that can't be read costs its call, never the stream.
- The pool's end never blocks: what does not fit now stays in the sender's list. The worker's end always blocks.
- The end of the stream is a message too. The worker sees it when the pool has no more calls for it, or is no more;
  the pool when the worker has exited, however that came about.
- A forked child holds no end of a socket that is another process's to hold: `keep_from_forks`. Else the end of the
  stream would never come.

State: `_kept`, changed by single atomic steps; `_handed`, per thread.
"""

from __future__ import annotations

import marshal
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from socket import socket
from struct import Struct
from typing import Any, Final, Protocol, TypeAlias

LONGEST: Final = 86_400.0
"""Seconds that one wait for a socket takes at most: the system takes no more than 2**31 milliseconds."""

ANSWERS: Final = 1
HELLO: Final = 2
BROKEN: Final = 3
RETURNED: Final = 4
LOG: Final = 5
HEAVY: Final = 6

RESULT: Final = 7
FAILED: Final = 8
NOT_FOUND: Final = 9
UNREADABLE: Final = 10
UNSENDABLE: Final = 11
POSTED: Final = 12

RELEASED: Final = 13
NEWS: Final = 0
"""Stands where else the number of a call does, which is never 0."""

HEAD: Final = Struct("<IQ")
"""The lengths of both parts; 64 bits for the second, as a payload may well be larger than 4 GB."""

SMALL: Final = 1 << 16
"""
Bytes of the shared buffer of an `Inbox`, and the size from which a payload is not copied to make one buffer of a frame.
Half of it is as good; a tenth costs small calls a second system call, ten times as much is memory for nothing.
"""

ATOMS: Final = frozenset({int, float, str, bytes, bool, type(None)})
"""Types whose values travel as they are."""

LONG: Final = 1 << 12
"""Characters or bytes from which on a string is no atom: a frame of many calls is to stay small."""

_HEAD: Final = HEAD.size

Part: TypeAlias = bytes | memoryview
Frame: TypeAlias = tuple[Any, Part]
"""What was marshalled, and the large payload; empty if there is none."""


def pack(message: Any, large: Part = b"") -> list[Part]:
    """Make a frame, as the list of what is to be sent."""
    data = marshal.dumps(message)
    head = HEAD.pack(len(data), len(large)) + data
    return [head, large] if large else [head]


def are_small_atoms(values: tuple[Any, ...]) -> bool:
    """Tell whether all of *values* travel as they are, and are not long."""
    for value in values:
        kind: object = type(value)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
        if kind is str or kind is bytes:
            if len(value) >= LONG:
                return False
        elif kind not in ATOMS:
            return False
    return True


def push(sock: socket, parts: list[Part]) -> int:
    """
    Send of *parts* what the socket takes without blocking, and remove that from the list.

    Returns:
        How many bytes that were.

    Raises:
        OSError: Nobody is on the other end.
    """
    total = 0
    while parts:
        part = parts[0]
        try:
            sent = sock.send(part)
        except BlockingIOError:
            break
        total += sent
        if sent == len(part):
            del parts[0]
        else:
            parts[0] = memoryview(part)[sent:]
    return total


class Inbox:
    """
    Cuts what arrives on a socket into frames.

    Small frames are cut out of one buffer; a large one is read into memory of its own, which is handed on as it is.

    Attributes:
        received: Bytes that have been read.
    """

    __slots__ = ("_buffer", "_end", "_filled", "_large", "_middle", "_start", "_view", "received")

    def __init__(self) -> None:
        self.received = 0
        self._buffer = bytearray(SMALL)
        self._view = memoryview(self._buffer)
        self._start = 0  # of what was read and not yet cut
        self._end = 0
        self._large: memoryview | None = None  # the parts of a large frame, of which `_filled` bytes have come
        self._middle = 0  # where its second part begins
        self._filled = 0

    def read(self, sock: socket) -> bool:
        """
        Read once from *sock*; False at the end of the stream.

        Raises:
            BlockingIOError: Nothing is there (where the socket doesn't block).
            OSError: The other end is gone, and never read what was sent to it.
        """
        if self._large is not None:
            count = sock.recv_into(self._large[self._filled :])
            self._filled += count
            self.received += count
            return count > 0
        start, end = self._start, self._end
        if start:
            self._view[: end - start] = self._buffer[start:end]
            self._start, self._end = 0, end - start
        count = sock.recv_into(self._view[self._end :])
        self._end += count
        self.received += count
        return count > 0

    def holds_part(self) -> bool:
        """Tell whether the beginning of a frame has been read, and not all of it."""
        return self._large is not None or self._start != self._end

    def cut(self) -> Frame | None:
        """Return the next frame that has arrived whole, None if there is none."""
        if self._large is not None:
            return self._cut_large(self._large)
        start = self._start + _HEAD
        if start > self._end:
            return None
        first, second = HEAD.unpack_from(self._buffer, self._start)
        middle = start + first
        end: int = middle + second
        if end - self._start > SMALL:
            self._begin_large(first, second, start)
            return self.cut()
        if end > self._end:
            return None
        self._start = end
        return marshal.loads(self._view[start:middle]), bytes(self._view[middle:end]) if second else b""

    def _begin_large(self, first: int, second: int, start: int) -> None:
        self._large = memoryview(bytearray(first + second))
        self._middle = first
        self._filled = self._end - start
        self._large[: self._filled] = self._buffer[start : self._end]
        self._start = self._end = 0

    def _cut_large(self, large: memoryview) -> Frame | None:
        if self._filled < len(large):
            return None
        self._large = None
        return marshal.loads(large[: self._middle]), large[self._middle :]


class Closable(Protocol):
    """A socket, or what waits for sockets."""

    def close(self) -> None: ...


class _Handed(threading.local):
    """What this thread hands to the process that it is about to start."""

    sockets: tuple[socket | None, ...] = ()


_kept: dict[int, Closable] = {}
_handed = _Handed()


def keep_from_forks(closable: Closable) -> None:
    """See that a child that this process forks closes *closable* at once."""
    _kept[id(closable)] = closable


def close_kept(closable: Closable) -> None:
    """Close what `keep_from_forks` was given."""
    closable.close()
    _kept.pop(id(closable), None)


@contextmanager
def handing(*sockets: socket | None) -> Generator[None]:
    """While in this block, a child that this thread forks keeps these, whatever `keep_from_forks` was told."""
    _handed.sockets = sockets
    try:
        yield
    finally:
        _handed.sockets = ()


def _close_in_child() -> None:
    for closable in list(_kept.values()):
        if not any(closable is sock for sock in _handed.sockets):
            closable.close()
    _kept.clear()
    _handed.sockets = ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)

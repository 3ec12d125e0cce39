"""
The wire between a pool and one of its workers: frames on a stream socket.

    | kind, call id, two lengths | first part | second part |     one frame; a fixed header, then the bytes

    kind        from      first part                    second part
    CALL        pool      the function's reference      arguments
    CALL_VALUE  pool      the function, pickled         arguments
    HELLO       worker    -                             -                    ready for calls
    BROKEN      worker    the error, pickled, or empty  the error in words   the initializer failed
    RESULT      worker    -                             the value
    FAILED      worker    as BROKEN                     as BROKEN            the function raised
    NOT_FOUND   worker    as BROKEN                     as BROKEN            no such function in the worker
    UNREADABLE  worker    as BROKEN                     as BROKEN            the arguments can't be loaded
    UNSENDABLE  worker    as BROKEN                     as BROKEN            the value can't be pickled

Guarantees:
- Ids and lengths stand apart from the parts, and each part is pickled on its own: one that can't be read costs its
  call, never the stream.
- The pool's end never blocks: what does not fit now stays in the sender's list. The worker's end always blocks.
- The end of the stream is a message too. The worker sees it when the pool has no more calls for it, or is no more;
  the pool when the worker has exited, however that came about.
- A forked child holds no end of a socket that is another process's to hold: `keep_from_forks`. Else the end of the
  stream would never come.

State: `_kept`, changed by single atomic steps; `_handed`, per thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from socket import socket
from struct import Struct
from typing import Final, Protocol, TypeAlias

CALL: Final = 1
CALL_VALUE: Final = 2
HELLO: Final = 3
BROKEN: Final = 4
RESULT: Final = 5
FAILED: Final = 6
NOT_FOUND: Final = 7
UNREADABLE: Final = 8
UNSENDABLE: Final = 9

HEADER: Final = Struct("<BQQQ")
"""Kind, call id, the lengths of both parts. 64 bits, as a payload may well be larger than 4 GB."""

SMALL: Final = 1 << 16
"""
Bytes of the shared buffer of an `Inbox`, and the size from which a part is not copied to make one buffer of a frame.
Half of it is as good; a tenth costs small calls a second system call, ten times as much is memory for nothing.
"""

_HEAD: Final = HEADER.size

Part: TypeAlias = bytes | memoryview
Frame: TypeAlias = tuple[int, int, Part, Part]
"""Kind, call id, first part, second part."""


def pack(kind: int, call_id: int, first: bytes = b"", second: bytes = b"") -> list[Part]:
    """Make a frame, as the list of what is to be sent."""
    head = HEADER.pack(kind, call_id, len(first), len(second)) + first
    return [head + second] if len(second) < SMALL else [head, second]


def push(sock: socket, parts: list[Part]) -> bool:
    """
    Send of *parts* what the socket takes without blocking, and remove that from the list.

    Returns:
        True if nothing is left.

    Raises:
        OSError: Nobody is on the other end.
    """
    while parts:
        part = parts[0]
        try:
            sent = sock.send(part)
        except BlockingIOError:
            return False
        if sent == len(part):
            del parts[0]
        else:
            parts[0] = memoryview(part)[sent:]
    return True


class Inbox:
    """
    Cuts what arrives on a socket into frames.

    Small frames are cut out of one buffer; a large one is read into memory of its own, which is handed on as it is.
    """

    __slots__ = ("_buffer", "_end", "_filled", "_large", "_large_head", "_start", "_view")

    def __init__(self) -> None:
        self._buffer = bytearray(SMALL)
        self._view = memoryview(self._buffer)
        self._start = 0  # of what was read and not yet cut
        self._end = 0
        self._large: memoryview | None = None  # the parts of a large frame, of which `_filled` bytes have come
        self._large_head = (0, 0, 0, 0)
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
            return count > 0
        start, end = self._start, self._end
        if start:
            self._view[: end - start] = self._buffer[start:end]
            self._start, self._end = 0, end - start
        count = sock.recv_into(self._view[self._end :])
        self._end += count
        return count > 0

    def cut(self) -> Frame | None:
        """Return the next frame that has arrived whole, None if there is none."""
        if self._large is not None:
            return self._cut_large(self._large)
        start = self._start + _HEAD
        if start > self._end:
            return None
        kind, call_id, first, second = head = HEADER.unpack_from(self._buffer, self._start)
        middle = start + first
        end = middle + second
        if end - self._start > SMALL:
            self._begin_large(head, start)
            return self.cut()
        if end > self._end:
            return None
        self._start = end
        view = self._view
        return (kind, call_id, bytes(view[start:middle]), bytes(view[middle:end]))

    def _begin_large(self, head: tuple[int, int, int, int], start: int) -> None:
        self._large = memoryview(bytearray(head[2] + head[3]))
        self._large_head = head
        self._filled = self._end - start
        self._large[: self._filled] = self._buffer[start : self._end]
        self._start = self._end = 0

    def _cut_large(self, large: memoryview) -> Frame | None:
        if self._filled < len(large):
            return None
        self._large = None
        kind, call_id, first, _ = self._large_head
        return (kind, call_id, large[:first], large[first:])


class Closable(Protocol):
    """A socket, or a selector."""

    def close(self) -> None: ...


class _Handed(threading.local):
    """What this thread hands to the process that it is about to start."""

    socket: socket | None = None


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
def handing(sock: socket) -> Generator[None]:
    """While in this block, a child that this thread forks keeps *sock*, whatever `keep_from_forks` was told."""
    _handed.socket = sock
    try:
        yield
    finally:
        _handed.socket = None


def _close_in_child() -> None:
    for closable in list(_kept.values()):
        if closable is not _handed.socket:
            closable.close()
    _kept.clear()
    _handed.socket = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)

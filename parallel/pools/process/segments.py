"""
Segments: memory without a name, into which large data is written once, and from which others map it.

    Store.write(parts) ──▶ Lease, on a segment ──▶ (sent: `passages.py`) ──▶ nobody refers to it any more
              ▲                                                                       │
              └────────── warm: its pages are there ◀──── all who had it let go ◀─────┤
                                                          else: closed, for ever ◀────┘

A segment is a memfd; where there are none, a temporary file that has no name any more. So nothing is left of it when
those have ended who had it open, however they ended. Fresh pages are written by `pwrite`, which lets other threads run,
and ends with an error where memory is short, not with a signal. They cost three to ten times what the copying costs:
so segments that are free again are kept for a while, and then written through a mapping. And once there are more than
could be kept, who writes waits a little for one that comes back: as long as fresh pages would take, and no longer.

Guarantees:
- What was sent stays as it was until every receiver has let go of it, or for ever if that is not certain: a segment is
  written again only if nobody can see it.
- No more than `MOST_OPEN` segments are open per store, no more than *kept* bytes kept for later. What has no place
  any more goes in band: `write` returns None.
- A forked child shares nothing of it: its store begins anew, and the descriptors are closed.

State: `_warm`, `_opened` and `_waiting`, changed by single atomic steps: a lease may end anywhere, in `__del__`. There
is no lock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from mmap import mmap
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

from parallel.pools.process.buffers import offsets
from parallel.weak import WeakSet

KEPT: Final = 512 << 20
"""
Bytes of free segments that a store keeps: arrays of 100 MB for two workers, and what the next calls are given. With a
tenth, each costs three times as much. The workers of a pool keep a share each.
"""

LEAST_KEPT: Final = 64 << 20
"""Bytes that a worker may keep though its share is less: else one of many workers would keep no large result at all."""

KEPT_FOR: Final = 5.0
"""Seconds that a free segment is kept. Picked by feel: longer than the pauses in a busy program."""

MOST_OPEN: Final = 128
"""
Segments of a store, each with a descriptor, or two. The usual limit of a process is 1,024, on macOS 256. With more,
many calls with large arguments in a queue could leave none for the program; with less, they go through the socket.
"""

FIT: Final = 4
"""A segment is used again for what needs at least this part of it, so that little data never keeps much memory."""

MAPPED: Final = 1 << 20
"""
Bytes from which data is copied into a mapping of pages that are there, in a third of the time that `pwrite` takes. The
first time the mapping costs more than it saves; and each keeps a second descriptor, which small data is not worth.
"""

WORTH_WAITING: Final = 0.5e-9
"""Seconds per byte to wait for a segment that comes back: what the fresh pages of another one take."""

STEP: Final = 1 << 20
"""Bytes that are copied at a time. It takes 0.1 ms; in between other threads may run, which want the interpreter."""

POSSIBLE: Final = all(hasattr(os, name) for name in ("pwrite", "preadv")) and hasattr(socket, "send_fds")
"""Whether this system can do it: not Windows. Else all data goes in band."""

_MEMORY: Final = "/dev/shm"
"""Where temporary files are in memory, if it is there."""


class _Memory:
    """
    What is known of a segment's memory.

    Attributes:
        size: Bytes that have been written once, so that their pages are there.
        mapping: By which it is written, once it was written and is large.
    """

    __slots__ = ("mapping", "size")

    def __init__(self) -> None:
        self.size = 0
        self.mapping: mmap | None = None


_Opened: TypeAlias = dict[int, _Memory]
"""The segments of a store, by their descriptors."""


class Segment:
    """
    Memory with a descriptor, which is closed with the object.

    Attributes:
        descriptor: Its file descriptor.
        since: When it became free.
    """

    __slots__ = ("_memory", "_opened", "descriptor", "since")

    def __init__(self, descriptor: int, opened: _Opened) -> None:
        self.descriptor = descriptor
        self.since = 0.0
        self._opened = opened
        self._memory = opened[descriptor] = _Memory()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.is_open_in(self._opened):  # not in a forked child, where it was closed at once
            del self._opened[self.descriptor]
            close(self.descriptor)

    @property
    def size(self) -> int:
        """Bytes that have been written once, so that their pages are there."""
        return self._memory.size

    def is_open_in(self, opened: _Opened) -> bool:
        """Tell whether it was made with this very table, and is open: a collected cycle may have closed it first."""
        return self._opened is opened and opened.get(self.descriptor) is self._memory

    def write(self, parts: Sequence[memoryview]) -> None:
        """
        Write *parts* into it.

        Raises:
            OSError: There is not enough memory.
        """
        begins, end = offsets(part.nbytes for part in parts)
        mapping = self._mapping() if MAPPED <= end <= self.size else None
        for begin, part in zip(begins, parts, strict=True):
            if mapping is None:
                _write(self.descriptor, part, begin)
            else:
                _copy(mapping, part, begin)
        self._memory.size = max(self.size, end)

    def _mapping(self) -> mmap | None:
        """Return the mapping of what has been written; None if there is no room for one."""
        memory = self._memory
        if memory.mapping is None or len(memory.mapping) < self.size:
            try:
                memory.mapping = mmap(self.descriptor, self.size)
            except OSError:
                return None
        return memory.mapping


def _write(descriptor: int, part: memoryview, begin: int) -> None:
    done = 0
    while done < part.nbytes:
        done += os.pwrite(descriptor, part[done:], begin + done)


def _copy(mapping: mmap, part: memoryview, begin: int) -> None:
    for done in range(0, part.nbytes, STEP):
        piece = part[done : done + STEP]
        mapping[begin + done : begin + done + piece.nbytes] = piece


class Lease:
    """
    A segment, as long as it carries what was written into it last.

    When nobody refers to the lease any more, the segment is free for other data, or closed if `spoil` was called.

    Attributes:
        size: Bytes that it carries.
    """

    __slots__ = ("_reusable", "_store", "segment", "size")

    def __init__(self, segment: Segment, size: int, store: Store) -> None:
        self.segment = segment
        self.size = size
        self._store = store
        self._reusable = True

    def __del__(self) -> None:
        if self._reusable:
            self._store.keep(self.segment)

    def spoil(self) -> None:
        """Have its segment never written again: there may be somebody who sees it, and will never say so."""
        self._reusable = False

    def read(self) -> bytearray:
        """
        Return a copy of what it carries.

        Raises:
            OSError, EOFError: It can't be read.
        """
        return read(self.segment.descriptor, self.size)


class Store:
    """
    The segments of a pool, or of a worker. Any thread may use it.

    Attributes:
        wake: Called when there is something to `expire`, after there was nothing; None: somebody asks all the time.
    """

    def __init__(self, kept: int = KEPT, patient: bool = False) -> None:
        """
        Make a store; it opens nothing yet.

        Args:
            kept: The most bytes of free segments to keep.
            patient: Segments come back while a thread writes: others see to that, so it may wait for one.
        """
        self.wake: Callable[[], object] | None = None
        self._kept = kept
        self._patient = patient
        self._begin()
        _stores.add(self)

    def _begin(self) -> None:
        self._warm: list[Segment] = []  # the longest free first
        self._opened: _Opened = {}  # these, and those under a lease
        self._waiting: list[SimpleQueue[None]] = []  # where threads wait for one to become free
        self._closed = False

    def __repr__(self) -> str:
        free = sum(kept.size for kept in self._warm.copy()) >> 20
        return f"<{type(self).__name__} [{len(self._opened)} segments, {free} MB free]>"

    def write(self, parts: Sequence[memoryview]) -> Lease | None:
        """Write *parts* into a segment, one after the other; None if there is no room for them."""
        if not POSSIBLE:
            return None
        _, size = offsets(part.nbytes for part in parts)
        try:
            segment = self._take(size) or self._wait_for(size) or self._create()
            if segment is None:
                return None
            segment.write(parts)
        except OSError:  # no descriptor, no memory
            return None
        return Lease(segment, size, self)

    def keep(self, segment: Segment) -> None:
        """Keep a free segment for later, if it is not closed, nor one that this process has inherited by a fork."""
        if not segment.is_open_in(self._opened):
            return
        segment.since = time.monotonic()
        is_first = not self._warm
        self._warm.append(segment)
        for waiting in self._waiting.copy():
            waiting.put(None)
        if self._closed:  # (*) looked at after the append: whoever of the two comes second, clears
            self._warm.clear()
        while sum(kept.size for kept in self._warm.copy()) > self._kept:
            with suppress(IndexError):  # another thread was faster
                del self._warm[0]
        if is_first and self.wake is not None:
            self.wake()

    def expire(self) -> float | None:
        """Close what has been free for `KEPT_FOR`; return in how many seconds there will be more to close, if any."""
        if not self._warm:
            return None
        limit = time.monotonic() - KEPT_FOR
        for segment in self._warm.copy():
            if segment.since > limit:
                return segment.since - limit
            with suppress(ValueError):  # it was taken just now
                self._warm.remove(segment)
        return None

    def close(self) -> None:
        """Keep nothing from now on. Segments under a lease are closed with it."""
        self._closed = True  # (*)
        self._warm.clear()

    def forget(self) -> None:
        """In a forked child: all of it is the parent's."""
        opened = list(self._opened)
        self._opened.clear()  # the segments that are left know this table, and won't close what isn't theirs
        self._begin()
        for descriptor in opened:
            os.close(descriptor)

    def _take(self, size: int) -> Segment | None:
        """Take a free segment that fits: the smallest that needs no new pages, else the largest."""
        fitting = [kept for kept in self._warm.copy() if size <= kept.size * FIT and kept.size <= size * FIT]
        fitting.sort(key=lambda kept: (kept.size < size, abs(kept.size - size)))
        for segment in fitting:
            with suppress(ValueError):  # another thread has it
                self._warm.remove(segment)
                return segment
        return None

    def _wait_for(self, size: int) -> Segment | None:
        """Wait for a segment that fits, if there is more memory already than is kept, and that is worth it."""
        if not self._patient or size < MAPPED or self._written() + size <= self._kept:
            return None
        deadline = time.monotonic() + size * WORTH_WAITING
        freed: SimpleQueue[None] = SimpleQueue()
        self._waiting.append(freed)
        try:
            while (segment := self._take(size)) is None and (left := deadline - time.monotonic()) > 0:
                with suppress(Empty):
                    freed.get(timeout=left)
            return segment
        finally:
            self._waiting.remove(freed)

    def _written(self) -> int:
        return sum(memory.size for memory in list(self._opened.values()))

    def _create(self) -> Segment | None:
        if len(self._opened) >= MOST_OPEN:
            if not self._warm:
                return None
            with suppress(IndexError):  # they have all been taken
                del self._warm[0]
        return Segment(create(), self._opened)


def create() -> int:
    """
    Return the descriptor of new memory that has no name.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "memfd_create"):
        with suppress(PermissionError, NotImplementedError):  # forbidden in a sandbox
            return os.memfd_create("parallel")
    import tempfile  # few processes need it, and it takes longer to load than all of this

    folder = _MEMORY if os.path.isdir(_MEMORY) and os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryFile(buffering=0, dir=folder) as file:
        return os.dup(file.fileno())


def read(descriptor: int, size: int) -> bytearray:
    """
    Return a copy of the first *size* bytes behind *descriptor*.

    Raises:
        OSError, EOFError: They can't be read.
    """
    copy = bytearray(size)
    done = 0
    with memoryview(copy) as view:
        while done < size:
            count = os.preadv(descriptor, [view[done:]], done)
            if not count:
                raise EOFError(f"{size} bytes were to be there, {done} are")
            done += count
    return copy


_stores: WeakSet[Store] = WeakSet()


def _forget_all() -> None:
    for store in _stores:
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

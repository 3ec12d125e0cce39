"""
The board of a worker: shared memory that says which call it is in, and what it has not told yet.

    worker ──▶ STARTED, BEGAN, then the call, then its result into the journal ──▶ flush: one message, journal empty
    pool   ──▶ RECALL: calls of these numbers are not to be begun                     │
           ◀── looks at it: when a call takes long (see `looking`), and when the worker has died

    | words of the worker: 8 bytes each | RECALL, on a cache line of its own | journal: length, marshalled result, ... |
    | the last that it wrote to standard error | the report of its crash |

Guarantees:
- A call is in exactly one state, whenever its worker is killed: not begun, begun (`STARTED` is its number), or ended
  (its result is in a message, or in the journal). The last call of a message has no entry: it counts as begun until
  its message is out.
- Each word has one writer. A reader of another process sees the stores in order where the processor keeps them so
  (x86), and else a moment later: who decides anything by a word of a living worker looks again after `SETTLED`.
- Without shared memory there is a board as well, which nobody else sees: then a worker has one call at a time.

State: the memory. The words belong to the worker, but RECALL, which is the pool's.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from struct import Struct
from typing import Any, Final

STARTED: Final = 0
"""The number of the call that the worker is in, or was in last."""
BEGAN: Final = 1
"""When it began that call: nanoseconds of `time.monotonic_ns`, which all processes of a machine share."""
EPOCH: Final = 2
"""How often the journal has been emptied."""
BASE: Final = 3
"""The number of the journal's first entry; all calls before it have been answered by messages."""
WRITTEN: Final = 4
"""Where the journal ends, in bytes from the board's beginning. Written after the entry."""
TOLD: Final = 5
"""How many bytes of standard error are kept."""
ITEM: Final = 6
"""
Of a chunk, the number of the first item that is begun, counted from 1; from bit `MANY` on, how many are begun together;
and `ENDED` once these were the last. 0: no chunk.
"""
NOTED: Final = 7
"""Where the notes about a chunk end that stand behind the journal, in bytes from the board's beginning."""
RECALL: Final = 8
"""`end << 32 | first`, each modulo 2**32: calls from *first* to before *end* are not to be begun; 0: none."""

JOURNAL: Final = 128
"""Where the journal begins."""
SIZE: Final = 1 << 16
"""
Bytes of a board up to the end of the journal. A smaller one has the worker send more often, a larger one is memory for
nothing.
"""
TAIL_AT: Final = SIZE
"""Where that begins which it wrote to standard error last."""
TAIL: Final = 1 << 12
"""How many bytes of that are kept."""
REPORT_AT: Final = TAIL_AT + TAIL
"""Where the report of a crash begins, at the end, as nothing bounds it."""
REPORT: Final = 1 << 13
"""How much of it is read: some eighty frames. What is never written takes no memory."""
WHOLE: Final = REPORT_AT + REPORT
"""Bytes of a board."""
LENGTH: Final = Struct("<I")

SETTLED: Final = 1_000_000
"""Nanoseconds after which a store of one process is seen by all others, on any processor: it is microseconds."""

MANY: Final = 32
"""The bit of `ITEM` from which on it says how many items are begun."""
ENDED: Final = 1 << 63
"""The bit of `ITEM` that says that these have ended, and no other is begun."""

_MASK: Final = (1 << 32) - 1


class Board:
    """
    The memory of one board.

    Attributes:
        bytes: All of it.
        words: Its beginning, as words.
        is_shared: Whether the other side sees it too.
    """

    __slots__ = ("_memory", "bytes", "is_shared", "words")

    def __init__(self, descriptor: int | None) -> None:
        """Map the memory of *descriptor*, which may be closed then; None: have some that is not shared."""
        self._memory = None if descriptor is None else mmap.mmap(descriptor, WHOLE)
        self.is_shared = self._memory is not None
        self.bytes = memoryview(bytearray(WHOLE) if self._memory is None else self._memory)
        self.words = self.bytes[:JOURNAL].cast("Q")
        if self.words[WRITTEN] == 0:
            self.words[WRITTEN] = JOURNAL

    def journal(self) -> tuple[int, list[bytes]]:
        """Return the number of the first entry, and all entries; of a living worker they may be torn: see `looking`."""
        return self.words[BASE], self._entries(JOURNAL, self.words[WRITTEN])

    def notes(self) -> list[bytes]:
        """Return the notes about the chunk that a dead worker was in."""
        return self._entries(self.words[WRITTEN], self.words[NOTED])

    def _entries(self, at: int, end: int) -> list[bytes]:
        entries: list[bytes] = []
        end = min(end, SIZE)
        while at + LENGTH.size <= end:
            start = at + LENGTH.size
            at = start + LENGTH.unpack_from(self.bytes, at)[0]
            entries.append(bytes(self.bytes[start:at]))
        return entries

    def recall(self, first: int, end: int) -> bool:
        """Tell the worker to begin none of these calls; False if the word can't say so, once in 2**32 calls."""
        first, end = first & _MASK, end & _MASK
        if first >= end:
            return False
        self.words[RECALL] = end << 32 | first
        return True

    def tail(self) -> str:
        """Return what the worker wrote to standard error last."""
        return bytes(self.bytes[TAIL_AT : TAIL_AT + min(self.words[TOLD], TAIL)]).decode(errors="replace")

    def report(self) -> str:
        """Return the report of its crash; empty if there is none."""
        return bytes(self.bytes[REPORT_AT:]).rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        """Let go of the memory; nobody may look at it any more."""
        self.words.release()
        self.bytes.release()
        if self._memory is not None:
            self._memory.close()


def is_recalled(recall: int, number: int) -> bool:
    """Tell whether a call is one of those that the word *recall* names."""
    return recall & _MASK <= number & _MASK < recall >> 32


def make_memory() -> int | None:
    """Make memory that can be shared, without a name in any folder; return its descriptor, None if there is none."""
    if not hasattr(reduction, "DupFd"):
        return None  # descriptors don't travel here
    try:
        descriptor = os.memfd_create("parallel-board") if hasattr(os, "memfd_create") else _make_file()
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, WHOLE)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _make_file() -> int:
    import tempfile  # few systems need it, and it takes longer to load than all of this

    descriptor, path = tempfile.mkstemp(prefix="parallel-board-")
    os.unlink(path)
    return descriptor


class Carried:
    """
    A board on its way to the process that is being started.

    Attributes:
        descriptor: Its file, in the worker once it has been opened.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self._sent: list[Any] = []

    def __getstate__(self) -> list[Any]:
        return [] if self.descriptor is None else [reduction.DupFd(self.descriptor)]

    def __setstate__(self, sent: list[Any]) -> None:
        self.descriptor = None
        self._sent = sent

    def open(self) -> Board:
        """In the worker: map it."""
        for sent in self._sent:
            self.descriptor = sent.detach()
        return Board(self.descriptor)

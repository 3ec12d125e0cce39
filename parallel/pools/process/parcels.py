"""
Parcels: values with large data in them, packed on one side and unpacked on the other.

    encode(value) ──▶ bytes, if nothing in it is large
                └───▶ Parcel: its pickle, and the lease of the segment that holds the rest
                          │ post(parcel, passage): the descriptor goes ahead
                          ▼
                      Posted: numbers and bytes, for any message ──▶ open_posted(posted, passage) ──▶ value

A plain call copies what is large in its arguments each time, as the caller may change it in between; what stays the
same for many calls is a `Constant`.

Where a segment can't be had, or its descriptor can't travel, the same parcel goes in band: the parts stand before the
pickle then. The receiver sees no difference.

Guarantee: no lock is held here; packing and unpacking run user code, posting does not. Nothing here has state.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from parallel.pools.process.buffers import LARGE, Leaving, has_large_bytes, load, offsets
from parallel.pools.process.passages import Passage
from parallel.pools.process.pickling import dumps
from parallel.pools.process.segments import Lease, Store

Posted: TypeAlias = tuple[bytes | memoryview, int, tuple[int, ...], int]
"""
Its pickle, the number by which the passage knows its segment, the sizes of the parts, how many of these are `bytes`.
By number `IN_BAND`, the parts are in the first item, before the pickle.
"""

Received: TypeAlias = tuple[bytes | memoryview, list[memoryview], int]
"""What has come of it, as `buffers.load` takes it."""

IN_BAND: Final = 0
LOST: Final = -1
"""The number of what could neither be sent nor read: it is an error where it arrives."""

_DEEP: Final = 1
"""How deep to look for large `bytes` in a value, or an argument: in a list, a tuple, or a dict that is one."""


class Parcel:
    """
    A value that is packed, and not yet on its way.

    It may be posted several times: again, if a worker died, or to many workers.

    Attributes:
        data: The pickle; the parts before it, if there is no lease.
        lease: Of the segment with the parts.
        sizes: Bytes of the parts.
        whole: How many of them were `bytes`.
    """

    __slots__ = ("data", "lease", "sizes", "whole")

    def __init__(self, data: bytes, lease: Lease | None, sizes: tuple[int, ...], whole: int) -> None:
        self.data = data
        self.lease = lease
        self.sizes = sizes
        self.whole = whole

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.data) + (self.lease.size if self.lease is not None else 0)


def encode(value: object, main_by_value: bool, store: Store) -> bytes | Parcel:
    """
    Pickle *value*, and write what is large in it into a segment. What pickling it raises, comes out.

    Args:
        value: Anything.
        main_by_value: No worker can import `__main__`.
        store: Where segments come from.
    """
    return _encode(value, has_large_bytes(value, 0), _DEEP, main_by_value, store)


def encode_arguments(
    args: tuple[object, ...], kwargs: dict[str, object], main_by_value: bool, store: Store, *more: object
) -> bytes | Parcel:
    """Pickle `(args, kwargs, *more)` as `encode` does a value."""
    at_once = has_large_bytes(args, 1) or bool(kwargs and has_large_bytes(kwargs, 1))
    return _encode((args, kwargs, *more), at_once, _DEEP + 2, main_by_value, store)


def _encode(value: object, takes_bytes: bool, depth: int, main_by_value: bool, store: Store) -> bytes | Parcel:
    data, leaving = pickled_apart(value, takes_bytes, depth, main_by_value)
    parts = leaving.parts()
    if not parts:
        return data
    sizes = tuple(part.nbytes for part in parts)
    lease = store.write(parts)
    if lease is None:
        data = _in_band(parts, sizes) + data
    return Parcel(data, lease, sizes, len(leaving.whole) if leaving.takes_bytes else 0)


def pickled_apart(value: object, takes_bytes: bool, depth: int, main_by_value: bool) -> tuple[bytes, Leaving]:
    """
    Return the pickle of *value*, and what is large in it.

    Args:
        value: Anything.
        takes_bytes: There are large `bytes` in it.
        depth: How deep to look for such, if the pickle turns out to be large all the same.
        main_by_value: No worker can import `__main__`.
    """
    leaving = Leaving(takes_bytes)
    data = dumps(value, main_by_value, leaving)
    if len(data) >= LARGE and not leaving.takes_bytes and has_large_bytes(value, depth):
        # Only now, as a small pickle spares a look at each item of a list.
        leaving = Leaving(True)
        data = dumps(value, main_by_value, leaving)
    return data, leaving


def post(parcel: Parcel, passage: Passage) -> Posted:
    """Send what goes ahead of the message, and return what is to stand in it."""
    lease, data = parcel.lease, parcel.data
    number = IN_BAND
    if lease is not None:
        number = passage.send(lease)
        if not number:
            try:
                data = bytes(lease.read() + data)
            except (OSError, EOFError, MemoryError):
                number = LOST
    return (data, number, parcel.sizes, parcel.whole)


def open_posted(posted: Posted, passage: Passage) -> Any:
    """
    Return the value. What loading it raises, comes out.

    Raises:
        OSError, EOFError: The segment can't be had: this process has no descriptor left for it.
    """
    return load(*receive(posted, passage))


def receive(posted: Posted, passage: Passage) -> Received:
    """
    Return what `load` makes the value of. To be called for all that is posted, in its order.

    Raises:
        OSError, EOFError: As `open_posted`.
    """
    data, number, sizes, whole = posted
    if number == LOST:
        raise OSError(errno.EIO, "the large part of it could not be sent")
    if number != IN_BAND:
        return data, passage.receive(number, sizes), whole
    begins, end = offsets(sizes)
    view = memoryview(data)
    memory = memoryview(bytearray(view[:end]))
    return view[end:], [memory[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)], whole


def _in_band(parts: Sequence[memoryview], sizes: Sequence[int]) -> bytes:
    begins, end = offsets(sizes)
    memory = bytearray(end)
    for begin, part in zip(begins, parts, strict=True):
        memory[begin : begin + part.nbytes] = part
    return bytes(memory)

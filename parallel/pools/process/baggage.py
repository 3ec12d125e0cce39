"""
Baggage: what travels between a pool and one of its workers beside the calls and answers.

    pool                                                                       worker
    Baggage.put(parcel) ──▶ segment on the passage; a list in the message ──▶ Unpacking.open() ──▶ arguments
    Baggage.frames() ─────▶ constants; what is released, or gone ───────────▶ Unpacking.hear()
    Baggage.receive() ◀─── (POSTED, ...) in an answer ◀── segment on it ◀──── Unpacking.pack() ◀── value
    Baggage.take_back() ◀─────────── (RELEASED, [...]) ◀───────────────────── Unpacking.released()

A worker says what it has released after each message, once it has let go of the last call's arguments: their end runs
user code, which is not to cost a result. The pool says so with its next calls, or when the worker has none.

State: of a `Baggage`, guarded by the gate, except what comes up anywhere (`News`) and what is received, by the reader;
of an `Unpacking`, the worker's one thread's.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from socket import socket
from typing import Any, NamedTuple

from parallel.pools.process.constants import Constants, Introduction, Introductions, Sharing
from parallel.pools.process.parcels import Parcel, Received, encode, open_posted, post, receive
from parallel.pools.process.passages import Passage, sockets
from parallel.pools.process.segments import Store
from parallel.pools.process.wire import NEWS, POSTED, RELEASED, RESULT, SMALL, Part, close_kept, keep_from_forks, pack


class Luggage(NamedTuple):
    """
    What a worker is given at its start.

    Attributes:
        sock: Its end of the passage.
        kept: The most bytes of free segments that it may keep.
    """

    sock: socket | None
    kept: int


class Baggage:
    """
    The pool's side.

    Attributes:
        luggage: For the worker, until it has been started.
    """

    def __init__(self, kept: int) -> None:
        """
        Make it.

        Args:
            kept: The most bytes of free segments that the worker may keep.

        Raises:
            OSError: There are no descriptors left.
        """
        ours, theirs = sockets()
        if theirs is not None:
            keep_from_forks(theirs)
        self.luggage = Luggage(theirs, kept)
        self._passage = Passage(ours)
        self._introductions = Introductions()
        self._introduced: list[Introduction] = []  # to stand before the calls that need them
        self._untold = (self._passage.released.numbers, self._introductions.gone.numbers)

    def packed_off(self) -> None:
        """Close the worker's end here: it has been started, or has failed to."""
        if self.luggage.sock is not None:
            close_kept(self.luggage.sock)

    def wake(self, wake: Callable[[], object]) -> None:
        """Have *wake* called whenever there is something to tell the worker; from anywhere."""
        self._passage.released.wake = self._introductions.gone.wake = wake

    def has_news(self) -> bool:
        """Tell whether there is something to tell the worker."""
        return any(self._untold)

    def put(self, parcel: Parcel) -> tuple[list[Any], Part]:
        """Under the gate: send what goes ahead of a parcel; return what stands for it in the message, and behind it."""
        if isinstance(parcel, Sharing):
            self._introduced += self._introductions.introduce(parcel.constants, self._passage)
        data, *rest = post(parcel, self._passage)
        return ([None, *rest], data) if len(data) >= SMALL else ([data, *rest], b"")

    def frames(self) -> list[Part]:
        """Under the gate: return the frames that are to stand before the next calls; mostly none."""
        if not (self._introduced or any(self._untold)):
            return []
        gone = self._introductions.gone.take()
        self._introductions.forget(gone)
        frames = pack((NEWS, self._passage.released.take(), gone, None))
        for number, (data, *rest) in self._introduced:
            is_large = len(data) >= SMALL
            small = None if is_large else data
            frames += pack((NEWS, [], [], (number, small, *rest)), data if is_large else b"")
        self._introduced = []
        return frames

    def receive(self, posted: tuple[Any, ...], large: Part) -> Received:
        """
        On the reader: return what `buffers.load` makes the value of, of a result that was posted.

        Raises:
            OSError, EOFError: It did not come whole.
        """
        data, number, sizes, whole = posted
        return receive((large if data is None else data, number, sizes, whole), self._passage)

    def carried(self) -> tuple[int, int]:
        """Count the bytes of segments that the worker has been sent, and that have come from it."""
        return self._passage.sent_bytes, self._passage.received_bytes

    def take_back(self, released: list[int]) -> None:
        """Under the gate: note what the worker has released."""
        self._passage.take_back(released)

    def close(self) -> None:
        """Let go of it all: the worker has died, and what it sent has been read."""
        self._passage.close()


class Unpacking:
    """
    The worker's side.

    Attributes:
        untold: What it has released, and not told yet.
    """

    def __init__(self, luggage: Luggage, main_by_value: bool) -> None:
        self._passage = Passage(luggage.sock)
        self._store = Store(luggage.kept)
        self._constants = Constants(self._passage)
        self._main_by_value = main_by_value
        self.untold = self._passage.released.numbers

    def hear(self, released: list[int], gone: list[int], constant: tuple[Any, ...] | None, large: Part) -> None:
        """Note what the pool says beside its calls."""
        self._passage.take_back(released)
        self._constants.unlearn(gone)
        if constant is not None:
            number, data, *where = constant
            self._constants.learn([(number, (large if data is None else data, *where))])

    def open(self, item: list[Any], large: Part) -> Any:
        """
        Return the arguments of a call, as `packing` made them. What loading them raises, comes out.

        Raises:
            OSError, EOFError: They did not come whole.
        """
        data, number, sizes, whole = item
        return open_posted((large if data is None else data, number, sizes, whole), self._passage)

    def released(self) -> list[Part]:
        """Return the frame that says what it has released."""
        return pack((RELEASED, self._passage.released.take()))

    def skip(self, item: list[Any]) -> None:
        """Let go of what has come for a call that is not begun here, or could not be."""
        self._passage.skip(item[1])

    def pack(self, value: object) -> tuple[Any, ...]:
        """Return the result of a call as it is sent, unless it is an atom. What pickling it raises, comes out."""
        packed = encode(value, self._main_by_value, self._store)
        return (POSTED, *post(packed, self._passage)) if isinstance(packed, Parcel) else (RESULT, packed)

    def rest(self, sock: socket) -> None:
        """Wait until something comes on *sock*, as long as there are segments of which to let go meanwhile."""
        while (seconds := self._store.expire()) is not None:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if poll.poll(seconds * 1000):
                return

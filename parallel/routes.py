"""
How the items of a map are sent: each in a call of its own, or many in one; and what has become of them.

    Piece ──▶ Singles ──▶ a call with the item ─────────────┬──▶ its outcome ──▶ Back: parts that have ended,
         └──▶ Chunks ───▶ a call of `run_chunk` with items ─┘                    pieces that are to be sent again

State: of a `Medians`, its map's; of the others, none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from parallel.arguments import hold_futures
from parallel.chunks import BUDGET, Done, Kept, Timed
from parallel.errors import SerializationError
from parallel.flows import MOST, Back, Piece, PieceCancelledError, Route, failed_part
from parallel.futures import Future, failed
from parallel.lanes import LateLane
from parallel.ledgers import Part
from parallel.outcomes import CANCELLED, Outcome
from parallel.pools.base import Counts

ENOUGH: Final = 10
"""Items that have to have ended before one may be told from the rest by what it takes."""

LATEST: Final = 1000
"""Items whose middle one counts."""

SHORTEST: Final = 1.0
"""Seconds that an item may take at least: a busy machine delays any by some tenths of a second."""


class Singles:
    """
    Each item in a call of its own: where calls have terms, such as a timeout, or the function is a coroutine's.

    Args:
        call: Makes the call, with the item's arguments.
        spread: Each item is a tuple of arguments.
        capacity: How many calls may run at a time.
        depth: How many are sent for each of these.
        stats: Tells what the pool does now.
        before: Returns arguments that come before those of the item with that index.
        medians: Is told what an item took; None: nobody is.
    """

    most = 1
    piece_time = BUDGET

    def __init__(
        self,
        call: Callable[..., Future[Any]],
        spread: bool,
        capacity: int,
        depth: int,
        stats: Callable[[], Counts],
        before: Callable[[int], tuple[Any, ...]] | None = None,
        medians: Medians | None = None,
    ) -> None:
        self._call = call
        self._spread = spread
        self._before = before
        self._medians = medians
        self.capacity = capacity
        self.depth = depth
        self.stats = stats

    def send(self, piece: Piece) -> Future[Any]:
        """Make the call."""
        item = piece.items[0]
        try:
            arguments = tuple(item) if self._spread else (item,)
        except Exception as error:  # the row's own code runs here
            return failed(error)
        return self._call(*arguments) if self._before is None else self._call(*self._before(piece.first), *arguments)

    def read(self, piece: Piece, outcome: Outcome) -> Back:
        """Say how the item has ended."""
        value, error, _ = outcome
        if error is None and isinstance(value, Timed):
            if self._medians is not None:
                self._medians.note(value.nanoseconds)
            value = value.value
        if error is None:
            return Back([Part(piece.first, [value], [])], [])
        if error is CANCELLED:
            return Back([], [], error=PieceCancelledError())
        return Back([failed_part(piece.first, error)], [])


class Medians:
    """
    How long an item may take: so many times as long as the middle one of those that have ended.

    Nothing is bounded before some have ended; from then on that counts for those too that had begun before.

    Args:
        factor: So many times.
        lane: Where the items are that run.
    """

    def __init__(self, factor: float, lane: LateLane) -> None:
        self._factor = factor
        self._lane = lane
        self._latest: deque[int] = deque(maxlen=LATEST)  # nanoseconds that items took
        self._count = 0
        self._due = ENOUGH  # the count at which the middle is looked for

    def note(self, nanoseconds: int) -> None:
        """Note what an item took."""
        self._latest.append(nanoseconds)
        self._count += 1
        if self._count >= self._due:
            self._due = self._count + max(self._count // 10, 1)
            median = sorted(self._latest)[len(self._latest) // 2]
            self._lane.bound(max(self._factor * median / 1e9, SHORTEST))


class _HoldsFuturesError(Exception):
    """There are futures among the items of a piece; it has not been sent."""


class Chunks:
    """
    Many items in one call.

    Args:
        name: That of the function.
        launch: Makes a call of the pool, of a function with arguments.
        prepare: Returns the function that runs the items of a piece, and its arguments.
        stats: Tells what the pool does now.
        error_of: Returns the exception of an item from what stands among the failures of a chunk.
        died: Makes the error of an item in which a worker has died, from that of the chunk.
        reruns: How often an item is run again in which a worker has died.
        capacity: How many may run at a time.
        depth: How many are sent for each of these.
        piece_time: Nanoseconds that one is to take.
        lone: Makes the route of items that are, or hold, futures.
        spread: Each item is a tuple of arguments.
        pickles: The items are pickled: no future can be, so nobody has to look for them before.
    """

    most = MOST

    def __init__(
        self,
        name: str,
        launch: Callable[[Callable[..., Done], tuple[Any, ...]], Future[Any]],
        prepare: Callable[[Piece], tuple[Callable[..., Done], tuple[Any, ...]]],
        stats: Callable[[], Counts],
        error_of: Callable[[Any], BaseException],
        died: Callable[[Any], BaseException],
        reruns: int,
        capacity: int,
        depth: int,
        piece_time: int,
        lone: Callable[[], Route],
        spread: bool,
        pickles: bool,
    ) -> None:
        self._name = name
        self._launch = launch
        self._prepare = prepare
        self.stats = stats
        self._error_of = error_of
        self._died = died
        self._reruns = reruns
        self.capacity = capacity
        self.depth = depth
        self.piece_time = piece_time
        self._lone = lone
        self._spread = spread
        self._pickles = pickles

    def send(self, piece: Piece) -> Future[Any]:
        """Make the call."""
        if piece.waits:
            return self._lone().send(piece)
        if not self._pickles and hold_futures(piece.items, self._spread):
            return failed(_HoldsFuturesError())
        return self._launch(*self._prepare(piece))

    def read(self, piece: Piece, outcome: Outcome) -> Back:
        """Say what has become of the items."""
        if piece.waits:
            return self._lone().read(piece, outcome)
        value, error, _ = outcome
        if error is None:
            done = cast(Done, value)
            part = self._part(piece.first, done.values, done.failures)
            return Back([part], piece.rest(len(done.values)), done.nanoseconds // len(done.values))
        if error is CANCELLED:
            return Back([], [], error=PieceCancelledError())
        if isinstance(error, _HoldsFuturesError) or (
            isinstance(error, SerializationError) and hold_futures(piece.items, self._spread)
        ):
            return Back([], self._alone(piece))
        if isinstance(error, SerializationError):  # of what is sent: nothing has been begun
            again = piece.halves() if len(piece.items) > 1 else []
            return Back([] if again else [failed_part(piece.first, self._of_item(error))], again)
        if hasattr(error, "kept"):
            return self._salvaged(piece, cast(Any, error))
        return Back([], [], error=error)

    def _of_item(self, error: SerializationError) -> SerializationError:
        """Return the error of an item that can't travel, from that of its chunk, which names a function of ours."""
        told = SerializationError(f"the arguments of {self._name}", error.why, error.advice)
        told.__cause__ = error.__cause__
        return told

    def _alone(self, piece: Piece) -> list[Piece]:
        """Divide a piece into items that are, or hold, futures, and what lies between them."""
        pieces: list[Piece] = []
        done = 0
        for index, item in enumerate(piece.items):
            if hold_futures([item], self._spread):
                pieces += piece.between(done, index)
                pieces.append(Piece(piece.first + index, [item], waits=True))
                done = index + 1
        return pieces + piece.rest(done)

    def _part(self, first: int, values: list[Any], failures: list[tuple[int, Any]]) -> Part:
        return Part(first, values, [(first + index, self._error_of(sent)) for index, sent in failures])

    def _salvaged(self, piece: Piece, error: Any) -> Back:
        """Say what is known of a piece whose worker has died."""
        kept: Kept | None = error.kept
        if kept is None:
            return self._lost(piece, error)
        try:
            values, failures = kept.read()
        except Exception:  # the values' own code runs here
            values, failures = [], []
        parts = [self._part(piece.first, values, failures)] if values else []
        if kept.ended or len(values) >= kept.begun + kept.perhaps:
            return Back(parts, piece.rest(len(values)))
        if kept.perhaps:  # one by one: then it is known which it was
            first, end = max(kept.begun - 1, len(values)), kept.begun + kept.perhaps
            ones = [one for index in range(first, end) for one in piece.between(index, index + 1)]
            return Back(parts, piece.between(len(values), first) + ones + piece.rest(end))
        blamed = kept.begun - 1
        again = piece.between(len(values), blamed)
        if piece.deaths < self._reruns:
            again.append(Piece(piece.first + blamed, piece.items[blamed : kept.begun], deaths=piece.deaths + 1))
        else:
            parts.append(failed_part(piece.first + blamed, self._died(error)))
        return Back(parts, again + piece.rest(kept.begun))

    def _lost(self, piece: Piece, error: Any) -> Back:
        """Send a piece again of which nothing had been begun; or find the item that kills whoever reads it."""
        if piece.lives > 1:
            return Back([], [Piece(piece.first, piece.items, piece.lives - 1)])
        if len(piece.items) > 1:
            return Back([], piece.halves())
        return Back([failed_part(piece.first, self._died(error))], [])


def constants_of(constants: Mapping[str, object] | None, share: Callable[[object], object]) -> dict[str, object]:
    """Return what stands for the constants of a map, as arguments by name."""
    return {} if constants is None else {name: share(value) for name, value in constants.items()}

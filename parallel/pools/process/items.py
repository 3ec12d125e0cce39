"""
How a worker process runs a chunk of items, and notes on its board how far it has come: see `chunks`.

State: the words and the notes of the board, the worker's; of a `BoardNotebook`, where the notes end.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any, cast

from parallel.chunks import Done, Kept, Notebook, Seeding, run_chunk
from parallel.context import this
from parallel.pools.process.board import ENDED, ITEM, LENGTH, MANY, NOTED, SIZE, WRITTEN, Board
from parallel.pools.process.failures import pack_error


def run_items(
    fn: Callable[..., Any],
    items: Sequence[Any],
    spread: bool,
    constants: Mapping[str, Any],
    seeding: Seeding | None = None,
) -> Done:
    """Call a function with one item after the other, in a worker process; see `run_chunk`."""
    server = cast(Any, this.worker).server
    server.mapped = fn
    try:
        return run_chunk(fn, items, spread, constants, seeding, BoardNotebook(server.board, server.main_by_value))
    finally:
        server.mapped = None


class BoardNotebook(Notebook):
    """The notes of a chunk, on the board of its worker, behind the journal. Each error is an item's; it goes on."""

    caught = (BaseException,)

    def __init__(self, board: Board, main_by_value: bool) -> None:
        """
        Make one.

        Args:
            board: The worker's.
            main_by_value: No worker can import `__main__`.
        """
        self._words = cast("MutableSequence[int]", board.words)
        self._bytes = board.bytes
        self._main_by_value = main_by_value
        self._end = 0

    def begin(self) -> None:
        """Start with an empty one."""
        self._end = self._words[NOTED] = self._words[WRITTEN]

    def enter(self, number: int, size: int) -> None:
        """Note which items are begun."""
        self._words[ITEM] = number | size << MANY

    def end(self) -> None:
        """Note that they have ended."""
        self._words[ITEM] |= ENDED

    def complete(self, done: Done) -> Done:
        """Return the same: a coroutine can't be pickled, so it is seen when the answer is sent."""
        return done

    def keep(self, values: list[Any], failures: list[tuple[int, Any]]) -> bool:
        """Write down what the next items have returned; False if that doesn't fit, or can't be pickled so."""
        try:
            data = pickle.dumps((values, failures), pickle.HIGHEST_PROTOCOL)
        except Exception:  # whether it can travel in another way is seen when the answer is sent
            return False
        start = self._end + LENGTH.size
        if start + len(data) > SIZE:
            return False
        LENGTH.pack_into(self._bytes, self._end, len(data))
        self._bytes[start : start + len(data)] = data
        self._words[NOTED] = self._end = start + len(data)
        return True

    def pack(self, error: BaseException) -> tuple[bytes, bytes]:
        """Return what an exception travels as."""
        return pack_error(error, self._main_by_value)


def kept_on(board: Board) -> Kept | None:
    """Return what a dead worker has noted about the chunk that it was in; None if it was in none, or had begun none."""
    word = board.words[ITEM]
    if not word:
        return None
    size = (word & ~ENDED) >> MANY
    return Kept(word & (1 << MANY) - 1, size - 1, bool(word & ENDED), board.notes())

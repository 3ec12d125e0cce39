"""
The board of a worker: what it says of calls, and how it gets to the worker.
"""

from __future__ import annotations

import marshal
import os
import tempfile
from pathlib import Path

import pytest

from parallel.pools.process import board
from parallel.pools.process.board import BASE, JOURNAL, LENGTH, RECALL, WRITTEN, Board, is_recalled, make_memory


def write(page: Board, *values: object) -> None:
    """Write entries, as a worker does."""
    at = page.words[WRITTEN]
    for value in values:
        data = marshal.dumps(value)
        LENGTH.pack_into(page.bytes, at, len(data))
        page.bytes[at + LENGTH.size : at + LENGTH.size + len(data)] = data
        page.words[WRITTEN] = at = at + LENGTH.size + len(data)


def test_both_see_the_same() -> None:
    """What is written on one map of the memory is there on the other."""
    memory = make_memory()
    assert memory is not None
    ours, theirs = Board(memory), Board(memory)
    os.close(memory)
    theirs.words[BASE] = 7
    write(theirs, 1, "two", (5, b"three"))
    base, entries = ours.journal()
    assert (base, [marshal.loads(entry) for entry in entries]) == (7, [1, "two", (5, b"three")])
    ours.close()
    theirs.close()


def test_torn_entries_end_the_journal() -> None:
    """A length that can't be is no reason to read beyond the board."""
    page = Board(None)
    write(page, 1)
    LENGTH.pack_into(page.bytes, JOURNAL, 1 << 31)
    page.words[WRITTEN] = 1 << 40
    assert len(page.journal()[1]) == 1
    page.close()


def test_not_shared() -> None:
    """Without memory to share a board is for itself."""
    page = Board(None)
    assert not page.is_shared
    assert page.journal() == (0, [])
    page.close()


@pytest.mark.parametrize(
    ("first", "end", "number", "recalled"),
    [
        (5, 8, 4, False),
        (5, 8, 5, True),
        (5, 8, 7, True),
        (5, 8, 8, False),
        ((1 << 32) + 5, (1 << 32) + 8, (1 << 32) + 6, True),
    ],
)
def test_recall(first: int, end: int, number: int, recalled: bool) -> None:
    """The word names a range of calls."""
    page = Board(None)
    assert page.recall(first, end)
    assert is_recalled(page.words[RECALL], number) is recalled
    page.close()


def test_recall_across_the_end_of_the_numbers() -> None:
    """A range that the word can't name is not recalled."""
    page = Board(None)
    assert not page.recall((1 << 32) - 1, (1 << 32) + 2)
    assert not is_recalled(page.words[RECALL], 0)
    page.close()


def test_memory_of_a_file_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no memfd, a file is used that is gone from its folder at once."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory = make_memory()
    assert memory is not None
    assert os.fstat(memory).st_size == board.WHOLE
    assert list(tmp_path.iterdir()) == []
    os.close(memory)

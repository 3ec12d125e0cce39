"""
Items that come from a descriptor, when they come: lines, JSON values, or rows of a table.

    descriptor ──▶ os.read, if that doesn't wait ──▶ blocks ──▶ lines ──▶ Format ──▶ items, in order
                                                                           └──▶ UnreadableError, in the place of one

Nothing here waits: who has got nothing waits for the descriptor, with whatever else there is to wait for. And no more
is read than was asked for, but for the rest of a block, so that an endless input is none too long.

An item that can't be read is the failure of that item. One wrong line among a million is no reason to lose a night; its
number tells where it stands, and the exit status that there was one. Only a table without a usable header ends all.

State: of an `Input` and its format, its reader's own.
"""

from __future__ import annotations

import csv
import json
import os
import select
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from parallel.errors import ParallelError
from parallel.flows import Arriving

BLOCK: Final = 1 << 16
"""Bytes that are read at a time: what a pipe holds. A larger one gains nothing, a smaller one costs more calls."""

_MARK: Final = b"\xef\xbb\xbf"
"""What some programs write at the beginning of a file, to say that it is UTF-8. It is no part of the first item."""


class UnreadableError(ParallelError, ValueError):
    """
    An item can't be read.

    Attributes:
        line: The number of its line, or of its first one; the first of all is 1.
        problem: What is wrong with it.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(line, problem)
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        return f"line {self.line} {self.problem}"


class HeaderError(UnreadableError):
    """The header of a table can't be used, and so no row can."""


class Input(Arriving):
    """
    The items of a descriptor.

    Args:
        descriptor: Of a file, a pipe or a terminal; this closes it no more than it opens it.
        form: What the items are.

    Attributes:
        is_dry: It has been asked for more than there was; now or later there is more, or the end.
    """

    def __init__(self, descriptor: int, form: Format) -> None:
        self._descriptor = descriptor
        self._form = form
        self._pieces: list[bytes] = []  # of a line that has not come to its end
        self._lines = 0
        self._ready: deque[Any] = deque()
        self._is_read = False
        self.is_dry = False

    def fileno(self) -> int:
        """Return the descriptor, for who waits for it."""
        return self._descriptor

    def take(self, most: int, /) -> Sequence[Any] | BaseException | None:
        """Return the items that are there; see `Arriving`."""
        ready = self._ready
        while len(ready) < most and not self._is_read and self._has_more():
            self._read()
        self.is_dry = not (ready or self._is_read)
        if not ready:
            return None if self._is_read else ()
        first = ready[0]
        if isinstance(first, UnreadableError):
            ready.popleft()
            return first
        items: list[Any] = []
        while ready and len(items) < most and not isinstance(ready[0], UnreadableError):
            items.append(ready.popleft())
        return items

    def _has_more(self) -> bool:
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def _read(self) -> None:
        try:
            block = os.read(self._descriptor, BLOCK)
        except BlockingIOError:  # somebody else reads the same pipe, and was faster
            return
        *ended, rest = block.split(b"\n")
        if ended:
            ended[0] = b"".join((*self._pieces, ended[0]))
            self._pieces.clear()
        if rest:
            self._pieces.append(rest)
        for line in ended:
            self._add(line)
        if not block:
            self._end()

    def _add(self, line: bytes) -> None:
        self._lines += 1
        if self._lines == 1:
            line = line.removeprefix(_MARK)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
            self._ready.extend(self._form.spoiled(UnreadableError(self._lines, problem)))
        else:
            self._ready.extend(self._form.items(self._lines, text))

    def _end(self) -> None:
        self._is_read = True
        last = b"".join(self._pieces)
        if last:
            self._add(last)
        self._ready.extend(self._form.rest())


class Format(ABC):
    """What lines mean."""

    @abstractmethod
    def items(self, number: int, line: str, /) -> Iterator[Any]:
        """Yield the items that come to their end in a line, without its newline; or errors in their places."""

    def spoiled(self, error: UnreadableError, /) -> Iterator[Any]:
        """Yield what comes of a line that is no text."""
        yield error

    def rest(self) -> Iterator[Any]:
        """At the end of the input: yield what has not come to its end."""
        return iter(())


class Lines(Format):
    """Each line is an item, an empty one too: the text without its newline."""

    def items(self, number: int, line: str, /) -> Iterator[Any]:
        yield line.removesuffix("\r")


class JsonLines(Format):
    """Each line is a JSON value; a blank one is nothing."""

    def items(self, number: int, line: str, /) -> Iterator[Any]:
        if not line.strip():
            return
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            yield UnreadableError(number, f"is not JSON: {error.msg}, at column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number of too many digits; too many brackets
            yield UnreadableError(number, f"can't be read as JSON: {error}")


class Rows(Format):
    """
    The rows of a table in CSV, each as a dict of texts by the names in the header, which comes first.

    A row ends where its last line does: text in quotes may have newlines. A blank line is nothing.
    """

    def __init__(self) -> None:
        self._names: list[str] | None = None
        self._open: list[str] = []  # the lines of a row that has not come to its end
        self._size = 0  # characters in them
        self._first = 0  # the number of the first of them

    def items(self, number: int, line: str, /) -> Iterator[Any]:
        if not self._open:
            self._first = number
            self._size = 0
        self._open.append(line + "\n")
        self._size += len(line) + 1
        if len(self._open) > 1 and '"' not in line and self._size <= csv.field_size_limit():
            return  # what a quote has opened, only a quote closes
        try:
            cells = _cells(self._open)
        except csv.Error as error:
            yield from self.spoiled(UnreadableError(self._first, f"is no row: {error}"))
            return
        if cells is not None:
            self._open.clear()
            yield from self._row(cells)

    def spoiled(self, error: UnreadableError, /) -> Iterator[Any]:
        """Yield the error in the place of the row; without a header, there are none."""
        self._open.clear()
        if self._names is None:
            raise HeaderError(error.line, f"should be the header, and {error.problem}")
        yield error

    def rest(self) -> Iterator[Any]:
        if self._open:
            yield from self.spoiled(UnreadableError(self._first, "has a quote that is never closed"))

    def _row(self, cells: list[str]) -> Iterator[Any]:
        names = self._names
        if not cells:
            return
        if names is None:
            self._names = _checked(self._first, cells)
        elif len(cells) != len(names):
            problem = f"has {_fields(len(cells))}, and the header has {len(names)}"
            yield UnreadableError(self._first, problem)
        else:
            yield dict(zip(names, cells, strict=True))


def _cells(lines: list[str]) -> list[str] | None:
    """Return the fields of a row; None if it goes on in the next line: then the reader asks for one."""
    asked = False

    def given() -> Iterator[str]:
        nonlocal asked
        yield from lines
        asked = True

    cells = next(csv.reader(given()), None)
    return None if asked else cells


def _checked(number: int, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HeaderError(number, f"is the header, and has the field {twice[0]!r} twice")
    return names


def _fields(count: int) -> str:
    return f"{count} field{'' if count == 1 else 's'}"


FORMATS: Final[dict[str, type[Format]]] = {"lines": Lines, "jsonl": JsonLines, "csv": Rows}
"""The formats, by their names."""

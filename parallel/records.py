"""
What comes out of a map, as JSON lines: one record an item, written as it goes.

    {"index": 0, "value": 9}
    {"index": 1, "error": {"type": "ValueError", "message": "no such thing", "traceback": "Traceback (most ..."}}

A record says which item it is about, so that a gap can be seen, and has either a value or an error: `jq .value`,
`jq 'select(.error)'`. What JSON can't hold is an error of that item: it is not for us to guess what was meant by a set.

Records are gathered, and written when whoever adds them has nothing else to do, or there are many. Nothing here blocks
but by the function that it is given, which waits for room.

State: the records that have not been written; their writer's own.
"""

from __future__ import annotations

import json
import os
import select
import stat
import traceback
from collections.abc import Callable
from typing import Final

from parallel.errors import ParallelError, RemoteTraceback

MANY: Final = 1 << 16
"""Bytes that are written although there is more to do. More would be seen later, and save next to nothing."""

START: Final = b'{"index": '
"""How each record begins."""

PIECE: Final = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes at once when it has room, so that the writing doesn't block."""

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_encode_in_ascii: Final = json.JSONEncoder(allow_nan=False).encode


class UnwritableError(ParallelError, ValueError):
    """
    A value can't be written as JSON.

    Attributes:
        problem: Why.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the value can't be written as JSON: {self.problem}"


class Records:
    """
    Where records are written.

    Args:
        descriptor: The file, pipe or terminal.
        wait: Waits until there is room in it; what it raises ends the writing.

    Attributes:
        may_be_lost: If nobody reads them any more, they are dropped, and that is no error.
    """

    def __init__(self, descriptor: int, wait: Callable[[], object]) -> None:
        self._descriptor = descriptor
        self._wait = wait
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._lines: list[bytes] = []
        self._size = 0
        self.may_be_lost = False

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def add(self, index: int, value: object) -> UnwritableError | None:
        """Add a value; or the error that stands in its place, which is returned."""
        try:
            said = _in_json(value)
        except Exception as problem:  # its own code may run: it may be a dict of another kind
            error = UnwritableError(_text_of(problem))
            self.add_error(index, error)
            return error
        self._append(b'%b%d, "value": %b}\n' % (START, index, said))
        return None

    def add_error(self, index: int, error: BaseException) -> None:
        """Add an error."""
        said = {"type": type(error).__name__, "message": _text_of(error)}
        if error.__traceback__ is not None or error.__cause__ is not None:
            said["traceback"] = _traceback_of(error)
        self._append(b'%b%d, "error": %b}\n' % (START, index, _in_json(said)))

    def flush(self) -> None:
        """
        Write what has been added.

        Raises:
            BrokenPipeError: Nobody reads it any more.
            OSError: It can't be written.
        """
        data = memoryview(b"".join(self._lines))
        self._lines.clear()
        self._size = 0
        try:
            while data:
                if not self._is_file:
                    self._wait()  # then so much fits in
                data = data[os.write(self._descriptor, data if self._is_file else data[:PIECE]) :]
        except BrokenPipeError:
            if not self.may_be_lost:
                raise

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= MANY:
            self.flush()


def _in_json(value: object) -> bytes:
    text = _encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as in a file name that is no UTF-8
        return _encode_in_ascii(value).encode()


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # made by user code
        return f"its text can't be made: {type(problem).__name__}"


def _traceback_of(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, RemoteTraceback):  # of a worker process, or of an earlier run: there is nothing else in it
        return "\n".join((cause.text.rstrip(), *getattr(error, "__notes__", ())))
    try:
        return "".join(traceback.format_exception(error)).rstrip()
    except Exception as problem:  # likewise
        return f"it can't be shown: {type(problem).__name__}"


def brief(error: BaseException) -> str:
    """Write an error in a line."""
    text = " ".join(_text_of(error).split())
    name = type(error).__name__
    return f"{name}: {text if len(text) <= 200 else text[:200] + '...'}" if text else name

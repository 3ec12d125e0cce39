"""
What a worker wrote to standard error before it died, so that the error of its call can tell.

    sys.stderr ──▶ standard error, as ever
              └──▶ the board: the last of it ────────────────────┐
    faulthandler, at a fatal signal ──▶ the file of the board ───┴──▶ dead: `last_words` ──▶ WorkerDiedError

Standard error itself is not redirected. A pipe to the pool's process would stop workers while that is stopped, or
busy; it would take the terminal from them, and lose what comes last when the pool's process dies. So what code in C
writes there goes where it went before, and only what Python writes, and the report of a crash, are told.

That report goes only to the board, as faulthandler knows one file; the pool hands on what it finds there.

State: none but that of the board.
"""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from parallel.pools.process.board import REPORT_AT, TAIL, TAIL_AT, TOLD, Board

if TYPE_CHECKING:
    from typing_extensions import Buffer

LINES: Final = 20
"""How many lines of standard error are told, besides the report of a crash."""

_OURS: Final = f'  File "{os.path.dirname(__file__)}{os.sep}'


def last_words(board: Board) -> str:
    """Return the last lines that a dead worker wrote, and the report of its crash."""
    lines = board.tail().splitlines()[-LINES:]
    return "\n".join(filter(None, ["\n".join(lines), users_part(board.report())])).strip("\n")


def users_part(report: str) -> str:
    """
    Leave out the frames between the worker's loop and the user's function, and the list of extension modules.

    Args:
        report: What faulthandler has written.
    """
    kept: list[str] = []
    for part in report.split("\n\n"):
        if part.startswith("Extension modules: "):
            continue
        head, *frames = part.replace("\n  <no Python frame>", "").split("\n")
        theirs = list(takewhile(lambda line: not line.startswith(_OURS), frames))
        if theirs or not (frames or head.startswith("Thread")):
            kept.append("\n".join([head, *theirs]))
        elif head.startswith("Current"):  # it has crashed in ours
            kept.append(part)
    return "\n\n".join(kept)


def tell_last_words(board: Board, descriptor: int | None) -> None:
    """
    In a worker: have what it writes to standard error end up on its board as well.

    Args:
        board: Its board.
        descriptor: The file of the board, which is this function's from now on; None if there is none.
    """
    if descriptor is None:
        _report_to(None)
        return
    os.set_inheritable(descriptor, False)
    os.lseek(descriptor, REPORT_AT, os.SEEK_SET)
    _report_to(descriptor)
    if _is_plain(sys.stderr):
        with suppress(OSError):  # its descriptor has been closed
            sys.stderr = io.TextIOWrapper(
                io.BufferedWriter(_Tee(board)),
                encoding=sys.stderr.encoding,
                errors=sys.stderr.errors,
                line_buffering=True,
            )


def _report_to(descriptor: int | None) -> None:
    try:
        if descriptor is None:
            faulthandler.enable()
        else:
            faulthandler.enable(descriptor)
    except (AttributeError, OSError, RuntimeError, ValueError):
        return  # standard error is closed, or no file: there is nowhere to report to


def _is_plain(stream: object) -> bool:
    """Tell whether a stream is what Python makes of standard error, and nobody has put something else there."""
    try:
        return type(stream) is io.TextIOWrapper and stream.fileno() == 2
    except (OSError, ValueError):  # it is closed, or has none
        return False


class _Tee(io.FileIO):
    """Standard error, of which the last is kept on a board."""

    def __init__(self, board: Board) -> None:
        super().__init__(2, "w", closefd=False)
        self._board = board
        self._last = b""

    def write(self, data: Buffer, /) -> int:
        written = super().write(data)
        last = self._last = (self._last + bytes(data))[-TAIL:]
        self._board.bytes[TAIL_AT : TAIL_AT + len(last)] = last
        self._board.words[TOLD] = len(last)
        return written

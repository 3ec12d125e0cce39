"""
Standard error, as the displays see it: it may be slow, stopped, closed or gone, and that is no concern of a map.

    text ──▶ Screen ──▶ os.write, when there is room ──▶ the terminal
                 └── no room for a second, or an error: the screen is given up, and what follows is dropped

What is a file of the system's is written without the buffer of `sys.stderr`: a fork, or the interpreter's end, may meet
a thread that holds the lock of that, and what stays in it when the terminal goes would change the program's exit
status. So the text never waits in a buffer, nor overtakes a line that does: those are flushed line by line.

State: `gone`, which is written once, by anybody, and `_this`, which is per thread.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, TextIO

PATIENCE: Final = 1.0
"""Seconds that a screen may take nothing. A longer wait may be felt by the map; a shorter one gives up slow lines."""

PIECE: Final = 512
"""Bytes that are written at a time: what POSIX lets any pipe take at once when it has room, so that none blocks."""


class Screen(io.TextIOBase):
    """
    Where displays write: like the file, but it never blocks for long and never fails.

    Args:
        file: What takes the text; by default what is `sys.stderr` now.

    Attributes:
        gone: It takes nothing any more.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        file = sys.stderr if file is None else file
        self._file: TextIO | None = getattr(file, "rich_proxied_file", file)  # a display of somebody else's around it
        self._fd = _descriptor(self._file)
        self.gone = self._file is None  # a program without a console has none
        self._this = _ThisThread()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # as all real files have it
        """That of the file."""
        return getattr(self._file, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        try:
            return self._file is not None and self._file.isatty()
        except (OSError, ValueError):  # it has been closed
            return False

    def fileno(self) -> int:
        """Return its descriptor, if it is a file of the system's."""
        if self._fd is None:
            raise io.UnsupportedOperation("fileno")
        return self._fd

    def writable(self) -> bool:
        """Tell that it is made for writing."""
        return True

    @contextmanager
    def patiently(self) -> Generator[None]:
        """Let this thread wait for room as long as it takes, in this block: for text that is not ours to drop."""
        self._this.patience = None
        try:
            yield
        finally:
            self._this.patience = PATIENCE

    def has_room(self, timeout: float | None = 0.0) -> bool:
        """Tell whether it takes text now, or within so many seconds; None: wait for that."""
        if self.gone or self._fd is None:
            return not self.gone
        try:
            return bool(select.select([], [self._fd], [], timeout)[1])
        except (OSError, ValueError):  # not a file that can be asked; if it is closed, writing will tell
            return True

    def write(self, text: str) -> int:
        """Write *text*, or what can be written of it."""
        if not self.gone:
            try:
                self._write(text)
            except (OSError, ValueError):  # the terminal has been closed, or nobody reads the pipe
                self.gone = True
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""

    def _write(self, text: str) -> None:
        if self._fd is None:
            assert self._file is not None
            self._file.write(text)
            self._file.flush()
            return
        data = text.encode(self.encoding, "backslashreplace")
        while data:
            if not self.has_room(self._this.patience):
                raise BlockingIOError("the terminal takes no text")
            data = data[os.write(self._fd, data[:PIECE]) :]


class _ThisThread(threading.local):
    """What is particular to the current thread."""

    patience: float | None = PATIENCE
    """Seconds that it waits for room; None: as long as it takes."""


def _descriptor(file: TextIO | None) -> int | None:
    """Return the descriptor that *file* writes to; None: it is none of the system's files, as in a notebook."""
    try:
        return file.fileno() if isinstance(file, io.TextIOWrapper) else None
    except (OSError, ValueError):  # closed, or made of something else
        return None

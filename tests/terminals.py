"""
A terminal for tests: a program runs in it, and what a person would see there is a text.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0  # seconds; only a hang takes so long

_PIECES = re.compile(rb"\x1b\[([?0-9;]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")


class Terminal:
    """
    A terminal in which a script runs.

    Args:
        script: The script's text.
        columns: How wide it is.
        env: Variables besides the present ones.

    Attributes:
        pid: The process.
        fd: The terminal's other end.
        raw: All that came, as it came.
    """

    def __init__(self, script: str, columns: int, **env: str) -> None:
        self.raw = b""
        self.status: int | None = None
        ready, go = os.pipe()  # the size is set before the script looks
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.read(ready, 1)
            paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
            changed = {"TERM": "xterm-256color", "PYTHONPATH": paths, "PARALLEL_CONFIG": "", **env}
            left = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
            os.execve(sys.executable, [sys.executable, "-c", script], left | changed)
        modes = termios.tcgetattr(self.fd)
        modes[3] &= ~termios.ECHO  # keys that are typed are not to be seen
        termios.tcsetattr(self.fd, termios.TCSANOW, modes)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.write(go, b"!")
        os.close(ready)
        os.close(go)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.fd >= 0:
            os.close(self.fd)

    def read_until(self, text: str | re.Pattern[str] | None) -> str:
        """Read until *text* is to be seen; None: until the program has ended. Return what is to be seen."""
        pattern = re.compile(re.escape(text)) if isinstance(text, str) else text
        end = time.monotonic() + PATIENCE
        while pattern is None or not pattern.search(self.seen()):
            assert select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0], f"hangs at: {self.seen()}"
            try:
                piece = os.read(self.fd, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                piece = b""
            if not piece:
                assert text is None, f"it ended at: {self.seen()}"
                self.wait()
                break
            self.raw += piece
        return self.seen()

    def type(self, keys: bytes) -> None:
        """Type these keys."""
        os.write(self.fd, keys)

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self.fd)
        self.fd = -1

    def wait(self) -> int:
        """Wait for the program's end, and return its exit status, or the negative number of a signal."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def seen(self) -> str:
        """Return what is to be seen: the lines, without what was drawn over, and without colours."""
        lines, row, column = [""], 0, 0
        for arguments, letter, move, text in _PIECES.findall(self.raw):
            if text:
                shown = text.decode(errors="replace")
                lines[row] = lines[row][:column].ljust(column) + shown + lines[row][column + len(shown) :]
                column += len(shown)
            elif move == b"\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif move == b"\r":
                column = 0
            elif letter == b"A":
                row = max(row - int(arguments or 1), 0)
            elif letter == b"H":
                row, column = (max(int(part or 1), 1) - 1 for part in (*arguments.split(b";"), b"", b"")[:2])
                lines += [""] * (row + 1 - len(lines))
            elif letter == b"K":
                lines[row] = lines[row][:column] if arguments in (b"", b"0") else ""
            else:
                assert letter in b"mhl", f"what does {letter!r} do?"
        return "\n".join(line.rstrip() for line in lines).rstrip()

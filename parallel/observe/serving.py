"""
What a program does, for whoever asks by way of a socket: `python -m parallel top`.

    `[observe] socket = true` ──▶ a socket in a private folder ──▶ each who connects gets one line of JSON, and the end

Guarantees:
- Nobody else can ask: the folder is the user's alone, and so is the socket; on Linux the other side's user is looked at
  besides.
- Who doesn't read costs the program a second of one thread, and nothing else.
- Without anybody who asks, nothing is done but what counting costs.

State: `_answering`, the one server.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs

from parallel.observe import statistics
from parallel.observe.shared import Shared
from parallel.pools.base import engines, pools
from parallel.pools.desk import Desk

LOGGER = logging.getLogger("parallel")

PATIENCE: Final = 1.0
"""Seconds that somebody who has asked gets to read."""

SUFFIX: Final = ".sock"

_PEER: Final = getattr(socket, "SO_PEERCRED", None)


def folder() -> Path:
    """
    Return where the sockets of this user's programs are.

    Raises:
        OSError: This system has no such sockets.
    """
    if not hasattr(socket, "AF_UNIX") or not hasattr(os, "getuid"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no sockets in the file system")
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base, f"parallel-{os.getuid()}")


def path_of(pid: int) -> Path:
    """Return where the socket of a program is."""
    return folder() / f"{pid}{SUFFIX}"


def snapshot() -> dict[str, Any]:
    """Return what this program does now, as JSON has it."""
    held = [pool for pool in pools() if pool.name]
    return {
        "version": 1,
        "pid": os.getpid(),
        "program": " ".join(sys.argv) or sys.executable,
        "at": time.time(),
        "pools": [attrs.asdict(pool.stats()) for pool in sorted(held, key=lambda pool: pool.number)],
        "waiting": sum(engine.counts().queued for engine in engines() if isinstance(engine, Desk)),
    }


class Server:
    """
    Answers, on a thread of its own.

    Raises:
        OSError: The socket can't be made; or its folder is not this user's alone.
    """

    def __init__(self) -> None:
        _make_private(folder())
        self.path = path_of(os.getpid())
        with suppress(FileNotFoundError):
            self.path.unlink()  # of a process that had this number before
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(str(self.path))
            self.path.chmod(0o600)
            self._socket.listen(16)
        except BaseException:
            self._socket.close()
            raise
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="parallel-socket", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                asking, _ = self._socket.accept()
            except OSError:  # it was closed; or no descriptor is left, which passes
                if self._is_over:
                    return
                time.sleep(PATIENCE)
                continue
            with asking:
                if self._is_over:
                    return
                try:
                    asking.settimeout(PATIENCE)
                    if _is_own(asking):
                        asking.sendall(json.dumps(snapshot()).encode() + b"\n")
                except OSError:
                    continue  # whoever has asked is gone, or doesn't read
                except Exception:
                    LOGGER.exception("what the program does could not be told")

    def close(self) -> None:
        """Answer no more."""
        self._is_over = True
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker:
            waker.settimeout(PATIENCE)
            waker.connect(str(self.path))  # the thread waits for somebody
        with suppress(OSError):
            self.path.unlink()
        with suppress(OSError):
            self.path.parent.rmdir()  # if no other program of this user's is there
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)
        self._socket.close()

    def let_go(self) -> None:
        """In a forked child: close the parent's socket, which stays where it is."""
        self._socket.close()


def _make_private(where: Path) -> None:
    where.mkdir(mode=0o700, exist_ok=True)
    found = where.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{where} is not this user's alone; it has to be a folder of mode 0700")


def _is_own(asking: socket.socket) -> bool:
    """Tell whether the process on the other side is this user's, or root's."""
    if _PEER is None:
        return True  # the folder keeps others out
    _, uid, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, _PEER, struct.calcsize("3i")))
    return uid in (os.getuid(), 0)


def _begin() -> Server:
    server = Server()
    statistics.start()
    return server


def _end(server: Server) -> None:
    statistics.stop()
    server.close()


_answering: Final = Shared(_begin, _end, Server.let_go)


def start() -> None:
    """
    Answer from now on, if nobody does; until as many have called `stop`.

    Raises:
        OSError: See `Server`.
    """
    _answering.start()


def stop() -> None:
    """Undo one `start`."""
    _answering.stop()

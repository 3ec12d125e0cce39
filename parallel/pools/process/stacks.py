"""
Where worker processes are at this moment, asked from outside: a call that hangs needn't have a part in it.

    pool ──▶ a signal ──▶ faulthandler's handler, in C, whatever Python does there ──▶ a nameless file of the worker
      └───────────────────────────────── reads it by way of /proc ◀───────────────────────┘

The signal is one of those that nobody uses, and goes to the worker alone, not to what its calls have started. What it
interrupts goes on: the handler asks for system calls to be restarted. A process that has no such handler is never sent
it, as that would end it. Where there is no /proc, or no such signal, no worker is asked.

State: that file, which belongs to its worker, and is emptied by who asks. Two who ask at a time may get one answer.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from parallel.pools.process.killing import Target

SIGNAL: Final[int | None] = signal.SIGRTMAX - 7 if hasattr(signal, "SIGRTMAX") else None
"""Which signal asks; None: there is none to spare."""

PATIENCE: Final = 0.5
"""Seconds that a worker gets to begin its answer. It takes a millisecond, unless it is stopped, or swapped out."""

_PAUSE: Final = 0.002
"""Seconds after which an answer that has not grown is taken for whole: it is written without a pause."""

_NAME: Final = "parallel-stacks"


def answer_for_stacks() -> None:
    """In a worker: have it answer when it is asked."""
    if SIGNAL is None or not hasattr(os, "memfd_create"):
        return
    with suppress(OSError, ValueError):  # a sandbox that forbids it; no descriptor is left
        descriptor = os.memfd_create(_NAME)
        faulthandler.register(SIGNAL, file=descriptor, all_threads=True)


def stacks_of(targets: Iterable[Target]) -> dict[int, str]:
    """
    Return where the threads of some workers are, by process ids, as faulthandler writes it; without those who can't be
    asked, or don't answer.
    """
    asked = [(target.pid, file) for target in targets if (file := _ask(target)) is not None]
    try:
        end = time.monotonic() + PATIENCE
        return {pid: text for pid, file in asked if (text := _answer(file, end))}
    finally:
        for _, file in asked:
            os.close(file)


def _ask(target: Target) -> int | None:
    """Ask a worker; return the file in which it is going to answer, None if it can't."""
    with suppress(OSError):  # it is gone; or is somebody else's by now
        if not _answers(target.pid):
            return None
        for path in _files(target.pid):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.ftruncate(file, 0)
            if target.send_to_worker(SIGNAL or 0):
                return file
            os.close(file)
    return None


def _answers(pid: int) -> bool:
    """Tell whether a process has a handler for the signal."""
    if SIGNAL is None:
        return False
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        caught = next((line for line in status if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (SIGNAL - 1) & 1)


def _files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        path = f"{folder}/{number}"
        with suppress(OSError):  # it was just closed
            if os.readlink(path).startswith(f"/memfd:{_NAME}"):
                yield path
                return


def _answer(file: int, end: float) -> str:
    """Wait for an answer until *end*, and return it."""
    before, size = 0, 0
    while size != before or (size == 0 and time.monotonic() < end):
        time.sleep(_PAUSE)
        before, size = size, os.fstat(file).st_size
    # It goes on writing where it has stopped before the file was emptied.
    return os.pread(file, size, 0).lstrip(b"\0").decode(errors="replace")

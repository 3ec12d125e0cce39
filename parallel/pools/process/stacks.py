"""
Where worker processes are at this moment, asked from outside: a call that hangs needn't have a part in it.

    pool ──▶ a signal ──▶ a handler in Python, between two steps of it ────────────┐
      │  no answer: the worker hangs in C                                           ▼
      ├───▶ another ────▶ faulthandler's handler, in C, whatever Python does ──▶ a nameless file of the worker
      └───────────────────────────── reads it by way of /proc ◀─────────────────────┘

Not the second at once: CPython 3.12 and 3.13 crash now and then if it comes while a function is being entered.

The signals are of those that nobody uses, and go to the worker alone, not to what its calls have started. What they
interrupt goes on. A process that has no such handlers is never sent them, as that would end it. Where there is no
/proc, or no such signal, no worker is asked.

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
"""Which signal asks; None: there is none to spare. The one before it asks in C."""

PATIENCE: Final = 0.25
"""Seconds that a worker gets to begin its answer, each time. It takes a millisecond, unless it hangs, or is stopped."""

_PAUSE: Final = 0.002
"""Seconds after which an answer that has not grown is taken for whole: it is written without a pause."""

_NAME: Final = "parallel-stacks"


def answer_for_stacks() -> None:
    """In a worker: have it answer when it is asked."""
    if SIGNAL is None or not hasattr(os, "memfd_create"):
        return
    with suppress(OSError, ValueError):  # a sandbox that forbids it; no descriptor is left
        descriptor = os.memfd_create(_NAME)
        faulthandler.register(SIGNAL - 1, file=descriptor, all_threads=True)
        signal.signal(SIGNAL, lambda number, frame: faulthandler.dump_traceback(descriptor, all_threads=True))


def stacks_of(targets: Iterable[Target]) -> dict[int, str]:
    """
    Return where the threads of some workers are, by process ids, as faulthandler writes it; without those who can't be
    asked, or don't answer.
    """
    asked = [(target, file) for target in targets if (file := _ask(target)) is not None]
    try:
        end = time.monotonic() + PATIENCE
        found = {target.pid: _answer(file, end) for target, file in asked}
        hanging = [(target, file) for target, file in asked if not found[target.pid]]
        for target, _ in hanging:
            target.send_to_worker((SIGNAL or 0) - 1)
        end = time.monotonic() + PATIENCE
        found |= {target.pid: _answer(file, end) for target, file in hanging}
        return {pid: text for pid, text in found.items() if text}
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
    """Tell whether a process has handlers for the signals."""
    if SIGNAL is None:
        return False
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        caught = next((line for line in status if line.startswith("SigCgt:")), "SigCgt: 0")
    return int(caught.split()[1], 16) >> (SIGNAL - 2) & 3 == 3


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

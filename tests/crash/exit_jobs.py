"""
What the scripts of `test_exits` run in workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from pools.process_jobs import note

from parallel import ProcessPool

KEPT: list[Any] = []


def say(text: str) -> None:
    """Print a line, in one step."""
    os.write(1, f"{text}\n".encode())


def spin(text: str = "") -> NoReturn:
    """Keep the interpreter busy for ever."""
    if text:
        say(text)
    while True:
        sum(range(1000))


def sleep(text: str = "") -> None:
    """Sleep for very long."""
    if text:
        say(text)
    time.sleep(600)


def hold_the_interpreter(text: str = "") -> int:
    """Keep all threads of this process from running for some seconds, as a long step in C does."""
    if text:
        say(text)
    return len(str(10)) + (3 ** (4 * 10**7)).bit_length()


def refuse_to_end(text: str = "") -> NoReturn:
    """Ignore whatever can be ignored, and go on for ever."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spin(text)


def note_soon(path: str, number: int) -> int:
    """Take a moment, and note that this body ran."""
    time.sleep(0.01)
    return note(path, number)


def leave_thread() -> str:
    """Leave a thread behind that would keep a program from ending."""
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
    return "left"


def leave_pool(method: str) -> int:
    """Leave a pool open in the worker, with a call that runs."""
    pool = ProcessPool(1, method)
    KEPT.append(pool)
    value = pool.submit(abs, -3).result(30)
    pool.submit(time.sleep, 0.2)
    return value


def exit_hard(status: int) -> NoReturn:
    """End the worker."""
    os._exit(status)


def exit_softly(status: int) -> NoReturn:
    """Do what ends a program."""
    sys.exit(status)

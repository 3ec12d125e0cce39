"""
Functions that are run on clusters.
"""

from __future__ import annotations

import os
import re
import signal
import time

from parallel import current_task, task


def note_and_die(path: str, seconds: float) -> None:
    """Note that it runs, and kill its process after so long."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(".")
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_seven(number: int) -> int:
    """Kill the process at one item."""
    if number == 7:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def until_asked() -> str:
    """Run until it is asked to stop."""
    for _ in range(1000):
        if current_task().cancelled:
            return "asked"
        time.sleep(0.02)
    return "never"


def until_told(path: str) -> None:
    """Run until it is asked to stop, and write down that it was."""
    said = until_asked()
    with open(path, "w", encoding="utf-8") as file:
        file.write(said)


def count_on(path: str) -> None:
    """Write down each tenth of a second that it runs, for 6 seconds."""
    for _ in range(60):
        with open(path, "a", encoding="utf-8") as file:
            file.write(".")
        time.sleep(0.1)


def fail_twice(path: str) -> int:
    """Count how often it was tried; the third time it works."""
    with open(path, "a+", encoding="utf-8") as file:
        file.write(".")
        file.seek(0)
        tries = len(file.read())
    if tries < 3:
        raise OSError("not yet")
    return tries


def began(seconds: float) -> float:
    """Return when it began; it takes so long."""
    now = time.monotonic()
    time.sleep(seconds)
    return now


def alone(path: str) -> bool:
    """Tell whether no other call of it runs meanwhile."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    time.sleep(0.03)
    os.rmdir(path)
    return True


def explode() -> object:
    """Hold the interpreter's lock for some ten seconds: the regular expression tries 2**29 ways."""
    return re.match(r"(a+)+$", "a" * 29 + "b")


def add_length(number: int, data: bytes) -> int:
    """Use both."""
    return number + len(data)


@task(pool="far")
def inner() -> int:
    """Return where it runs."""
    return os.getpid()


@task(pool="far")
def outer() -> tuple[int, int]:
    """Return where it runs, and what it calls."""
    return os.getpid(), inner().result()

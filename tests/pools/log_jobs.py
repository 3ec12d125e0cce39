"""
What workers log and print.
"""

from __future__ import annotations

import logging
import os
import threading

from parallel import task

LOGGER = logging.getLogger("shop.stock")


class Unpicklable:
    """It can't travel, and says so."""

    def __reduce__(self) -> str:
        raise TypeError("no")

    def __repr__(self) -> str:
        return "<something>"


def log(level: int, text: str, *args: object) -> int:
    """Log a record; return the worker's process id."""
    LOGGER.log(level, text, *args)
    return os.getpid()


def log_failure() -> None:
    """Log an exception."""
    try:
        raise OSError("disk on fire")
    except OSError:
        LOGGER.exception("no luck with %s", "that")


def log_extra() -> None:
    """Log a record with things that can travel, and one that can't."""
    LOGGER.warning("look", extra={"order": 17, "thing": Unpicklable()})


def log_much(count: int) -> None:
    """Log from several threads, many records each."""

    def body(thread: int) -> None:
        for number in range(count):
            LOGGER.warning("%d %d %s", thread, number, "x" * (number % 3000))

    threads = [threading.Thread(target=body, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def log_and_die() -> None:
    """Log a record, and die at once."""
    LOGGER.warning("goodbye")
    os._exit(3)


def log_at_start() -> None:
    """Log from an initializer."""
    LOGGER.warning("starting")


def levels() -> tuple[int, int, int]:
    """Return the levels of two loggers, and of the root."""
    return LOGGER.getEffectiveLevel(), logging.getLogger("shop.quiet").getEffectiveLevel(), logging.getLogger().level


def forwards() -> bool:
    """Tell whether this process forwards its records."""
    return any(type(handler).__name__ == "Sender" for handler in logging.getLogger().handlers)


def where() -> tuple[int, str]:
    """Return the process and the thread that this runs in."""
    return os.getpid(), threading.current_thread().name


def nested_where(pool: str) -> tuple[tuple[int, str], tuple[int, str]]:
    """Return where this runs, and where a call that it makes does."""
    return where(), task(pool=pool)(where)().result(60)

"""
What a worker tells while it runs calls: which have begun, and how far a chunk has come.

    begin() ──▶ _running ──▶ the teller's thread looks every `NOTICE` ──▶ Line.tell(): those that have run so long
    end() ──▶ out of it: a call that is shorter costs two steps in a dict, and no message

So who sent a call knows that it runs, from when its time counts; and which of several calls, or items, a worker was in
that has died.

State: `_running`, changed by single atomic steps; `_thread`, guarded by `_lock`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

LOGGER = logging.getLogger("parallel")

NOTICE: Final = 0.01
"""Seconds between two looks: so long has a call run at least, and twice as long at most, when that is told."""

SENDING: Final = 0.003
"""Seconds in which an engine's threads send what they were told, if another one lets them: Dask takes up to 2 ms."""

PATIENCE: Final = 100
"""Looks without any call after which the thread ends; the next call starts one again."""

News: TypeAlias = tuple[int, int, int]
"""
The number of a call that runs; and of a chunk, the number of the item, from 1 on, in which it has been since the last
look, and how many were begun together with it. Two zeros: it is in none for so long, or is no chunk.
"""


class Line(Protocol):
    """The way to whom it is told."""

    def tell(self, news: list[News], /) -> object:
        """Tell it; what it raises is logged."""
        ...


class Entry:
    """
    A call that runs.

    Attributes:
        item: Of a chunk, the number of the item that was begun last, from 1 on; 0: it is none, or none has been begun.
        size: How many have been begun together with it.
    """

    __slots__ = ("item", "last", "line", "number", "size", "told")

    def __init__(self, number: int, line: Line) -> None:
        self.number = number
        self.line = line
        self.item = 0
        self.size = 0
        self.last: tuple[int, int] | None = None  # where it was at the last look
        self.told: tuple[int, int] | None = None


_running: dict[Entry, None] = {}
_thread: threading.Thread | None = None
_lock = threading.Lock()


def begin(number: int, line: Line, *, at_once: bool = False) -> Entry:
    """
    Note that a call begins.

    Args:
        number: Which one it is.
        line: Whom it is told.
        at_once: Tell it before the function is called: one that never lets go of the interpreter's lock, such as a
            regular expression that explodes, would keep it from being told, and its timeout from being met.
    """
    entry = Entry(number, line)
    if at_once:
        entry.last = entry.told = (0, 0)
        _tell(line, [(number, 0, 0)])
        time.sleep(SENDING)
    _running[entry] = None
    if _thread is None:
        _start()
    return entry


def end(entry: Entry) -> None:
    """Note that it has ended."""
    _running.pop(entry, None)


def _start() -> None:
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_look_on, name="parallel-teller", daemon=True)
            _thread.start()


def _look_on() -> None:
    """Look again and again, until nothing has run for a while."""
    global _thread
    wait: Callable[[float], object] = threading.Event().wait
    patience = PATIENCE
    while True:
        wait(NOTICE)
        if _running:
            patience = PATIENCE
            _look()
            continue
        patience -= 1
        if not patience:
            with _lock:
                _thread = None
            if not _running:  # else a call came in between, and found a thread
                return
            patience = PATIENCE
            _start()
            return


def _look() -> None:
    """Tell what there is to tell."""
    news: dict[int, tuple[Line, list[News]]] = {}
    for entry in list(_running):
        at, last = (entry.item, entry.size), entry.last
        entry.last = at
        state = at if at == last else (0, 0)
        if last is not None and entry.told != state:
            entry.told = state
            news.setdefault(id(entry.line), (entry.line, []))[1].append((entry.number, state[0], state[1]))
    for line, told in news.values():
        _tell(line, told)


def _tell(line: Line, news: list[News]) -> None:
    try:
        line.tell(news)
    except Exception:  # nobody is there any more, perhaps
        LOGGER.debug("it could not be told that calls run", exc_info=True)


def _after_fork_in_child() -> None:
    global _thread, _lock
    _thread = None
    _lock = threading.Lock()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

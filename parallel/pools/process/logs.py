"""
Log records of workers, which arrive in the logging of the pool's process.

    worker   logger ──▶ Sender, the root logger's handler ──▶ what can travel of the record ──▶ socket
    pool     reader ──▶ Relay ──▶ a thread that lives as long as there are some ──▶ the logger of that name

Guarantees:
- A logger has the level in a worker that it had in the pool's process when the worker was started; what is below it
  never travels. Handlers and filters are those of the pool's process alone.
- A record keeps its time, its process and its thread; its arguments arrive as part of its text, and the traceback of an
  exception as text. Of what was added to it (`extra`), what can't travel arrives as its `repr`.
- A handler may take its time, or fail: that holds up neither the pool nor a worker. `shutdown(wait=True)` waits for it.

State: that of a `Relay`; `_records` and `_right` are changed by single atomic steps.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from parallel.logged import add_facts
from parallel.naps import join
from parallel.pools.process.pickling import dumps, loads
from parallel.runs import current_run

LOGGER = logging.getLogger("parallel")


class Levels(NamedTuple):
    """
    What a process logs.

    Attributes:
        disabled: Up to which level nothing at all; see `logging.disable`.
        root: The level of the root logger.
        named: Those of other loggers, where they have one of their own.
    """

    disabled: int
    root: int
    named: dict[str, int]


def levels_now(forward: bool | None) -> Levels | None:
    """
    Return what workers are to log now; None: they are left alone.

    Args:
        forward: Whether their records are wanted; None: if the program has set up its logging.
    """
    root = logging.getLogger()
    loggers = _loggers()
    if forward is None:
        forward = any(logger.handlers for logger in (root, *loggers.values()))
    if not forward:
        return None
    named = {name: logger.level for name, logger in loggers.items() if logger.level != logging.NOTSET}
    return Levels(root.manager.disable, root.level, named)


def _loggers() -> dict[str, logging.Logger]:
    known = dict(logging.getLogger().manager.loggerDict)
    return {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}


# -- in a worker ------------------------------------------------------------------------------------------------------


def install(levels: Levels, main_by_value: bool, send: Callable[[bytes, int], object]) -> None:
    """
    In a worker: have all records sent that the pool's process would handle.

    Args:
        levels: What that logs.
        main_by_value: No process can import `__main__`; see `pickling`.
        send: Sends a record, and the number of the call that it is of, from any thread.
    """
    root = logging.getLogger()
    for logger in (root, *_loggers().values()):  # under fork they are the parent's
        logger.handlers.clear()
        logger.propagate = True
    root.addHandler(Sender(main_by_value, send))
    root.setLevel(levels.root)
    for name, level in levels.named.items():
        logging.getLogger(name).setLevel(level)
    logging.disable(levels.disabled)


class Sender(logging.Handler):
    """Sends records to the pool's process."""

    def __init__(self, main_by_value: bool, send: Callable[[bytes, int], object]) -> None:
        super().__init__()
        self._main_by_value = main_by_value
        self._send = send
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; in a child that the worker's function has forked, which has no socket: to standard error."""
        if os.getpid() != self._pid:
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        try:
            run = current_run()
            add_facts(record, run)
            self._send(self._packed(record), getattr(run, "number_here", 0))
        except ConnectionError:
            return  # the pool's process is gone, and this one goes as well
        except Exception:
            self.handleError(record)

    def _packed(self, record: logging.LogRecord) -> bytes:
        fields = dict(record.__dict__, msg=record.getMessage(), args=None, exc_info=None)
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = _FORMATTER.formatException(record.exc_info)
        try:
            return dumps(fields, self._main_by_value)
        except Exception:  # whatever the user's objects raise
            return pickle.dumps({name: self._travelling(value) for name, value in fields.items()})

    def _travelling(self, value: object) -> object:
        try:
            pickle.dumps(value)
        except Exception:  # as above
            return repr(value)
        return value


_FORMATTER = logging.Formatter()


# -- in the pool's process --------------------------------------------------------------------------------------------


class Relay:
    """Hands the records of a pool's workers to the loggers of this process."""

    def __init__(self, name: str) -> None:
        """
        Make one that has nothing to do.

        Args:
            name: That of its thread.
        """
        self._name = name
        self._records: deque[tuple[bytes, int]] = deque()
        self._right: list[None] = [None]  # to hand them on: whoever pops it does, or starts the thread that will
        self._thread: threading.Thread | None = None  # the last one that was started

    def take(self, record: bytes, number: int) -> None:
        """Take a record, from the reader, and the number of the call that it is of; 0: nobody knows it."""
        self._records.append((record, number))
        try:
            self._right.pop()
        except IndexError:
            return  # somebody is at it, and looks again before he ends
        thread = threading.Thread(target=self._run, name=self._name, daemon=False)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had: the next record tries again
            self._right.append(None)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Wait until all have been handed on that were taken; a handler, on the very thread, doesn't wait."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            join(thread)

    def _run(self) -> None:
        while True:
            while self._records:
                _handle(*self._records.popleft())
            self._right.append(None)
            # One that is taken now finds the right there, or is found here.
            if not self._records:
                return
            try:
                self._right.pop()
            except IndexError:
                return  # somebody else is on it


def _handle(data: bytes, number: int) -> None:
    """Have the logger of a record's name handle it; nothing that goes wrong with one costs another."""
    try:
        fields: dict[str, Any] = loads(data)
        record = logging.makeLogRecord(fields)
        if number and isinstance(record.__dict__.get("call_id"), int):
            record.__dict__["call_id"] = number  # it has another one there
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except BaseException:  # handlers, filters and what they are given are the user's
        with suppress(Exception):
            LOGGER.exception("a log record of a worker process could not be handled")

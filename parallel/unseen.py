"""
Failures that nobody has looked at: each is reported once, when the last future that holds it is gone.

    an error is caught ──▶ Failure, shared by all futures to which it passes on
                              ├─▶ looked at: by result(), exception(), catch(), a callback, a combination ──▶ silence
                              └─▶ dropped unseen ──▶ _dropped ──▶ a thread for it ──▶ logged, warned of, collected
                                  held unseen, at the interpreter's exit ─────────────▲

Guarantees:
- No report is made in a destructor. That may run at any point of any thread, so it takes no lock, and starts the
  reporting thread by way of `_thread`: `threading.Thread.start` takes locks, and waits.
- A call that succeeds pays nothing, and a failure that is looked at no thread.
- What is reported is not kept, but for what is to be raised: until the registry's shutdown, or the interpreter's exit.
- A forked child reports what fails in it, and nothing of its parent.

State: `_unseen`, `_dropped` and `_right` are changed by single atomic steps. `_collected` is guarded by `_lock`, which
is re-entrant, as a signal handler may shut a registry down while it is held.

Source: the idea of reporting from the destructor of a shared record, CPython 3.4 `asyncio/futures.py`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, TypeAlias
from weakref import ref

from parallel.chains import Chain, Made, add_note, chain_of, full_name, is_made_here, note_chain, place, written
from parallel.context import Home, Within, default_registry_if_loaded
from parallel.errors import PoolShutdownError

LOGGER = logging.getLogger("parallel")

_NOBODY: Final = "nobody has looked at the error"


_unseen: Final[dict[int, ref[Failure]]] = {}
"""The failures that some future holds, and nobody has looked at, by id."""


class UnobservedErrorWarning(RuntimeWarning):
    """A call has failed, and nobody has looked at the error; with `unobserved = "warn"`."""


class Failure:
    """
    The error of a call, as all futures to which it passes on share it.

    Attributes:
        error: The error.
        traceback: Its traceback where it was caught, with the frames of the user's alone.
        fn: The function that raised it, if that is known.
        within: What the call was made within.
        made: Where the call was made, if that is known.
        chain: The chain of the last future that got it.
    """

    __slots__ = ("__weakref__", "_is_new", "chain", "error", "fn", "made", "traceback", "within")

    def __init__(
        self,
        error: BaseException,
        traceback: TracebackType | None,
        fn: Callable[..., Any] | None = None,
        within: Within | None = None,
    ) -> None:
        self.error = error
        self.traceback = traceback
        self.fn = fn
        self.within = within
        self.made: Made | None = None
        self.chain: Chain = (None,)
        self._is_new = True

    def expect_look(self, fields: Mapping[str, Any]) -> bool:
        """
        Expect that somebody looks at it, as a future with these *fields* is about to hold it.

        Returns:
            True if it is the first one.
        """
        chain = chain_of(fields)
        made: Made | None = chain[0]
        if len(chain) > 1:
            self.chain = chain
        if not self._is_new:
            return False
        self._is_new = False
        if isinstance(self.error, PoolShutdownError):
            return True  # whoever has shut the pool down knows: as with what was cancelled by it, there is no news
        self.made = made
        _unseen[id(self)] = ref(self)
        return True

    def look(self) -> None:
        """Note that somebody has seen it."""
        self._is_new = False
        _unseen.pop(id(self), None)

    def shown(self, chain: Chain | None) -> BaseException:
        """Return the error for somebody who looks at it at the end of *chain*; None: that of the last future."""
        self.look()
        note_chain(self.error, self.fn, chain or self.chain)
        # The traceback of the first raise each time, or it would grow by every call of result().
        return BaseException.with_traceback(self.error, self.traceback)

    def __del__(self, forget: Callable[[int, None], object] = _unseen.pop) -> None:
        # A default, as a global may be gone when the interpreter is.
        if forget(id(self), None) is not None:
            _dropped.append(self)  # it lives on until it is reported; a destructor is called once
            _call_reporter()


_dropped: Final[deque[Failure]] = deque()
"""Those that no future holds any more, to be reported."""

_right: Final[list[None]] = [None]
"""The right to report: whoever pops it is the one reporter, or starts it."""

_reporter: Final[deque[threading.Thread]] = deque(maxlen=1)
"""The last thread that was started to report; at the exit it may be at it."""

_PATIENCE: Final = 5.0
"""Seconds that the exit waits for it: handlers of logs are the user's, and may be slow. Longer, and they hold it up."""

_collected: list[tuple[Home, Failure]] = []
"""What is to be raised, and by which registry."""

_lock = threading.RLock()


def _call_reporter() -> None:
    """Start the reporter, if there is none; at any point of any thread."""
    try:
        _right.pop()
    except IndexError:
        return  # there is one: it looks again before it ends
    try:
        start_new_thread(_start_reporter, ())
    except Exception:  # no thread can be had: the next one, or the exit, tells of this one too
        _right.append(None)


def _start_reporter() -> None:
    # A thread that `threading` knows: handlers of logs ask for its name.
    try:
        # With its kind said: else that of this thread is asked for, which is made known by that, and never forgotten.
        reporter = threading.Thread(target=_report, name="parallel-unseen", daemon=False)
        _reporter.append(reporter)
        reporter.start()
    except BaseException:  # as above
        _right.append(None)


def _report() -> None:
    """Report until nothing is left; on the reporting thread."""
    while True:
        report_dropped()
        _right.append(None)
        # One that is dropped now finds the right there, or is found here.
        if not _dropped:
            return
        try:
            _right.pop()
        except IndexError:
            return  # somebody else is on it


def report_dropped() -> None:
    """Report all that was dropped so far."""
    while (failure := _next_to_tell()) is not None:
        _tell(failure)


def _next_to_tell() -> Failure | None:
    """Take what is to be told of next; what is to be raised is collected."""
    while True:
        with _lock:  # whoever waits for it, to raise what is collected, finds what was under way
            try:
                failure = _dropped.popleft()
            except IndexError:
                return None
            home = _home_of(failure)
            if home is None or home.unobserved != "raise":
                return failure
            _collected.append((home, failure))


def _home_of(failure: Failure) -> Home | None:
    """Return the registry of a failed call; None: no configuration has been asked for, so it is logged."""
    within = failure.within
    return (within and within.registry) or default_registry_if_loaded()


def _tell(failure: Failure) -> None:
    try:
        home = _home_of(failure)
        how = "log" if home is None else home.unobserved
        if how == "log":
            error = BaseException.with_traceback(failure.error, failure.traceback)
            LOGGER.error("%s", _text(failure), exc_info=(type(error), error, failure.traceback))
        elif how == "warn":
            _warn(failure)
    except BaseException:
        with suppress(BaseException):  # there is nobody left to tell
            LOGGER.exception("%s", _text(failure))


def _text(failure: Failure) -> str:
    fn, made, chain = failure.fn, failure.made, failure.chain
    name = full_name(fn) if fn is not None else made[0].name if made is not None else "a call"
    details: list[str] = []
    if made is not None and not is_made_here(made):  # else it was called by a chain, whose stages are told
        details.append("called at {}:{}".format(*place(made)))
    if len(chain) > 2:
        details.append(f"of the chain {written(chain)}")
    where = f" ({'; '.join(details)})" if details else ""
    return f"{name} has failed, and {_NOBODY}{where}"


def _warn(failure: Failure) -> None:
    import warnings

    made = failure.made
    file, line = ("parallel", 0) if made is None else place(made)
    text = f"{_text(failure)}: {type(failure.error).__name__}: {failure.error}"
    warnings.warn_explicit(text, UnobservedErrorWarning, file, line)


def raise_collected(home: Home) -> None:
    """Raise the errors that *home* is to raise, if there are any, in a group."""
    failures = _take_collected(home)
    if failures:
        raise _group_of(failures)


def _take_collected(home: Home) -> list[Failure]:
    """Take the failures that *home* is to raise, those too that nobody has collected yet."""
    global _collected
    with _lock:
        for _ in range(len(_dropped)):
            failure = _dropped.popleft()  # nobody else takes any while this thread has the lock
            if _home_of(failure) is home:
                _collected.append((home, failure))
            else:
                _dropped.append(failure)
        failures = [failure for one, failure in _collected if one is home]
        _collected = [(one, failure) for one, failure in _collected if one is not home]
    return failures


Unlooked: TypeAlias = Mapping[int, ref[Failure]]
"""Failures that some future holds, and nobody has looked at, by id."""


def unlooked() -> Unlooked:
    """Return the failures that some future holds and nobody has looked at, as of now; what was dropped is reported."""
    report_dropped()
    return _unseen.copy()


def take_unlooked(home: Home, before: Unlooked) -> list[str]:
    """
    Tell of the failures of *home* that nobody has looked at, held or dropped; nobody else tells of them then.

    Args:
        home: A registry that raises such failures: those that are dropped are collected.
        before: What `unlooked` returned, when it began: none of these.
    """
    held = [
        failure
        for key, reference in _unseen.copy().items()
        if before.get(key) is not reference
        and (failure := reference()) is not None
        and _home_of(failure) is home
        and _unseen.pop(key, None) is not None  # else another thread has looked at it, or drops it
    ]
    failures = [*held, *_take_collected(home)]  # in this order: what is held may be dropped meanwhile
    return [f"{_text(failure)}: {_in_brief(failure.error)}" for failure in failures]


def _in_brief(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its text is made by user code
        return type(error).__name__


def _group_of(failures: list[Failure]) -> BaseException:
    for failure in failures:
        BaseException.with_traceback(failure.error, failure.traceback)
        add_note(failure.error, _text(failure), unless=_NOBODY)
    return BaseExceptionGroup(f"{len(failures)} calls have failed, and {_NOBODY}", [one.error for one in failures])


def _at_exit() -> None:
    """Report all that is left, held or dropped; if some of it is to be raised, end the process with status 1."""
    for key in list(_unseen):
        reference = _unseen.pop(key, None)
        failure = None if reference is None else reference()
        if failure is not None:
            _dropped.append(failure)
    report_dropped()
    for reporter in _reporter:  # it may have taken some, and the interpreter ends without waiting for it
        with suppress(RuntimeError):  # it was never started
            reporter.join(_PATIENCE)
    if not _collected:
        return
    import traceback

    traceback.print_exception(_group_of([failure for _, failure in _collected]))
    if not hasattr(sys, "last_value"):  # else an error has ended the program, which has that status already
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(1)  # no handler of an exit can set the status otherwise


def _after_fork_in_child() -> None:
    """Forget the parent's failures, and a reporter that is no more."""
    global _lock
    _lock = threading.RLock()
    _unseen.clear()
    _dropped.clear()
    _reporter.clear()
    _collected.clear()
    _right[:] = [None]


# Handlers are called in the reverse order: at the exit this comes after those of all modules that were imported later.
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

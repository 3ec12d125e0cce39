"""
Every exception that the library raises.

Each is a `ParallelError` and also the standard class that callers already catch. All of them survive pickle
unchanged: every argument goes to `super().__init__`, and the text is built in `__str__`.
`WorkerDiedError` lives in `parallel.deaths`, because its standard base would load multiprocessing here.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from queue import Full


class ParallelError(Exception):
    """The base of every exception that `parallel` raises."""


class ConfigError(ParallelError, ValueError):
    """
    A configuration can't be used; holds every mistake that was found, not only the first.

    Args:
        source: Where the configuration came from: a file's path, or words such as `the mapping given`.
        mistakes: One line per mistake: key path, what was expected, what was found.
    """

    def __init__(self, source: str, mistakes: Iterable[str]) -> None:
        self.source = source
        self.mistakes = tuple(mistakes)
        super().__init__(source, self.mistakes)

    def __str__(self) -> str:
        count = len(self.mistakes)
        head = f"{self.source}: {count} mistake{'' if count == 1 else 's'}"
        return "\n".join([head, *(f"  {mistake}" for mistake in self.mistakes)])


class UnknownPoolError(ParallelError, LookupError):
    """
    No pool has this name.

    Args:
        name: The name that was asked for.
        known: The names that exist.
        asked_by: Who asked, such as a task's name; empty if unknown.
    """

    def __init__(self, name: str, known: Iterable[str], asked_by: str = "") -> None:
        self.name = name
        self.known = tuple(known)
        self.asked_by = asked_by
        super().__init__(name, self.known, asked_by)

    def __str__(self) -> str:
        asked = f" (asked for by {self.asked_by})" if self.asked_by else ""
        from difflib import get_close_matches  # only mistakes pay for it

        near = get_close_matches(self.name, self.known, n=1)
        nearest = f" (did you mean {near[0]!r}?)" if near else ""
        known = ", ".join(self.known)
        return f"no pool named {self.name!r}{nearest}{asked}; known: {known}; a table [pools.{self.name}] would make it"


class MapHaltedError(ParallelError):
    """
    So many items of a map have failed that it was ended, as its `Halt` says; the cause is the last failure.

    Args:
        name: The function, `module:qualname`.
        failed: How many items have failed.
        ended: How many have ended.
    """

    def __init__(self, name: str, failed: int, ended: int) -> None:
        self.name = name
        self.failed = failed
        self.ended = ended
        super().__init__(name, failed, ended)

    def __str__(self) -> str:
        return f"the map of {self.name} was ended: {self.failed} of {self.ended} items have failed"


class PoolShutdownError(ParallelError, RuntimeError):
    """
    The pool, or the registry, has been shut down and takes no more calls.

    Args:
        what: What was shut down, such as `thread pool 'io'`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.what} has been shut down and takes no more calls"


class PoolBrokenError(ParallelError, BrokenExecutor):
    """
    The pool can't go on: its initializer failed, or its workers keep dying. The reason is its `__cause__` if known.

    Args:
        pool: The pool that broke.
        reason: What happened, and what to do.
    """

    def __init__(self, pool: str, reason: str) -> None:
        self.pool = pool
        self.reason = reason
        super().__init__(pool, reason)

    def __str__(self) -> str:
        return f"{self.pool} is broken: {self.reason}"


class NestedPoolError(ParallelError, RuntimeError):
    """
    A pool of processes was asked for in a worker process, and its configuration forbids that.

    Args:
        pool: The pool's name.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        super().__init__(pool)

    def __str__(self) -> str:
        return (
            f"the pool {self.pool!r} was asked for in a worker process, and `pools.{self.pool}.nested` is 'error': "
            "make the call outside of workers, or set that to 'inline' or 'thread'"
        )


class PoolFullError(ParallelError, Full):
    """
    As many calls wait in the pool as may: this one was not taken.

    Args:
        pool: The pool.
        max_pending: How many calls may wait in it.
        may_wait: Whether the thread could have waited for room; not where an event loop runs, as in a notebook.
    """

    def __init__(self, pool: str, max_pending: int, *, may_wait: bool = True) -> None:
        self.pool = pool
        self.max_pending = max_pending
        self.may_wait = may_wait
        super().__init__(pool, max_pending)

    def __str__(self) -> str:
        full = f"{self.pool} has max_pending = {self.max_pending} calls waiting and takes no more for now"
        if self.may_wait:
            return f"{full}; wait for some, or give it more workers"
        return (
            f"{full}; on_full = 'block' can't wait where an event loop runs, as it would block that: "
            "await some of the calls first, or call from another thread"
        )


class NoTaskError(ParallelError, RuntimeError):
    """
    The code that asks for its own task, or for what its item draws, is not run by a pool of this library.

    Args:
        what: What is not there, and who can ask for it.
    """

    def __init__(self, what: str = "no call is running here: current_task() is for functions that a pool runs") -> None:
        self.what = what
        super().__init__(what)

    def __str__(self) -> str:
        return self.what


class TaskTimeoutError(ParallelError, TimeoutError):
    """
    A call took longer than it may. Neither `result(timeout)` nor the function itself raises it.

    Args:
        task: Its name.
        seconds: How long it may take.
        what: What says so: `timeout` (of one attempt), `deadline` (of the whole call), or `with_timeout`.
    """

    def __init__(self, task: str, seconds: float, what: str) -> None:
        self.task = task
        self.seconds = seconds
        self.what = what
        super().__init__(task, seconds, what)

    def __str__(self) -> str:
        if self.what == "timeout":
            return f"{self.task} ran longer than its timeout of {self.seconds:g} s"
        if self.what == "deadline":
            return f"{self.task} did not end within its deadline of {self.seconds:g} s"
        return f"{self.task} was not there after {self.seconds:g} s (with_timeout)"


class SerializationError(ParallelError, pickle.PickleError):
    """
    A function, argument, result or exception can't travel between processes; the original error is its `__cause__`.

    Args:
        what: What could not travel, such as `the arguments of shop:resize`.
        why: The original error, as text.
        advice: What to do about it.
    """

    def __init__(self, what: str, why: str, advice: str = "") -> None:
        self.what = what
        self.why = why
        self.advice = advice
        super().__init__(what, why, advice)

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.what} can't travel between processes: {self.why}{advice}"


class UnrecordableError(SerializationError):
    """
    An item, its value or its error can't be written into a journal; the original error is its `__cause__`.

    Args:
        what: What can't be written, such as `item 3 (<Lock>)`.
        why: The original error, as text.
        advice: What to do about it.
    """

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.what} can't be written into a journal: {self.why}{advice}"


class JournalError(ParallelError, RuntimeError):
    """
    A journal can't be used: its file is none of ours, is damaged, or can't be written. The reason is its `__cause__`.

    Args:
        path: The journal's file.
        problem: What is wrong with it, and what to do.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(path, problem)

    def __str__(self) -> str:
        return f"the journal {self.path!r} {self.problem}"


class JournalLockedError(JournalError):
    """
    Another run, which has not ended, has the journal.

    Args:
        path: The journal's file.
        holder: Who has it, such as `process 4711 on mars`.
    """

    def __init__(self, path: str, holder: str) -> None:
        self.holder = holder
        super().__init__(path, f"is in use by a run in {holder}: wait for its end, or use another file")
        self.args = (path, holder)


class RemoteError(ParallelError):
    """
    Stands in for an exception of a worker process that could not travel itself.

    Args:
        type_name: The exception's own type, `module:qualname`.
        message: Its text.
        traceback_text: Its traceback, as the worker's interpreter would have printed it.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        super().__init__(type_name, message, traceback_text)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message} (raised in a worker process; the exception itself can't travel)"


class RemoteTraceback(ParallelError):
    """
    The traceback of a worker process, shown as the cause of the exception that came back.

    Args:
        text: The traceback, as the worker's interpreter would have printed it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class ForkedError(ParallelError, RuntimeError):
    """
    The future belongs to the parent of this forked process: its call ends there, and nothing can end it here.
    """

    def __str__(self) -> str:
        return (
            "this future was pending when the process forked: its call ends in the parent process, make the call again"
        )


class StarvationError(ParallelError, RuntimeError):
    """
    A worker waits for a future, but the pool has lent out all the spare workers that it may start.

    Args:
        pool: The pool that starves.
        waiting: How many of its workers wait.
    """

    def __init__(self, pool: str, waiting: int) -> None:
        self.pool = pool
        self.waiting = waiting
        super().__init__(pool, waiting)

    def __str__(self) -> str:
        return (
            f"{self.waiting} workers of {self.pool} wait for futures, more than it may replace; "
            "chain the calls with then() instead of waiting inside them"
        )


class UnsuitableFunctionError(ParallelError, TypeError):
    """
    The function can't run where it was sent, such as a plain function in a pool that runs coroutines.

    Args:
        function: The function's name.
        problem: Why it can't run there, and what to do.
    """

    def __init__(self, function: str, problem: str) -> None:
        self.function = function
        self.problem = problem
        super().__init__(function, problem)

    def __str__(self) -> str:
        return f"{self.function} {self.problem}"


class DeadlockError(ParallelError, RuntimeError):
    """
    Waiting here would block a thread that must go on: that of an event loop.

    Args:
        where: The thread that must not wait.
        asked: What it was to do, and why it can't.
        instead: What to do instead.
    """

    def __init__(self, where: str, asked: str, instead: str) -> None:
        self.where = where
        self.asked = asked
        self.instead = instead
        super().__init__(where, asked, instead)

    def __str__(self) -> str:
        return f"{self.where} was to {self.asked}; {self.instead}"


class GroupClosedError(ParallelError, RuntimeError):
    """
    A call was made in the context of a `TaskGroup` whose block has ended, such as by a function that outlived it.
    """

    def __str__(self) -> str:
        return (
            "the block of the task group that this call would belong to has ended; "
            "make the call inside `with detached():` if it is to belong to none"
        )


class LeakError(ParallelError, AssertionError):
    """
    A test has left behind what its registry was to end with; see `testing.fresh`.

    Args:
        left: One line for each call, thread, process or failure.
    """

    def __init__(self, left: Iterable[str]) -> None:
        self.left = tuple(left)
        super().__init__(self.left)

    def __str__(self) -> str:
        return "\n".join(["left behind at the end of the test:", *(f"  {name}" for name in self.left)])

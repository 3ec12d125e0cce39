"""
What a pool has at work, and leaves behind, in words: calls that run or wait, threads, processes.

Nothing here has state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from threading import Thread

from parallel.chains import Made, place
from parallel.pools.base import AtWork
from parallel.runs import Run
from parallel.states import is_ours
from parallel.trail import id_of


def calls_left(running: Iterable[object], label: str) -> Iterator[str]:
    """Name the calls that workers of the pool *label* run; *running* are their futures or runs, None for nothing."""
    for one in running:
        if one is not None:
            yield f"{_name(one)} still runs in {label}{_origin(one)}"


def thread_at_work(thread: Thread | None, running: object, since: int) -> AtWork:
    """Tell what a thread does: *running* is a future or a run, None for nothing."""
    name, ident = ("a thread that starts", None) if thread is None else (thread.name, thread.ident)
    if running is None:
        return AtWork(name, os.getpid(), ident)
    return AtWork(name, os.getpid(), ident, _name(running), called_at(running), since, call_id=_id(running))


def _id(running: object) -> int:
    future = running.future_if_any() if isinstance(running, Run) else running
    return id_of(future) if is_ours(future) else 0


def called_at(running: object) -> str:
    """Return where it was called, `FILE:LINE`; empty if that is not known."""
    made = _made(running)
    return "" if made is None else "{}:{}".format(*place(made))


def waiting_left(count: int, label: str) -> Iterator[str]:
    """Say how many calls wait there."""
    if count:
        yield f"{count} call{'s wait' if count > 1 else ' waits'} in {label}"


def threads_left(threads: Iterable[Thread | None], label: str) -> Iterator[str]:
    """Name those of its threads that are there."""
    for thread in threads:
        if thread is not None and thread.is_alive():
            yield f"thread {thread.name!r} of {label} is still there"


def processes_left(pids: Iterable[int], label: str) -> Iterator[str]:
    """Name its worker processes."""
    for pid in pids:
        yield f"worker process {pid} of {label} is still there"


def _name(running: object) -> str:
    made = _made(running)
    if made is not None:
        return made[0].name
    return "a call" if is_ours(running) or isinstance(running, Run) else "what follows a call"


def _origin(running: object) -> str:
    at = called_at(running)
    return f" (called at {at})" if at else ""


def _made(running: object) -> Made | None:
    future = running.future_if_any() if isinstance(running, Run) else running
    made: Made | None = future.__dict__.get("_made") if is_ours(future) else None
    return made

"""
`dump()`: what every pool of this process does at this moment, and where: the answer to "why does it hang".

    pools, engines ──▶ at_work(): who runs what, since when
                   ──▶ stacks(): worker processes, asked by a signal      ──▶ lines ──▶ a file
    threads, coroutines of this process: their frames

It waits for nobody but worker processes, and for these half a second at most. It can be had by a signal, too: then a
thread of its own writes it, as whom the signal has interrupted may hold any lock.

State: `_signals`, the signals that have it written; changed by single atomic steps.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
import traceback
from _thread import start_new_thread
from collections.abc import Iterable, Iterator
from datetime import datetime
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias

from parallel.durations import briefly
from parallel.pools.base import AtWork, Counts, Engine, Pool, engines, pools
from parallel.trail import clock

LOGGER = logging.getLogger("parallel")

_PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_BOOTSTRAP: Final = (threading.__file__, "<string>", os.path.dirname(multiprocessing.__file__) + os.sep)
"""What stands at the outer end of a worker's stack, besides this package."""

_FRAME: Final = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
"""A frame, as faulthandler writes it."""


Stack: TypeAlias = list[FrameSummary]
"""Frames, the outermost first."""


class Text(Protocol):
    """A text file."""

    def write(self, text: str, /) -> object:
        """Write *text*."""
        ...


def dump(file: Text | None = None) -> None:
    """
    Write what each pool does at this moment: its workers, what they run and for how long, where in the code they are.

    Then the other threads follow. Worker processes are asked by a signal whose handler is in C: they answer though they
    hang, on Linux. The calls that they run go on; nothing is changed.

    Args:
        file: A text file; None: standard error.
    """
    out = sys.stderr if file is None else file
    if out is None:  # pyright: ignore[reportUnnecessaryComparison]  # under pythonw there is none
        return
    out.write("\n".join(_lines()) + "\n")


def dump_at(name: str) -> None:
    """
    Have a signal write it to standard error, from now on.

    Args:
        name: The signal, such as `SIGUSR1`.

    Raises:
        ValueError: There is no such signal here, or this isn't the main thread, which alone can say what signals do.
    """
    number = getattr(signal, name, None)
    if not isinstance(number, signal.Signals):
        raise ValueError(f"there is no signal {name!r} here")
    if number not in _signals:
        signal.signal(number, _dump_aside)
        _signals.add(number)


_signals: Final[set[int]] = set()


def _dump_aside(number: int, frame: FrameType | None) -> None:
    start_new_thread(_dump_and_tell, ())


def _dump_and_tell() -> None:
    try:
        dump()
    except Exception:
        LOGGER.exception("what runs could not be written")


# -- what is written --------------------------------------------------------------------------------------------------


def _lines() -> Iterator[str]:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    yield f"parallel: process {os.getpid()}, Python {platform.python_version()}, {now}"
    stacks = _stacks()
    seen = {threading.get_ident()}
    held = pools()
    owned = {id(pool.engine) for pool in held}
    others = [engine for engine in engines() if id(engine) not in owned]
    for pool in sorted(held, key=lambda pool: pool.number):
        yield from _pool(pool, stacks, seen)
    for engine in others:
        yield from _pool(engine, stacks, seen)
    rest = [thread for thread in threading.enumerate() if thread.ident not in seen]
    if rest:
        yield "other threads"
    for thread in rest:
        yield f"  {thread.name}{', a daemon' if thread.daemon else ''}"
        yield from _stack(_from_its_target(stacks.get(thread.ident or 0, [])))


def _pool(pool: Pool | Engine, threads: dict[int, Stack], seen: set[int]) -> Iterator[str]:
    counts, workers = pool.counts(), pool.at_work()
    if isinstance(pool, Engine):
        if not (workers or counts.queued or counts.running):
            return
        engine: Engine | None = pool
    else:
        engine = pool.engine
    yield f"{pool.label}: {_said(counts)}"
    stacks = engine.stacks() if engine is not None and any(worker.process != os.getpid() for worker in workers) else {}
    for worker in workers:
        yield f"  {_worker(worker)}"
        if worker.thread is not None:
            seen.add(worker.thread)
        if not worker.task:
            continue
        if worker.coroutine is not None:
            yield from _stack(_users_part(_frames_of_coroutine(worker.coroutine)))
        elif worker.thread is not None:
            yield from _stack(_users_part(threads.get(worker.thread, [])))
        elif worker.process != os.getpid():
            yield from _process(stacks.get(worker.process))


def _said(counts: Counts) -> str:
    workers = "1 worker" if counts.workers == 1 else f"{counts.workers} workers"
    late = f", {counts.stragglers} overrun" if counts.stragglers else ""
    return f"{workers}, {counts.queued} queued, {counts.running} running, {counts.done} done{late}"


def _worker(worker: AtWork) -> str:
    if not worker.task:
        return f"{worker.name}: idle"
    seconds = f" for {briefly((clock() - worker.since) / 1e9)}" if worker.since else ""
    at = f" (called at {worker.called_at})" if worker.called_at else ""
    return f"{worker.name}: {worker.task}{seconds}{at}"


def _process(text: str | None) -> Iterator[str]:
    if text is None:
        yield "    (it doesn't say where it is)"
        return
    for part in text.strip("\n").split("\n\n"):
        head, *lines = part.splitlines() or [""]
        stack = [
            FrameSummary(match["file"], int(match["line"]), match["function"])
            for line in reversed(lines)
            if (match := _FRAME.fullmatch(line))
        ]
        theirs = _users_part(stack)
        if theirs is not stack or head.startswith("Current"):
            if not head.startswith("Current"):
                yield f"    {head.removesuffix(' (most recent call first):')}"
            yield from _stack(theirs)


def _stacks() -> dict[int, Stack]:
    """Return where all threads are, by their idents; at once, and no more, as they go on meanwhile."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # there is no other way to ask
    walked = {ident: list(traceback.walk_stack(frame)) for ident, frame in frames.items()}
    return {ident: _summaries(reversed(stack)) for ident, stack in walked.items()}


def _summaries(frames: Iterable[tuple[FrameType, int]]) -> Stack:
    codes = [(frame.f_code, line) for frame, line in frames]
    return [FrameSummary(code.co_filename, line, code.co_name, lookup_line=False) for code, line in codes]


def _frames_of_coroutine(coroutine: Any) -> Stack:
    """Return the frames of a coroutine that waits, and of what it awaits."""
    found: list[tuple[FrameType, int]] = []
    while coroutine is not None:
        frame: FrameType | None = _first_of(coroutine, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            found.append((frame, frame.f_lineno))
        coroutine = _first_of(coroutine, "cr_await", "gi_yieldfrom", "ag_await")
    return _summaries(found)


def _first_of(one: object, *names: str) -> Any:
    return next((found for name in names if (found := getattr(one, name, None)) is not None), None)


def _stack(stack: Stack) -> Iterator[str]:
    for text in StackSummary.from_list(stack).format():
        yield from (f"  {line}" for line in text.rstrip("\n").splitlines())


def _users_part(stack: Stack) -> Stack:
    """Leave out how a worker came to the user's function, and how that waits in here; if nothing is left, nothing."""
    theirs = list(itertools.dropwhile(_is_bootstrap, stack))
    while theirs and _is_ours(theirs[-1]):
        theirs.pop()
    return theirs or stack


def _from_its_target(stack: Stack) -> Stack:
    """Leave out how `threading` came to what a thread runs."""
    return list(itertools.dropwhile(lambda frame: frame.filename == threading.__file__, stack)) or stack


def _is_bootstrap(frame: FrameSummary) -> bool:
    return frame.filename.startswith(_BOOTSTRAP) or _is_ours(frame)


def _is_ours(frame: FrameSummary) -> bool:
    return frame.filename.startswith(_PACKAGE)

"""
Run a coroutine to its end on a thread that has no event loop: a worker, or the caller of an inline pool.

A worker thread keeps one loop of its own (`this.runner`) from the first coroutine until it exits, so that what the
coroutines share between calls, such as a client's connections, stays usable.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, TypeVar

from parallel.context import this

T = TypeVar("T")


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run *coroutine* to its end and return its value; what it raises comes out."""
    import asyncio

    if runs_a_loop():
        return _run_aside(asyncio, coroutine)
    if this.worker is None:
        return asyncio.run(coroutine)
    value: T = _runner(asyncio).run(coroutine, context=copy_context())  # else in that of the first one
    return value


def close_loop() -> None:
    """Close this thread's loop, if it has one; a worker's last deed."""
    runner, this.runner = this.runner, None
    if runner is not None:
        runner.close()


def _runner(asyncio: Any) -> Any:
    runner = this.runner
    if runner is None:
        runner = this.runner = asyncio.Runner()
    return runner


def _run_aside(asyncio: Any, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run *coroutine* on a thread of its own, as a loop already runs on this one."""
    values: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            values.append(asyncio.run(coroutine))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="parallel-inline-loop")
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return values.pop()


def runs_a_loop() -> bool:
    """Tell whether an event loop of asyncio runs on this thread: it must not be blocked."""
    asyncio: Any = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None

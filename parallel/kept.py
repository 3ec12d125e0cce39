"""
What a thread keeps from call to call until it ends: an event loop, and what `per_worker` functions have made.

    keep() ──▶ kept() ──▶ kept() ... ──▶ close_kept(), a worker's last deed

Things are closed in the reverse order of their making; what one raises is logged, and the next is closed.

State: per thread, and used by it alone. A forked child begins with none.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import TypeAlias

from parallel.coroutines import close_loop

Kept: TypeAlias = tuple[object, Callable[[], object] | None]
"""A value, and what closes it; None: nothing has to be done."""


class _Here(threading.local):
    """What the current thread keeps."""

    def __init__(self) -> None:
        self.things: dict[str, Kept] = {}


_here = _Here()


def kept(key: str) -> Kept | None:
    """Return what this thread keeps under *key*."""
    return _here.things.get(key)


def keep(key: str, value: object, close: Callable[[], object] | None) -> Kept:
    """Keep *value* under *key*, and have *close* called at the thread's end; return what is kept."""
    if threading.current_thread() is threading.main_thread():
        atexit.unregister(close_kept)
        atexit.register(close_kept)  # later than what the making has registered, so called before that
    made = _here.things[key] = (value, close)
    return made


def close_kept() -> None:
    """Close all that this thread keeps, its event loop as well; a worker's last deed."""
    things = _here.things
    while things:
        key, (_, close) = things.popitem()
        try:
            if close is not None:
                close()
        except BaseException:
            import logging  # a worker process loads nothing that it may never need

            logging.getLogger("parallel").exception("exception while a worker let go of %s", key.partition("#")[0])
    close_loop()


_inherited: list[dict[str, Kept]] = []
"""In a forked child: what the parent's thread keeps. Never freed, as to free it might close what is the parent's."""


def _after_fork_in_child() -> None:
    if _here.things:
        _inherited.append(_here.things)
        _here.things = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""
One of something that all share who want it, made for the first and ended after the last of them.

State: of a `Shared`, guarded by its `_lock`, which is re-entrant: a signal handler may shut a registry down. A forked
child begins without it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from parallel.weak import WeakSet

T = TypeVar("T")


class Shared(Generic[T]):
    """
    The one.

    Args:
        make: Makes it; what that raises comes out of `start`.
        end: Ends it.
        abandon: In a forked child, lets go of the parent's; None: nothing has to be done.

    Attributes:
        one: It, as long as somebody wants it.
    """

    def __init__(
        self, make: Callable[[], T], end: Callable[[T], object], abandon: Callable[[T], object] | None = None
    ) -> None:
        self.one: T | None = None
        self._wanted = 0
        self._make = make
        self._end = end
        self._abandon = abandon
        self._lock = threading.RLock()
        _all.add(self)

    def start(self) -> None:
        """Make it, if it is not there; until as many have called `stop`."""
        with self._lock:
            if self.one is None:
                self.one = self._make()
            self._wanted += 1

    def stop(self) -> None:
        """Undo one `start`."""
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0 and self.one is not None:
                one, self.one = self.one, None
                self._end(one)

    def after_fork_in_child(self) -> None:
        """Let go of the parent's."""
        self._lock = threading.RLock()
        one, self.one, self._wanted = self.one, None, 0
        if one is not None and self._abandon is not None:
            self._abandon(one)


_all: WeakSet[Shared[Any]] = WeakSet()


def _after_fork_in_child() -> None:
    for each in _all:
        each.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""
The callback threads of a registry: they run what follows calls whose own workers can't.

They are made when the first step comes. Pools and futures refer to them here, and so keep no registry alive.

State: `_crew`, guarded by `_lock`, which is re-entrant; `_is_over`, set once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from parallel.context import Dispatcher
from parallel.machine import cpus
from parallel.pools.crew import Crew


class CallbackThreads:
    """
    Threads for what follows calls.

    Args:
        successor: Says who runs that once these have ended without ever being needed; None for nobody.
    """

    def __init__(self, successor: Callable[[CallbackThreads], Dispatcher | None]) -> None:
        self._successor = successor
        self._lock = threading.RLock()
        self._crew: Crew | None = None
        self._is_over = False

    @property
    def crew(self) -> Crew | None:
        """They, if they were needed so far."""
        return self._crew

    def at_hand(self) -> Dispatcher:
        """Return them, made now if need be."""
        if self._crew is None and self._is_over and (successor := self._successor(self)) is not None:
            return successor
        with self._lock:
            crew = self._crew
            if crew is None:
                # As many as a thread pool has: callbacks are short, or wait, and one that waits lends its place.
                crew = self._crew = Crew("the callback threads", min(32, cpus() + 4), "parallel-callback")
                weakref.finalize(self, crew.close, False).atexit = False
                if self._is_over:
                    crew.close(cancel_futures=False)  # nobody would end its threads: it refuses what comes
        return crew

    def end(self) -> None:
        """Have them do what is left, and wait for them."""
        self._is_over = True
        crew = self._crew
        if crew is not None:
            crew.idle()
            crew.close(cancel_futures=False)
            crew.join()

    def owns_this_thread(self) -> bool:
        """Tell whether this thread can't wait: it is one of them, or a signal handler while they are made."""
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as Condition does
            return True
        return self._crew is not None and self._crew.owns_this_thread()

    def after_fork_in_child(self) -> None:
        """Forget the threads: they stayed in the parent."""
        self._lock = threading.RLock()
        self._crew = None

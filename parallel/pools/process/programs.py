"""
Starts Python programs: fork servers, and workers in an environment of their own.

Not by `subprocess`, whose start waits until nobody holds the other end of a pipe any more: a child that another thread
forks at that moment holds it for as long as it lives. `posix_spawn` waits for nothing of that kind.

State: of a `Program`, `_has_ended`, which whoever has started it looks at.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from multiprocessing import spawn
from typing import Any, Final

_spawn: Any = spawn  # what is used of it is not public, and so not typed

PAUSE: Final = 0.0005
"""Seconds between the first two looks whether a program has ended; doubled each time, up to"""

LONGEST: Final = 0.05
"""so many."""


def start(arguments: list[str], descriptors: Iterable[int], env: Mapping[str, str], quiet: bool = False) -> int:
    """
    Start another interpreter.

    Args:
        arguments: What it is called with, its own name first.
        descriptors: What it inherits, under the same numbers; besides, what the program has made inheritable.
        env: All its variables.
        quiet: Whether it has nothing on standard input.

    Returns:
        Its process id.

    Raises:
        OSError: It can't be started.
    """
    actions: list[tuple[Any, ...]] = []
    if quiet:
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    with ExitStack() as copies:
        for descriptor in descriptors:
            copy = os.dup(descriptor)
            copies.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, descriptor))  # that one is inherited, unlike the copy
        return os.posix_spawn(_spawn.get_executable(), arguments, env, file_actions=actions)


class Program:
    """A program that was started, until it has ended."""

    def __init__(self, pid: int) -> None:
        """Look after the process *pid*, for whose end nobody else waits."""
        self.pid = pid
        self._has_ended = False

    def has_ended(self) -> bool:
        """Tell whether it has ended; never waits."""
        if not self._has_ended:
            try:
                self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:  # somebody waits for all children, or the system does
                self._has_ended = True
        return self._has_ended

    def end(self, patience: float) -> None:
        """Give it so many seconds to end, then kill it."""
        deadline = time.monotonic() + patience
        pause = PAUSE
        while not self.has_ended():
            if time.monotonic() >= deadline:
                self._kill()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)

    def _kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._has_ended = True

"""
`WorkerDiedError`: what a call gets whose worker process died. Apart from `errors`, as its base loads multiprocessing.
"""

from __future__ import annotations

import signal
from concurrent.futures.process import BrokenProcessPool
from textwrap import indent

from parallel.chunks import Kept
from parallel.errors import ParallelError


class WorkerDiedError(ParallelError, BrokenProcessPool):
    """
    The worker process died while it ran this call; the pool and its other calls go on.

    Args:
        task: The function that ran, `module:qualname`.
        pid: The worker's process id; None if it is not a process of this pool's own.
        exit_code: Its exit status; negative for the number of the signal that killed it; None if unknown.
        last_words: The last lines that Python wrote there to standard error, and the traceback if a signal such as
            SIGSEGV or SIGABRT killed it; empty if there are none.
        worker: What a cluster calls the worker; empty if it is a process of this pool's own, or that is unknown.
    """

    kept: Kept | None = None
    """If the call was a chunk of a map: how far it had come. For the map."""

    def __init__(
        self, task: str, pid: int | None, exit_code: int | None, last_words: str = "", worker: str = ""
    ) -> None:
        self.task = task
        self.pid = pid
        self.exit_code = exit_code
        self.last_words = last_words
        self.worker = worker
        super().__init__(task, pid, exit_code, last_words, worker)

    def __str__(self) -> str:
        who = f"worker {self.worker or 'process'}" if self.pid is None else f"worker process {self.pid}"
        text = f"{who} {how_it_died(self.exit_code)} while it ran {self.task}"
        return text + quoted(self.last_words)


def quoted(last_words: str) -> str:
    """Say what a worker wrote last, to be put behind the text of an error; empty if it is."""
    return f"; the last that it wrote to standard error:\n{indent(last_words, '    ')}" if last_words else ""


def how_it_died(exit_code: int | None) -> str:
    """Say how a process ended: `was killed by SIGKILL`, `exited with status 3`."""
    if exit_code is None:
        return "died"
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

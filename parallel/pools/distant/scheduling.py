"""
What the scheduler of a Dask cluster is to do differently with calls of ours. It runs there.
"""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin  # pyright: ignore


class NoReruns(SchedulerPlugin):
    """
    Keeps Dask from running calls of ours again by itself.

    It runs a task again whose worker has died, several times, and one whose result was lost with its worker. Whether
    that may be, is for the pool to say. So each task counts as suspicious from the beginning, and fails with the first
    worker that dies; and one that has ended has no recipe any more, as data that was scattered.

    Args:
        mark: What is in the keys of ours, and in no other.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Note whose it is."""
        self.scheduler = scheduler

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """See that the task is not run again."""
        if finish not in ("processing", "memory") or type(key) is not str or self.mark not in key:
            return
        task = self.scheduler.tasks.get(key)
        if task is None:
            return
        if finish == "processing":
            task.suspicious = self.scheduler.allowed_failures
        else:
            task.run_spec = None

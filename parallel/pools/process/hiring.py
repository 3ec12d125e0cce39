"""
Who starts the workers of a process pool, and when.

    a call waits, and no worker is coming ──▶ see_to_workers() ──▶ starter thread: hire(), hire(), ... ──▶ it ends

Neither a submit nor the reading waits for a start: it takes 5 ms by a forkserver, 70 ms by spawn, and some 0.2 s for
the first one of a program. So a thread does it that lives as long as workers are lacking, one start after the other.
Under fork all are started by the first submit, on its own thread, while the engine has none; only those that take the
place of others come from the starter.

State, changed under the pool's lock: `starting`.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Final, cast

from parallel.pools.process.books import LOGGER, Books
from parallel.pools.process.peer import hire
from parallel.pools.process.surroundings import PreloadFailed

PAUSES: Final = (0.01, 0.1)
"""Seconds between the tries to start a worker; calls that nobody else could run fail that much later."""


class Hiring:
    """
    Starts workers.

    Attributes:
        starting: The starter runs, or its end has not been seen to.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self.starting = False

    def is_due(self) -> bool:
        """Under the lock: tell whether `see_to_workers` has something to start."""
        return not self.starting and self._books.lacks_workers()

    def see_to_workers(self) -> None:
        """On the reader: put free workers to work, and have more started if they don't suffice."""
        books = self._books
        books.dispatching.dispatch()
        with books.lock:
            due = self.is_due()
            if due:
                self.starting = True
        if due:
            self._start_starter()

    def fork_all(self) -> None:
        """
        Start all workers, on this thread.

        Raises:
            OSError: Not one can be started.
        """
        for _ in range(self._books.roster.most):
            try:
                self._hire()
            except OSError:
                if not self._books.roster.staff:
                    raise
                return  # it goes on with those that it has

    def _start_starter(self) -> None:
        name = f"{self._books.settings.thread_name}-starter"
        try:
            threading.Thread(target=self._start_workers, name=name, daemon=False).start()
        except RuntimeError:  # no thread can be started: there are too many, or the interpreter is at its end
            self._start_workers()

    def _start_workers(self) -> None:
        failure: BaseException | None = None
        try:
            while self._lacks_workers():
                self._hire_patiently()
        except BaseException as error:  # the system refuses, or the initializer can't be pickled: user code runs there
            failure = error
        self._books.reactor.tell(partial(self._starter_left, threading.current_thread(), failure))

    def _lacks_workers(self) -> bool:
        with self._books.lock:
            return self._books.lacks_workers()

    def _hire_patiently(self) -> None:
        """Start a worker; if the system refuses, or the fork server has died, see whether it is better in a moment."""
        for pause in PAUSES:
            try:
                return self._hire()
            except (OSError, EOFError):
                time.sleep(pause)
        self._hire()

    def _hire(self) -> None:
        settings = self._books.settings
        peer = hire(settings.launcher, settings.setup, settings.thread_name, settings.kept_by_each)
        peer.limit = settings.max_tasks_per_child
        with self._books.lock:
            self._books.roster.add(peer)
            self._books.note_room()
        self._books.reactor.tell(partial(self._books.watch, peer))

    def _starter_left(self, starter: threading.Thread, error: BaseException | None) -> None:
        """On the reader: see to what has come up while the starter ended."""
        books = self._books
        if starter is not threading.current_thread():
            starter.join()
        with books.lock:
            self.starting = False
            alone = not books.roster.staff
        if error is None:
            self.see_to_workers()
        elif isinstance(error, PreloadFailed):
            books.fail_to_start(str(error), cast(BaseException, error.__cause__))
        elif alone:
            books.fail_queued(f"no worker could be started: {error}", error)
        else:
            LOGGER.warning("%s could not start one more worker, and goes on without: %s", books.settings.label, error)

"""
How workers of a Ray cluster tell what they run, and hear which calls are to stop: an actor between them and the pool.

    teller's thread ──▶ BoardLine.tell() ──▶ Board.tell() ──▶ Board.hear() ──▶ the pool
    the pool ──▶ Board.ask() ──▶ Board.listen() ──▶ a thread of Ray's in the worker ──▶ ask_to_stop()

The pool hears, and each worker with calls listens, by a call to the actor that is answered when there is something.

State: the fields of `Board` belong to the loop of its actor; `_lines`, changed by single atomic steps; `_listens` of a
line, guarded by its lock.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias

from parallel.pools.distant.telling import News
from parallel.pools.distant.worker import ask_to_stop

NAMESPACE: Final = "parallel"
"""Of the actors, so that they meet no names of the program's."""

ANSWERED: Final = 30.0
"""Seconds after which who listens is answered in any case: a worker may be gone, and its call here with it."""

Told: TypeAlias = tuple[str, list[News]]
"""A worker, and what it tells."""


class Board:
    """The actor of one pool: what workers tell lies here until it is fetched."""

    def __init__(self) -> None:
        self._news: list[Told] = []
        self._came = asyncio.Event()
        self._asked: dict[str, list[tuple[str, int]]] = {}  # by worker
        self._listeners: dict[str, asyncio.Event] = {}

    async def tell(self, worker: str, news: list[News]) -> None:
        """Take what a worker tells."""
        self._news.append((worker, news))
        self._came.set()

    async def hear(self) -> list[Told]:
        """Return what workers have told since the last time, once there is something."""
        await self._came.wait()
        self._came.clear()
        news, self._news = self._news, []
        return news

    async def ask(self, worker: str, sender: str, number: int) -> None:
        """Have a worker ask a call to stop."""
        self._asked.setdefault(worker, []).append((sender, number))
        if worker in self._listeners:
            self._listeners[worker].set()

    async def listen(self, worker: str) -> list[tuple[str, int]]:
        """Return which calls of a worker are to stop, once there is one, or after a while."""
        if worker not in self._asked:
            came = self._listeners[worker] = asyncio.Event()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(came.wait(), ANSWERED)
            del self._listeners[worker]
        return self._asked.pop(worker, [])


class BoardLine:
    """
    Tells a board; see `telling.Line`.

    Args:
        topic: The name of the actor.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._board: Any = None
        self._me = ""
        self._lock = threading.Lock()
        self._listens = False

    def tell(self, news: list[News]) -> None:
        """Tell it, and listen from now on."""
        if self._board is None:
            ray: Any = import_module("ray")
            self._me = f"{ray.util.get_node_ip_address()}, process {os.getpid()}"
            self._board = ray.get_actor(self.topic, NAMESPACE)
        self._board.tell.remote(self._me, news)
        with self._lock:
            listens, self._listens = self._listens, True
        if not listens:
            self._listen()

    def _listen(self) -> None:
        self._board.listen.remote(self._me).future().add_done_callback(self._hear)

    def _hear(self, asked: Future[list[tuple[str, int]]]) -> None:
        """Ask calls to stop, and listen again, as long as the pool is there."""
        if asked.exception() is not None:
            with self._lock:
                self._listens = False
            return
        for sender, number in asked.result():
            ask_to_stop(sender, number)
        self._listen()

    def __reduce__(self) -> tuple[Any, ...]:
        return _line_of, (self.topic,)


@cache
def _line_of(topic: str) -> BoardLine:
    """Return the one line of a topic in this process."""
    return BoardLine(topic)

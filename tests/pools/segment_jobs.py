"""
The other side of the tests of segments: a child process that does what it is told with the values that it gets.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from parallel.pools.process.constants import Constants, Introductions, met
from parallel.pools.process.parcels import Parcel, encode, encode_arguments, open_posted, post
from parallel.pools.process.passages import Passage, sockets
from parallel.pools.process.pickling import loads
from parallel.pools.process.segments import Store

PATIENCE = 60.0  # seconds; only a deadlock takes so long
KEPT: list[Any] = []


class Child:
    """A child process, and this side's end of the way there."""

    def __init__(self, method: str = "fork") -> None:
        context: Any = multiprocessing.get_context(method)
        ours, theirs = sockets()
        self.connection, connection = context.Pipe()
        self.store = Store()
        self.process = context.Process(target=serve, args=(connection, theirs), daemon=True)
        self.process.start()
        connection.close()
        if theirs is not None:
            theirs.close()
        self.passage = Passage(ours)
        self.introductions = Introductions()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(BrokenPipeError):  # it was killed
            self.connection.send(None)
        self.connection.close()
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None
        self.process.close()
        self.passage.close()
        self.store.close()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call *fn* there and return its value."""
        self.send(fn, *args)
        return self.receive()

    def send(self, fn: Callable[..., Any], *args: Any) -> None:
        """Have *fn* called there."""
        packed = encode_arguments((fn, args), {}, False, self.store)
        introductions = self.introductions.introduce(met(), self.passage)
        item = post(packed, self.passage) if isinstance(packed, Parcel) else packed
        gone = self.introductions.gone.take()
        self.introductions.forget(gone)
        self.connection.send((item, self.passage.released.take(), introductions, gone))

    def receive(self) -> Any:
        """Return what has come of it."""
        assert self.connection.poll(PATIENCE)
        item, released = self.connection.recv()
        self.passage.take_back(released)
        value = loads(item) if isinstance(item, bytes) else open_posted(item, self.passage)
        if isinstance(value, BaseException):
            raise value
        return value

    def die(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join(PATIENCE)


def serve(connection: Connection, sock: Any) -> None:
    """Do what the other side says, until it says no more."""
    passage = Passage(sock)
    store = Store()
    constants = Constants(passage)
    while True:
        message = connection.recv()
        if message is None:
            return
        item, released, introductions, gone = message
        passage.take_back(released)
        constants.learn(introductions)
        constants.unlearn(gone)
        packed = run(item, passage, store)
        answer = post(packed, passage) if isinstance(packed, Parcel) else packed
        connection.send((answer, passage.released.take()))


def run(item: Any, passage: Passage, store: Store) -> bytes | Parcel:
    """Make one call, and pack what it returns."""
    try:
        (fn, args), _ = loads(item) if isinstance(item, bytes) else open_posted(item, passage)
        return encode(fn(*args), False, store)
    except Exception as error:
        return encode(error, False, store)


# -- calls ------------------------------------------------------------------------------------------------------------


def echo(value: Any) -> Any:
    return value


def write_and_sum(array: Any) -> float:
    array[:] = 1
    return float(array.sum())


def kind_of(value: Any) -> str:
    return type(value).__name__


def keep(value: Any) -> None:
    KEPT.append(value)


def first_kept() -> Any:
    return KEPT[0][0]


def drop_kept() -> None:
    KEPT.clear()


def add_one(array: Any) -> float:
    array += 1
    return float(array[0])


def zeros(size: int) -> bytearray:
    return bytearray(size)


def kill_me(value: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))

"""
What a call costs more while somebody observes it: to note its steps, and with what is made of them a moment later.

The first is what calls pay at once, before the first look at what was noted; the others have all in them that is done
on the thread that looks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from measures.rounds import WORKERS, Row, Scale, Side, in_turn, per_call
from measures.work import nothing
from parallel import Future, Registry, task, trail, using
from parallel.observe import statistics
from parallel.observe.recording import Recording

BUDGET: Final = 1.0
"""Microseconds a call: what noting its steps may cost."""

OFF: Final = "nobody"
NOTED: Final = "steps are noted"

POOLS: Final = {
    "pools": {
        "threads": {"kind": "thread", "max_workers": WORKERS},
        "processes": {"kind": "process", "max_workers": WORKERS},
    }
}


def observing(scale: Scale) -> Iterator[Row]:
    """Compare calls that are gathered while nobody observes, and while somebody does."""
    for pool in ("threads", "processes"):
        with using(Registry(POOLS)) as registry, registry:
            call = task(nothing, pool=pool)
            ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
                OFF: nullcontext,
                NOTED: _noted,
                "stats = true": _counted,
                "recorded": _recorded,
                "Registry.events()": lambda registry=registry: _read(registry),
            }
            sides = {name: _gathered(call, scale, way, is_told=name != NOTED) for name, way in ways.items()}
            measured = in_turn("µs", sides, scale.rounds)
            for name in list(sides)[1:]:
                budget = BUDGET if name == NOTED else None
                yield measured.of(name, OFF).difference(f"{pool}: {name}", budget)


def _gathered(
    call: Callable[[], Future[None]],
    scale: Scale,
    block: Callable[[], AbstractContextManager[object]],
    *,
    is_told: bool,
) -> Side:
    def gather(calls: int) -> None:
        for future in [call() for _ in range(calls)]:
            future.result()
        if is_told and trail.current is not None:
            trail.current.tell()

    def side() -> float:
        with block():
            return per_call(gather, scale.calls)()

    return side


@contextmanager
def _noted() -> Generator[None]:
    """Have steps noted, and thrown away."""
    thrown: deque[object] = deque(maxlen=0)
    trail.follow(thrown.extend)
    try:
        yield
    finally:
        trail.leave(thrown.extend)


@contextmanager
def _counted() -> Generator[None]:
    statistics.start()
    try:
        yield
    finally:
        statistics.stop()


@contextmanager
def _recorded() -> Generator[None]:
    recording = Recording(10**7)
    recording.start()
    try:
        yield
    finally:
        recording.stop()


@contextmanager
def _read(registry: Registry) -> Generator[None]:
    stream = registry.events()
    thrown: deque[object] = deque(maxlen=0)
    reader = threading.Thread(target=lambda: thrown.extend(stream))
    reader.start()
    try:
        yield
    finally:
        stream.close()
        reader.join()

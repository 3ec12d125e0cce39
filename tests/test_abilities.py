"""
What kinds declare of their pools, and whether it is so.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import jobs
import pytest

from parallel import Registry, current_task
from parallel.abilities import ABILITIES, tables
from parallel.catalogue import OWN

PAGE = Path(__file__).parent.parent / "docs" / "kinds.md"
HERE = ("thread", "process", "loop")
"""Kinds that need no cluster, and whose calls run while their caller goes on."""


@pytest.mark.parametrize("kind", OWN)
def test_they_are_known(kind: str) -> None:
    """Kinds declare what has a meaning."""
    assert set(OWN[kind].abilities) <= set(ABILITIES)
    assert all(OWN[kind].abilities.values())


def test_the_page() -> None:
    """The page has the tables that `tables` makes."""
    text = PAGE.read_text(encoding="utf-8")
    for table in tables().split("\n\n"):
        assert table in text


@pytest.mark.parametrize("kind", HERE)
def test_kill(kind: str) -> None:
    """A call that runs is ended as declared."""
    can = "kill" in OWN[kind].abilities
    with Registry({"pools": {"one": {"kind": kind, "max_workers": 1}}}) as registry:
        stop = threading.Event()
        function = {"process": sleep_long, "loop": asyncio.sleep, "thread": stop.wait}[kind]
        held = registry.pool("one").submit(function, 60)
        while not held.running():
            time.sleep(0.01)
        assert held.cancel(running=True) == can
        stop.set()
        if can:
            with pytest.raises(CancelledError):
                held.result(10)


@pytest.mark.parametrize("kind", ("thread", "process"))
def test_ask(kind: str, tmp_path: Path) -> None:
    """A function that runs is told to stop, as declared."""
    assert "ask" in OWN[kind].abilities
    told = tmp_path / "told"
    with Registry({"pools": {"one": {"kind": kind, "max_workers": 1}}}) as registry:
        held = registry.pool("one").submit(until_asked, told)
        while not held.running():
            time.sleep(0.01)
        held.cancel()
    assert told.exists()


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind not in ("executor", "dask", "ray")])
def test_fork(kind: str, in_fork: object) -> None:
    """A forked child has pools of its own, as declared."""
    assert "fork" in OWN[kind].abilities
    with Registry({"pools": {"one": {"kind": kind}}}) as registry:
        assert callable(in_fork)
        double = jobs.async_double if kind == "loop" else jobs.double
        assert in_fork(lambda: registry.pool("one").submit(double, 2).result(20)) == 4


def sleep_long(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def until_asked(path: Path) -> None:
    """Run until asked to stop, and leave a file."""
    while not current_task().cancelled:
        time.sleep(0.01)
    os.close(os.open(path, os.O_CREAT))

"""
A run that is killed while it writes its journal: all that it had told of is there, whole, and the next run goes on.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import journal_jobs
import pytest

from parallel.journal import Journal

ROUNDS = 20
LATEST = 0.1  # seconds after its first word at which a run is killed
MADE = 0.02  # seconds after which a journal has been made, from its first file
HANGS = 30.0  # seconds; only a deadlock takes so long


def killed_run(path: Path, size: int, seconds: float, *, is_early: bool = False) -> int:
    """
    Have a run write batches until it is killed, and return how many items it has told of.

    Args:
        path: Of the journal.
        size: Items per batch.
        seconds: When to kill it, from its first word.
        is_early: From when it begins to make the file.
    """
    command = [sys.executable, journal_jobs.__file__, "write", str(path), str(size)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            if is_early:
                wait_for_file(path)
            else:
                assert select.select([process.stdout], [], [], HANGS)[0], "it never began"
            time.sleep(seconds)  # that it is at a random moment is the point
        finally:
            process.send_signal(signal.SIGKILL)
        told = process.stdout.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGKILL
    return int(told or 0)


def wait_for_file(path: Path) -> None:
    """Return as soon as anything of a journal is there, its lock first."""
    deadline = time.monotonic() + HANGS
    while not any(path.parent.iterdir()):
        assert time.monotonic() < deadline, "it never began"


def is_whole(path: Path, told: int, size: int) -> int:
    """Check that all items up to *told* are there, and of the batch that followed all or none; return how many are."""
    with Journal(path, "work", "print") as journal:
        done, failed = journal.counts()
        found = journal.find(journal.keys_by(range(done + size)))
    assert done in (told, told + size)
    assert failed == 0
    assert [one and one.value for one in found] == [*map(journal_jobs.value_of, range(done)), *[None] * size]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return done


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 100])
def test_killed_while_it_writes(tmp_path: Path, size: int) -> None:
    """Kill a run at random moments, over and over: all that it told of is there, in whole batches."""
    path = tmp_path / "run.sqlite"
    moments = random.Random(size)
    done = 0
    for _ in range(ROUNDS // 2):
        told = killed_run(path, size, moments.uniform(0, LATEST))
        assert told > done
        done = is_whole(path, told, size)


@pytest.mark.slow
def test_killed_while_it_makes_the_file(tmp_path: Path) -> None:
    """Kill runs as they make their journal: the next run makes it, or goes on with it."""
    moments = random.Random(0)
    for number in range(ROUNDS // 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "run.sqlite"
        told = killed_run(path, 1, moments.uniform(0, MADE), is_early=True)
        is_whole(path, told, 1)

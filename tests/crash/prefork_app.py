"""
A web application as a prefork server loads it: once in the master, whose forked workers serve it.

When it is imported it has used all kinds of pools, so the master has them open when it forks.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from parallel import configure, gather, task

configure(
    {
        "pools": {
            "threads": {"max_workers": 2},
            "processes": {"max_workers": 1},
            "loop": {},
        }
    }
)


@task(pool="threads")
def in_thread() -> int:
    """Return the process's id."""
    return os.getpid()


@task(pool="processes")
def in_process() -> int:
    """Return the worker process's id."""
    return os.getpid()


@task(pool="loop")
async def in_loop() -> int:
    """Return the process's id."""
    await asyncio.sleep(0)
    return os.getpid()


@task(pool="processes")
def wait_at(pipe: str) -> int:
    """Tell that it has begun, by opening a pipe, and wait until that is written to."""
    with open(pipe) as file:
        file.read()
    return os.getpid()


def pids() -> dict[str, int]:
    """Use all kinds of pools; return the ids of the processes that have run the calls."""
    chained = in_thread().then(lambda _: in_process())
    thread, process, loop, last = gather(in_thread(), in_process(), in_loop(), chained).result(timeout=30)
    assert last == process
    return {"own": os.getpid(), "thread": thread, "process": process, "loop": loop}


master = pids()


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """Answer with the ids of processes, in JSON."""
    pipe = environ["QUERY_STRING"]
    found = {"slow": wait_at(pipe).result(timeout=30)} if pipe else {**pids(), "master": master}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]

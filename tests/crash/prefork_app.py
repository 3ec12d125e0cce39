"""
The application of `test_prefork`: it uses all kinds of pools when it is imported, in the master, and in each request.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from parallel import configure, gather, parallel_map, task

configure({"pools": {"threads": {"kind": "thread", "max_workers": 4}, "processes": {"kind": "process"}}})


@task(pool="threads")
def double(x: int) -> int:
    """Return twice *x*, from a thread."""
    return 2 * x


@task(pool="processes")
def pids(x: int) -> tuple[int, int]:
    """Return *x* and the process that runs this."""
    return x, os.getpid()


@task(pool="loop")
async def triple(x: int) -> int:
    """Return thrice *x*, from an event loop."""
    return 3 * x


@parallel_map(pool="threads")
def square(x: int) -> int:
    """Return the square of *x*."""
    return x * x


def use() -> dict[str, Any]:
    """Use all kinds; tell what came out, and which processes have run it."""
    doubled = double(2).then(triple).result(20)
    answers = gather(*(pids(x) for x in range(4))).result(20)
    return {
        "values": [doubled, [x for x, _ in answers], list(square(range(5)))],
        "processes": sorted({pid for _, pid in answers}),
        "server": os.getpid(),
    }


AT_IMPORT = use()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Connection", "close")])
    return [json.dumps({"at_import": AT_IMPORT, **use()}).encode()]

"""
What the program of `test_forks` runs in workers.
"""

from __future__ import annotations

import os
import socket
import traceback
from contextlib import suppress

import jobs

from parallel import Registry, TaskGroup, completed, parallel_map, task, using


def wait_at(address: tuple[str, int]) -> str:
    """Wait at a `jobs.Gate`, for as long as it takes."""
    with suppress(OSError), socket.create_connection(address) as connection:
        connection.recv(1)  # an error: it is open
    return "waited"


def fork_and_use(kind: str) -> str:
    """Fork; in the child, use pools of all kinds, and shut them down. Return what went wrong there."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            _use_all(kind)
        except BaseException:
            os.write(theirs, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        wrong = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return wrong or ("" if status == 0 else f"status {status}")


def _use_all(kind: str) -> None:
    made = Registry({"pools": {each: {"kind": each} for each in ("thread", "process", "loop", "inline")}})
    with using(made):
        for each in ("thread", "process", "inline"):
            assert made.pool(each).submit(jobs.double, 1).then(jobs.double).result(10) == 4
        assert made.pool("loop").submit(jobs.async_double, 1).then(jobs.double).result(10) == 4
        with TaskGroup(timeout=20):
            assert task(pool=kind)(jobs.async_double if kind == "loop" else jobs.double)(3).result(10) == 6
        assert list(parallel_map(pool="thread")(jobs.double)(range(5))) == [0, 2, 4, 6, 8]
        assert completed(1).then(jobs.double).result(10) == 2
    made.shutdown()

"""
What the tests of kills run in workers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NoReturn

from parallel import ProcessPool
from parallel.pools.process import last_words, launching, lifeline

if os.environ.get("NO_SIGNALS"):
    lifeline._CAN_SIGNAL = False

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"


def arrive(address: tuple[str, int], *told: object) -> socket.socket:
    """Tell the test, by its `Post`, that this is here, and something more."""
    connection = socket.create_connection(address)
    connection.sendall(" ".join(map(str, (os.getpid(), *told))).encode() + b"\n")
    return connection


def linger(address: tuple[str, int]) -> None:
    """Arrive, and stay."""
    with arrive(address):
        while True:
            signal.pause()


def linger_with_a_child(address: tuple[str, int], *, stubborn: bool = False, deadly: bool = False) -> None:
    """Start a program, arrive with its process id, and stay; or die."""
    program = [sys.executable, "-c", STUBBORN] if stubborn else ["sleep", "600"]
    child = subprocess.Popen(program, stdout=subprocess.PIPE)
    if stubborn:
        assert child.stdout is not None
        child.stdout.readline()  # it ignores SIGTERM from now on
    with arrive(address, child.pid):
        if deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()


def linger_with_a_pool(address: tuple[str, int]) -> None:
    """Start a pool, arrive with the ids of its worker and its fork server, and stay."""
    pool = ProcessPool(1, "forkserver")
    worker = pool.submit(os.getpid).result()
    keep = pool.submit(time.sleep, 600)
    server, _ = launching.helper() or (0, 0)
    with arrive(address, worker, server):
        keep.result()


def ignore_terms(address: tuple[str, int]) -> None:
    """Take no notice of SIGTERM, arrive, and stay."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    linger(address)


def tidy_up(address: tuple[str, int], note: str) -> None:
    """Stay, and at a SIGTERM leave a note."""

    def leave(*_: Any) -> NoReturn:
        Path(note).write_text("tidy")
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    linger(address)


def survive(address: tuple[str, int]) -> str:
    """Stay until a SIGTERM, and return then as if nothing had happened."""

    def wake(*_: Any) -> NoReturn:
        raise InterruptedError

    signal.signal(signal.SIGTERM, wake)
    try:
        linger(address)
    except InterruptedError:
        return "late"
    raise AssertionError("not reached")


# -- what workers do while their pool is killed -----------------------------------------------------------------------


def note_at_end(path: str) -> None:
    """Be an initializer: have this worker leave a note when it leaves in order."""

    def note() -> None:
        with open(path, "a") as file:
            file.write("x")

    Finalize(None, note, exitpriority=1)


def start_a_sleeper() -> int:
    """Start a program, and return its process id."""
    return subprocess.Popen(["sleep", "600"]).pid


def sleep(path: str) -> None:
    """Tell the pipe of that path, and stay."""
    Path(path).write_text("x")
    time.sleep(600)


def keep_the_interpreter(path: str) -> None:
    """The same, while no other thread of this process can run Python."""
    Path(path).write_text("x")
    ctypes.PyDLL(None).sleep(600)


# -- last words -------------------------------------------------------------------------------------------------------


def crash() -> None:
    """Read where there is nothing."""
    ctypes.string_at(0)


def give_up(*lines: str) -> NoReturn:
    """Write to standard error, and leave."""
    print("warned first", file=sys.stderr)
    for line in lines:
        print(line, file=sys.stderr)
    os._exit(3)


def type_of_stderr() -> str:
    """Tell what standard error is."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    return f"{type(sys.stderr).__name__} over {'a tee' if type(raw) is last_words._Tee else type(raw)}"


# -- run again --------------------------------------------------------------------------------------------------------


def sleep_and_die_once(marker: str, seconds: float) -> str:
    """Take some time; be killed the first time, and say so the second."""
    time.sleep(seconds)
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return "second"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")

"""
What the tests of the shell map, and how they meet it: through two named pipes, `begun` and `go`, of a folder.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from parallel import Retry, parallel_map, task

FOLDER = Path(os.environ.get("SHELL_JOBS", "."))
number = 3


def upper(text: str) -> str:
    """Return it in capitals."""
    return text.upper()


def same(item: Any) -> Any:
    """Return the item."""
    return item


def long(text: str) -> str:
    """Return what no pipe holds."""
    return text * 10_000_000


def broad_or_held(text: str) -> str:
    """Return what fills a pipe almost, or wait to be let go."""
    return held(text) if text == "held" else text * 60_000


def whole(text: str) -> int:
    """Return the number that it says."""
    return int(text)


def evaluated(text: str) -> Any:
    """Return what an expression is worth."""
    return eval(text)


def tell(text: str) -> None:
    """Write to `begun`."""
    with open(FOLDER / "begun", "w", encoding="utf-8") as pipe:
        pipe.write(f"{text}\n")


def held(text: str) -> str:
    """Tell that it has begun, and wait to be let go."""
    tell(text)
    with open(FOLDER / "go", "rb", buffering=0) as pipe:
        pipe.read(1)
    return text


def held_if_odd(text: str) -> str:
    """Wait to be let go if it is an odd number."""
    return held(text) if int(text) % 2 else text


def held_unless_bad(text: str) -> str:
    """Wait to be let go, or fail."""
    if text == "bad":
        raise ValueError(text)
    return held(text)


async def held_later(text: str) -> str:
    """Do the same as `held` in a coroutine."""
    return held(text)


def noted(text: str) -> str:
    """Note that it has been run; `stop` has it wait."""
    with open(FOLDER / "notes", "a", encoding="utf-8") as notes:
        notes.write(f"{text}\n")
    if text.startswith("bad"):
        raise ValueError(text)
    return text if text != "stop" or (FOLDER / "resumed").exists() else held(text)


def talking(text: str) -> str:
    """Print, in several ways, and read what is there to be read."""
    print(f"print {text}")
    os.write(1, f"write {text}\n".encode())
    return f"{os.read(0, 10)!r} {text}"


def dying(text: str) -> str:
    """Kill the worker, if it is told to."""
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return text


def napping(text: str) -> str:
    """Take so many seconds."""
    time.sleep(float(text))
    return text


def third_time(text: str) -> int:
    """Fail twice."""
    path = FOLDER / f"attempts-{text}"
    with path.open("a", encoding="utf-8") as file:
        file.write(".")
    if path.stat().st_size < 3:
        raise OSError("not yet")
    return path.stat().st_size


def interrupting(text: str) -> str:
    """Send a Ctrl-C to the process that it runs in."""
    os.kill(os.getpid(), signal.SIGINT)
    return text


def forking(text: str) -> int:
    """Have a forked child get a Ctrl-C; return the status that it ends with."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.raise_signal(signal.SIGINT)
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def items_of(text: str) -> Any:
    """Yield: this is a generator function."""
    yield text


@task(pool="inline")
def where(text: str) -> int:
    """Return the process that it runs in."""
    return os.getpid()


@parallel_map(pool="inline", retry=Retry(attempts=3, wait_initial=0, wait_jitter=0))
def patient(text: str) -> int:
    """Fail twice, as a map that tries again."""
    return third_time(text)


chain = where.then(str)

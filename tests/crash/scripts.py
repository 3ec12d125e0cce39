"""
Runs scripts that end badly, and looks at what they leave: processes, shared memory, temporary files.

Each runs as the leader of a session of its own, as a terminal would start it, so that signals can go to the whole
group. All of its processes are known by a variable in their environment, whoever their parents are by then.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1]
MARK = "SCRIPT_OF_TEST"
OURS = ("psm_", "parallel")  # what names of shared memory begin with that this library or multiprocessing makes
SOON = 2.0  # seconds in which the processes of a script that has ended are gone
HANGS = 20.0  # seconds; only a deadlock takes so long


class Ended(NamedTuple):
    """How a script ended: its exit status, what it wrote, and the seconds from the signal, or its start, to its end."""

    status: int
    out: str
    err: str
    seconds: float


def processes(mark: str) -> list[str]:
    """Return the processes of a script that have not ended."""
    found: list[str] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                environment = Path(entry.path, "environ").read_bytes()
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue  # it has ended, or is somebody else's
            if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                found.append(stat[:60])
    return found


def shared_memory() -> set[str]:
    """Return the names of shared memory and semaphores."""
    place = Path("/dev/shm")
    return {each.name for each in place.iterdir() if each.name.startswith(OURS)} if place.is_dir() else set()


class Script:
    """
    A script that runs; a context manager that ends whatever is left.

    Args:
        text: The script.
        folder: Where it lives; its temporary files have a folder in there.
        args: Its arguments.
        flags: The interpreter's own.
        group: Whether the signals of `send` go to all of its processes, as those of a terminal do.
    """

    def __init__(self, text: str, folder: Path, *args: str, flags: tuple[str, ...] = (), group: bool = False) -> None:
        path = folder / "script_of_test.py"
        path.write_text(text)
        self.mark = os.urandom(8).hex()
        self._group = group
        self._temporary = folder / "t"
        self._temporary.mkdir()
        self._shared = shared_memory()
        self._errors = (folder / "stderr").open("w+")  # a file: a pipe would stay open with whoever is left behind
        self._began = time.monotonic()
        self._out = ""
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-W", "ignore", *flags, str(path), *args],
            env=environment(self.mark, self._temporary),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def wait_for(self, line: str) -> None:
        """Return once it has printed that line."""
        while not any(each.startswith(line) for each in self._out.splitlines()):
            if not self._read(HANGS):
                self.process.send_signal(signal.SIGABRT)  # shows where it hangs
                self.process.wait()
                raise AssertionError(f"it never said {line!r}\n{self._out}{self._words()}")

    def _read(self, patience: float) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], patience)[0]:
            return False
        piece = os.read(self.process.stdout.fileno(), 65536)
        self._out += piece.decode()
        return bool(piece)

    def send(self, number: int) -> None:
        """Send a signal; the seconds until the end count from here."""
        self._began = time.monotonic()
        (os.killpg if self._group else os.kill)(self.process.pid, number)

    def ended(self, orderly: bool = True) -> Ended:
        """Wait for the end, and see that nothing is left; multiprocessing's folder is, unless that was *orderly*."""
        try:
            self.process.wait(HANGS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # shows where it hangs
            self.process.wait()
            raise AssertionError(f"it hangs\n{self._out}{self._words()}") from None
        seconds = time.monotonic() - self._began
        deadline = time.monotonic() + SOON
        while (left := self._left(orderly and self.process.returncode >= 0)) and time.monotonic() < deadline:
            time.sleep(0.01)
        while self._read(0):
            continue
        assert not left, f"left behind: {left}\n{self._out}{self._words()}"
        return Ended(self.process.returncode, self._out, self._words(), seconds)

    def _left(self, orderly: bool) -> list[str]:
        files = [each for each in os.listdir(self._temporary) if orderly or not each.startswith("pymp-")]
        return processes(self.mark) + sorted(shared_memory() - self._shared) + files

    def _words(self) -> str:
        self._errors.flush()
        return Path(self._errors.name).read_text(errors="replace")

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        kill_all(self.mark)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


def environment(mark: str, temporary: Path) -> dict[str, str]:
    """Return the variables of a script."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, MARK: mark, "PYTHONPATH": paths, "PARALLEL_CONFIG": "", "TMPDIR": str(temporary)}


def kill_all(mark: str) -> None:
    """End what a script has left."""
    for stat in processes(mark):
        with suppress(ProcessLookupError):
            os.kill(int(stat.split()[0]), signal.SIGKILL)


class Repl:
    """
    A Python prompt on a terminal of its own; a context manager.

    What is typed is answered by what comes until a line with a mark that only the answer can contain.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.mark = os.urandom(8).hex()
        self._shared = shared_memory()
        self.seen = ""
        words = {**environment(self.mark, folder), "PYTHON_BASIC_REPL": "1", "TERM": "dumb"}
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            try:
                os.execve(sys.executable, [sys.executable, "-W", "ignore", "-q", *flags], words)
            finally:
                os._exit(127)

    def type(self, text: str) -> None:
        """Type something at the next prompt, or Ctrl-C now."""
        if text != "\x03":
            self.wait_for(lambda seen: seen.endswith(">>> "))
        os.write(self._terminal, text.encode())

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self._terminal)
        self._terminal = os.open(os.devnull, os.O_RDWR)

    def wait_for(self, said: Callable[[str], bool]) -> str:
        """Return all that has come, once it is as *said* wants it."""
        deadline = time.monotonic() + HANGS
        while not said(self.seen):
            assert time.monotonic() < deadline, f"it hangs:\n{self.seen}"
            self._read(0.1)
        return self.seen

    def _read(self, patience: float) -> bool:
        if not select.select([self._terminal], [], [], patience)[0]:
            return False
        try:
            piece = os.read(self._terminal, 65536)
        except OSError:  # nobody has it open any more
            return False
        self.seen += piece.decode().replace("\r", "")
        return bool(piece)

    def ended(self) -> int:
        """Wait for the end, see that nothing is left, and return the exit status."""
        deadline = time.monotonic() + HANGS
        while True:
            self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            assert time.monotonic() < deadline, f"it hangs:\n{self.seen}"
        self.pid = 0
        deadline = time.monotonic() + SOON
        while (left := processes(self.mark) + sorted(shared_memory() - self._shared)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left, f"left behind: {left}\n{self.seen}"
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> Repl:
        return self

    def __exit__(self, *_: object) -> None:
        kill_all(self.mark)
        if self.pid:
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

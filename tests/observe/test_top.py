"""
`python -m parallel top`, of programs that run, on terminals as people have them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from pools.process_jobs import wait_until
from terminals import Terminal

from parallel import Registry, gather, task, trail, using
from parallel.observe import serving
from parallel.watching import ProgramGoneError, ask, pool_rows, worker_rows

LONG = 30.0
POOLS = {"pools": {"io": {"kind": "thread", "max_workers": 2}}, "observe": {"socket": True}}

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or not hasattr(os, "getuid"), reason="no such sockets")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for sockets, which this test alone has; short, as a socket's address has to be."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return serving.folder()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry on which others may look."""
    with Registry(POOLS) as made, using(made):
        made.pool("io")
        yield made


def top(*arguments: str, status: int = 0) -> str:
    """Run the command; return what it prints."""
    command = [sys.executable, "-m", "parallel", "top", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def test_what_a_program_does(registry: Registry) -> None:
    """Pools, with what has been counted, and workers with what they run."""
    pool = registry.pool("io")
    gather(*(pool.submit(jobs.double, 1) for _ in range(5)), *(pool.submit(jobs.nothing) for _ in range(5))).result(
        LONG
    )
    with jobs.Gate() as gate:
        future = task(jobs.wait_at, pool="io")(gate.address)
        gate.arrived()
        seen = json.loads(top("--json", str(os.getpid())))
        assert seen["pid"] == os.getpid()
        (io,) = seen["pools"]
        assert (io["name"], io["kind"], io["running"], io["done"], io["failed"]) == ("io", "thread", 1, 10, 0)
        busy = [worker for worker in io["at_work"] if worker["task"]]
        assert [worker["task"] for worker in busy] == ["jobs:wait_at"]
        text = top("--once", str(serving.path_of(os.getpid())))
        assert re.search(r"^io +thread +\d/2 +0 +1 +10 +0 ", text, re.MULTILINE)
        assert re.search(r"^parallel-io_\d +jobs:wait_at +\S+ \w+ +\d+%$", text, re.MULTILINE)
        assert top() == f"{os.getpid()}  {' '.join(sys.argv)}\n"
        gate.open()
        future.result(LONG)


def test_nobody_else_can_look(registry: Registry, runtime: Path) -> None:
    """The folder and the socket are this user's alone."""
    path = serving.path_of(os.getpid())
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_it_goes_with_the_registry(runtime: Path) -> None:
    """With the last registry that wants it, socket and folder are gone, and nobody counts."""
    with Registry(POOLS) as one:
        one.pool("io")
        with Registry(POOLS) as two:
            two.pool("io")
        assert ask(serving.path_of(os.getpid()))["pid"] == os.getpid()
    assert not runtime.exists()
    assert trail.current is None
    with pytest.raises(ProgramGoneError):
        ask(serving.path_of(os.getpid()))


@pytest.mark.parametrize("what", ["open", "file", "link"])
def test_a_folder_that_others_can_reach(
    what: str, runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can look on then; the program runs, and says so."""
    if what == "open":
        runtime.mkdir(mode=0o777)
        runtime.chmod(0o777)
    elif what == "file":
        runtime.touch()
    else:
        runtime.symlink_to(tmp_path)
    try:
        with Registry(POOLS) as registry:
            assert registry.pool("io").submit(jobs.double, 2).result(LONG) == 4
        (message,) = caplog.messages
        assert message.startswith("observe.socket: nobody can look on: ")
        assert list(tmp_path.iterdir()) == []
    finally:
        if what == "open":
            runtime.rmdir()
        else:
            runtime.unlink()


def test_who_asks_and_does_not_read(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next who asks is answered all the same, though there is more to tell than a socket holds."""
    monkeypatch.setattr(serving, "PATIENCE", 0.2)
    monkeypatch.setattr(serving, "snapshot", lambda: {"pid": os.getpid(), "much": "x" * 10_000_000})
    path = str(serving.path_of(os.getpid()))
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as gone:
        idle.connect(path)
        gone.connect(path)
        gone.close()
        assert ask(Path(path))["pid"] == os.getpid()


def test_in_a_forked_child(registry: Registry, in_fork: Callable[..., Any]) -> None:
    """It has a socket of its own once it has calls, and leaves that of its parent alone."""
    parent = os.getpid()

    def child() -> tuple[bool, int]:
        before = serving.path_of(os.getpid()).exists()
        assert task(jobs.double, pool="io")(2).result(LONG) == 4
        found = ask(serving.path_of(os.getpid()))["pid"] == os.getpid()
        registry.shutdown()
        return before, int(found)

    assert in_fork(child) == (False, 1)
    assert ask(serving.path_of(parent))["pid"] == parent


PROGRAM = """
import sys, time
from parallel import task

@task(pool="threads")
def fetch(number):
    time.sleep(0.02)

if __name__ == "__main__":
    print("here", flush=True)
    while True:
        [future.result() for future in [fetch(number) for number in range(4)]]
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that runs."""
    script = tmp_path / "busy.py"
    script.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PARALLEL_OBSERVE__SOCKET": "true"}
    with subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True) as made:
        try:
            assert made.stdout is not None
            assert made.stdout.readline() == "here\n"
            wait_until(serving.path_of(made.pid).exists)
            yield made
        finally:
            made.kill()
    serving.path_of(made.pid).unlink(missing_ok=True)
    serving.folder().rmdir()


def test_live(program: subprocess.Popen[str]) -> None:
    """On a terminal it goes on until the program ends; what was seen last stays there."""
    said = ["top", "--interval", "100ms", str(program.pid)]
    with Terminal(f"import sys; from parallel.cli import main; sys.exit(main({said}))", 120) as terminal:
        screen = terminal.read_until("__main__:fetch")
        assert re.search(r"^threads +thread +\d+/\d+ ", screen, re.MULTILINE)
        assert "per s" in screen
        speed = re.compile(r"^threads +thread +\d+/\d+ +\d+ +\d+ +[\d,]+ +[\d,]+\.\d ", re.MULTILINE)
        terminal.read_until(speed)  # it is there from the second look on
        program.kill()
        assert "__main__:fetch" in terminal.read_until(None)
        assert terminal.status == 0


def test_a_program_that_was_killed(program: subprocess.Popen[str]) -> None:
    """Its socket stays; nobody is there, and that is said. A later one of the same number takes its place."""
    assert json.loads(top("--json", str(program.pid)))["pools"][0]["name"] == "threads"
    program.kill()
    program.wait(LONG)
    said = top(str(program.pid), status=2)
    assert f"no program can be asked at {serving.path_of(program.pid)}: it has ended, or" in said
    done = subprocess.run([sys.executable, "-m", "parallel", "top"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr[:26]) == ("", "no program can be seen: on")


def test_bad_arguments(tmp_path: Path) -> None:
    """What can't be is told."""
    assert "no program can be asked at" in top("99999999", status=2)
    assert "--interval: expected a duration" in top("--interval", "soon", "1", status=2)
    file = tmp_path / "file"
    file.write_text("{}")
    assert "no program can be asked at" in top(str(file), status=2)


def test_rows() -> None:
    """Speeds come with the second look; idle workers come last; what isn't known is left empty."""
    pool = {
        "name": "io", "kind": "loop", "workers": 1, "max_workers": 2**40, "queued": 0, "running": 1234, "done": 10,
        "failed": None, "queue_time": None, "run_time": None,
        "at_work": [
            {"name": "a", "task": "", "seconds": None, "utilisation": None},
            {"name": "b", "task": "x:y", "seconds": 0.5, "utilisation": 0.25},
            {"name": "c", "task": "x:z", "seconds": 90.0, "utilisation": None},
        ],
    }  # fmt: skip
    before, after = {"at": 10.0, "pools": [pool]}, {"at": 12.0, "pools": [{**pool, "done": 25}]}
    assert pool_rows(before, None) == [("io", "loop", "1", "0", "1,234", "10", "", "", "", "", "")]
    assert pool_rows(after, before)[0][6] == "7.5"
    assert [row[0] for row in worker_rows(after)] == ["c", "b", "a"]
    assert worker_rows(after)[1] == ("b", "x:y", "500 ms", "25%")

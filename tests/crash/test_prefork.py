"""
Prefork servers: gunicorn loads an application that has pools open, forks its workers, and these use them.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pools.process_jobs import wait_until

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LONG = 30.0  # seconds; only a deadlock takes so long

pytestmark = pytest.mark.slow


class Connection(http.client.HTTPConnection):
    """A connection by way of a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LONG)
        self._path = str(path)

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LONG)
        self.sock.connect(self._path)


class Server:
    """A running gunicorn with two workers, and the processes that are known to be its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.log = (folder / "log").open("w+")
        command = ["--preload", "--workers", "2", "--bind", f"unix:{self.path}", "--graceful-timeout", "20"]
        self.master = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *command, "--worker-tmp-dir", str(folder), "prefork_app:app"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.seen: set[int] = set()

    def listens(self) -> bool:
        """Tell whether it takes connections: the socket is there a moment earlier."""
        connection = Connection(self.path)
        try:
            connection.connect()
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def ask(self, query: str = "") -> dict[str, Any]:
        """Make a request."""
        connection = Connection(self.path)
        try:
            connection.request("GET", f"/?{query}")
            answer = connection.getresponse()
            assert answer.status == 200, self.said()
            found: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        self.seen |= {pid for pid in found.values() if isinstance(pid, int)}
        return found

    def workers(self) -> set[int]:
        """Ask until both workers have answered; return their ids."""
        found: set[int] = set()

        def ask() -> bool:
            answer = self.ask()
            check(answer)
            self.seen |= set(answer["master"].values())
            found.add(answer["own"])
            return len(found) == 2

        wait_until(ask)
        return found

    def said(self) -> str:
        """Return what it has written."""
        self.log.seek(0)
        return self.log.read()

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Have it end; return its status."""
        self.master.send_signal(signum)
        return self.master.wait(LONG)


def check(answer: dict[str, Any]) -> None:
    """See that each kind ran where it belongs, and none where the master has its own."""
    assert answer["thread"] == answer["loop"] == answer["own"]
    assert answer["process"] not in (answer["own"], answer["master"]["process"])
    assert answer["master"]["own"] not in (answer["own"], answer["process"])


def is_alive(pid: int) -> bool:
    """Tell whether a process is there, and no zombie that somebody else has to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that answers."""
    pytest.importorskip("gunicorn")
    made = Server(tmp_path)
    try:
        wait_until(lambda: made.listens() or made.master.poll() is not None)
        assert made.master.poll() is None, made.said()
        yield made
    finally:
        if made.master.poll() is None:
            made.master.kill()
            made.master.wait()
        made.log.close()


def test_workers_use_all_kinds_anew(server: Server) -> None:
    """Each forked worker has pools of its own; when the server ends, no process is left."""
    workers = server.workers()
    assert len(workers) == 2
    assert server.end() == 0, server.said()
    assert "Traceback" not in server.said()
    wait_until(lambda: not [pid for pid in server.seen if is_alive(pid)])


def test_workers_that_are_replaced(server: Server) -> None:
    """At SIGHUP the master, whose pools are still open, forks other workers; those before leave nothing."""
    before = server.workers()
    processes = set(server.seen)
    server.master.send_signal(signal.SIGHUP)
    wait_until(lambda: not [pid for pid in before if is_alive(pid)])
    after = server.workers()
    assert not before & after
    master = {server.master.pid, *server.ask()["master"].values()}
    wait_until(lambda: not [pid for pid in processes - master if is_alive(pid)])
    assert server.end() == 0, server.said()
    assert "Traceback" not in server.said()
    wait_until(lambda: not [pid for pid in server.seen if is_alive(pid)])


def test_a_request_at_the_end(server: Server, tmp_path: Path) -> None:
    """SIGTERM lets a request come to its end whose call runs in a process."""
    server.workers()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask(str(pipe))))
    asking.start()
    with pipe.open("w") as file:  # it has begun
        server.master.send_signal(signal.SIGTERM)
        file.write("go")
    asking.join(LONG)
    assert [answer["slow"] > 0 for answer in answers] == [True], server.said()
    assert server.master.wait(LONG) == 0, server.said()
    wait_until(lambda: not [pid for pid in server.seen if is_alive(pid)])


def test_a_worker_that_is_killed(server: Server) -> None:
    """Its own workers leave with it, and the master forks another."""
    before = server.workers()
    victim = server.ask()
    os.kill(victim["own"], signal.SIGKILL)
    wait_until(lambda: not is_alive(victim["process"]))
    wait_until(lambda: len(before - server.workers()) == 1)
    assert server.end() == 0, server.said()
    wait_until(lambda: not [pid for pid in server.seen if is_alive(pid)])


def test_a_master_that_is_killed(server: Server) -> None:
    """Its workers end soon, and all processes of their pools with them."""
    server.workers()
    server.master.kill()
    server.master.wait(LONG)
    wait_until(lambda: not [pid for pid in server.seen if is_alive(pid)])

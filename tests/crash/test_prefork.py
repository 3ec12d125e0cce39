"""
A server that loads its application, pools at work included, before it forks its workers: gunicorn with `preload_app`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash.scripts import environment, kill_all, processes

pytest.importorskip("gunicorn", reason="gunicorn, of the extra `test`, is not installed")

PATIENCE = 30.0  # seconds; only a hang takes so long
VALUES = [12, [0, 1, 2, 3], [0, 1, 4, 9, 16]]


class Server:
    """Gunicorn with two workers, on a port that the system has chosen; a context manager that leaves nothing."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.mark = os.urandom(8).hex()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        temporary = folder / "t"
        temporary.mkdir()
        self._errors = folder / "stderr"
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--preload",
            "--workers=2",
            f"--worker-class={kind}",
            "--threads=2",
        ]
        bind = f"--bind=fd://{self._listener.fileno()}"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, bind, "--graceful-timeout=20", "--no-control-socket", "crash.prefork_app"],
                env=environment(self.mark, temporary) | {"HOME": str(folder)},
                cwd=folder,
                pass_fds=[self._listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def ask(self) -> dict[str, Any]:
        """Make a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer

    def ask_all(self, *, but: frozenset[int] = frozenset()) -> dict[int, dict[str, Any]]:
        """Make requests until two workers have answered, each of which is none of those; return by worker."""
        found: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < 2:
            assert time.monotonic() < deadline, f"{sorted(found)}\n{self.words()}"
            answer = self.ask()
            assert answer["values"] == VALUES, answer
            if answer["server"] not in but:
                found[answer["server"]] = answer
        return found

    def ended(self) -> int:
        """Wait for the end of the server, and of all that it has started."""
        status = self.process.wait(PATIENCE)
        deadline = time.monotonic() + 5
        while (left := processes(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.01)  # what is on its way out tells nobody when it has gone
        assert not left, f"left behind: {left}\n{self.words()}"
        return status

    def words(self) -> str:
        """Return what the server has written."""
        return self._errors.read_text(errors="replace")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        kill_all(self.mark)
        self.process.wait()
        self._listener.close()


@pytest.fixture(params=["sync", "gthread"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server, with each kind of worker that gunicorn has itself."""
    with Server(tmp_path, request.param) as one:
        yield one


def test_preloaded_application(server: Server) -> None:
    """Each worker has pools of its own, though the master's were open when it was forked; all ends with the master."""
    workers = server.ask_all()
    at_import = next(iter(workers.values()))["at_import"]
    assert at_import["values"] == VALUES
    assert at_import["server"] == server.process.pid
    used = [set(answer["processes"]) for answer in workers.values()]
    assert not used[0] & used[1]
    assert not (used[0] | used[1]) & set(at_import["processes"])

    server.process.send_signal(signal.SIGHUP)
    again = server.ask_all(but=frozenset(workers))
    assert not set(again) & set(workers)

    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0, server.words()
    assert "Traceback" not in server.words(), server.words()


def test_killed_worker(server: Server) -> None:
    """A worker that is killed takes its own processes along, and is replaced."""
    workers = server.ask_all()
    gone = next(iter(workers))
    os.kill(gone, signal.SIGKILL)
    again = {}
    while gone in again or len(again) < 2:
        again = server.ask_all(but=frozenset([gone]))
    assert len(set(again) - set(workers)) == 1
    server.process.send_signal(signal.SIGINT)
    assert server.ended() == 0, server.words()


def test_killed_master(server: Server) -> None:
    """When the master is killed its workers end soon, and so do all processes of their pools."""
    server.ask_all()
    server.process.send_signal(signal.SIGKILL)
    assert server.ended() == -signal.SIGKILL

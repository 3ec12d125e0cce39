"""
What the error of a call tells of a worker that has died: how, and what it wrote to standard error last.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from typing import Any

import jobs
import pytest
from crash import kill_jobs
from pools.process_jobs import PATIENCE

from parallel import ProcessPool
from parallel.deaths import WorkerDiedError
from parallel.errors import PoolBrokenError
from parallel.pools.process import board, last_words, peer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def error_of(pool: ProcessPool, fn: Any, *args: Any) -> WorkerDiedError:
    """Return the error of a call whose worker dies."""
    error = pool.submit(fn, *args).exception(PATIENCE)
    assert isinstance(error, WorkerDiedError)
    return error


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_crash(method: str) -> None:
    """A crash tells the signal by its name, and where the function was, without the frames below it."""
    with ProcessPool(1, method) as pool:
        error = error_of(pool, kill_jobs.crash)
    assert error.exit_code == -signal.SIGSEGV
    assert "was killed by SIGSEGV while it ran crash.kill_jobs:crash; the last that it wrote" in str(error)
    assert "Fatal Python error: Segmentation fault" in error.last_words
    assert error.last_words.splitlines()[-1].endswith(" in crash")
    assert "lifeline.py" not in error.last_words


def test_abort() -> None:
    """So does an abort, as by a failed assertion in C."""
    with ProcessPool(1) as pool:
        error = error_of(pool, os.abort)
    assert "was killed by SIGABRT while it ran" in str(error)
    assert "Fatal Python error: Aborted" in error.last_words


def test_words(run_script: Any) -> None:
    """What the worker wrote to `sys.stderr` is told, and stands on standard error as before."""
    result = run_script(
        """
from crash import kill_jobs
from parallel import ProcessPool
if __name__ == "__main__":
    with ProcessPool(1) as pool:
        print(pool.submit(kill_jobs.give_up, "no such device").exception())
"""
    )
    assert "exited with status 3 while it ran" in result.stdout
    assert result.stdout.endswith("\n    warned first\n    no such device\n")
    assert result.stderr == "warned first\nno such device\n"


def test_last_lines() -> None:
    """Of many lines the last are told, and of a long one the end."""
    with ProcessPool(1) as pool:
        words = error_of(pool, kill_jobs.give_up, *map(str, range(3000))).last_words
        assert words.splitlines() == [str(i) for i in range(3000 - last_words.LINES, 3000)]
        assert error_of(pool, kill_jobs.give_up, "x" * 10_000).last_words == "x" * (board.TAIL - 1)


def test_nothing_to_tell() -> None:
    """A worker that has written nothing has no last words."""
    with ProcessPool(1) as pool:
        error = error_of(pool, os._exit, 3)
    assert error.last_words == ""
    assert str(error).endswith(" exited with status 3 while it ran posix:_exit")


def test_other_streams_are_left_alone() -> None:
    """What a forked worker has in the place of standard error stays there."""
    with ProcessPool(1, "fork") as pool:
        assert pool.submit(kill_jobs.type_of_stderr).result(PATIENCE) != "TextIOWrapper over a tee"


def test_without_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shared memory a crash is told without words."""
    monkeypatch.setattr(peer, "make_memory", lambda: None)
    with ProcessPool(1) as pool:
        error = error_of(pool, kill_jobs.crash)
    assert (error.exit_code, error.last_words) == (-signal.SIGSEGV, "")


def test_crash_between_two_calls(caplog: pytest.LogCaptureFixture) -> None:
    """A crash that costs no call is logged."""
    with caplog.at_level(logging.WARNING, "parallel"), ProcessPool(1) as pool:
        worker = pool.submit(jobs.pid).result(PATIENCE)
        os.kill(worker, signal.SIGSEGV)
        assert pool.submit(jobs.pid).result(PATIENCE) != worker
    assert f"worker process {worker} was killed by SIGSEGV between two calls" in caplog.text
    assert "Segmentation fault" in caplog.text


def test_initializer_that_crashes() -> None:
    """The pool that can't go on, as its initializer kills each worker, tells of the crash."""
    with ProcessPool(1, "forkserver", kill_jobs.crash) as pool:
        error = pool.submit(jobs.nothing).exception(PATIENCE)
    assert isinstance(error, PoolBrokenError)
    assert "before they were ready: the last was killed by SIGSEGV; the last that it wrote" in str(error)


def test_the_error_travels() -> None:
    """It comes out of a pickle as it was."""
    error = WorkerDiedError("shop:resize", 7, -11, "giving up")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.last_words) == (str(error), "giving up")

"""
What follows the end of a future: in which order it is told, and on whose thread.
"""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextvars import ContextVar
from subprocess import CompletedProcess
from textwrap import dedent
from typing import Any

import pytest

from parallel import Future, ThreadPool, as_completed, completed

LONG = 30.0
"""Seconds that only a deadlock lasts."""


def test_all_are_told_before_user_code_runs() -> None:
    """A continuation that waits for another branch of the same failure finds it ended."""
    with ThreadPool(1) as pool:
        gate = threading.Event()

        def fail() -> None:
            gate.wait(LONG)
            raise ValueError

        source = pool.submit(fail)
        branch = source.then(str).then(str)
        other = source.then(str).catch(lambda _: branch.exception(timeout=LONG))
        gate.set()
        assert isinstance(other.result(timeout=LONG), ValueError)


@pytest.mark.parametrize("follow", ["then", "callback"])
def test_what_follows_a_helped_call_runs_elsewhere(follow: str) -> None:
    """A worker that runs the awaited call itself doesn't run what follows it: that may want a lock that it holds."""
    lock = threading.Lock()
    followed = threading.Event()

    def use_lock(_: object) -> None:
        with lock:
            followed.set()

    with ThreadPool(1) as pool:

        def wait_with_lock() -> int:
            with lock:
                inner = pool.submit(int)
                if follow == "then":
                    inner.then(use_lock)
                else:
                    inner.add_done_callback(use_lock)
                return inner.result()

        assert pool.submit(wait_with_lock).result(timeout=LONG) == 0
        assert followed.wait(LONG)


def test_futures_that_wait_for_each_other() -> None:
    """Two continuations that return each other's future fail instead of waiting for ever."""
    start: Future[int] = Future()
    one: Future[Any]
    other: Future[Any]
    one = start.then(lambda _: other)
    other = start.then(lambda _: one)
    start.set_result(1)
    errors = {type(future.exception(timeout=LONG)) for future in (one, other)}
    assert errors == {RuntimeError}
    assert not one.cancel()


def test_finally_runs_though_the_end_was_cancelled() -> None:
    """Cancelling the end of a chain doesn't keep a finally_ in its middle from cleaning up."""
    cleaned = threading.Event()
    gate = threading.Event()
    with ThreadPool(1) as pool:
        running = pool.submit(gate.wait, LONG)
        end = running.finally_(cleaned.set).then(str)
        assert end.cancel()
        gate.set()
        assert cleaned.wait(LONG)
    with pytest.raises(CancelledError):
        end.result()


def test_a_signal_handler_ends_what_as_completed_waits_for() -> None:
    """A future that a signal handler ends wakes the loop that waits for it."""
    stop: Future[int] = Future()
    before = signal.signal(signal.SIGALRM, lambda *_: stop.set_result(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert [future.result() for future in as_completed([stop], timeout=LONG)] == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_coroutines_of_one_worker_have_contexts_of_their_own() -> None:
    """A coroutine on a thread sees the variables of its own call, not those of the first one there."""
    variable: ContextVar[int] = ContextVar("variable")

    async def look() -> int:
        return variable.get()

    with ThreadPool(1) as pool:
        seen: list[int] = []
        for number in range(3):
            variable.set(number)
            seen.append(pool.submit(look).then(completed).result(timeout=LONG))  # type: ignore[arg-type]  # a coroutine's value
    assert seen == [0, 1, 2]


def test_awaiting_lends_the_place() -> None:
    """A coroutine on the only thread of a pool may await another call of it."""
    with ThreadPool(1) as pool:

        async def outer() -> int:
            return await pool.submit(int)

        assert pool.submit(outer).result(timeout=LONG) == 0


Runner = Callable[..., CompletedProcess[str]]


def test_stages_at_exit(run_script: Runner) -> None:
    """At exit the later stages of accepted chains run, in pools that had not been opened before, too."""
    script = """
        import sys
        from parallel import LoopPool, task

        @task
        def first(x):
            return x + 1

        @task
        async def second(x):
            sys.stdout.write(f"second {x}\\n")  # in one piece, as two threads write

        async def alone():
            return 3

        if (3, 12) <= sys.version_info < (3, 12, 2):
            task(alone)().result()  # gh-113964: at its exit it starts no thread, so the loop has to be open

        LoopPool().submit(alone).then(lambda x: sys.stdout.write(f"alone {x}\\n"))
        first(1).then(second)
        """
    assert sorted(run_script(dedent(script)).stdout.split("\n")) == ["", "alone 3", "second 2"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_process_calls_at_exit(method: str, run_script: Runner) -> None:
    """A call on processes in the last line of a script runs, though the interpreter has forgotten the script's file."""
    script = f"""
        from parallel import configure, task

        @task(pool="processes")
        def double(x):
            return 2 * x

        if __name__ == "__main__":
            configure({{"pools": {{"processes": {{"mp_context": {method!r}}}}}}})
            double(2).then(print)
        """
    assert run_script(dedent(script), flags=("-W", "ignore::DeprecationWarning")).stdout == "4\n"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_have_the_registrys_configuration(method: str, run_script: Runner) -> None:
    """A task that runs in a process calls tasks in the pools of the registry that its own pool belongs to."""
    script = f"""
        import threading
        from parallel import Registry, task

        @task(pool="special")
        def where():
            return threading.current_thread().name

        @task(pool="processes")
        def ask():
            return where().result()

        if __name__ == "__main__":
            pools = {{"special": {{"kind": "thread"}}, "processes": {{"mp_context": {method!r}}}}}
            with Registry({{"pools": pools}}):
                print(ask().result())
        """
    assert run_script(dedent(script), flags=("-W", "ignore::DeprecationWarning")).stdout == "parallel-special_0\n"

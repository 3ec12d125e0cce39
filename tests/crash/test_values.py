"""
Values that do not travel: each costs its own call, with the reason, and the pool and its worker go on.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jobs
import pytest
from pools import process_jobs
from pools.process_jobs import PATIENCE

from parallel import ProcessPool
from parallel.errors import RemoteError, RemoteTraceback, SerializationError


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    """A pool of one worker, which is the same one at the end."""
    with ProcessPool(1) as one:
        worker = one.submit(jobs.pid).result(PATIENCE)
        yield one
        assert one.submit(jobs.pid).result(PATIENCE) == worker


def error_of(pool: ProcessPool, fn: Callable[..., Any], *args: Any) -> BaseException:
    """Return what the call fails with."""
    error = pool.submit(fn, *args).exception(PATIENCE)
    assert error is not None
    return error


def remote_text(error: BaseException) -> str:
    """Return the traceback that came from the worker."""
    cause = error.__cause__
    assert isinstance(cause, RemoteTraceback)
    return cause.text


# -- arguments --------------------------------------------------------------------------------------------------------


def test_unpicklable_argument(pool: ProcessPool) -> None:
    """An argument that can't be pickled fails its call at once, with the original as the cause."""
    error = error_of(pool, jobs.double, threading.Lock())
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, TypeError)
    assert "the arguments of jobs:double" in str(error)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, MemoryError, RecursionError, TypeError])
def test_reduce_raises(pool: ProcessPool, raised: type[BaseException]) -> None:
    """Whatever pickling an argument raises fails that call only."""
    error = error_of(pool, jobs.double, process_jobs.RaisesInReduce(raised))
    assert isinstance(error, SerializationError)
    assert type(error.__cause__) is raised


def test_endless_argument(pool: ProcessPool) -> None:
    """An argument too deep to be pickled fails its call."""
    error = error_of(pool, jobs.double, process_jobs.nest(100_000))
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, RecursionError | pickle.PicklingError)


def test_unpicklable_function(pool: ProcessPool) -> None:
    """A function that can't be pickled, by value either, fails its call."""
    lock = threading.Lock()
    error = error_of(pool, lambda: lock)
    assert isinstance(error, SerializationError)
    assert "the function" in str(error)


@pytest.mark.parametrize("raised", [ValueError("bad luck"), SystemExit(3), KeyboardInterrupt()])
def test_argument_explodes_on_load(pool: ProcessPool, raised: BaseException) -> None:
    """An argument that can't be loaded in the worker fails its call, with the cause from there."""
    error = error_of(pool, jobs.double, process_jobs.Explosive(raised))
    assert isinstance(error, SerializationError)
    assert type(error.__cause__) is type(raised)
    assert "explode" in remote_text(error.__cause__)


def test_function_that_the_worker_does_not_have(pool: ProcessPool, tmp_path: Any, monkeypatch: Any) -> None:
    """A module that the worker can't import fails the call with that error."""
    (tmp_path / "only_here_now.py").write_text("def fn(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here_now  # type: ignore[import-not-found]  # made above

    error = error_of(pool, only_here_now.fn)
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert "only_here_now" in str(error)


# -- values -----------------------------------------------------------------------------------------------------------


def test_unpicklable_value(pool: ProcessPool) -> None:
    """A value that can't be pickled fails its call."""
    error = error_of(pool, jobs.make_unpicklable)
    assert isinstance(error, SerializationError)
    assert "this one stays at home" in str(error)
    assert isinstance(error.__cause__, TypeError)


def test_endless_value(pool: ProcessPool) -> None:
    """A value too deep to be pickled fails its call."""
    error = error_of(pool, process_jobs.nest, 100_000)
    assert isinstance(error, SerializationError)


def test_value_explodes_on_load(pool: ProcessPool) -> None:
    """A value that can't be loaded here fails its call; it is not the reader's end."""
    for raised in (ValueError("late"), SystemExit(1), KeyboardInterrupt()):
        error = error_of(pool, process_jobs.make_explosive, raised)
        assert isinstance(error, SerializationError)
        assert type(error.__cause__) is type(raised)


def test_memory_error(pool: ProcessPool) -> None:
    """Running out of memory is the call's error, and so it is while its value is pickled."""
    assert isinstance(error_of(pool, process_jobs.too_much), MemoryError)
    error = error_of(pool, process_jobs.make_too_much)
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, MemoryError)


def test_lambda_as_value(pool: ProcessPool) -> None:
    """A value that only cloudpickle can pickle comes back."""
    made = pool.submit(lambda: lambda x: x + 1).result(PATIENCE)
    assert made(1) == 2


# -- exceptions -------------------------------------------------------------------------------------------------------


def test_error_comes_back_as_itself(pool: ProcessPool) -> None:
    """An exception keeps its type; the worker's traceback is its cause, and begins with the user's function."""
    error = error_of(pool, jobs.divide, 1, 0)
    assert type(error) is ZeroDivisionError
    text = remote_text(error)
    assert "in divide" in text
    assert "parallel/pools" not in text
    assert text.startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("fn", [jobs.leave, jobs.interrupt])
def test_exits_are_errors(pool: ProcessPool, fn: Callable[[], Any]) -> None:
    """SystemExit and KeyboardInterrupt raised by a call are its exception, and the worker stays."""
    assert isinstance(error_of(pool, fn), SystemExit | KeyboardInterrupt)


def test_other_arguments(pool: ProcessPool) -> None:
    """An exception whose constructor takes other arguments comes back as itself, its attributes too."""
    error = error_of(pool, jobs.raise_other_arguments)
    assert type(error) is jobs.OtherArgumentsError
    assert (str(error), error.code) == ("404: not found", 404)
    assert "raise_other_arguments" in remote_text(error)


def test_unpicklable_error(pool: ProcessPool) -> None:
    """An exception that can't be pickled has a stand-in."""
    error = error_of(pool, jobs.raise_unpicklable)
    assert isinstance(error, RemoteError)
    assert error.type_name == "jobs:UnpicklableError"
    assert error.message == "broken pipe dream"
    assert "raise_unpicklable" in error.traceback_text
    assert "raise_unpicklable" in remote_text(error)


def test_frozen_error(pool: ProcessPool) -> None:
    """An exception whose attributes can't be set comes back as itself."""
    error = error_of(pool, jobs.raise_frozen)
    assert type(error) is jobs.FrozenError
    assert error.code == 7
    assert "raise_frozen" in remote_text(error)


def test_falsy_error(pool: ProcessPool) -> None:
    """An exception that is false is an exception."""
    assert type(error_of(pool, jobs.raise_falsy)) is jobs.FalsyError


def test_weird_error(pool: ProcessPool) -> None:
    """An exception that can't be compared comes back."""
    assert type(error_of(pool, jobs.raises, jobs.WeirdError("odd"))) is jobs.WeirdError


def test_text_is_not_built_twice(pool: ProcessPool) -> None:
    """An exception that builds its text from its argument keeps the text that it had."""
    error = error_of(pool, process_jobs.raise_http, 404)
    assert type(error) is process_jobs.HttpError
    assert (str(error), error.status) == ("HTTP 404", 404)


def test_notes_and_causes(pool: ProcessPool) -> None:
    """Notes survive; causes are in the text."""
    error = error_of(pool, process_jobs.raise_noted)
    assert error.__notes__ == ["seen at night"]
    assert "KeyError: 'inner'" in remote_text(error)
    assert "direct cause" in remote_text(error)


def test_group(pool: ProcessPool) -> None:
    """A group of exceptions comes back with its members."""
    error = error_of(pool, process_jobs.raise_group)
    assert isinstance(error, ExceptionGroup)
    assert [type(one) for one in error.exceptions] == [ValueError, FileNotFoundError]


def test_error_explodes_on_load(pool: ProcessPool) -> None:
    """An exception that could be loaded in the worker, but not here, has a stand-in."""
    error = error_of(pool, process_jobs.raise_explosive)
    assert isinstance(error, RemoteError)
    assert error.type_name == "pools.process_jobs:ExplosiveError"
    assert error.message == "boom"


def test_error_without_text(pool: ProcessPool) -> None:
    """An exception that can do nothing right still ends its call."""
    error = error_of(pool, process_jobs.raise_textless)
    assert isinstance(error, RemoteError)
    assert "TextlessError" in error.type_name


def test_endless_recursion(pool: ProcessPool) -> None:
    """A RecursionError comes back as itself."""
    assert type(error_of(pool, process_jobs.recurse)) is RecursionError


def test_traceback_does_not_grow(pool: ProcessPool) -> None:
    """Asking for the result again and again leaves the traceback as it was."""
    future = pool.submit(jobs.divide, 1, 0)
    depths = []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            future.result(PATIENCE)
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1


def test_faults_cost_nobody_else(pool: ProcessPool) -> None:
    """Among faults of all kinds, every other call has its value."""
    faults: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (jobs.double, (threading.Lock(),)),
        (jobs.double, (process_jobs.Explosive(ValueError()),)),
        (jobs.make_unpicklable, ()),
        (process_jobs.make_explosive, (SystemExit(),)),
        (process_jobs.raise_explosive, ()),
        (jobs.raise_unpicklable, ()),
    ]
    good, bad = [], []
    for i in range(60):
        fn, args = faults[i % len(faults)]
        bad.append(pool.submit(fn, *args))
        good.append(pool.submit(jobs.double, i))
    assert [future.result(PATIENCE) for future in good] == [i * 2 for i in range(60)]
    assert all(future.exception(PATIENCE) is not None for future in bad)

"""
The exceptions: they survive pickle, have a text, and are what callers already catch.
"""

import concurrent.futures
import copy
import pickle
import queue
from concurrent.futures.process import BrokenProcessPool

import pytest

from parallel import errors
from parallel.deaths import WorkerDiedError
from parallel.errors import ParallelError

SAMPLES: list[tuple[ParallelError, type[BaseException], str]] = [
    (errors.ConfigError("p.toml", ["a: b", "c: d"]), ValueError, "p.toml: 2 mistakes\n  a: b\n  c: d"),
    (errors.UnknownPoolError("gpu", ["disk", "net"]), LookupError, "no pool named 'gpu'; known: disk, net"),
    (
        errors.UnknownPoolError("thread", ["threads"], "shop:pay"),
        LookupError,
        "mean 'threads'?) (asked for by shop:pay",
    ),
    (errors.PoolShutdownError("thread pool 'io'"), RuntimeError, "thread pool 'io' has been shut down"),
    (errors.PoolBrokenError("the pool", "why"), concurrent.futures.BrokenExecutor, "the pool is broken: why"),
    (errors.SerializationError("x", "why", "do y"), pickle.PickleError, "x can't travel between processes: why; do y"),
    (errors.UnrecordableError("x", "why", "do y"), pickle.PickleError, "x can't be written into a journal: why; do y"),
    (errors.JournalError("a.sqlite", "is none"), RuntimeError, "the journal 'a.sqlite' is none"),
    (errors.JournalLockedError("a", "process 7"), RuntimeError, "the journal 'a' is in use by a run in process 7"),
    (errors.RemoteError("m:E", "text", "Traceback"), ParallelError, "m:E: text"),
    (errors.RemoteTraceback("Traceback"), ParallelError, "Traceback"),
    (errors.ForkedError(), RuntimeError, "make the call again"),
    (errors.TaskTimeoutError("shop:fetch", 2.5, "timeout"), TimeoutError, "ran longer than its timeout of 2.5 s"),
    (errors.TaskTimeoutError("shop:fetch", 10, "deadline"), TimeoutError, "did not end within its deadline of 10 s"),
    (errors.TaskTimeoutError("a call", 1, "with_timeout"), TimeoutError, "was not there after 1 s"),
    (errors.PoolFullError("thread pool 'io'", 8), queue.Full, "max_pending = 8"),
    (errors.NoTaskError(), RuntimeError, "no call is running here"),
    (errors.NoTaskError("no item is"), RuntimeError, "no item is"),
    (errors.LeakError(["a", "b"]), AssertionError, "left behind at the end of the test:\n  a\n  b"),
    (errors.GroupClosedError(), RuntimeError, "with detached()"),
    (errors.MapHaltedError("m:f", 3, 20), Exception, "3 of 20 items have failed"),
    (errors.NestedPoolError("big"), RuntimeError, "'big' was asked for in a worker process"),
    (errors.StarvationError("a pool", 256), RuntimeError, "256 workers of a pool wait"),
    (errors.UnsuitableFunctionError("m:f", "is no good"), TypeError, "m:f is no good"),
    (errors.DeadlockError("the loop", "wait for f", "await it"), RuntimeError, "the loop was to wait for f; await it"),
    (WorkerDiedError("m:f", 12, -9), BrokenProcessPool, "worker process 12 was killed by SIGKILL"),
    (WorkerDiedError("m:f", 12, 3), BrokenProcessPool, "exited with status 3 while it ran m:f"),
    (WorkerDiedError("m:f", 12, -250), BrokenProcessPool, "was killed by signal 250"),
    (WorkerDiedError("m:f", 12, None), BrokenProcessPool, "worker process 12 died"),
]


@pytest.mark.parametrize(("error", "standard", "text"), SAMPLES, ids=lambda value: type(value).__name__)
def test_errors(error: ParallelError, standard: type[BaseException], text: str) -> None:
    """Each tells what was asked and found, and is the standard class too."""
    assert text in str(error)
    assert isinstance(error, standard)


@pytest.mark.parametrize("error", [sample[0] for sample in SAMPLES], ids=lambda error: type(error).__name__)
def test_errors_travel(error: ParallelError) -> None:
    """Each survives pickle and copy unchanged, in every protocol."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert (again.args, vars(again), str(again)) == (error.args, vars(error), str(error))
    assert str(copy.copy(error)) == str(error)


def test_every_error_is_sampled() -> None:
    """No exception class of the library is left out above."""
    classes = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ParallelError)}
    assert classes - {ParallelError} <= {type(sample[0]) for sample in SAMPLES}

"""
What workers log arrives in the logging of the pool's process; what they print comes out in whole lines.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pools import log_jobs
from pools.log_jobs import LOGGER

from parallel import NestedPoolError, ProcessPool, ThreadPool, WorkerDiedError, task, using

LONG = 30  # seconds; only a deadlock takes so long
METHODS = ["fork", "forkserver", "spawn"]


class Notes(logging.Handler):
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self) -> list[str]:
        """Return what the records say."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def notes() -> Iterator[Notes]:
    """A handler of the workers' logger, which handles from INFO on."""
    handler = Notes()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)


@pytest.mark.parametrize("method", METHODS)
def test_records_arrive(notes: Notes, method: str) -> None:
    """A record arrives once, with its process, its text and its level; what is below the level here doesn't."""
    with ProcessPool(1, method) as pool:
        pid = pool.submit(log_jobs.log, logging.INFO, "%s: %d left", "pear", 3).result(LONG)
        pool.submit(log_jobs.log, logging.DEBUG, "not this").result(LONG)
    (record,) = notes.records
    assert record.getMessage() == "pear: 3 left"
    assert (record.levelname, record.name, record.process) == ("INFO", "shop.stock", pid)
    assert pid != os.getpid()
    assert record.funcName == "log"


def test_levels_travel(notes: Notes) -> None:
    """Loggers have the levels in a worker that they have here when it starts."""
    quiet = logging.getLogger("shop.quiet")
    quiet.setLevel(logging.CRITICAL)
    try:
        with ProcessPool(1, "spawn") as pool:
            assert pool.submit(log_jobs.levels).result(LONG) == (logging.INFO, logging.CRITICAL, logging.root.level)
    finally:
        quiet.setLevel(logging.NOTSET)


def test_exceptions_arrive_as_text(notes: Notes) -> None:
    """The traceback of a logged exception arrives, for handlers to format."""
    with ProcessPool(1) as pool:
        pool.submit(log_jobs.log_failure).result(LONG)
    (record,) = notes.records
    assert record.exc_info is None
    assert record.exc_text is not None
    assert record.exc_text.endswith("OSError: disk on fire")
    assert logging.Formatter().format(record).count("disk on fire") == 2  # in the source line, and in the error


def test_extra_arrives(notes: Notes) -> None:
    """What was added to a record arrives; what can't travel as its repr."""
    with ProcessPool(1) as pool:
        pool.submit(log_jobs.log_extra).result(LONG)
    (record,) = notes.records
    assert (vars(record)["order"], vars(record)["thing"]) == (17, "<something>")


def test_many_records_of_many_threads(notes: Notes) -> None:
    """Records of several threads of a worker all arrive, those of a thread in order, beside the answers."""
    with ProcessPool(2) as pool:
        futures = [pool.submit(log_jobs.log_much, 200) for _ in range(2)]
        values = [pool.submit(abs, -number) for number in range(500)]
        assert [value.result(LONG) for value in values] == list(range(500))
        for future in futures:
            future.result(LONG)
    assert len(notes.records) == 2 * 4 * 200
    for pid in {record.process for record in notes.records}:
        for thread in range(4):
            said = [record.getMessage().split() for record in notes.records if record.process == pid]
            assert [int(number) for one, number, *_ in said if one == str(thread)] == list(range(200))


def test_last_words_arrive(notes: Notes) -> None:
    """What a worker has logged before its death arrives."""
    with ProcessPool(1) as pool, pytest.raises(WorkerDiedError):
        pool.submit(log_jobs.log_and_die).result(LONG)
    assert notes.texts() == ["goodbye"]


def test_initializers_may_log(notes: Notes) -> None:
    """What an initializer logs arrives as well."""
    with ProcessPool(1, initializer=log_jobs.log_at_start) as pool:
        pool.submit(abs, -1).result(LONG)
    assert notes.texts() == ["starting"]


def test_forked_child_logs_to_standard_error(run_script: Any) -> None:
    """A child that a call forks doesn't use the worker's connection: it logs to standard error."""
    result = run_script(
        """
import logging, os
from parallel import ProcessPool

def fork():
    if os.fork() == 0:
        logging.getLogger("x").warning("from the child")
        os._exit(0)
    return os.wait()[1]

if __name__ == "__main__":
    logging.basicConfig(format="handled here: %(message)s")
    with ProcessPool(1) as pool:
        print(pool.submit(fork).result(), pool.submit(abs, -1).result())
"""
    )
    assert (result.stdout, result.stderr) == ("0 1\n", "from the child\n")


def test_slow_handler_holds_nothing_up() -> None:
    """A handler that blocks holds up no call; shutdown waits for it."""
    began, goes_on = threading.Event(), threading.Event()

    class Slow(Notes):
        def emit(self, record: logging.LogRecord) -> None:
            began.set()
            assert goes_on.wait(LONG)
            super().emit(record)

    handler = Slow()
    LOGGER.addHandler(handler)
    try:
        with ProcessPool(1) as pool:
            pool.submit(log_jobs.log, logging.WARNING, "one").result(LONG)
            assert began.wait(LONG)
            assert pool.submit(log_jobs.log, logging.WARNING, "two").result(LONG)
            assert handler.records == []
            goes_on.set()
    finally:
        LOGGER.removeHandler(handler)
    assert handler.texts() == ["one", "two"]


def test_handler_that_raises(notes: Notes) -> None:
    """A filter that raises costs its record, and no other."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage() == "one":
            raise SystemExit
        return True

    LOGGER.addFilter(refuse)
    parallel_notes = Notes()
    logging.getLogger("parallel").addHandler(parallel_notes)
    try:
        with ProcessPool(1, forward_logs=True) as pool:
            for text in ("one", "two"):
                pool.submit(log_jobs.log, logging.WARNING, text).result(LONG)
    finally:
        LOGGER.removeFilter(refuse)
        logging.getLogger("parallel").removeHandler(parallel_notes)
    assert notes.texts() == ["two"]
    assert parallel_notes.texts() == ["a log record of a worker process could not be handled"]


def test_handler_may_shut_the_pool_down() -> None:
    """A handler that shuts the pool down doesn't wait for itself."""
    done = threading.Event()

    class Closing(Notes):
        def emit(self, record: logging.LogRecord) -> None:
            pool.shutdown(wait=True)
            done.set()

    handler = Closing()
    LOGGER.addHandler(handler)
    try:
        pool = ProcessPool(1)
        pool.submit(log_jobs.log, logging.WARNING, "one").result(LONG)
        assert done.wait(LONG)
        pool.shutdown()
    finally:
        LOGGER.removeHandler(handler)


@pytest.mark.parametrize("said", [False, True])
def test_said(notes: Notes, said: bool) -> None:
    """A worker that is to forward nothing is left alone, whatever the program's logging is."""
    with ProcessPool(1, "spawn", forward_logs=said) as pool:
        assert pool.submit(log_jobs.forwards).result(LONG) is said


def test_only_where_logging_is_set_up(run_script: Any) -> None:
    """A program that has not set up its logging has workers that log as any process does."""
    script = """
import logging
from parallel import ProcessPool

def warn():
    logging.getLogger("x").warning("careful")

if __name__ == "__main__":
    {setup}
    with ProcessPool(1) as pool:
        pool.submit(warn).result()
"""
    assert run_script(script.format(setup="pass")).stderr == "careful\n"
    configured = run_script(script.format(setup="logging.basicConfig(format='%(processName)s|%(message)s')"))
    assert configured.stderr.endswith("worker-1|careful\n")


def test_printed_lines_come_at_once(run_script: Any) -> None:
    """What workers print into a pipe comes when it is printed, in whole lines."""
    result = run_script(
        """
from parallel import ProcessPool

def say(number):
    print("line", number, "x" * 100)
    print("line", number, "y" * 100)

if __name__ == "__main__":
    pool = ProcessPool(2)
    for future in [pool.submit(say, number) for number in range(200)]:
        future.result()
    print("the end", flush=True)
    pool.shutdown()
""",
        env={"PYTHONUNBUFFERED": ""},
    )
    lines = result.stdout.splitlines()
    assert lines[-1] == "the end"
    assert len(lines) == 401
    assert all(line.startswith("line ") and len(set(line.split()[2])) == 1 for line in lines[:-1])


# -- pools in workers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", ["inline", "thread"])
def test_nested(nested: str) -> None:
    """In a worker, a pool of processes runs its calls inline, or on threads."""
    pools = {"one": {"kind": "process", "max_workers": 1, "nested": nested}}
    with using({"pools": pools}):
        outer, inner = task(pool="one")(log_jobs.nested_where)("one").result(LONG)
    assert outer[0] == inner[0] != os.getpid()
    assert (outer[1] == inner[1]) is (nested == "inline")


def test_nested_is_an_error() -> None:
    """Where it is forbidden, the call inside the worker raises."""
    pools = {"one": {"kind": "process", "max_workers": 1, "nested": "error"}}
    with using({"pools": pools}):
        error = task(pool="one")(log_jobs.nested_where)("one").exception(LONG)
    assert isinstance(error, NestedPoolError)
    assert error.pool == "one"


def test_thread_pool_in_a_worker() -> None:
    """Other pools are in a worker what they are elsewhere."""
    with using({"pools": {"one": {"kind": "process", "max_workers": 1}}}):
        outer, inner = task(pool="one")(log_jobs.nested_where)("threads").result(LONG)
    assert outer[0] == inner[0]
    assert outer[1] != inner[1]
    with ThreadPool(1) as pool:
        assert pool.submit(os.getpid).result(LONG) == os.getpid()

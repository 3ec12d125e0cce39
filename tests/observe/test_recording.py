"""
Recordings: what calls do is put down as it was, and costs nothing when nobody looks.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jobs
import pytest
from observe import seen_jobs

from parallel import (
    InlinePool,
    LoopPool,
    Pool,
    ProcessPool,
    Registry,
    TaskGroup,
    TaskTimeoutError,
    ThreadPool,
    WorkerDiedError,
    gather,
    record,
    task,
    trail,
    using,
)
from parallel.observe.recording import CANCELED, FAILED, MOST, RETRIED, RUNNING, SUCCEEDED, WAITING, Recording
from parallel.observe.traces import trace_events

LONG = 30.0


class Row(NamedTuple):
    """An attempt, as the table has it."""

    id: int
    task: str
    pool: str
    lane: str
    created: int
    queued: int
    started: int
    ended: int
    state: int
    attempt: int
    items: int
    parent: int
    error: str


def rows_of(table: dict[str, Any]) -> list[Row]:
    """Return the attempts, with names in place of numbers."""
    rows: list[Row] = []
    for number, values in enumerate(zip(*table["calls"].values(), strict=True)):
        call = dict(zip(table["calls"], values, strict=True))
        call["task"] = table["tasks"][call["task"]].rpartition(":")[2]
        call["pool"] = table["pools"][call["pool"]]["name"]
        call["lane"] = table["lanes"][call["lane"]]["name"] if call["lane"] >= 0 else ""
        rows.append(Row(**call, error=table["errors"].get(str(number), "")))
    return rows


class Seen:
    """A recording that is going on."""

    def __init__(self, most: int = MOST) -> None:
        self.recording = Recording(most)
        self.recording.start()
        self.table: dict[str, Any] = {}

    def stop(self) -> list[Row]:
        """End it; return the attempts."""
        self.recording.stop()
        self.table = self.recording.table("a test")
        json.dumps(self.table)  # it can be written
        return rows_of(self.table)


@pytest.fixture
def seen() -> Iterator[Seen]:
    """A recording of the test."""
    seen = Seen()
    yield seen
    seen.stop()
    assert trail.current is None


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The built-in pools."""
    with Registry({}) as registry, using(registry):
        yield registry


POOLS: dict[str, Callable[[], Pool]] = {
    "thread": lambda: ThreadPool(2),
    "process": lambda: ProcessPool(2),
    "loop": lambda: LoopPool(),
    "inline": lambda: InlinePool(),
    "gated": lambda: ThreadPool(2, max_pending=100),
}


@pytest.mark.parametrize("kind", POOLS)
def test_each_call_once(kind: str, seen: Seen) -> None:
    """Of every kind of pool; with its times in order, and its worker."""
    fn: Any = seen_jobs.later if kind == "loop" else seen_jobs.double
    with POOLS[kind]() as pool:
        futures = [pool.submit(fn, number) for number in range(50)]
        assert len(gather(*futures).result(timeout=LONG)) == 50
    rows = seen.stop()
    assert len(rows) == 50
    assert {row.task for row in rows} == {fn.__name__}
    assert len({row.id for row in rows}) == 50
    for row in rows:
        assert (row.state, row.attempt, row.items, row.parent, row.error) == (SUCCEEDED, 1, 1, -1, "")
        assert 0 <= row.created <= row.queued <= row.started <= row.ended <= seen.table["duration"]
        assert row.lane


def test_bars_are_as_long_as_their_calls(registry: Registry, seen: Seen) -> None:
    """On a thread, in a process and on a loop; those of a worker don't overlap."""
    for pool in ("threads", "processes"):
        gather(*(task(pool=pool)(seen_jobs.nap)(0.05) for _ in range(6))).result(timeout=LONG)
    rows = seen.stop()
    assert all(49_000 < row.ended - row.started < 3_000_000 for row in rows)
    for lane in {row.lane for row in rows}:
        mine = sorted((row for row in rows if row.lane == lane), key=lambda row: row.started)
        assert all(one.ended <= other.started for one, other in itertools.pairwise(mine))


def test_coroutines_have_lanes_of_their_own(registry: Registry, seen: Seen) -> None:
    """As many as run at a time on the one thread."""
    gather(*(task(seen_jobs.later)(number) for number in range(10))).result(timeout=LONG)
    rows = seen.stop()
    assert {row.lane for row in rows} == {f"loop {number}" for number in range(1, 11)}


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_failure(pool: str, registry: Registry, seen: Seen) -> None:
    """Says what was raised; `then` passes it on, and is no call."""
    future = task(pool=pool)(seen_jobs.fail)(1).then(str)
    assert isinstance(future.exception(timeout=LONG), ValueError)
    [row] = seen.stop()
    assert (row.state, row.error) == (FAILED, "ValueError: no 1")
    assert row.started > 0


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_cancelled_while_it_waits(pool: str, seen: Seen) -> None:
    """It has never begun."""
    with (
        Registry({"pools": {pool: {"kind": "thread" if pool == "threads" else "process", "max_workers": 1}}}) as one,
        using(one),
        jobs.Gate() as gate,
    ):
        held = task(pool=pool)(jobs.wait_at)(gate.address)
        gate.arrived(1)
        waits = task(pool=pool)(seen_jobs.double)(1)
        assert waits.cancel()
        gate.open()
        held.result(timeout=LONG)
    rows = seen.stop()
    assert (rows[1].state, rows[1].started) == (CANCELED, -1)
    assert rows[1].ended >= rows[1].created


def test_attempts(registry: Registry, seen: Seen) -> None:
    """Each has a row; the call and its number are the same."""
    assert isinstance(seen_jobs.flaky().exception(timeout=LONG), OSError)
    rows = seen.stop()
    assert [(row.attempt, row.state) for row in rows] == [(1, RETRIED), (2, RETRIED), (3, FAILED)]
    assert len({(row.id, row.created) for row in rows}) == 1
    assert all(one.ended <= other.queued <= other.started for one, other in itertools.pairwise(rows))
    assert {row.error for row in rows} == {"OSError: not yet"}


@pytest.mark.parametrize("pool", ["threads", "processes", "loop"])
def test_an_overrun(pool: str, registry: Registry, seen: Seen) -> None:
    """Ends when its time is over."""
    fn: Any = seen_jobs.later_nap if pool == "loop" else seen_jobs.nap
    future = task(pool=pool, timeout=0.2)(fn)(0.6)
    assert isinstance(future.exception(timeout=LONG), TaskTimeoutError)
    registry.shutdown()
    [row] = seen.stop()
    assert row.state == FAILED
    assert row.error.startswith("TaskTimeoutError")
    assert row.ended - row.started < 2_000_000


def test_a_worker_that_dies(registry: Registry, seen: Seen) -> None:
    """Is marked, with its call."""
    assert isinstance(task(pool="processes")(seen_jobs.die)().exception(timeout=LONG), WorkerDiedError)
    [row] = seen.stop()
    assert row.state == FAILED
    assert "SIGKILL" in row.error
    assert 0 < row.started <= row.ended
    [died] = [mark for mark in seen.table["marks"] if mark["kind"] == "worker_died"]
    assert "SIGKILL" in died["text"]
    assert seen.table["lanes"][died["lane"]]["name"] == row.lane
    assert any(mark["kind"] == "worker_started" for mark in seen.table["marks"])


def test_calls_in_calls(registry: Registry, seen: Seen) -> None:
    """Know which one has made them."""
    assert seen_jobs.outer(1).result(timeout=LONG) == 4
    rows = seen.stop()
    [number] = [number for number, row in enumerate(rows) if row.task == "outer"]
    assert {row.task: row.parent for row in rows} == {"outer": -1, "on_thread": number, "in_process": number}


def test_chains(registry: Registry, seen: Seen) -> None:
    """Are tied, whether a task follows or a plain function, which is seen too."""
    end = seen_jobs.on_thread(1).then(seen_jobs.in_process).then(seen_jobs.double).then(seen_jobs.on_thread)
    assert end.result(timeout=LONG) == 16
    rows = seen.stop()
    names = [(rows[source].task, rows[target].task, how) for source, target, how in seen.table["links"]]
    assert names == [
        ("on_thread", "in_process", "then"),
        ("in_process", "double", "then"),
        ("double", "on_thread", "then"),
    ]
    assert all(row.parent == -1 for row in rows)


def test_futures_as_arguments(registry: Registry, seen: Seen) -> None:
    """Tie calls as well; who waits for them isn't queued."""
    slow = task(pool="threads")(seen_jobs.nap)(0.05)
    waits: Any = task(pool="threads")(seen_jobs.total)
    assert waits([slow, seen_jobs.on_thread(1)]).result(timeout=LONG) == 2
    rows = seen.stop()
    [waited] = [number for number, row in enumerate(rows) if row.task == "total"]
    tied = {rows[source].task for source, target, how in seen.table["links"] if (target, how) == (waited, "argument")}
    assert tied == {"nap", "on_thread"}
    assert rows[waited].queued >= rows[0].ended


def test_a_limit(registry: Registry, seen: Seen) -> None:
    """Who waits for a place is not queued."""
    limited = task(pool="threads", limit=1)(seen_jobs.nap)
    gather(*(limited(0.02) for _ in range(4))).result(timeout=LONG)
    rows = sorted(seen.stop(), key=lambda row: row.started)
    assert all(one.ended <= other.queued for one, other in itertools.pairwise(rows))


@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_a_map(pool: str, registry: Registry, seen: Seen) -> None:
    """Is seen in pieces that know how many items they have."""
    fn = task(pool=pool)(seen_jobs.double)
    assert sum(fn.map(range(10_000)).result(timeout=LONG)) == 99_990_000
    rows = seen.stop()
    assert sum(row.items for row in rows) == 10_000
    assert {row.task for row in rows} == {"double"}
    assert len(rows) < 5_000


def test_groups(registry: Registry, seen: Seen) -> None:
    """Calls in groups are seen like others."""
    with TaskGroup():
        for number in range(5):
            seen_jobs.on_thread(number)
    rows = seen.stop()
    assert [row.state for row in rows] == [SUCCEEDED] * 5


def test_what_is_left(registry: Registry) -> None:
    """What runs, or waits, at the end is shown so."""
    with Registry({"pools": {"one": {"kind": "thread", "max_workers": 1}}}) as one, using(one), jobs.Gate() as gate:
        seen = Seen()
        held = task(pool="one")(jobs.wait_at)(gate.address)
        gate.arrived(1)
        waits = task(pool="one")(seen_jobs.double)(1)
        rows = seen.stop()
        gate.open()
        gather(held, waits).result(timeout=LONG)
    assert [row.state for row in rows] == [RUNNING, WAITING]
    assert [row.ended for row in rows] == [-1, -1]


def test_a_refused_call(seen: Seen) -> None:
    """Is not left waiting."""
    with Registry({}) as registry, using(registry):
        registry.pool("threads").shutdown()
        with pytest.raises(RuntimeError):
            seen_jobs.on_thread(1)
    [row] = seen.stop()
    assert row.state == FAILED


def test_the_most(registry: Registry) -> None:
    """Of what comes then only the number is kept."""
    seen = Seen(most=10)
    gather(*(seen_jobs.on_thread(number) for number in range(25))).result(timeout=LONG)
    assert len(seen.stop()) == 10
    assert seen.table["dropped"] == 15


def test_two_at_once(registry: Registry) -> None:
    """Each gets what happened in its time."""
    first = Seen()
    seen_jobs.on_thread(1).result(timeout=LONG)
    second = Seen()
    seen_jobs.on_thread(2).result(timeout=LONG)
    assert len(first.stop()) == 2
    seen_jobs.on_thread(3).result(timeout=LONG)
    assert len(second.stop()) == 2
    assert trail.current is None


def test_nothing_is_noted_when_nobody_looks(registry: Registry) -> None:
    """Then calls are made as ever, and no thread of the trail is there."""
    Seen().stop()
    assert type(seen_jobs.on_thread(1)).__name__ == "Future"
    seen_jobs.in_process(1).result(timeout=LONG)
    assert "parallel-trail" not in [thread.name for thread in threading.enumerate() if not thread.daemon]
    assert trail.current is None


def test_a_forked_child_is_not_recorded(registry: Registry, seen: Seen, in_fork: Callable[..., Any]) -> None:
    """It has no follower, and works."""

    def child() -> tuple[bool, int]:
        return trail.current is None, seen_jobs.on_thread(1).result(timeout=LONG)

    assert in_fork(child) == (True, 2)
    assert seen_jobs.on_thread(2).result(timeout=LONG) == 4
    assert len(seen.stop()) == 1


def test_an_error_without_a_text(registry: Registry, seen: Seen) -> None:
    """User code that fails while its error is put down costs nothing but the text."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise Mute

    assert isinstance(task(pool="threads")(fail)().exception(timeout=LONG), Mute)
    [row] = seen.stop()
    assert row.error == "Mute"


def test_a_follower_that_fails(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """Is logged; others get their steps."""

    def fail(steps: list[trail.Step]) -> None:
        raise RuntimeError("full")

    trail.follow(fail)
    seen = Seen()
    with caplog.at_level(logging.CRITICAL, "parallel"):
        seen_jobs.on_thread(1).result(timeout=LONG)
        assert len(seen.stop()) == 1
    trail.leave(fail)
    trail.leave(fail)
    assert trail.current is None


# -- files -------------------------------------------------------------------------------------------------------------


def test_trace_events(registry: Registry, seen: Seen) -> None:
    """Are what the format says."""
    seen_jobs.outer(1).result(timeout=LONG)
    seen_jobs.on_thread(1).then(seen_jobs.in_process).result(timeout=LONG)
    seen_jobs.flaky().exception(timeout=LONG)
    seen.stop()
    events = trace_events(seen.table)["traceEvents"]
    count = Counter(event["ph"] for event in events)
    assert count["X"] == len(seen.table["calls"]["id"])
    assert count["s"] == count["f"] == 1
    named = {(event["pid"], event["tid"]) for event in events if event["ph"] == "M"}
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= event.keys()
        if event["ph"] in "Xsfi":
            assert isinstance(event["ts"], int) and event["ts"] >= 0
            assert (event["pid"], event["tid"]) in named
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["args"]["waited_us"] >= 0
    processes = {lane["process"] for lane in seen.table["lanes"] if lane["process"]}
    assert len(processes) >= 1
    tracks = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert tracks.keys() == {os.getpid(), *processes}, "each process has a track of its own"
    assert {tracks[pid] for pid in processes} == {"process pool processes"}
    ran_by = {event["pid"] for event in events if event["ph"] == "X" and event["name"].endswith(":in_process")}
    assert ran_by <= processes


def test_record(registry: Registry, tmp_path: Path) -> None:
    """The file is there at the end of the block, also after an error."""
    file = tmp_path / "run.json"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), record(file):
        seen_jobs.in_process(1).result(timeout=LONG)
        raise ZeroDivisionError
    events = json.loads(file.read_text())["traceEvents"]
    assert [event["name"].rpartition(":")[2] for event in events if event["ph"] == "X"] == ["in_process"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_relative_path(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means the folder in which the block begins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    with record("run.json"):
        monkeypatch.chdir(tmp_path / "other")
    assert (tmp_path / "run.json").exists()


def test_a_file_that_can_not_be(tmp_path: Path) -> None:
    """Is told before anything is recorded."""
    with pytest.raises(ValueError, match=r"has to end in one of .*\.json"), record(tmp_path / "run.txt"):
        pass
    with pytest.raises(FileNotFoundError, match="there is no folder"), record(tmp_path / "nowhere" / "run.json"):
        pass
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(PermissionError), record(tmp_path / "folder.json"):
        pass
    assert trail.current is None


PROGRAM = """
from parallel import gather, task

@task(pool="processes")
def square(number):
    return number * number

if __name__ == "__main__":
    print(gather(*map(square, range(5))).result())
    last = square(5)
"""


def test_a_whole_program(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """`$PARALLEL_TRACE` has it recorded, to what is run at its exit; its workers record nothing."""
    done = run_script(PROGRAM, env={"PARALLEL_TRACE": str(tmp_path / "run-{pid}.json")}, timeout=60)
    assert done.stdout == "(0, 1, 4, 9, 16)\n"
    [file] = tmp_path.glob("run-*.json")
    events = json.loads(file.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 6


def test_a_whole_program_to_nowhere(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """A path that can't be is told at the start, with the variable's name."""
    done = run_script(PROGRAM, env={"PARALLEL_TRACE": str(tmp_path / "run.txt")}, status=1, timeout=60)
    assert "ValueError: $PARALLEL_TRACE: a recording can't be written to" in done.stderr

"""
What a recording comes to: figures, and what held the program back.
"""

from __future__ import annotations

from typing import Any

import pytest
from observe import seen_jobs

from parallel import Registry, gather, task, using
from parallel.observe.recording import CANCELED, FAILED, RETRIED, SUCCEEDED, Recording
from parallel.observe.summary import as_text, summarize

LONG = 30  # seconds; only a deadlock takes so long
S = 1_000_000  # microseconds


def table(*rows: tuple[int, int, int], workers: int = 2, kind: str = "thread", cpus: int = 8) -> dict[str, Any]:
    """A recording of one task in one pool: of each call, when it was made, began (-1: never) and ended."""
    count = len(rows)
    return {
        "duration": max((row[2] for row in rows), default=0),
        "cpus": cpus,
        "dropped": 0,
        "tasks": ["shop:load"],
        "pools": [{"name": "io", "kind": kind, "max_workers": workers}],
        "calls": {
            "task": [0] * count,
            "pool": [0] * count,
            "state": [SUCCEEDED] * count,
            "created": [row[0] for row in rows],
            "queued": [row[0] for row in rows],
            "started": [row[1] for row in rows],
            "ended": [row[2] for row in rows],
        },
    }


def test_figures() -> None:
    """Attempts that were followed by another count as such; a call that never began has no times."""
    made = table((0, 0, S), (0, S, 3 * S), (0, 2 * S, 6 * S), (0, -1, 4 * S))
    made["calls"]["state"] = [RETRIED, SUCCEEDED, FAILED, CANCELED]
    summary = summarize(made)
    [one] = summary.tasks
    assert (one.task, one.pool, one.calls) == ("shop:load", "io", 3)
    assert (one.failed, one.cancelled, one.retried) == (1, 1, 1)
    assert (one.total, one.longest, one.p95, one.median) == (7.0, 4.0, 4.0, 2.0)
    assert one.mean == pytest.approx(7 / 3)
    assert one.waited == pytest.approx(1.0)
    assert (summary.seconds, summary.total, summary.waited) == (6.0, 7.0, 3.0)
    assert summary.speed_up == pytest.approx(7 / 6)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (table(), "Nothing was run."),
        (table((0, -1, S)), "Nothing was run."),
        (
            table((0, 0, S), (0, 0, S), (0, 0, 10 * S), workers=3),
            "One long call: shop:load ran for 10 s of 10 s, for 9 s with no other call beside it.",
        ),
        (
            table((9, 9, 10 * S), (0, 0, 0), (5 * S, 5 * S, 5 * S)),  # two are too short to see
            "One long call: shop:load ran for 10 s of 10 s, for 10 s with no other call beside it.",
        ),
        (
            table(*((0, turn * S, (turn + 1) * S) for turn in range(10)), workers=1),
            "Too few workers: the one of pool 'io' was busy for 90% of the time while calls waited, up to 9 of them.",
        ),
        (
            table(*((0, turn * S, (turn + 1) * S) for turn in range(10) for _ in range(2))),
            "Too few workers: all 2 of pool 'io' were busy for 90% of the time while calls waited, up to 18 of them.",
        ),
        (
            table(*((0, turn * S, (turn + 1) * S) for turn in range(4) for _ in range(2)), kind="process", cpus=2),
            "Too few workers: all 2 of pool 'io' were busy for 75% of the time while calls waited, up to 6 of them; "
            "it has as many as there are CPUs.",
        ),
        (
            table(*((0, turn * 1000, turn * 1000 + 100) for turn in range(100)), kind="process"),
            "Handing over: for 100% of the time calls of pool 'io' waited though workers were free; a call runs for "
            "100 us only, less than its way takes: use a map.",
        ),
        (
            table((0, 2 * S, 3 * S), (0, 2 * S, 3 * S)),
            "The queue: for 67% of the time calls of pool 'io' waited though workers were free, as when workers start, "
            "or arguments and results are pickled and sent.",
        ),
        (
            table(*((turn * S, turn * S, turn * S + S // 2) for turn in range(10))),
            "Not the pools: no call waited for long, and 0.5 of them ran at a time, as the program made no more at "
            "once.",
        ),
        (
            table(*((0, 0, S) for _ in range(10)), workers=2**62, kind="loop"),
            "Not the pools: no call waited for long, and 10.0 of them ran at a time, as the program made no more at "
            "once.",
        ),
    ],
)
def test_what_held_it_back(made: dict[str, Any], said: str) -> None:
    """One long call, too few workers, the way to them, or the program itself."""
    assert summarize(made).verdict == said


def test_text() -> None:
    """A line about all, one for each task, and the verdict; what was not kept is told."""
    made = table((0, 0, S), (0, 0, 2 * S))
    made["dropped"] = 1234
    lines = as_text(summarize(made)).splitlines()
    assert lines[0] == (
        "2 calls in 2 s: they ran for 3 s in all, 1.5 at a time, and waited for 0 us in the queue. "
        "Besides, there were 1,234 attempts more, which were not kept."
    )
    assert lines[3].split("  ")[0] == "shop:load"
    assert lines[-1].startswith("One long call: shop:load")


def test_a_real_run() -> None:
    """Twenty naps on two threads: there were too few."""
    recording = Recording()
    with Registry({"pools": {"io": {"kind": "thread", "max_workers": 2}}}) as registry, using(registry):
        recording.start()
        try:
            gather(*(task(pool="io")(seen_jobs.nap)(0.05) for _ in range(20))).result(LONG)
        finally:
            recording.stop()
    summary = summarize(recording.table())
    [one] = summary.tasks
    assert one.calls == 20
    assert summary.total > 1.0
    assert summary.speed_up > 1.2
    assert summary.verdict.startswith("Too few workers: all 2 of pool 'io'")

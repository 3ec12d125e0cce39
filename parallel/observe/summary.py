"""
What a recording comes to: the figures of each task in each pool, and what held the program back.

    a table of `Recording` ──▶ summarize() ──▶ Summary

The verdict is found by going through all beginnings and ends in order: how long a pool had all its workers busy while
calls waited, how long calls waited though it had not, and how long one call ran with nothing beside it.

Nothing here has state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from parallel.durations import briefly
from parallel.observe.recording import CANCELED, FAILED, NEVER, RETRIED

MATTERS: Final = 0.25
"""What held the program back for a smaller share of the time isn't worth a word."""

SHORT: Final = 0.0005
"""Seconds: calls shorter than that cost more to hand over to a process than to run."""

UNBOUNDED: Final = 2**31
"""A pool that is said to have so many workers has as many as there are calls."""


class TaskSummary(NamedTuple):
    """
    What became of the calls of a task in a pool.

    Attributes:
        task: Its name.
        pool: The pool's.
        calls: How many there were; several attempts of one are one.
        failed: How many of them failed.
        cancelled: How many were cancelled.
        retried: Attempts that failed, and were followed by another.
        total: Seconds that all of them ran, together.
        mean: Seconds that one ran, on average.
        median: Seconds that half of them didn't exceed.
        p95: Seconds that 95 % of them didn't exceed.
        longest: Seconds that the longest ran.
        waited: Seconds that one waited for a worker, on average.
    """

    task: str
    pool: str
    calls: int
    failed: int
    cancelled: int
    retried: int
    total: float
    mean: float
    median: float
    p95: float
    longest: float
    waited: float


class Summary(NamedTuple):
    """
    What a recording comes to.

    Attributes:
        seconds: How long was recorded.
        tasks: Each task in each pool, the one that ran longest first.
        total: Seconds that all calls ran, together.
        waited: Seconds that all calls waited for a worker, together.
        verdict: What held the program back, in one line.
        dropped: How many attempts there were besides, of which no more is known.
    """

    seconds: float
    tasks: tuple[TaskSummary, ...]
    total: float
    waited: float
    verdict: str
    dropped: int

    @property
    def speed_up(self) -> float:
        """How many calls ran at a time, on average."""
        return self.total / self.seconds if self.seconds else 0.0


class _Attempt(NamedTuple):
    """A row of the table; times in seconds, None for never."""

    task: int
    pool: int
    state: int
    ready: float
    started: float | None
    ended: float

    @property
    def ran(self) -> float:
        return 0.0 if self.started is None else max(self.ended - self.started, 0.0)

    @property
    def waited(self) -> float:
        return 0.0 if self.started is None else max(self.started - self.ready, 0.0)


def summarize(table: Mapping[str, Any]) -> Summary:
    """
    Return what a recording comes to.

    Args:
        table: What `Recording.table` has returned.
    """
    attempts = [*_attempts(table)]
    groups: dict[tuple[str, str], list[_Attempt]] = {}
    for one in attempts:  # several registries, one after the other, may have had a pool of that name
        groups.setdefault((table["tasks"][one.task], table["pools"][one.pool]["name"]), []).append(one)
    tasks = [_summary_of(task, pool, group) for (task, pool), group in groups.items()]
    tasks.sort(key=lambda each: -each.total)
    return Summary(
        seconds=table["duration"] / 1e6,
        tasks=tuple(tasks),
        total=sum(one.ran for one in attempts),
        waited=sum(one.waited for one in attempts),
        verdict=_verdict(table, attempts),
        dropped=table["dropped"],
    )


def _attempts(table: Mapping[str, Any]) -> Iterable[_Attempt]:
    calls = table["calls"]
    columns = [calls[name] for name in ("task", "pool", "state", "created", "queued", "started", "ended")]
    for task, pool, state, created, queued, started, ended in zip(*columns, strict=True):
        until = table["duration"] if ended == NEVER else ended
        begun = None if started == NEVER else started / 1e6
        yield _Attempt(task, pool, state, max(created, queued) / 1e6, begun, until / 1e6)


def _summary_of(task: str, pool: str, group: Sequence[_Attempt]) -> TaskSummary:
    states = [one.state for one in group]
    ran = sorted(one.ran for one in group if one.started is not None)
    begun = max(len(ran), 1)
    return TaskSummary(
        task=task,
        pool=pool,
        calls=len(states) - states.count(RETRIED),
        failed=states.count(FAILED),
        cancelled=states.count(CANCELED),
        retried=states.count(RETRIED),
        total=sum(ran),
        mean=sum(ran) / begun,
        median=_quantile(ran, 0.5),
        p95=_quantile(ran, 0.95),
        longest=_quantile(ran, 1.0),
        waited=sum(one.waited for one in group) / begun,
    )


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the least of these, which are in order, that so large a share of them doesn't exceed; 0: there is none."""
    return values[math.ceil(len(values) * share) - 1] if values else 0.0


def as_text(summary: Summary) -> str:
    """Return a summary as people read it: a line about all calls, a table, and the verdict."""
    calls = sum(each.calls for each in summary.tasks)
    about = (
        f"{calls:,} calls in {briefly(summary.seconds)}: they ran for {briefly(summary.total)} in all, "
        f"{summary.speed_up:.1f} at a time, and waited for {briefly(summary.waited)} in the queue."
    )
    if summary.dropped:
        about += f" Besides, there were {summary.dropped:,} attempts more, which were not kept."
    heads = ("task", "pool", "calls", "failed", "tried again", "mean", "95 %", "total", "mean wait")
    rows: list[tuple[str, ...]] = [heads]
    for each in summary.tasks:
        counts = (each.calls, each.failed, each.retried)
        times = (each.mean, each.p95, each.total, each.waited)
        rows.append((each.task, each.pool, *(f"{count:,}" for count in counts), *map(briefly, times)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if column > 1 else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([about, "", *lines, "", summary.verdict] if summary.tasks else [about])


# -- what held it back ------------------------------------------------------------------------------------------------


class _Load(NamedTuple):
    """
    What a pool had to do.

    Attributes:
        full: Seconds for which all its workers were busy, and calls waited.
        late: Seconds for which calls waited, though not all were.
        most: How many calls waited at most.
    """

    full: float
    late: float
    most: int


def _verdict(table: Mapping[str, Any], attempts: Sequence[_Attempt]) -> str:
    begun = [one for one in attempts if one.started is not None]
    if not begun:
        return "Nothing was run."
    first = min(one.ready for one in attempts)
    span = max(max(one.ended for one in begun) - first, 1e-6)
    one, alone = _lonely(begun)
    if alone >= MATTERS * span and one.ran >= 2 * MATTERS * span:
        return (
            f"One long call: {table['tasks'][one.task]} ran for {briefly(one.ran)} of {briefly(span)}, "
            f"for {briefly(alone)} with no other call beside it."
        )
    loads = {pool: _load_of(pool, said, attempts) for pool, said in enumerate(table["pools"])}
    pool, load = max(loads.items(), key=lambda each: max(each[1].full, each[1].late))
    if load.full >= max(MATTERS * span, load.late):
        return _too_few(table, pool, load, span)
    if load.late >= MATTERS * span:
        return _too_late(table, pool, load, span, begun)
    busy = sum(one.ran for one in begun) / span
    return (
        f"Not the pools: no call waited for long, and {busy:.1f} of them ran at a time, as the program made no more at "
        "once."
    )


def _too_few(table: Mapping[str, Any], pool: int, load: _Load, span: float) -> str:
    said = table["pools"][pool]
    workers = said["max_workers"]
    who = f"all {workers} of pool {said['name']!r} were" if workers > 1 else f"the one of pool {said['name']!r} was"
    text = (
        f"Too few workers: {who} busy for {load.full / span:.0%} of the time while calls waited, up to {load.most:,} "
        "of them"
    )
    if said["kind"] == "process" and workers >= table["cpus"]:
        return f"{text}; it has as many as there are CPUs."
    return f"{text}."


def _too_late(table: Mapping[str, Any], pool: int, load: _Load, span: float, begun: Sequence[_Attempt]) -> str:
    said = table["pools"][pool]
    ran = [one.ran for one in begun if one.pool == pool]
    mean = sum(ran) / len(ran) if ran else 0.0
    text = f"for {load.late / span:.0%} of the time calls of pool {said['name']!r} waited though workers were free"
    if said["kind"] != "thread" and mean < SHORT:
        return f"Handing over: {text}; a call runs for {briefly(mean)} only, less than its way takes: use a map."
    return f"The queue: {text}, as when workers start, or arguments and results are pickled and sent."


def _lonely(begun: Sequence[_Attempt]) -> tuple[_Attempt, float]:
    """Return the call that ran for the longest time with no other beside it, and that time."""
    moments: list[tuple[float, int]] = []  # where a call is twice: its beginning and its end
    for number, one in enumerate(begun):
        moments += [(one.started or 0.0, number), (one.ended, number)]
    moments.sort()
    running: set[int] = set()
    alone = dict.fromkeys(range(len(begun)), 0.0)
    before = 0.0
    for at, number in moments:
        if len(running) == 1:
            [only] = running
            alone[only] += at - before
        running ^= {number}
        before = at
    most = max(alone, key=alone.__getitem__)
    return begun[most], alone[most]


def _load_of(pool: int, said: Mapping[str, Any], attempts: Sequence[_Attempt]) -> _Load:
    workers = said["max_workers"] if 0 < said["max_workers"] < UNBOUNDED else UNBOUNDED
    moments: list[tuple[float, int, int]] = []  # when; how many more wait, and run
    for one in attempts:
        if one.pool != pool:
            continue
        if one.started is None:
            moments += [(one.ready, 1, 0), (max(one.ended, one.ready), -1, 0)]
        else:
            moments += [(one.ready, 1, 0), (max(one.started, one.ready), -1, 1), (one.ended, 0, -1)]
    moments.sort(key=lambda each: each[0])
    full = late = before = 0.0
    waiting = running = most = 0
    for at, waits, runs in moments:
        if at > before and waiting > 0:
            most = max(most, waiting)
            if running >= workers:
                full += at - before
            else:
                late += at - before
        waiting, running, before = waiting + waits, running + runs, at
    return _Load(full, late, most)

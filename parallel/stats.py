"""
What pools and registries do, in numbers, at a moment: what `stats()` returns.

All of it is JSON once `attrs.asdict` has made dicts of it.

    json.dumps(attrs.asdict(registry.stats()))

Loaded when somebody asks.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Times:
    """
    How long something took, many times, in seconds.

    The percentiles are those of a histogram whose buckets grow by a twelfth: each is off by 4 % at most.

    Attributes:
        count: How many times.
        total: All together.
        p50: At most so long in half of them,
        p95: in 95 of 100,
        p99: and in 99.
        longest: In any.
    """

    count: int
    total: float
    p50: float
    p95: float
    p99: float
    longest: float


@frozen
class WorkerStats:
    """
    A worker, or a call that a pool's one thread runs beside others.

    Attributes:
        name: That of its thread, or `process 4711`.
        process: The id of its process.
        thread: The ident of its thread, in this process; None: it has none here.
        task: What it runs; empty: nothing.
        called_at: Where that was called, `FILE:LINE`; empty: nobody knows.
        seconds: For how long it has run that; None: nothing, or nobody knows.
        call_id: The number of the call that it runs; 0: none.
        utilisation: The share of its life in which it ran calls, from 0 to 1; None: nobody has observed it.
    """

    name: str
    process: int
    thread: int | None = None
    task: str = ""
    called_at: str = ""
    seconds: float | None = None
    call_id: int = 0
    utilisation: float | None = None


@frozen
class PoolStats:
    """
    What a pool does at this moment; the numbers are taken one after the other, while the pool goes on.

    Those from *failed* to *run_time* are counted from the moment on that somebody observes: `[observe] stats = true` in
    the configuration, or what else records. They are None before that, and where nothing of the kind is known.

    Attributes:
        workers: Threads, processes or loops that it has now.
        queued: Calls that wait for a worker; cancelled ones count until a worker comes upon them.
        running: Calls that a worker runs.
        done: Calls that have ended since the pool was made.
        stragglers: Workers whose call has ended by its timeout, and runs all the same; others have taken their places.
        dashboard_link: Where the cluster that runs the calls shows what it does; empty: there is none, or no such page.
        name: The pool's name; empty: it has none.
        kind: What runs its calls, such as `thread`.
        max_workers: How many calls it runs at a time, at most.
        deaths: Worker processes that have died, other than by the pool's own will.
        bytes_sent: Bytes that were sent to workers, and
        bytes_received: that have come from them; None: they get their arguments as they are, or nobody counts.
        failed: Calls that have ended with an error.
        cancelled: Calls that were cancelled.
        retried: Attempts that have failed, and were followed by another.
        queue_time: How long attempts waited for a worker, from when their arguments and places were there.
        run_time: How long attempts ran.
        at_work: Its workers.
    """

    workers: int
    queued: int
    running: int
    done: int
    stragglers: int = 0
    dashboard_link: str = ""
    name: str = ""
    kind: str = ""
    max_workers: int = 0
    deaths: int = 0
    bytes_sent: int | None = None
    bytes_received: int | None = None
    failed: int | None = None
    cancelled: int | None = None
    retried: int | None = None
    queue_time: Times | None = None
    run_time: Times | None = None
    at_work: tuple[WorkerStats, ...] = ()


@frozen
class RegistryStats:
    """
    What the pools of a registry do at this moment.

    Attributes:
        pools: Each that is open, by its name.
        waiting: Calls that are in no pool: they wait for a place, or for their next attempt.
    """

    pools: dict[str, PoolStats]
    waiting: int

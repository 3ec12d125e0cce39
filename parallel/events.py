"""
What happens to calls, workers and pools, as small typed events.

Of *outcomes* the functions are told that `Registry.on` registers, at once, with the value or the error. The *steps* of
every call follow within some hundredths of a second, as they are found out by who reads the trail; `Registry.events`
yields these.
"""

from __future__ import annotations

import time
from typing import ClassVar, Final, Literal, TypeAlias

from attrs import field, frozen

EventName: TypeAlias = Literal[
    "call_succeeded",
    "call_failed",
    "call_cancelled",
    "call_retried",
    "call_created",
    "call_queued",
    "call_started",
    "call_ended",
    "worker_started",
    "worker_ended",
    "pool_opened",
    "pool_resized",
    "pool_closed",
]
"""The names of events."""

EndState: TypeAlias = Literal["succeeded", "failed", "cancelled"]
"""How a call has ended."""


@frozen
class Event:
    """
    Something that has happened in a registry.

    Attributes:
        event: Its name, what `Registry.on` calls it.
        pool: The name of the pool; empty: none, as for what follows a call on the callback threads.
        at: When that was, in seconds of Unix time.
    """

    event: ClassVar[EventName]
    pool: str
    at: float = field(kw_only=True, factory=time.time, eq=False)


@frozen
class CallEvent(Event):
    """
    Something that has happened to a call.

    Attributes:
        task: The name of the task, `module:qualname`.
        call_id: The number of the call, which no other call of this process has.
    """

    task: str
    call_id: int = field(kw_only=True, default=0)


@frozen
class CallSucceeded(CallEvent):
    """
    A call has ended with a value.

    Attributes:
        value: That.
    """

    event: ClassVar[EventName] = "call_succeeded"
    value: object


@frozen
class CallFailed(CallEvent):
    """
    A call has ended with an error; of one that is tried again, with that of the last attempt.

    Attributes:
        error: That.
    """

    event: ClassVar[EventName] = "call_failed"
    error: BaseException


@frozen
class CallCancelled(CallEvent):
    """A call was cancelled."""

    event: ClassVar[EventName] = "call_cancelled"


@frozen
class CallRetried(CallEvent):
    """
    An attempt has failed, and there is going to be another.

    Attributes:
        error: How it has failed.
        attempt: Which one it was; the first is 1.
        wait: Seconds until the next.
    """

    event: ClassVar[EventName] = "call_retried"
    error: BaseException
    attempt: int
    wait: float


@frozen
class CallCreated(CallEvent):
    """
    A call was made; of a map, one of its pieces.

    Attributes:
        parent: The number of the call that has made it; None: none has.
        follows: That of the call that it follows, as its `then` or the like; None: it follows none.
        items: Of a piece of a map, how many items it has; 0: it is a call by itself.
    """

    event: ClassVar[EventName] = "call_created"
    parent: int | None
    follows: int | None
    items: int


@frozen
class CallQueued(CallEvent):
    """
    A call has all that an attempt needs, arguments and places, and waits for a worker.

    Attributes:
        attempt: Which attempt it is; the first is 1.
    """

    event: ClassVar[EventName] = "call_queued"
    attempt: int


@frozen
class CallStarted(CallEvent):
    """
    An attempt has begun. Worker processes tell that with their answers only.

    Attributes:
        attempt: Which one it is; the first is 1.
        worker: Who runs it: the name of a thread, or `process 4711`.
    """

    event: ClassVar[EventName] = "call_started"
    attempt: int
    worker: str


@frozen
class CallEnded(CallEvent):
    """
    A call has ended, in whatever way: the last step of each.

    Attributes:
        state: In which.
        error: What it has failed with; None: it has not.
        attempt: Which attempt was the last.
        worker: Who has run that; empty: it has never begun.
        queued_at: When that had all that it needed, in seconds of Unix time.
        started_at: When that began; None: it has not.
    """

    event: ClassVar[EventName] = "call_ended"
    state: EndState
    error: BaseException | None
    attempt: int
    worker: str
    queued_at: float
    started_at: float | None


@frozen
class WorkerStarted(Event):
    """
    A worker is ready for calls.

    Attributes:
        worker: The name of its thread, or `process 4711`.
    """

    event: ClassVar[EventName] = "worker_started"
    worker: str


@frozen
class WorkerEnded(Event):
    """
    A worker is gone.

    Attributes:
        worker: The name that its thread had, or `process 4711`.
        death: How it has died; empty: it was told to leave.
    """

    event: ClassVar[EventName] = "worker_ended"
    worker: str
    death: str


@frozen
class PoolOpened(Event):
    """
    A pool was asked for, for the first time; its workers start with its first calls.

    Attributes:
        kind: What runs its calls, such as `thread`.
    """

    event: ClassVar[EventName] = "pool_opened"
    kind: str


@frozen
class PoolResized(Event):
    """
    A pool may have another number of workers.

    Attributes:
        max_workers: How many.
    """

    event: ClassVar[EventName] = "pool_resized"
    max_workers: int


@frozen
class PoolClosed(Event):
    """
    A pool takes no more calls from its registry: that was shut down, or its configuration has changed.

    Attributes:
        kind: What has run its calls.
    """

    event: ClassVar[EventName] = "pool_closed"
    kind: str


OUTCOMES: Final = (CallSucceeded, CallFailed, CallCancelled, CallRetried, PoolOpened, PoolClosed)
"""What is told by who brings it about."""

STEPS: Final = (CallCreated, CallQueued, CallStarted, CallEnded, WorkerStarted, WorkerEnded, PoolResized)
"""What is found out by who reads the trail; `Registry.events` yields retries too, and pools that open and close."""

EVENTS: Final[dict[str, type[Event]]] = {kind.event: kind for kind in (*OUTCOMES, *STEPS)}
"""Each event by its name."""

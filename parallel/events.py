"""
What happens to calls and pools, as small typed events: what the functions get that `Registry.on` registers.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from attrs import frozen

EventName: TypeAlias = Literal[
    "call_succeeded", "call_failed", "call_cancelled", "call_retried", "pool_opened", "pool_closed"
]
"""The names of events."""


@frozen
class Event:
    """
    Something that has happened in a registry.

    Attributes:
        event: Its name, what `Registry.on` calls it.
        pool: The name of the pool.
    """

    event: ClassVar[EventName]
    pool: str


@frozen
class CallEvent(Event):
    """
    Something that has happened to a call.

    Attributes:
        task: The name of the task, `module:qualname`.
    """

    task: str


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
class PoolOpened(Event):
    """
    A pool was asked for, for the first time; its workers start with its first calls.

    Attributes:
        kind: What runs its calls, such as `thread`.
    """

    event: ClassVar[EventName] = "pool_opened"
    kind: str


@frozen
class PoolClosed(Event):
    """
    A pool takes no more calls from its registry: that was shut down, or its configuration has changed.

    Attributes:
        kind: What has run its calls.
    """

    event: ClassVar[EventName] = "pool_closed"
    kind: str


EVENTS: dict[str, type[Event]] = {
    kind.event: kind for kind in (CallSucceeded, CallFailed, CallCancelled, CallRetried, PoolOpened, PoolClosed)
}
"""Each event by its name."""

"""
What calls cost, as the workers measure it, and how many of them travel in one message.

    worker: calls and nanoseconds of each function, with its answers ──▶ Known.note() ──▶ Known.cost ──▶ most()

A message is to be long enough that its own cost hardly counts (some 10 µs, at both ends), and short enough that no
worker has much to do while others have nothing.

State: of a `Known`, `cost`: written by the reader alone, read by anybody.
"""

from __future__ import annotations

from typing import Final

from parallel.pools.process.references import Reference

TARGET: Final = 2_000_000
"""
Nanoseconds of work in one message. The gathering of no-ops doesn't get faster by more, and with half of it 5 % slower;
the more it is, the longer a call waits for its turn in a worker while another is free.
"""

MOST: Final = 256
"""Calls in one message. 1,024 are as fast, 32 a fifth slower; the more, the more has to be given back at a death."""

LEAST: Final = 100_000
"""
Nanoseconds of work that are not worth being divided among workers, nor the waking of another one: that takes up to
half of it. Without this rule a burst of short calls travels in messages of seven instead of fifty.
"""

LOOK: Final = 5_000_000
"""
Nanoseconds without an answer after which the reader looks at the board of a worker that has several calls. Workers
answer every 2 ms, unless a call takes longer: then those behind it wait so long until another worker gets them.
"""


class Known:
    """
    A function, as the workers of one pool know it.

    Attributes:
        number: What it is called on the wire.
        reference: Where it can be looked up; None: it travels by value.
        name: For messages.
        cost: Nanoseconds that a call of it takes; 0: nobody knows yet.
    """

    __slots__ = ("cost", "name", "number", "reference")

    def __init__(self, number: int, reference: Reference | None, name: str) -> None:
        self.number = number
        self.reference = reference
        self.name = name
        self.cost = 0

    def note(self, calls: int, nanoseconds: int) -> None:
        """Note what *calls* of it have taken. More counts at once, less by and by: short messages cost little."""
        new = max(nanoseconds // calls, 1)
        self.cost = new if new > self.cost else (self.cost * 3 + new) // 4


def most(waiting: int, workers: int, each: int) -> int:
    """
    Say how many of the waiting calls one worker is sent at most: half of its equal share, so that all end together.

    Args:
        waiting: Calls that wait.
        workers: Workers among which they are divided.
        each: What the first of them costs; 0: nobody knows.
    """
    share = -(-waiting // (2 * workers))
    return min(MOST, waiting, max(share, LEAST // (each or TARGET), 1))

"""
The call that a worker process runs, as its function sees it: `current_task()` asks here.

    function ──▶ current_run() ──▶ Inside ──▶ is it to stop? ──▶ the server reads what the pool has sent meanwhile

Loaded when a function asks for the first time; who can ask has loaded what this needs.

State: none that changes. The number of the call says whether it is still the one that runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

from parallel.context import Within
from parallel.deadlines import Deadline
from parallel.runs import Run
from parallel.states import State


class Line(Protocol):
    """The worker's connection to its pool."""

    def is_asked(self, number: int) -> bool:
        """Tell whether the call of that number is to stop."""
        ...

    def pause(self, number: int, seconds: float) -> bool:
        """Wait so long, or until that call is to stop: then the answer is True."""
        ...


class Facts(NamedTuple):
    """
    What the pool has told about a call.

    Attributes:
        id: Its number in the pool's process.
        attempt: Which attempt this is.
        deadline: When it has to have ended, on the clock of `time.monotonic`; None: it has no deadline.
    """

    id: int
    attempt: int
    deadline: float | None


class About(NamedTuple):
    """What messages call the function, and the pool."""

    name: str
    pool: str


class Distant:
    """Stands for the future of a call, which is in the pool's process."""

    def __init__(self, about: About, facts: Facts) -> None:
        self._made = (about,)
        self._id = facts.id
        self.deadline = None if facts.deadline is None else deadline_at(facts.deadline)

    def is_called(self, name: str) -> None:
        """Note the function that it calls with many items: it is known by the name of that."""
        self._made = (About(name, self._made[0].pool),)

    def done(self) -> bool:
        """Tell that its function runs."""
        return False


class Inside(Run):
    """The run of a call, in the worker process that it is in."""

    def __init__(self, line: Line, number: int, about: About, facts: Facts) -> None:
        """
        Make one.

        Args:
            line: The way to the pool.
            number: Which of the worker's calls it is.
            about: What it is called.
            facts: What the pool has told about it.
        """
        self._distant = Distant(about, facts)  # of its future, nobody here needs more than that has
        super().__init__(cast("State[Any]", self._distant), None, facts.attempt)
        self.number_here = number
        self._line = line

    @property
    def asked(self) -> bool:
        """Whether it has been asked to stop."""
        return self._line.is_asked(self.number_here)

    def pause(self, seconds: float) -> bool:
        """Wait so long, or until asked to stop: then the answer is True."""
        return self._line.pause(self.number_here, seconds)

    def lend(self, awaited: Any) -> None:
        """Nothing: its places are held in the pool's process."""

    def unlend(self) -> None:
        """Nothing was lent."""


def deadline_at(moment: float) -> Deadline:
    """Return the deadline of that moment, on the clock that all processes of a machine share."""
    deadline = Deadline(0)
    deadline.at = moment
    deadline.seconds = deadline.left()
    return deadline


def within_deadline(moment: float) -> Within:
    """Return what the calls of a function are made within that has to have ended at that moment."""
    return Within(deadline=deadline_at(moment))

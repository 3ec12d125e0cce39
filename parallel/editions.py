"""
What tasks remember of a registry, until something changes there.

    task ──▶ LookUp.found: (edition, plan) ──▶ is it the registry's present edition? then the plan is right

Guarantees:
- Asking costs one comparison a call.
- When an edition ends, nothing that was looked up in it keeps a pool alive, also of tasks that are never called again.

State: `_look_ups` of an edition, added to by single atomic steps; `_is_over`, set once; `found`, replaced as a whole.
A signal handler may reload at any point: nothing here takes a lock.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from parallel.options import TaskOptions
from parallel.plans import Plan
from parallel.weak import WeakSet

Found: TypeAlias = "tuple[Edition | None, Plan | None]"


class LookUp:
    """
    What a task, and what binds it, has looked up in the last registry that it was called in.

    Attributes:
        found: The edition, and how calls are made in that.
    """

    __slots__ = ("__weakref__", "found")

    def __init__(self) -> None:
        self.found: Found = NOTHING


class Edition:
    """
    A registry's configuration and hooks, as long as they are what they are.

    Attributes:
        rules: What the rules come to, by the names of tasks: each is matched once.
    """

    def __init__(self) -> None:
        self.rules: dict[str, TaskOptions] = {}
        self._look_ups: WeakSet[LookUp] = WeakSet()
        self._is_over = False

    def keep(self, look_up: LookUp, plan: Plan) -> None:
        """Have *look_up* remember *plan* as long as this edition lasts."""
        look_up.found = (self, plan)
        self._look_ups.add(look_up)
        if self._is_over:  # after it was added: who ends it does it the other way round
            look_up.found = NOTHING

    def end(self) -> None:
        """Have all forget what they found in it."""
        self._is_over = True
        for look_up in self._look_ups:
            if look_up.found[0] is self:
                look_up.found = NOTHING


NOTHING: Final[Found] = (None, None)

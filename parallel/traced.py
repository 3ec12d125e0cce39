"""
Calls on threads that are noted on the trail: their futures tell when they begin and end.

Nothing here has state.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from parallel import trail
from parallel.context import Dispatcher
from parallel.delivery import settle
from parallel.futures import Future
from parallel.outcomes import Work, attempt
from parallel.states import share_keys
from parallel.trail import STARTED, STOPPED, clock

_get_ident: Final = threading.get_ident


class TracedFuture(Future[Any]):
    """The future of a call without terms on a thread, while somebody follows the trail."""

    def run_on(self, here: Dispatcher | None, *, may_block: bool = True) -> None:
        """Run the call on this thread; see `Future.run_on`."""
        fields = self.__dict__
        work: Work | None = fields.pop("_work", None)
        if work is None:
            return
        noting = trail.current
        note = _nothing if noting is None else noting.note
        number = fields["_id"]
        note((STARTED, clock(), number, 1, _get_ident()))
        try:
            outcome = attempt(work)
        except BaseException as error:  # not even that could be done: the stack is full
            outcome = (None, error, None)
        note((STOPPED, clock(), number, 1, outcome[1]))
        del work  # what follows may take long: don't keep the arguments alive
        if "_run" in fields:
            outcome = fields.pop("_run").told(outcome)
        is_error = outcome[1] is not None  # to be looked at
        if is_error or fields.setdefault("_end", outcome) is not outcome or "_first" in fields:
            settle(self, outcome, here, may_block=may_block)
        del self, fields, outcome  # an error refers to this frame: break the cycle


def _nothing(step: trail.Step) -> None:
    """Note nothing, as nobody follows any more."""


share_keys(TracedFuture, "_made", "_id")

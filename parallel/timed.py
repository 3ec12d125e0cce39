"""
A call on a thread that has a timeout and no other terms: what `call` does for it, in one short path.

Most timeouts are never met. So they cost two steps of a dict (see `timer.Lane`), and no object of their own.

    run_on() ──▶ lane.start() ──▶ the body ──▶ lane.stop() ──▶ in time: the end
                     └──▶ the timer was faster: expire() ends it, the worker is replaced; the body's end is dropped

State: `_worker`, written before the lane knows of the call, and read by whoever takes it out of the lane.
"""

from __future__ import annotations

from typing import Any

from parallel import trail
from parallel.context import Dispatcher, Waiter, this
from parallel.delivery import settle
from parallel.errors import TaskTimeoutError
from parallel.futures import Future
from parallel.lanes import Lane
from parallel.outcomes import Work, attempt, failure
from parallel.runs import run_of
from parallel.states import share_keys
from parallel.trail import note_start, note_stop


class TimedFuture(Future[Any]):
    """
    The future of a call on a thread that has a timeout.

    Args:
        work: What is to be run.
        name: The task's.
        lane: The timer's, for this timeout.
    """

    _worker: Waiter | None = None

    def __init__(self, work: Work, name: str, lane: Lane) -> None:
        super().__init__(work)
        fields = self.__dict__
        fields["_name"] = name
        fields["_lane"] = lane

    def run_on(self, here: Dispatcher | None, *, may_block: bool = True) -> None:
        """Run the call on this thread; see `Future.run_on`."""
        fields = self.__dict__
        work: Work | None = fields.pop("_work", None)
        if work is None:
            return
        lane: Lane = fields["_lane"]
        worker = fields["_worker"] = this.worker
        try:
            lane.start(self)
        except Exception as error:  # the timer's thread can't be started
            settle(self, failure(error), here, may_block=may_block)
            return
        noting = trail.current
        if noting is not None:
            note_start(noting, fields)
        try:
            outcome = attempt(work)
        except BaseException as error:  # not even that could be done: the stack is full
            outcome = (None, error, None)
        if noting is not None:
            note_stop(noting, fields, outcome[1])
        del work  # what follows may take long: don't keep the arguments alive
        if not lane.stop(self):
            if worker is not None:
                worker.come_back()
            return
        if "_run" in fields:
            outcome = fields.pop("_run").told(outcome)
        is_error = outcome[1] is not None  # to be looked at
        if is_error or fields.setdefault("_end", outcome) is not outcome or "_first" in fields:
            settle(self, outcome, here, may_block=may_block)
        del self, fields, outcome  # an error refers to this frame: break the cycle

    def expire(self) -> None:
        """Fail, as the timeout is over. Runs on the timer's thread, which has taken it out of the lane."""
        run_of(self).ask()
        fields = self.__dict__
        worker: Waiter | None = fields["_worker"]
        if worker is not None:
            worker.replace()
        error = TaskTimeoutError(fields["_name"], fields["_lane"].seconds, "timeout")
        settle(self, (None, error, None), may_block=False)

    def is_queued_at(self, dispatcher: Dispatcher) -> bool:
        """Tell that no waiter may run it: its overrun would be the waiter's."""
        return False


share_keys(TimedFuture, "_made", "_name", "_lane", "_worker")

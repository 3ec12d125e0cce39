"""
Log records that tell of which call they are.

    a handler ──▶ CallFilter ──▶ record.task, .call_id, .attempt, .pool ──▶ its formatter

Records of worker processes come with these: see `pools.process.logs`.

Nothing here has state.
"""

from __future__ import annotations

import logging
from typing import Final

from parallel.current import CurrentTask
from parallel.runs import Run, current_run

_NOTHING: Final[dict[str, object]] = {"task": "", "call_id": None, "attempt": None, "pool": ""}
"""What records have that are of no call."""


class CallFilter(logging.Filter):
    """
    Adds to each record of which call it is; to be added to a handler, or to a logger.

        handler.addFilter(parallel.CallFilter())
        handler.setFormatter(logging.Formatter("%(levelname)s %(task)s[%(call_id)s] %(message)s"))

    Records get these attributes, unless they have them already:

    - `task`: the task's name, `module:qualname`; empty: none, or a function that was submitted as it is.
    - `call_id`: the number of the call, as `CurrentTask.id` and events have it; None: of no call.
    - `attempt`: which attempt it is, from 1 on; None: of no call.
    - `pool`: what messages call its pool, such as `thread pool 'io'`; empty: of no call.

    No record is held back.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add it."""
        add_facts(record, current_run())
        for name, value in _NOTHING.items():
            record.__dict__.setdefault(name, value)
        return True


def add_facts(record: logging.LogRecord, run: Run | None) -> None:
    """Add to a record of which call it is, as far as it doesn't say so; None: of none."""
    if run is not None and "call_id" not in record.__dict__:
        call = CurrentTask(run)
        facts = {"task": call.name, "call_id": call.id, "attempt": call.attempt, "pool": call.pool}
        record.__dict__.update({name: value for name, value in facts.items() if name not in record.__dict__})

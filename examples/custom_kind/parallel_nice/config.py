"""
What may be said about a pool of kind `nice`.

It is loaded to check a configuration that names the kind, and so imports no more than that needs; `pool` says what is
imported when such a pool opens.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from parallel.checks import checked
from parallel.kinds import ProcessConfig


def _is_niceness(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 19


@frozen
class NiceConfig(ProcessConfig):
    """
    A pool of processes that leave the machine to others; what may be said about any processes may be said about them.

    Args:
        niceness: How much they leave, from 0, nothing, to 19, all that others want.
    """

    kind: ClassVar[str] = "nice"
    pool: ClassVar[str] = "parallel_nice.pool:NicePool"
    niceness: int = field(
        default=10,
        kw_only=True,
        validator=checked(
            "an integer from 0 to 19", _is_niceness, form={"type": "integer", "minimum": 0, "maximum": 19}
        ),
    )

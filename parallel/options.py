"""
What may be said about a task.

The same options come from several places (a decorator, the tables of a file) and are laid over each other, one
`TaskOptions` over another. A new field here is merged, and read from TOML, without more code, if its default means
"not said".
"""

from __future__ import annotations

import attrs
from attrs import field, frozen

from parallel.checks import checked

_pool_name = checked("the name of a pool", lambda name: isinstance(name, str) and name != "", types=str)


@frozen(kw_only=True)
class TaskOptions:
    """
    What is said about a task; a field left at its default isn't said.

    Args:
        pool: Name of the pool that runs the calls, None if not said.

    Raises:
        TypeError: *pool* is no string.
        ValueError: *pool* is empty.
    """

    pool: str | None = field(default=None, validator=_pool_name)

    def over(self, below: TaskOptions) -> TaskOptions:
        """
        Lay these options over others: what is said here wins, *below* says the rest.

        Associative, and `TaskOptions()` changes nothing on either side.
        """
        said = attrs.asdict(self, recurse=False, filter=lambda option, value: value is not option.default)
        return attrs.evolve(below, **said)

"""
The table of pool kinds, as import strings that are resolved when a pool of the kind opens.
"""

from __future__ import annotations

from typing import Final

KINDS: Final[dict[str, str]] = {
    "thread": "parallel.pools.thread:ThreadPool",
    "process": "parallel.pools.process.pool:ProcessPool",
    "loop": "parallel.pools.loop:LoopPool",
    "inline": "parallel.pools.inline:InlinePool",
}
"""Kind to the pool's class, `module:class`. A kind enters with the release that runs it."""

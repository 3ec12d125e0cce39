"""
What the tests of asyncio and of trio share: a pool of each kind, and what is awaited in the same way under both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import jobs
import pytest

from parallel import Future, InlinePool, LoopPool, Pool, ProcessPool, ThreadPool, first, gather, race, settle

POOLS: dict[str, Callable[[], Pool]] = {
    "thread": lambda: ThreadPool(1),
    "process": lambda: ProcessPool(1),
    "loop": LoopPool,
    "inline": InlinePool,
}


async def value_of(awaitable: Awaitable[Any]) -> Any:
    """Wait for it, as a task may."""
    return await awaitable


def watchers(future: Future[Any]) -> int:
    """Count those who wait for a future."""
    return len(future.entries())


async def awaits(pool: Pool) -> None:
    """Await calls of *pool* for a value and for an error, chained and combined."""
    on_loop = isinstance(pool, LoopPool)
    double: Any = jobs.async_double if on_loop else jobs.double
    divide: Any = jobs.to_async(jobs.divide) if on_loop else jobs.divide
    assert await pool.submit(double, 1) == 2
    with pytest.raises(ZeroDivisionError):
        await pool.submit(divide, 1, 0)
    assert await pool.submit(double, 1).then(jobs.double).then(lambda x: pool.submit(double, x)) == 8
    assert await pool.submit(divide, 1, 0).catch(ZeroDivisionError, lambda _: 3) == 3
    assert await gather(*(pool.submit(double, x) for x in range(5))) == (0, 2, 4, 6, 8)
    assert [one.ok for one in await settle(pool.submit(double, 1), pool.submit(divide, 1, 0))] == [True, False]
    assert await race(pool.submit(double, 1)) == 2
    assert await first(pool.submit(divide, 1, 0), pool.submit(double, 1)) == 2

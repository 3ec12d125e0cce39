"""
What draws in the tests of `test_seeds.py`: chunks as an engine goes through them, in whatever pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random

from parallel import InlinePool, NoTaskError, ThreadPool, rng, task
from parallel.seeds import Draws


def draw() -> int:
    """Draw one number."""
    return rng(Random).getrandbits(64)


def drawn(seed: int, items: Iterable[int]) -> list[int]:
    """Go through a chunk: each item draws two numbers, of which the second counts."""
    with Draws(seed) as draws:
        found: list[int] = []
        for item in items:
            draws.item(item)
            draw()
            found.append(draw())
        return found


async def drawn_interleaved(seed: int, items: Iterable[int]) -> list[int]:
    """Go through the items all at once, in coroutines that take turns between their draws."""

    async def one(item: int) -> int:
        with Draws(seed) as draws:
            draws.item(item)
            draw()
            await asyncio.sleep(0)
            return draw()

    return await asyncio.gather(*map(one, items))


def refused() -> str:
    """Tell how a draw is refused here; empty if it isn't."""
    try:
        draw()
    except NoTaskError as error:
        return str(error)
    return ""


def refused_within(kind: str) -> tuple[int, str, int]:
    """Draw in an item before and after a call of that kind of pool, and tell how that was refused."""
    with Draws(42) as draws, InlinePool() if kind == "inline" else ThreadPool(1) as pool:
        draws.item(0)
        return draw(), pool.submit(refused).result(), draw()


@task(pool="threads")
def refused_task() -> str:
    """Be refused in a task."""
    return refused()


def refused_helped(kind: str) -> tuple[int, str, int]:
    """Do that with a call of a task, which a worker of the same pool runs as it waits for it."""
    with Draws(42) as draws:
        draws.item(0)
        return draw(), refused_task.options(pool=kind)().result(), draw()


def nested() -> tuple[int, list[int], int]:
    """Go through a chunk of another seed in an item."""
    with Draws(42) as draws:
        draws.item(0)
        return draw(), drawn(43, range(3)), draw()

"""
What a test-suite needs: calls that run where they are made, and registries that leave nothing behind.

    from parallel.testing import inline

    with inline(check_pickle=True):
        assert total([3, 4]).result() == 7

Inside such a block its registry is the current one for all that is called there, and for every other thread that has no
registry of its own. For pytest there are fixtures: see `pytest_plugin`.

State: `_blocks`, the registries of the open blocks, changed by single atomic steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from attrs import evolve

from parallel.config import Unobserved
from parallel.context import registry_source
from parallel.errors import LeakError
from parallel.imports import imported
from parallel.kinds import InlineConfig, PoolConfig
from parallel.registry import Registry, default_registry, using
from parallel.unseen import Unlooked, take_unlooked, unlooked

if TYPE_CHECKING:
    from parallel.pools.base import Pool

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, object] | None"
"""What makes a registry: a mapping as a TOML file would hold it, the path of one, or None for what is found."""

PATIENCE: Final = 10.0
"""Seconds that calls, threads and processes get to end after the block of `fresh`: only a leak takes longer."""

_AFTERWARDS: Final = 5.0
"""Seconds that they get when they have been told of, and are ended by force; only bodies on a loop can't be."""


@contextmanager
def inline(source: Source = None, *, check_pickle: bool = False) -> Generator[Registry]:
    """
    Have calls run where they are made, one after the other, for a block.

    Every pool of a configuration is replaced by an inline one of its name; what is said about tasks holds: timeouts,
    retries, limits. At the end of the block the registry is shut down.

    Args:
        source: A mapping as a TOML file would hold it, the path of a TOML file, or None: what is found from the working
            directory upward.
        check_pickle: Whether calls of pools of processes are packed and loaded as if they went there: see `InlinePool`.

    Raises:
        ConfigError: The configuration can't be used.
    """
    config = Registry(source).config
    registry = Registry()
    pools = {name: _replaced(pool, check_pickle) for name, pool in config.pools.items()}
    registry.adopt(evolve(config, pools=pools))
    with _current_for_all(registry), registry:
        yield registry


def _replaced(pool: PoolConfig, check_pickle: bool) -> InlineConfig:
    """Return what stands for a pool: one that checks, if calls would have to travel there."""
    if isinstance(pool, InlineConfig):
        return pool
    return InlineConfig(check_pickle=check_pickle and cast("type[Pool]", imported(pool.pool)).pickles)


@contextmanager
def fresh(source: Source = None, *, patience: float | None = None) -> Generator[Registry]:
    """
    Make a fresh registry the current one for a block, shut it down at the end, and look at what it leaves behind.

    Accepted calls are run to their end, if that comes before *patience* is over. What is left then is ended by force as
    far as it can be, and never waited for again.

    Args:
        source: As for `inline`.
        patience: Seconds; None: `PATIENCE`.

    Raises:
        LeakError: Calls still run, threads or worker processes are still there, or calls have failed and nobody has
            looked at the error, unless the configuration says `unobserved = "ignore"`.
    """
    before = unlooked()
    registry = _Watched(source)
    patience = PATIENCE if patience is None else patience
    with _current_for_all(registry):
        try:
            with using(registry):
                yield registry
        except BaseException as error:
            leak = registry.leave(patience if isinstance(error, Exception) else 0, before)
            if leak is not None:
                error.add_note(str(leak))
            raise
        leak = registry.leave(patience, before)
    if leak is not None:
        raise leak


class _Watched(Registry):
    """A registry that keeps the failures that nobody looks at, and tells what it leaves behind."""

    @property
    def unobserved(self) -> Unobserved:
        """What is done about a failure that nobody looked at: it is kept, if it isn't to be ignored."""
        return "ignore" if super().unobserved == "ignore" else "raise"

    def leave(self, patience: float, before: Unlooked) -> LeakError | None:
        """Shut down, and name what is left after so many seconds, and what has failed besides what had *before*."""
        left = self._left(patience)
        if self.unobserved != "ignore":
            left += take_unlooked(self, before)
        return LeakError(left) if left else None

    def _left(self, patience: float) -> list[str]:
        end = time.monotonic() + patience
        self.shutdown(wait=False)
        self._drained.wait(patience)
        pause = 0.001
        while (left := self._remains()) and time.monotonic() < end:
            time.sleep(pause)  # stragglers, of which nobody tells when they end
            pause = min(2 * pause, 0.1)
        if left:
            self._shut_down(False, True, interrupt=True)
            for engine in self._engines():
                engine.forsake()
            self._drained.wait(_AFTERWARDS)
        return left

    def _remains(self) -> list[str]:
        return [name for engine in self._engines() for name in engine.remains()]


_blocks: Final[list[Registry]] = []


@contextmanager
def _current_for_all(registry: Registry) -> Generator[None]:
    """Have threads that are in no registry's block take *registry* for the program's, for a block."""
    registry_source(_innermost, is_loaded=True)
    _blocks.append(registry)
    try:
        yield
    finally:
        _blocks.remove(registry)


def _innermost() -> Registry:
    """Return the registry of the innermost block, or else the program's own."""
    try:
        return _blocks[-1]
    except IndexError:
        return default_registry()

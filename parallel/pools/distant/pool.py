"""
A pool whose calls somebody else's engine runs; each kind says how these are brought there.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar
from uuid import uuid4

from parallel.chunks import Done
from parallel.context import WITHIN, Dispatcher, name_of
from parallel.delivery import settle
from parallel.futures import Future
from parallel.gates import OnFull
from parallel.kinds import is_modules
from parallel.outcomes import CANCELLED, Outcome, Work
from parallel.pools.base import OnExit, check_initializer
from parallel.pools.distant.bridge import Bridge
from parallel.pools.distant.driver import Driver
from parallel.pools.distant.packets import Letter, Setup, Supply, bundle, pack_call
from parallel.pools.distant.uploads import Upload, pack
from parallel.pools.distant.worker import run_items
from parallel.pools.handing import Handing, HandingPool, Tally
from parallel.pools.process.carrying import Carrier
from parallel.pools.process.replies import error_of_item


class DistantPool(HandingPool):
    """
    What the kinds have in common.

    Args:
        initializer: Called once in each worker process, before its first call. If it raises, the pool is broken.
        initargs: What it is called with.
        upload: Names of modules that workers don't have, and are sent.
        context: Import strings of the context variables whose values travel with each call.
        max_pending: Calls from outside that may wait; None: any number.
        on_full: What becomes of one more.
        on_exit: What becomes of what it has accepted when the program ends.
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call; None: the registry's callback threads.
        configuration: That of its registry, pickled, for what its calls call; None: there is none.
    """

    depth: ClassVar[int] = 8
    """An answer takes a while to come here, and the next piece to go there: workers are to have enough meanwhile."""
    wants_configuration: ClassVar[bool] = True
    pickles: ClassVar[bool] = True
    launches_here: ClassVar[bool] = True
    is_here: bool = False
    """Its workers are on this machine, started for it: they look for modules where this process does."""

    def __init__(
        self,
        *,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        upload: Sequence[str] = (),
        context: Sequence[str],
        max_pending: int | None,
        on_full: OnFull,
        on_exit: OnExit,
        name: str,
        callbacks: Dispatcher | None,
        configuration: bytes | None,
    ) -> None:
        check_initializer(initializer)
        if isinstance(upload, str) or not is_modules(tuple(upload)):
            raise ValueError(f"upload must be names of modules, such as ['package.module']; found {upload!r}")
        self._id = uuid4().hex
        self._configuration = configuration
        self._initializer = None if initializer is None else (initializer, initargs)
        self._uploads = cache(partial(pack, tuple(upload)))  # once: as long as it is there, the pool runs the same code
        self._carrier = Carrier(context) if context else None
        super().__init__(name, callbacks, max_pending, on_full, on_exit)

    @abstractmethod
    def _new_driver(self) -> Driver:
        """Make the way to the engine; nothing is started yet."""

    def _new_engine(self) -> Bridge:
        driver = self._new_driver()
        self._bridge = Bridge(self.label, f"parallel-{self.name or self.kind}", driver, self._new_setup())
        return self._bridge

    def _new_setup(self) -> Callable[[], Setup]:
        """Return what packs how its calls are run; that may be refused, and doesn't hold the pool."""
        path = tuple(sys.path) if self.is_here else ()
        return partial(_packed_setup, self.label, self._id, self._configuration, self._initializer, self._uploads, path)

    def reconfigure(self, configuration: bytes) -> None:
        """Have what calls call go by another configuration; see `Pool.reconfigure`."""
        self._configuration = configuration
        self._bridge.take_setup(self._new_setup())

    @property
    def capacity(self) -> int:
        """How many calls it runs at a time, as far as is known."""
        return self._bridge.capacity

    @property
    def piece_time(self) -> int:  # type: ignore[override]  # read, as that of others
        """Nanoseconds that a piece of a map is to take; see `Pool.piece_time`."""
        return self._bridge.piece_time

    @property
    def run_chunk(self) -> Callable[..., Done]:
        """What runs many items in one call; see `Pool.run_chunk`."""
        return run_items

    def error_of_item(self, name: str, failure: Any) -> BaseException:
        """Return the exception of an item, which has travelled; see `Pool.error_of_item`."""
        return error_of_item(name, failure)

    def shared(self, value: object) -> object:
        """Return what stands for a value that many calls share: it travels once to each worker process."""
        return Supply(value)

    @property
    def follower(self) -> Dispatcher:
        """The callback threads."""
        return self.handing(self._bridge.handed)

    def handing(self, tally: Tally) -> Handing:
        """Return the dispatcher of its futures, through which they reach the engine; see `HandingPool.handing`."""
        handing = super().handing(tally)
        if handing.kill is None:
            handing.kill, handing.ask = self._bridge.kill, self._bridge.ask
        return handing

    def launch(self, future: Future[Any], /) -> None:
        """Pack a call and queue it; see `Pool.launch`. What can't be pickled fails it."""
        future.dispatcher = self.follower
        bridge = self._bridge
        bridge.check_open()
        if self._pack(future):
            bridge.accept(future)
            bridge.wait_until_open()
        else:
            bridge.count_stillborn()

    def _pack(self, future: Future[Any]) -> bool:
        """Replace the work of a future by what travels; False if it has ended by that, or before."""
        fields = future.__dict__
        work: Work | Letter | None = fields.pop("_work", None)
        packed: Letter | Outcome = (None, CANCELLED, None)
        within = None
        try:
            if isinstance(work, Letter):
                packed = work
            elif work is not None:
                fn, args, kwargs, context = work
                within = context.get(WITHIN)
                name = name_of(args[0]) if fn is run_items else None  # of a map, that of the mapped function
                packed = pack_call(fn, args, kwargs or {}, context, self._carrier, name)
        except BaseException:
            fields["_work"] = work
            raise
        fields["_work"] = packed  # who has cancelled it meanwhile has asked its run, which is looked at: `begin`
        if isinstance(packed, Letter):
            if within is not None:
                fields["_within"] = within  # for the report of a failure that nobody looks at: the context is gone
            return True
        settle(future, packed, may_block=False)
        return False


def _packed_setup(
    label: str,
    pool: str,
    configuration: bytes | None,
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
    uploads: Callable[[], tuple[Upload, ...]],
    path: tuple[str, ...],
) -> Setup:
    return Setup(label, pool, configuration, None if initializer is None else bundle(initializer), uploads(), path)

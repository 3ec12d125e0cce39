"""
How the processes of workers are started: by whom, and in which surroundings.

    Launcher.process() ──┬── forkserver: by a `Server`, the pool's own or the shared one
                         ├── spawn: a fresh interpreter
                         └── fork, or a context that somebody made: as that does it; they enter the surroundings inside

By the first two a worker has its environment and its directory before anything of the user's is loaded. A pool for
which nothing is said about *env*, *cwd* and *preload* shares its server with all others of that kind; that has loaded
nothing but this library, and its children set the variables of threads.

State: `_shared`, made by the first pool that needs it, under `_lock`; a forked child begins without.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Final, cast

from parallel.pools.process.surroundings import Surroundings, loaded_too_early

if TYPE_CHECKING:
    from parallel.pools.process.servers import Server

try:
    from parallel.pools.process import servers as _servers
except ImportError:  # this platform hands no descriptors to other processes
    _servers = None  # type: ignore[assignment]  # who uses it looks


class Launcher:
    """
    Starts the processes of one pool.

    Attributes:
        inside: What the workers have to do themselves.
        forks: Whether they are forked from this process.
    """

    def __init__(self, label: str, context: BaseContext, surroundings: Surroundings, asks_for_threads: bool) -> None:
        """
        Make one that has started nothing.

        Args:
            label: What messages call the pool.
            context: How processes are started.
            surroundings: Where the workers are to run.
            asks_for_threads: Whether the variables of threads are there because somebody said how many.
        """
        self._label = label
        self._context = context
        self._surroundings = surroundings
        self._asks_for_threads = asks_for_threads
        self._server: Server | None = None
        self._closed = False
        self.forks = context.get_start_method() == "fork"
        self._serves = _servers is not None and type(context) is _servers.ForkServerContext
        self._spawns = _servers is not None and type(context) is _servers.SpawnContext
        self.inside = surroundings.inside() if self._serves or self._spawns else surroundings

    def check(self) -> None:
        """
        See that workers can be started, and warn of what is known to go wrong.

        Raises:
            NotADirectoryError: The working directory is not there.
        """
        self._surroundings.check()
        if self.forks:
            _warn_of_threads(self._label)
            if self._asks_for_threads and (early := loaded_too_early()):
                warnings.warn(
                    f"{self._label}: threads_per_worker comes too late for {', '.join(early)}: loaded here before the "
                    "fork, it has read its number of threads; use forkserver or spawn",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def process(self, target: Callable[..., object], args: tuple[Any, ...], name: str) -> BaseProcess:
        """Make the process of one worker, which is to be started."""
        if self._serves:
            assert _servers is not None, "they are its"
            served = _servers.ServedProcess(target=target, args=args, name=name, daemon=False)
            served.server = self._server_at_hand()
            served.surroundings = self._surroundings
            return served
        if self._spawns:
            assert _servers is not None, "they are its"
            spawned = _servers.SpawnedProcess(target=target, args=args, name=name, daemon=False)
            spawned.surroundings = self._surroundings
            return spawned
        make = cast("Callable[..., BaseProcess]", self._context.Process)  # type: ignore[attr-defined]  # each has it
        return make(target=target, args=args, name=name, daemon=False)

    def give_up(self) -> None:
        """Have whoever waits for the pool's modules to be loaded fail, as nobody needs the worker; never waits."""
        self._closed = True
        if self._server is not None and not self._surroundings.is_plain:
            self._server.give_up()

    def close(self) -> None:
        """End what was started for this pool alone."""
        self.give_up()
        if self._server is not None and not self._surroundings.is_plain:
            self._server.close()

    def _server_at_hand(self) -> Server:
        server = self._server
        if server is None:
            plain = self._surroundings.is_plain
            server = self._server = shared_server() if plain else _new_server(self._label, self._surroundings)
            if self._closed and not plain:
                server.give_up()
        return server


class _Shared:
    """The server of all pools that want nothing of it."""

    server: Server | None = None


_shared = _Shared()
_lock = threading.Lock()


def shared_server() -> Server:
    """Return the server that is shared by all pools of this process; it ends with that."""
    with _lock:
        server = _shared.server
        if server is None:
            server = _shared.server = _new_server("process pools", Surroundings())
            atexit.register(server.close)
        return server


def _new_server(label: str, surroundings: Surroundings) -> Server:
    assert _servers is not None, "only what it makes needs one"
    return _servers.Server(label, surroundings)


def helper() -> tuple[int, int] | None:
    """Return the process id of the shared server, and the descriptor that leads to it; None if it isn't running."""
    return None if _shared.server is None else _shared.server.helper()


_OURS: Final = "parallel-"
"""How the names of this library's own threads begin; what they hold is seen to after a fork."""


def _warn_of_threads(label: str) -> None:
    here = threading.current_thread()
    others = [each.name for each in threading.enumerate() if each is not here and not each.name.startswith(_OURS)]
    if others:
        warnings.warn(
            f"{label} is about to fork while other threads run ({', '.join(sorted(others)[:3])}): a lock that one of "
            "them holds at that moment is never released in the worker; use forkserver or spawn",
            RuntimeWarning,
            stacklevel=2,
        )


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    if _shared.server is not None:
        atexit.unregister(_shared.server.close)
        _shared.server = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""
The connection of this process to Ray: there can be one only, which all its pools share.

Who finds Ray connected already, by the program itself, uses that, and leaves it as it is. Else the first pool connects,
or starts a cluster, and the last one that leaves undoes that. It happens on a thread of its own that lives as long: the
processes that Ray starts end with the thread that has started them.

State: `_users`, `_keeper`, `_address` and `_number`, guarded by `_lock`, which is held while Ray is started and ended.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

LOGGER = logging.getLogger("parallel")


class Joined(NamedTuple):
    """
    A pool's part in the connection.

    Attributes:
        number: Which connection it is: a program may shut one down, and there be another.
        is_new: It was made for that pool.
    """

    number: int
    is_new: bool


ANY: Final = (None, "auto", "local")
"""Addresses that say nothing about which cluster it is."""


class Connection:
    """The connection."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._keeper: _Keeper | None = None  # None: the program has connected by itself, or nobody has
        self._address: str | None = None
        self._number = 0

    def join(self, ray: Any, address: str | None, start: Callable[[], object]) -> Joined:
        """
        Use it, from now on.

        Args:
            ray: The module.
            address: The cluster that is wanted; see `ANY`.
            start: Connects.

        Raises:
            RuntimeError: This process is connected to another cluster.
        """
        with self._lock:
            is_new = not ray.is_initialized()
            if is_new:
                self._release()  # the program has shut it down
                keeper = _Keeper(start, ray.shutdown)
                keeper.open()
                self._keeper, self._address, self._users = keeper, address, 0
                self._number += 1
            elif address not in ANY and address != self._address:
                present = str(ray.get_runtime_context().gcs_address)
                if not _is_same(str(address), present, str(ray.util.get_node_ip_address())):
                    raise RuntimeError(
                        f"it is to use the Ray cluster {address}, and this process is connected to {present}: "
                        "a process can be connected to one only"
                    )
            self._users += 1
            return Joined(self._number, is_new)

    def has(self, joined: Joined) -> bool:
        """Tell whether it is still the same one."""
        return joined.number == self._number

    def leave(self, joined: Joined) -> None:
        """Use it no more; the last one ends what was made by `join`. That takes seconds."""
        with self._lock:
            if joined.number == self._number:
                self._users -= 1
                if self._users == 0:
                    self._release()

    def _release(self) -> None:
        keeper, self._keeper, self._address = self._keeper, None, None
        if keeper is not None:
            keeper.close()

    def renew(self) -> None:
        """In a forked child: nothing of it is here."""
        self.__init__()  # type: ignore[misc]  # as new


class _Keeper:
    """A thread that starts something, and ends it when it is told."""

    def __init__(self, start: Callable[[], object], end: Callable[[], object]) -> None:
        self._start = start
        self._end = end
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="parallel-ray-keeper", daemon=True)

    def open(self) -> None:
        """Start it; what that raises, comes out."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def close(self) -> None:
        """End it."""
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:
            self._error = error
            self._stop()
            return
        finally:
            self._started.set()
        self._leaving.wait()
        self._stop()

    def _stop(self) -> None:
        try:
            self._end()
        except Exception:
            LOGGER.exception("Ray could not be shut down")


def _is_same(one: str, other: str, own: str) -> bool:
    """
    Tell whether two addresses of the form host:port are the same, as far as their names can be looked up.

    Ray takes the address of this machine, *own*, for those of its loopback.
    """
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    return port == other_port and not _addresses(host, own).isdisjoint(_addresses(other_host, own))


def _addresses(host: str, own: str) -> set[str]:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except OSError:
        return {host}
    return {own if ip_address(each).is_loopback else each for each in found}


CONNECTION: Final = Connection()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CONNECTION.renew)

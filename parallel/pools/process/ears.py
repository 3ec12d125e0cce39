"""
What a waiter needs to wait for a worker itself, in the place of the reader: see `leading`.

Only where the system has epoll, out of which another thread may take a socket at any time, and eventfd.

State: the descriptor of an `Ear`, closed when nobody refers to it any more.
"""

from __future__ import annotations

import os
import select

from parallel.pools.process.reactor import Poller


class Ear:
    """
    What a waiter listens with: to one worker's socket, and to whoever wants the socket back.

    It is closed when nobody refers to it any more: a late waiter may still listen to a worker that is buried.
    """

    def __init__(self, descriptor: int) -> None:
        """
        Make one for the socket of *descriptor*.

        Raises:
            OSError: There are no descriptors left.
        """
        self.descriptor = descriptor
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def hears(self, seconds: float) -> bool:
        """
        Wait so long; tell whether something came on the socket, and nobody wants it back.

        Raises:
            RuntimeError: Another thread listens with it.
        """
        came = self._poll.poll(seconds * 1000)
        if len(came) == 1 and came[0][0] == self.descriptor:
            return True
        if came:
            os.eventfd_read(self._bell)
        return False

    def ring(self) -> None:
        """Wake who listens; he finds out why."""
        os.eventfd_write(self._bell, 1)

    def __del__(self) -> None:
        if hasattr(self, "_bell"):
            os.close(self._bell)


def make_ear(descriptor: int, poller: Poller) -> Ear | None:
    """Make what waiters need to lead a worker; None if the system doesn't have it, or has no more of it."""
    if not (hasattr(select, "epoll") and isinstance(poller, select.epoll) and hasattr(os, "eventfd")):
        return None
    try:
        return Ear(descriptor)
    except OSError:
        return None

"""
Leader and follower: who waits for a call that was sent alone waits on its worker's socket itself.

    result() ──▶ lead(): takes the socket from the reader ──▶ peeks at the answer ──▶ publishes the value
                                                          └─▶ tidies: takes the answer out, and puts the socket back

This saves the wake-up of the reader, and the one by it: half of a round trip. It makes the outcome earlier, never other
than the reader would have made it.

Guarantees:
- A signal handler may raise, or wait for another call, between any two steps: peeking changes nothing, publishing is
  one atomic step, and a worker that is hit in the tidying, which has no call by then, is replaced (`repair`).
- Whatever is not simple is left to the reader: errors, large values, values of other than builtin types (to load those
  may run code of the user's), chains and callbacks, terms.
- Nobody depends on the waiter: a submit that finds no idle worker hands its socket back, and so does its end of a nap.

State: `leader` and `reads` of a `Peer`. The reader reads no worker that is led, and counts its reads, twice each: a
look that overlaps with a read doesn't count.
"""

from __future__ import annotations

import marshal
import pickle
import threading
import time
from io import BytesIO
from socket import MSG_PEEK
from typing import Any, Final, NoReturn, cast

from parallel import trail
from parallel.futures import Future
from parallel.pools.process.calls import Calls
from parallel.pools.process.dispatching import Dispatching
from parallel.pools.process.ears import Ear
from parallel.pools.process.peer import Given, Peer
from parallel.pools.process.reactor import READ, WRITE, Poller
from parallel.pools.process.wire import ANSWERS, HEAD, RESULT

PEEK: Final = 4096
"""Bytes that are looked at. The reader reads what is longer: it has to take it out in pieces."""

NAP: Final = 0.25
"""Seconds that a waiter leads at most; a call that takes longer is not any faster by it."""


class _PlainUnpickler(pickle.Unpickler):
    """Loads what is made of builtin values only: no code of the user's runs, so none can raise, or block, here."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Leave all else to the reader."""
        raise pickle.UnpicklingError(global_name)


class Leading:
    """
    Lets waiters lead.

    Attributes:
        poller: Where the reader waits for sockets; set when that is open.
    """

    poller: Poller

    def __init__(self, dispatching: Dispatching, calls: Calls) -> None:
        self._dispatching = dispatching
        self._calls = calls

    def lead(self, future: Future[Any], timeout: float | None) -> float | None:
        """
        Wait for a call on its worker's socket, if it was sent there alone; it may have ended then, or may not.

        Returns:
            The seconds that are left of *timeout*.
        """
        for peer in self._dispatching.peers:
            given = _only_call(peer)
            if given is not None and given.future is future and peer.ear is not None:
                break
        else:
            return timeout
        began = time.monotonic()
        try:
            self._lead(peer, peer.ear, given, NAP if timeout is None else min(max(timeout, 0), NAP))
        except (OSError, RuntimeError, ValueError):
            pass  # the worker has died, another thread listens, or it is not to be read so: the reader sees to it
        except BaseException:
            self._dispatching.attention = True
            self._dispatching.ring()  # whatever this thread was about to tell
            raise
        return None if timeout is None else timeout - (time.monotonic() - began)

    def _lead(self, peer: Peer, ear: Ear, given: Given, seconds: float) -> None:
        if peer.leader or peer.outbox or peer.dead or peer.answered >= given.number:
            return
        me = threading.get_ident()
        register = self.poller.register
        theirs = False
        try:
            try:
                self.poller.unregister(ear.descriptor)  # one thread succeeds
            except OSError:
                theirs = True
                return
            peer.leader = me
            self._dispatching.attention = True  # a submit that finds nobody idle hands the socket back
            if peer.reads & 1 or "_end" in given.future.__dict__ or self._calls.waiting():
                return
            if ear.hears(seconds) and peer.leader == me:
                self._look(peer, given, me)
        finally:
            # An interrupt comes after calls, and where a function of Python begins: so the first that is called here is
            # what puts the socket back.
            if not theirs:
                if peer.leader == me:
                    peer.leader = 0
                try:
                    register(ear.descriptor, READ | WRITE if peer.outbox else READ)
                except OSError:
                    pass  # handed back already, or closed
                finally:
                    if peer.dead or self._dispatching.has_news:
                        self._dispatching.ring()  # it has died since it was looked at; or it is idle, and to be told

    def _look(self, peer: Peer, given: Given, me: int) -> None:
        """Peek at what has come; if the call's value is there, and is simple, publish it."""
        reads = peer.reads
        if reads & 1 or peer.inbox.holds_part():
            return
        data = peer.sock.recv(PEEK, MSG_PEEK)
        fields = given.future.__dict__
        if peer.reads != reads or "_first" in fields or "_run" in fields:
            return
        at, end = 0, len(data)
        while end - at > HEAD.size:
            size, large = HEAD.unpack_from(data, at)
            at += HEAD.size
            if large or size > end - at:
                return
            kind, number, *parts = marshal.loads(memoryview(data)[at : at + size])
            at += size
            if kind != ANSWERS:
                return
            results: list[Any] = parts[0]
            if number <= given.number < number + len(results):
                if self._publish(fields, results[given.number - number]) and at == end and len(results) == 1:
                    self._tidy(peer, given.number, me, end)
                    noting = trail.current
                    if noting is not None and len(parts) > 2:
                        noting.note((trail.TIMES, peer.pid, number, parts[2]))
                return

    def _publish(self, fields: dict[str, Any], result: Any) -> bool:
        """Make the outcome known; False if that is the reader's."""
        if type(result) is tuple:
            if result[0] != RESULT:
                return False
            try:
                result = _PlainUnpickler(BytesIO(cast(bytes, result[1]))).load()
            except pickle.UnpicklingError:
                return False
        outcome = (result, None, None)
        # A first waiter that came meanwhile is the reader's to tell.
        return fields.setdefault("_end", outcome) is outcome and "_first" not in fields

    def _tidy(self, peer: Peer, number: int, me: int, size: int) -> None:
        """Take out the answer that was looked at, and book it: then the reader need not wake up for it."""
        dispatching, calls = self._dispatching, self._calls
        gate = dispatching.gate
        if dispatching.is_owned():
            return
        try:
            # Under the gate nobody sends to it, nor hands it back; and the reader does not read what is led.
            if gate.acquire(False) and _may_tidy(peer, number, me):
                peer.sender = me
                peer.sock.recv(size)
                peer.inbox.received += size
                peer.inflight.clear()
                peer.answered = number
                peer.ended += 1
                peer.look_at = None
                calls.tidied += 1
                dispatching.attention = True
                peer.sender = 0
        except BaseException:
            dispatching.repair()
            raise
        finally:
            try:
                gate.release()
            except RuntimeError:
                pass  # it is another thread's: then that one looks at the queue
            finally:
                if calls.waiting() or dispatching.is_watched or peer.dead or peer.leaves:
                    dispatching.ring()  # (*) who found the gate shut has queued its call


def _may_tidy(peer: Peer, number: int, me: int) -> bool:
    """Under the gate: tell whether this thread still leads a worker, whose one call is that of *number*."""
    if peer.leader != me or peer.reads & 1 or peer.sender or peer.recall is not None:
        return False
    return peer.sent == number == peer.answered + 1


def _only_call(peer: Peer) -> Given | None:
    """Return the call of a worker that has one."""
    try:
        given: Given = peer.inflight[0]
    except IndexError:
        return None
    return given if len(peer.inflight) == 1 and given.run is None else None

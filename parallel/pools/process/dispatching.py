"""
Which worker gets which calls, and how many at a time.

    submit ──▶ a worker is idle ──▶ direct(): the caller sends it this one call
           └──▶ none is ──▶ queued: no lock, no system call
    reader: answers have come, somebody rang ──▶ dispatch(): messages of many calls, to whoever has little left to do

Guarantees:
- A submitter never waits for the gate: who finds it shut queues the call, and rings. So no call is overlooked, whatever
  the gate was shut for.
- Whole messages are sent by the reader only, which runs no signal handler: one that raises in the middle of a submit
  costs that call, and the worker that it was for (`repair`).
- Calls without terms travel together. One with terms gets an idle worker for itself: its time counts from the sending,
  and to kill it costs no other call.
- Nobody blocks under the gate, and no code of the user's runs but finalizers and signal handlers; both only queue.

State, guarded by `gate`: `peers`, and of each what `peer` says; the taking of calls; `shortage` and `held`. `attention`
is one word, written by whoever has the gate, by the reader, by waiters, and by who closes the pool.
Order of the locks: that of the books, then the gate, then none. Neither is held while anything is pickled or loaded.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, cast

from parallel import trail
from parallel.futures import Future
from parallel.gates import GatedFuture
from parallel.outcomes import failure
from parallel.pools.process.calls import Calls, Waiting
from parallel.pools.process.costs import LEAST, LOOK, TARGET, Known, most
from parallel.pools.process.packing import Item, Packed
from parallel.pools.process.parcels import Parcel
from parallel.pools.process.peer import Given, Peer
from parallel.pools.process.wire import SMALL, Part, pack
from parallel.shortage import LOOK as LOOK_FOR_MEMORY
from parallel.shortage import Shortage

_get_ident: Final = threading.get_ident

_tuple: Any = tuple
_new_given: Final = cast("Callable[[type[Given], tuple[object, ...]], Given]", _tuple.__new__)
"""Makes a `Given` in a third of the time."""


class Dispatching:
    """
    Gives calls to workers.

    Attributes:
        gate: Who has it may give calls to workers. Re-entrant only so that it knows its owner: nobody enters it twice.
        peers: The workers that have said hello, and were not dismissed.
        attention: A submit has to look closer: a worker may be idle, or is led, or is lacking; or the pool is not open.
        lacking: More workers may be started.
        is_watched: The reader is to be told of each end: somebody waits for all of them, or the pool is closing.
        armed: Some worker's board is to be looked at: see `looking`.
        has_news: Some worker may have to be told what it is not told with its calls: see `baggage`.
        shortage: Whether memory is short; None: that is no matter.
        held: Calls wait for memory: the reader is to look again in a moment.
    """

    ring: Callable[[], object]
    """Wakes the reader; set by the books, as is"""

    tell: Callable[[Callable[[], object]], object]
    """what has it run an errand,"""

    bury: Callable[[Peer], object]
    """what it does with a dead worker,"""

    watch: Callable[[Peer], object]
    """how it listens to a worker that is to be sent more,"""

    hand_back: Callable[[Peer], object]
    """and how it is handed the socket of a worker that was led."""

    kill: Callable[[Any], object]
    """How a call, `Run.given`, is ended by force; set by the engine."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.gate = threading.RLock()
        self.peers: list[Peer] = []
        self.attention = True
        self.lacking = True
        self.is_watched = False
        self.armed = False
        self.has_news = False
        self.shortage: Shortage | None = None
        self.held = False

    def is_owned(self) -> bool:
        """Tell whether this thread has the gate: then it is a finalizer, or a signal handler, in the middle of this."""
        return self.gate._is_owned()  # type: ignore[attr-defined, no-any-return]  # as Condition does

    # -- one call, by who makes it ------------------------------------------------------------------------------------

    def direct(self, future: Future[Any], known: Known) -> None:
        """Send a call to an idle worker; if there is none, queue it."""
        if self.is_owned():
            self._calls.queue(future)
            self.ring()
            return
        try:
            ring, claimed = self._try_directly(future, known)
            if claimed is not None:
                self.send_claimed(claimed)
            elif ring or (ring is None and self._calls.waiting()):  # (*) now that the gate is open
                self.ring()
        except BaseException:
            self.repair()
            raise

    def _try_directly(self, future: Future[Any], known: Known) -> tuple[bool | None, Peer | None]:
        """
        Send or queue a call.

        Returns:
            Whether the reader is to look, None if only in case that calls wait; and the worker that this thread is to
            send to.
        """
        gate, calls = self.gate, self._calls
        try:
            if gate.acquire(False):
                return self._place(future, known)
            calls.queue(future)
            return True, None  # whoever has it may have looked at the queue already
        finally:
            # Whatever happened: an interrupt may have come right after an acquire. It comes after calls, and where a
            # function of Python begins; so the release is the first that is called here.
            try:  # noqa: SIM105  # as `suppress` would be called before it
                gate.release()
            except RuntimeError:
                pass  # it is another thread's

    def _place(self, future: Future[Any], known: Known) -> tuple[bool | None, Peer | None]:
        """Under the gate: as `_try_directly`."""
        calls = self._calls
        waiting = calls.waiting()
        peer = None if waiting else self._idle_for(known)
        if peer is None:
            calls.queue(future)
            if not self.attention:
                self._hand_back()
            return self.lacking or (self.attention and not waiting), None
        peer.sender = _get_ident()
        if self._give(peer, (future,), 1):
            return None, peer
        if peer.sent == peer.answered:
            self.attention = True  # the call had been cancelled, and the worker is idle still
        self._sent(peer)
        return None, None

    def _idle_for(self, known: Known) -> Peer | None:
        """Under the gate: choose an idle worker; None if there is none, or this thread's last one will be back soon."""
        self.attention = self.lacking  # (*) before the workers are asked: who frees one does it the other way round
        found = None
        me = _get_ident()
        for peer in reversed(self.peers):  # the latest first: its caches are warm
            if peer.is_idle():
                if found is not None or not peer.takes_calls():
                    self.attention = True  # another one is, or is about to be when its sender is through
                found = found or (peer if peer.takes_calls() else None)
            elif peer.burst == me and known.cost and len(peer.inflight) * (peer.cost + known.cost) < LEAST:
                self.attention = True
                return None  # a burst of short calls: it goes with the next message
        if found is not None:
            if self.shortage is not None and self._is_held(found, self.shortage):
                return None
            found.burst = me
        return found

    def _hand_back(self) -> None:
        """Under the gate: have the reader read what waiters lead: nothing is to depend on their going on."""
        for peer in self.peers:
            if peer.leader:
                peer.leader = 0
                self.hand_back(peer)

    def repair(self) -> None:
        """
        Repair what this thread left half done when a signal handler raised in the middle of this.

        A worker that it was sending to may have got all of that, a part, or nothing: nobody knows, so it goes.
        """
        me = _get_ident()
        for peer in list(self.peers):
            if peer.sender == me:
                self.tell(partial(self.give_up, peer))
        self.attention = True
        self.ring()

    def give_up(self, peer: Peer) -> None:
        """On the reader: end a worker that nobody can tell about what it was sent."""
        self.retire(peer)
        peer.forsaken = True
        peer.sender = 0
        peer.kill()
        if peer.dead:
            self.bury(peer)

    # -- many calls, by the reader ------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """On the reader: give the workers what they have room for."""
        calls = self._calls
        while True:
            with self.gate:
                claimed = self._fill()
                left = calls.waiting()
            for peer in claimed:
                self.send_claimed(peer)
            if calls.waiting() <= left:
                return  # (*) nobody has come since

    def _fill(self) -> list[Peer]:
        """Under the gate: give calls to workers; return those to which they are to be sent without it."""
        calls, shortage = self._calls, self.shortage
        claimed: list[Peer] = []
        self.attention, self.held = self.lacking, False  # (*) as in `_idle_for`
        peers = [peer for peer in self.peers if peer.takes_calls()]
        peers.sort(key=_load)
        for peer in peers:
            waiting = calls.waiting()
            if not waiting:
                break
            each = self._next_cost()
            busy = peer.sent != peer.answered
            if busy and (peer.leader or not _wants_more(peer)):
                continue
            if not busy and waiting * each < LEAST and each and self._is_back_soon(peers):
                break
            if shortage is not None and self._is_held(peer, shortage):
                break
            peer.burst = 0
            room = most(waiting, len(self.peers), each) if peer.board.is_shared else 1
            if self._give(peer, calls.stream(), room):
                peer.sender = _get_ident()
                claimed.append(peer)
        if self.lacking or self.held or any(peer.sent == peer.answered for peer in self.peers):
            self.attention = True  # also for one that is idle before its sender is through, who rings then
        return claimed

    def _is_held(self, peer: Peer, shortage: Shortage) -> bool:
        """Under the gate: tell whether *peer* is to be given nothing for now, as memory is short."""
        others = sum(not other.is_idle() for other in self.peers if other is not peer)
        if not shortage.holds_back(others):
            return False
        self.held = self.attention = True
        return True

    def is_short(self) -> bool:
        """Tell whether memory is short; if so, the reader looks again in a moment."""
        with self.gate:
            short = self.shortage is not None and self.shortage.is_short()
            self.held = self.held or short
        return short

    def look_again(self) -> float:
        """On the reader: tell what there is to be told of memory; return the seconds until it is to look again."""
        if self.shortage is None:
            return math.inf
        self.shortage.tell()
        with self.gate:
            self.held = self.held and self._calls.waiting() > 0
        return LOOK_FOR_MEMORY if self.held else math.inf

    def _next_cost(self) -> int:
        """Under the gate: return what the next call takes, as far as is known."""
        calls = self._calls
        call = calls.take()
        if call is None:
            return 0
        calls.put_back(call)
        if type(call) is Given:
            return call.known.cost
        packed: object = call.__dict__.get("_work")
        return packed[0].cost if type(packed) is Packed else 0

    def _is_back_soon(self, peers: list[Peer]) -> bool:
        """Under the gate: tell whether a busy worker will be back before an idle one were awake."""
        now = time.monotonic_ns()
        for peer in peers:
            if peer.sent != peer.answered and len(peer.inflight) * peer.cost < LEAST and now - peer.sent_at < LEAST:
                self._arm(peer, now)  # should that guess be wrong
                return True
        return False

    def _arm(self, peer: Peer, now: int) -> None:
        """Have the reader look at a worker's board in a moment."""
        if peer.look_at is None:
            peer.look_at = now + LOOK
            self.armed = True

    # -- giving -------------------------------------------------------------------------------------------------------

    def _give(self, peer: Peer, source: Iterable[Waiting], room: int) -> bool:
        """
        Under the gate: give a worker calls out of *source*, and send them as one message.

        Args:
            peer: The worker.
            source: Calls, in order; one that is taken out of it, and not given, is put back.
            room: How many it is given at most.

        Returns:
            True if it was given one that is to be sent without the gate, by `send_claimed`.
        """
        calls = self._calls
        if peer.limit is not None:
            room = min(room, peer.limit - peer.ended - len(peer.inflight))
            self.lacking = self.attention = True  # whoever takes its place may be started before it leaves
        runs: list[Any] = []
        items: list[Any] = []
        references: list[tuple[int, bytes]] = []
        large: Part = b""
        last: Known | None = None
        inflight, first = peer.inflight, peer.sent + 1
        number, cost, size = first, 0, 0
        for call in source:
            if number - first >= room or cost >= TARGET or size >= SMALL:
                calls.put_back(call)
                break
            is_plain = type(call) is Future and "_unread" not in call.__dict__
            if not is_plain and inflight:
                calls.put_back(call)  # it gets a worker for itself
                break
            if is_plain and "_run" not in call.__dict__:  # the usual case, without the ceremony
                begun: Packed | Given | None = call.__dict__.pop("_work", None)
                if begun is None:
                    calls.tidied += 1  # it was cancelled
            else:
                begun = calls.begin(call)
            if begun is None:
                continue
            if type(begun) is Given:
                self._claim(peer, begun)
                return True
            known, item = cast(Packed, begun)
            if known is not last:
                if number > first and not known.cost:  # it may take long
                    call.__dict__["_work"] = begun
                    calls.put_back(call)
                    break
                if known.reference is not None and known.number not in peer.references:
                    peer.references.add(known.number)
                    references.append((known.number, known.reference.key))
                items = []
                runs += (known.number, items)
                last = known
            wired: Any = item
            if type(item) is not tuple:
                wired, large = _wired(peer, item)
                size += SMALL if type(wired) is not bytes else len(wired)
            items.append(wired)
            inflight.append(_new_given(Given, (number, call, known, item, None)))
            number += 1
            cost += known.cost or TARGET
        if last is not None:
            peer.sent = number - 1
            peer.cost = max(cost // (number - first), 1)
            message: tuple[Any, ...] = (first, runs, references, None)
            noting = trail.current
            if noting is not None:
                _note_given(noting, peer, first)
                message = (*message, True)
            peer.outbox = peer.baggage.frames() + pack(message, large)
            self._send(peer, number - first)
        return False

    def _send(self, peer: Peer, count: int) -> None:
        peer.sent_at = time.monotonic_ns()
        if count > 1 or len(peer.inflight) > count:
            self._arm(peer, peer.sent_at)  # some of them may have to wait for a long one
        if not peer.send():
            self.tell(partial(self.watch, peer))

    def _claim(self, peer: Peer, begun: Given) -> None:
        """Under the gate: give a worker one call for itself; this thread is to send it."""
        peer.sender = _get_ident()
        run, known = begun.run, begun.known
        if run is not None:
            run.kill = partial(self.kill, run.given)
            if run.asked:
                peer.asked.append(peer.sent + 1)  # of a worker that has died before it had begun it
        references: list[tuple[int, bytes]] = []
        if known.reference is not None and known.number not in peer.references:
            peer.references.add(known.number)
            references.append((known.number, known.reference.key))
        wired, large = _wired(peer, begun.item)
        number = peer.sent + 1
        peer.inflight.append(begun._replace(number=number))
        peer.sent = number
        peer.cost = TARGET
        message: tuple[Any, ...] = (number, [known.number, [wired]], references, _facts(begun))
        noting = trail.current
        if noting is not None:
            _note_given(noting, peer, number)
            message = (*message, True)
        peer.outbox = peer.baggage.frames() + pack(message, large)

    def send_claimed(self, peer: Peer) -> None:
        """Send a worker the call that it was given for itself, on the thread that gave it, without the gate."""
        self._start(peer)
        peer.sent_at = time.monotonic_ns()
        if not peer.send():
            self.tell(partial(self.watch, peer))
        self._sent(peer)
        if self._calls.waiting():
            self.ring()

    def _sent(self, peer: Peer) -> None:
        """Note that this thread has sent a worker all that it wanted to."""
        peer.sender = 0  # (*) before what follows is read, and the queue: the reader does it the other way round
        if peer.dead:
            self.tell(partial(self.bury, peer))
        if peer.asked:
            self.tell(partial(self._pass_on, peer))

    def _start(self, peer: Peer) -> None:
        """Have the time of its call count from now on; one whose time can't be watched ends here, with its worker."""
        given = peer.inflight[0]
        if isinstance(given.future, GatedFuture):
            given.future.leave_gate()
        run = given.run
        if run is None:
            return
        try:
            run.start()
        except Exception as error:
            run.ask()  # so nobody has it run again
            run.finish(failure(error), may_block=False)
            peer.outbox = []
            peer.kill()

    # -- calls that are to stop ---------------------------------------------------------------------------------------

    def ask(self, peer: Peer, number: int) -> None:
        """On the reader: tell a worker that its call of that number is to stop."""
        with self.gate:
            peer.asked.append(number)
        self._pass_on(peer)

    def _pass_on(self, peer: Peer) -> None:
        """On the reader: tell a worker which calls are to stop, unless a thread is sending to it: that comes back."""
        with self.gate:
            if peer.sender or peer.dead or not peer.asked:
                return
            for number in peer.asked:
                peer.outbox += pack((number, None, None, None))
            peer.asked = []
            if not peer.send():
                self.tell(partial(self.watch, peer))

    # -- workers ------------------------------------------------------------------------------------------------------

    def welcome(self, peer: Peer) -> None:
        """On the reader: give a worker calls from now on."""
        peer.baggage.wake(self.note_news)
        with self.gate:
            peer.ready = True
            self.peers.append(peer)
            self.attention = True

    def note_news(self) -> None:
        """From anywhere: note that some worker has to be told something, with its next calls or without."""
        self.has_news = True
        self.ring()

    def tell_news(self) -> None:
        """On the reader: tell the workers that have no calls; to those that have some it will be told later."""
        self.has_news = False  # (*) before they are asked: who notes something does it the other way round
        with self.gate:
            for peer in self.peers:
                if not peer.baggage.has_news():
                    continue
                if peer.sent == peer.answered and peer.takes_calls() and not peer.leader:
                    peer.outbox = peer.baggage.frames()
                    self._send(peer, 0)
                else:
                    self.has_news = True

    def retire(self, *peers: Peer) -> None:
        """Give these workers no more calls; those that they have, they keep."""
        with self.gate:
            for peer in peers:
                if peer in self.peers:
                    self.peers.remove(peer)

    def retire_with(self, peer: Peer, number: int) -> bool:
        """Retire a worker if it has no call but that of *number*, and has not ended that by its own word."""
        with self.gate:
            if peer.is_idle() or len(peer.inflight) != 1 or peer.inflight[0].number != number:
                return False
            self.retire(peer)
            return True

    def sent_by(self, thread: int) -> bool:
        """Tell whether that thread is sending to a worker, or about to."""
        return any(peer.sender == thread for peer in list(self.peers))


def _wired(peer: Peer, item: Item) -> tuple[Any, Part]:
    """Under the gate: return what stands for an item in the message, and what follows the message."""
    if isinstance(item, Parcel):
        return peer.baggage.put(item)
    if isinstance(item, bytes) and len(item) >= SMALL:
        return None, item
    return item, b""


def _note_given(noting: trail.Trail, peer: Peer, first: int) -> None:
    """Note which calls a worker has been given, from its number *first* on."""
    ids = [given.future.__dict__.get("_id", 0) for given in peer.inflight if given.number >= first]
    noting.note((trail.GIVEN, trail.clock(), peer.pid, first, ids))


def _facts(given: Given) -> tuple[int, int, float | None] | None:
    """Return what the function can ask about its call; None: the call has no terms."""
    if given.run is None:
        return None
    deadline = getattr(given.future, "deadline", None)
    return trail.id_of(given.future), given.run.number, None if deadline is None else deadline.at


def _load(peer: Peer) -> int:
    return peer.sent - peer.answered


def _wants_more(peer: Peer) -> bool:
    """Tell whether a busy worker is to get another message: it has little left to do, and only short calls."""
    return peer.board.is_shared and peer.cost < TARGET and peer.unstarted() * peer.cost < TARGET // 2

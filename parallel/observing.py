"""
What a configuration says about observing, the table `[observe]`, and what a registry has done about it.

State: of an `Observation`, guarded by its `_lock`.
"""

from __future__ import annotations

import logging
import signal
import threading
from _thread import start_new_thread
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Final, Protocol

from attrs import field, frozen

from parallel.checks import checked, did_you_mean
from parallel.tidings import MOST, EventStream, Sink
from parallel.weak import WeakSet

LOGGER = logging.getLogger("parallel")

_FREE: Final = ("SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP", "SIGBREAK")
_SIGNALS: Final = tuple(name for name in _FREE if hasattr(signal, name))
"""Those that a program may do with as it likes."""


_flag = checked("true or false", lambda value: isinstance(value, bool), types=bool, form={"type": "boolean"})


@frozen(kw_only=True)
class ObserveOptions:
    """
    What is observed, and how that is asked for.

    Args:
        stats: Whether failures and times of calls are counted, for `stats()`: a microsecond or two a call.
        socket: Whether `python -m parallel top` may look on, by way of a socket that only this user can reach.
        dump_signal: At which signal, such as `SIGUSR1`, all that runs is written to standard error; see `dump`.

    Raises:
        TypeError: One of them is of another type.
        ValueError: One of them has a value that it can't have.
    """

    stats: bool = field(default=False, validator=_flag)
    socket: bool = field(default=False, validator=_flag)
    dump_signal: str | None = field(
        default=None,
        validator=checked(
            f"one of {', '.join(_SIGNALS)}",
            lambda value: value in _SIGNALS,
            lambda value: did_you_mean(value, _SIGNALS),
            types=str,
            form={"enum": list(_SIGNALS)},
        ),
    )


class Teller(Protocol):
    """Makes events of steps; see `observe.telling`."""

    sinks: tuple[Sink, ...]

    def start(self) -> None:
        """Tell from now on."""
        ...

    def stop(self) -> None:
        """Tell no more, but what was noted so far."""
        ...


class Observation:
    """
    What is observed for one registry.

    What observes is loaded when it is wanted.

    Args:
        pools: The names of the registry's pools, by their numbers; the registry adds to it.
    """

    def __init__(self, pools: Mapping[int, str]) -> None:
        self._lock = threading.RLock()  # a signal handler may shut the registry down
        self._pools = pools
        self._counts = False
        self._serves = False
        self._problems: set[str] = set()
        self._teller: Teller | None = None
        self._streams: WeakSet[EventStream] = WeakSet()

    def begin(self, said: ObserveOptions) -> None:
        """Observe what is said, and only that; nothing happens if that is so. No lock of the registry's may be held."""
        with self._lock:
            if said.stats != self._counts:
                self._counts = said.stats
                statistics = import_module("parallel.observe.statistics")
                (statistics.start if said.stats else statistics.stop)()
            if said.socket != self._serves:
                self._serve(said.socket)
        if said.dump_signal is not None:
            try:
                import_module("parallel.observe.snapshot").dump_at(said.dump_signal)
            except ValueError as error:
                self._complain(f"observe.dump_signal: {error}")

    def _serve(self, serves: bool) -> None:
        serving = import_module("parallel.observe.serving")
        if not serves:
            self._serves = False
            serving.stop()
            return
        try:
            serving.start()
            self._serves = True
        except OSError as error:
            self._complain(f"observe.socket: nobody can look on: {error}")

    def _complain(self, problem: str) -> None:
        """Log it, once: it is tried again with each pool that opens."""
        if problem not in self._problems:
            self._problems.add(problem)
            LOGGER.warning("%s", problem)

    def tell(self, sink: Sink) -> None:
        """Have *sink* get the events of all steps from now on; nothing happens if it does."""
        with self._lock:
            teller = self._teller
            if teller is None:
                made: Teller = import_module("parallel.observe.telling").Teller(self._pools)
                made.sinks = (sink,)
                made.start()
                self._teller = made
            elif sink not in teller.sinks:
                teller.sinks = (*teller.sinks, sink)

    def tell_no_more(self, sink: Sink) -> None:
        """Have it get none; nothing happens if it does not."""
        with self._lock:
            teller = self._teller
            if teller is not None and sink in teller.sinks:
                if len(teller.sinks) == 1:
                    self._teller = None
                    teller.stop()
                teller.sinks = tuple(each for each in teller.sinks if each is not sink)

    def stream(self, most: int | None) -> EventStream:
        """Return the events of all steps from now on; None: as many wait in it as is usual."""
        made = EventStream(MOST if most is None else most, self.tell_no_more)
        self._streams.add(made)
        self.tell(made.sink)
        return made

    def end(self) -> None:
        """Observe nothing any more; a signal stays what it is."""
        with self._lock:
            if self._counts:
                self._counts = False
                import_module("parallel.observe.statistics").stop()
            if self._serves:
                self._serve(False)
            teller, self._teller = self._teller, None
            if teller is not None:
                teller.stop()
        for stream in self._streams:
            stream.end()

    def end_behind(self) -> None:
        """As `end`, for a destructor, which may run at any point of any thread, and so takes no lock."""
        if self._counts or self._serves or self._teller is not None:
            with suppress(Exception):  # no thread can be had: the program's end comes soon
                start_new_thread(self.end, ())

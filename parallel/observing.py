"""
What a configuration says about observing, the table `[observe]`, and what a registry has done about it.

State: of an `Observation`, its registry's own, guarded by the lock of that.
"""

from __future__ import annotations

import logging
import signal
from importlib import import_module
from typing import Final

from attrs import field, frozen

from parallel.checks import checked, did_you_mean

LOGGER = logging.getLogger("parallel")

_FREE: Final = ("SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP", "SIGBREAK")
_SIGNALS: Final = tuple(name for name in _FREE if hasattr(signal, name))
"""Those that a program may do with as it likes."""


@frozen(kw_only=True)
class ObserveOptions:
    """
    What is observed, and how that is asked for.

    Args:
        stats: Whether failures and times of calls are counted, for `stats()`: a microsecond or two a call.
        dump_signal: At which signal, such as `SIGUSR1`, all that runs is written to standard error; see `dump`.

    Raises:
        TypeError: One of them is of another type.
        ValueError: One of them has a value that it can't have.
    """

    stats: bool = field(
        default=False,
        validator=checked("true or false", lambda value: isinstance(value, bool), types=bool, form={"type": "boolean"}),
    )
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


class Observation:
    """
    What is observed for one registry.

    What observes is loaded when it is wanted.
    """

    def __init__(self) -> None:
        self._counts = False

    def begin(self, said: ObserveOptions) -> None:
        """Observe what is said, and only that; nothing happens if that is so."""
        if said.stats and not self._counts:
            import_module("parallel.observe.statistics").start()
            self._counts = True
        elif not said.stats:
            self.end()
        if said.dump_signal is not None:
            try:
                import_module("parallel.observe.snapshot").dump_at(said.dump_signal)
            except ValueError as error:
                LOGGER.warning("observe.dump_signal: %s", error)

    def end(self) -> None:
        """Observe nothing any more; a signal stays what it is."""
        if self._counts:
            self._counts = False
            import_module("parallel.observe.statistics").stop()

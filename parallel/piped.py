"""
A map between two descriptors: items come in by one, records go out by the other, and one thread waits for both.

    Input ──▶ Flow: pools, journal ──▶ parts, in order ──▶ Records
      ▲                                                      │
      └── the main thread: waits for input, ended items, room and Ctrl-C, all at once

Guarantees:
- A record is written as soon as its turn has come, though the next item may take hours to come.
- Input is read as far as the workers need it, and nothing is read behind the last Ctrl-C.
- Ctrl-C once: nothing more is begun, what runs comes to its end and is written. Twice: it is killed.
- What has ended is written, also behind an item that never will: its index is missing then.

State: all of it belongs to the main thread; the `Bell` and `Interrupts` are how others reach that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from parallel.errors import MapHaltedError
from parallel.inputs import HeaderError, Input
from parallel.interrupts import STATUS, Bell, Interrupts
from parallel.ledgers import Part
from parallel.records import Records, brief
from parallel.streams import Reading

TOLD: Final = 10
"""Failures that are told on standard error, each in a line. All of them are in the output."""

FAILED: Final = 1
"""The exit status if items have failed, or not all could be run."""

REFUSED: Final = 2
"""That if it could not begin."""

PIPE_CLOSED: Final = 128 + 13
"""That if the reader of the output has gone away: as a shell tells of SIGPIPE."""


class Items(Reading[Any]):
    """A stream that is driven by somebody who waits for other things as well, and wants to know which item is which."""

    def parts(self) -> Iterator[Part]:
        """Yield what has ended by now, and whose turn it is; send more."""
        for part in self._round():
            yield part
            self._hand_out(part)

    def left(self) -> list[Part]:
        """Return what has ended behind an item that has not, in order; at the end, when that will not end any more."""
        self._parts.update((part.first, part) for part in self._taken())
        return [self._parts.pop(first) for first in sorted(self._parts)]

    @property
    def has_news(self) -> bool:
        """Whether there is something to take."""
        return self._flow.has_news

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._flow.is_over

    @property
    def error(self) -> BaseException | None:
        """What has ended it before its time, or will when what runs has ended."""
        return self._flow.error or self._flow.broken

    @property
    def is_halted(self) -> bool:
        """Whether it is not worth waiting for what runs: as far as it can be ended, it has been."""
        return isinstance(self._flow.error, MapHaltedError) and self._rules.halts.at_once

    def finish(self) -> None:
        """Begin nothing more, and let what runs come to its end."""
        self._flow.finish()

    def kill(self) -> None:
        """End what runs."""
        self._flow.stop(running=True)

    def spoil(self) -> None:
        """Show that an item which has ended counts as a failure after all."""
        self._flow.display.add(0, 1)


class Run:
    """
    One run: takes what has ended, writes it, and waits.

    Args:
        items: The map.
        source: Where its items come from.
        output: The descriptor that records are written to.
        bell: Rings when an item has ended, and at Ctrl-C.
        interrupts: Counts those.
        say: Tells a person.
    """

    def __init__(
        self,
        items: Items,
        source: Input,
        output: int,
        bell: Bell,
        interrupts: Interrupts,
        say: Callable[[str], object],
    ) -> None:
        self._items = items
        self._source = source
        self._records = Records(output, self._wait_for_room)
        self._bell = bell
        self._interrupts = interrupts
        self._say = say
        self._finishes = False
        self._count = self._failed = 0
        self._why: BaseException | None = None  # what ends it before its time, once that has been told

    def status(self) -> int:
        """Run it; return the exit status."""
        try:
            status = self._drive()
            for part in self._items.left():
                self._write(part)
            self._records.flush()
        except KeyboardInterrupt:  # the second one, as there is no room for what is written
            status = STATUS
        except BrokenPipeError:
            status = PIPE_CLOSED
        except OSError as error:
            self._say(f"the records can't be written: {error}")
            status = FAILED
        if not self.is_over:
            self._interrupts.leave(status)
            self._items.kill()
        self._items.close()  # the display, before the rest is said
        if self._failed and status != PIPE_CLOSED:
            self._say(f"{self._failed:,} of {self._count:,} items failed")
        return status

    @property
    def is_over(self) -> bool:
        """Whether nothing runs any more."""
        return self._items.is_over

    def _drive(self) -> int:
        items = self._items
        while True:
            self._source.is_dry = False
            for part in items.parts():
                self._write(part)
            if self._interrupts.count > 1:
                items.kill()
                return STATUS
            if self._interrupts.count and not self._finishes:
                self._finish()
            self._tell_why()
            if items.is_halted:
                break
            if items.has_news:
                continue
            if items.is_over:
                break
            self._records.flush()
            self._bell.wait([self._source] if self._source.is_dry and not self._finishes else [])
        return self._ended()

    def _finish(self) -> None:
        self._finishes = True
        self._records.may_be_lost = True  # the same Ctrl-C may have ended who reads them
        self._items.finish()
        if not self._items.is_over:
            self._say("waiting for what runs; Ctrl-C again kills it")

    def _tell_why(self) -> None:
        """Tell what ends it before its time, once."""
        error = self._items.error
        if error is None or self._why is error:
            return
        self._why = error
        self._say(str(error) if isinstance(error, MapHaltedError | HeaderError) else f"ended by {brief(error)}")

    def _ended(self) -> int:
        if self._finishes:
            return STATUS
        if isinstance(self._why, HeaderError):
            return REFUSED
        return FAILED if self._failed or self._why is not None else 0

    def _write(self, part: Part) -> None:
        failures = dict(part.failures)
        for index, value in enumerate(part.values, part.first):
            error = failures.get(index)
            if error is not None:
                self._records.add_error(index, error)
            else:
                error = self._records.add(index, value)
                if error is not None:
                    self._items.spoil()
            self._count += 1
            if error is not None:
                self._tell(index, error)

    def _tell(self, index: int, error: BaseException) -> None:
        self._failed += 1
        if self._failed <= TOLD:
            self._say(f"item {index}: {brief(error)}")
        elif self._failed == TOLD + 1:
            self._say("more failures are in the output")

    def _wait_for_room(self) -> None:
        while not self._bell.wait((), [self._records]):
            if self._interrupts.count > 1:
                raise KeyboardInterrupt
        self._bell.ring()  # whatever it has rung for meanwhile is still to be seen to

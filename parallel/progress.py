"""
What a map shows while it runs: items done, items to go, failures.

    engine ──▶ display.add(done, failed), once per chunk ──▶ a bar │ lines │ tqdm │ a function of the program's
           └─▶ display.close(), in every case

Everything is shown on standard error. No display takes more than a small share of the time of the thread that adds,
nor does it ever fail because of its terminal, which may be slow, stopped or gone.

State: that of `Meter`, and in `_advised` what has been said once.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from parallel import context
from parallel.checks import described
from parallel.meters import Meter, Progress, in_words
from parallel.pools.base import Counts
from parallel.screens import Screen

if TYPE_CHECKING:
    from parallel.bars import Bar

LOGGER = logging.getLogger("parallel")

LINES: Final = 5.0
"""Seconds between two lines where there is no bar: seldom enough for a log, often enough to see that it goes on."""

Shown: TypeAlias = "bool | str | Callable[[Progress], object] | None"
"""What *progress* may be: whether to show it, the label, `tqdm`, or a function that gets the numbers."""


def make_display(progress: Shown, label: str, total: int | None, stats: Callable[[], Counts]) -> Meter:
    """
    Make what shows how far a map is; to be closed in every case. It is used by one thread at a time.

    Args:
        progress: Whether, and how: True, a label, `tqdm`, or a function that is called with a `Progress`, ten times a
            second at most, by the thread that adds. What that function raises is logged once, and ends nothing.
        label: What it is called, where *progress* is no label.
        total: What `total_of` returned.
        stats: Tells what the pool does now. It must be quick, and may be called by any thread.

    Raises:
        ModuleNotFoundError: `tqdm` is not installed, and asked for.
        TypeError: *progress* is something else.
    """
    if progress is None or progress is False:
        return Meter(total, stats)
    if progress is True or (isinstance(progress, str) and progress != "tqdm"):
        return _bar_or_lines(_one_line(label if progress is True else progress), total, stats)
    if progress == "tqdm":
        return _Tqdm(_one_line(label), total, stats)
    if callable(progress):
        return _Told(progress, total, stats)
    raise TypeError(f"progress: expected a boolean, a label, 'tqdm' or a function, found {described(progress)}")


def _one_line(label: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in label).split())


# -- a bar, or lines --------------------------------------------------------------------------------------------------


def _bar_or_lines(label: str, total: int | None, stats: Callable[[], Counts]) -> Meter:
    screen = Screen()
    in_notebook = _is_in_notebook()
    if (screen.isatty() or in_notebook) and not context.in_worker_process:  # many of those would draw on one terminal
        if find_spec("rich") is None:
            _advise(screen, "rich", "pip install 'parallel-pools[rich]'")
        elif in_notebook and find_spec("ipywidgets") is None:
            _advise(screen, "ipywidgets", "pip install ipywidgets")
        elif (room := _room_of_bars()).draws_on(screen):
            bar: type[Bar] = room.Bar
            return bar(label, total, stats)
    return _Lines(screen, label, total, stats)


def _is_in_notebook() -> bool:
    """Tell whether a kernel runs the program: who has only imported one has a terminal, or none."""
    ipython = sys.modules.get("IPython")
    shell: object = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def _room_of_bars() -> Any:
    """Return the room of the bars, which loads rich: 50 ms, and it may not be there."""
    return import_module("parallel.bars")


_advised: set[str] = set()


def _advise(screen: Screen, missing: str, remedy: str) -> None:
    """Say once how to get a bar."""
    if missing not in _advised:
        _advised.add(missing)
        screen.write(f"for a progress bar in place of lines, install {missing}: {remedy}\n")


class _Lines(Meter):
    """Plain lines: one now and then, and one at the end."""

    def __init__(self, screen: Screen, label: str, total: int | None, stats: Callable[[], Counts]) -> None:
        super().__init__(total, stats)
        self._screen = screen
        self._label = label
        self._due = self._began + LINES

    def _show(self) -> None:
        now = time.monotonic()
        if now >= self._due and self._screen.has_room():
            self._due = now + LINES
            self._write()

    def _end(self, interrupted: bool) -> None:
        self._write("interrupted after" if interrupted else "in")

    def _write(self, ended: str = "") -> None:
        words = in_words(self.progress(), ended)
        items = f"{words.items} ({words.percent})" if words.percent else words.items
        said = (items, words.rate, words.time, words.failed, words.workers, words.dashboard)
        self._screen.write(f"{self._label}: {', '.join(filter(None, said))}\n")


# -- others -----------------------------------------------------------------------------------------------------------


class _Told(Meter):
    """A function of the program's that gets the numbers."""

    def __init__(self, tell: Callable[[Progress], object], total: int | None, stats: Callable[[], Counts]) -> None:
        super().__init__(total, stats)
        self._tell = tell
        self._has_failed = False

    def _show(self) -> None:
        try:
            self._tell(self.progress())
        except (Exception, SystemExit):
            if not self._has_failed:
                LOGGER.exception("exception in the function that is told the progress of a map; the map goes on")
            self._has_failed = True

    def _end(self, interrupted: bool) -> None:
        self._show()


class _Tqdm(Meter):
    """A bar of tqdm's: the one for terminals, or for notebooks."""

    def __init__(self, label: str, total: int | None, stats: Callable[[], Counts]) -> None:
        super().__init__(total, stats)
        try:
            tqdm: Any = import_module("tqdm.auto").tqdm  # optional, and it has no types
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "progress='tqdm' needs tqdm, which is not installed: install it with `pip install tqdm`, or say "
                "progress=True",
                name=error.name,
            ) from error
        kind: Any = type("tqdm", (tqdm,), {"monitor_interval": 0})  # no thread that lives for ever
        self._bar = kind(total=total, desc=label, file=Screen(), mininterval=0, miniters=1, dynamic_ncols=True)
        self._shown = 0

    def _show(self) -> None:
        now = self.progress()
        if now.failed:
            self._bar.set_postfix_str(f"{now.failed:,} failed", refresh=False)
        self._bar.update(now.done - self._shown)
        self._shown = now.done

    def _end(self, interrupted: bool) -> None:
        try:
            self._show()
        finally:
            self._bar.close()

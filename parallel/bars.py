"""
Bars: what maps show on a terminal, or in a notebook, drawn by rich. Loaded when the first is to be drawn.

    map ──▶ Bar.add ──▶ counts ◀── rows, a few times a second ◀── the thread of rich's live display ──▶ Screen
                                                                  print() of the program, above the bars ─┘

Guarantees:
- `add` draws nothing and takes no lock: it counts, and the thread of the live display looks.
- All bars share one display, which ends with the last of them; one that ends before leaves its last row above.
- The cursor is never hidden: a program that is killed could not bring it back.
- What the program prints on the same terminal appears above the bars, whole, in its order.
- A terminal that takes no text, or that is gone, costs each map a second or two at the most.

State: that of `_Stage`, guarded by its `_lock`. That is held while rich draws, which may take a while and runs the code
of whatever `sys.stderr` is: so nobody waits for it longer than `PATIENCE`, neither another thread nor a signal handler
on the same one, but goes without a bar.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from parallel.meters import Meter, in_words
from parallel.pools.base import Counts
from parallel.screens import PATIENCE, Screen

LOGGER = logging.getLogger("parallel")

FRAMES: Final = 5
"""Frames a second. A frame takes one or two milliseconds of the interpreter; fewer look as if it had stopped."""

GAP: Final = "  "
"""What stands between two columns."""

SHORTEST, LONGEST = 5, 40
"""Columns of the terminal that a bar takes: below the one it tells nothing, above the other no more."""

LABEL: Final = 10
"""Columns that every label may take; one that is longer takes a third of the width at most."""

COLUMNS: Final = ("label", "bar", "items", "percent", "rate", "time", "failed", "workers", "dashboard")
"""The columns, from left to right."""

KEPT: Final = ("label", "items", "failed", "bar", "time", "percent", "rate", "workers", "dashboard")
"""The same, in the order in which they get room: where the terminal is narrow, the last are left out."""

STYLES: Final = {
    "label": "",
    "items": "progress.download",
    "percent": "progress.percentage",
    "rate": "progress.data.speed",
    "time": "progress.remaining",
    "failed": "bold red",
    "workers": "dim",
    "dashboard": "dim",
}


class Row(NamedTuple):
    """
    What the row of a bar says at one moment.

    Attributes:
        words: What stands in the columns, but for the bar itself.
        done: The items that have ended.
        total: All; None: nobody knows, and there is no bar.
    """

    words: dict[str, str]
    done: int
    total: int | None


class Bar(Meter):
    """
    The bar of one map.

    Args:
        label: What stands before it.
        total: How many items there are; None: nobody knows, and it has counts instead.
        stats: Tells what the pool does now.
    """

    def __init__(self, label: str, total: int | None, stats: Callable[[], Counts]) -> None:
        super().__init__(total, stats)
        self._label = label
        self._last: Row | None = None  # its row when it has ended
        self._stage = _stage
        self._stage.open(self)

    def row(self) -> Row:
        """Return what it says now, or what it said when it ended."""
        return self._row() if self._last is None else self._last

    def _row(self, ended: str = "") -> Row:
        now = self.progress()
        return Row({"label": self._label, **in_words(now, ended)._asdict()}, now.done, now.total)

    def _end(self, interrupted: bool) -> None:
        self._last = self._row("interrupted after" if interrupted else "in")
        self._stage.close(self)


class _Rows:
    """
    Some rows, as rich draws them: one below the other, with the columns that there is room for.

    Never changed: a frame is drawn again by each thread that prints something above it.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max(LABEL, options.max_width // 3)
        rows = [{name: Text(word, STYLES[name]) for name, word in row.words.items()} for row in self._rows]
        for cells in rows:
            cells["label"].truncate(longest, overflow="crop" if options.ascii_only else "ellipsis")
        widths = {name: max(cells[name].cell_len for cells in rows) for name in STYLES}
        widths["bar"] = 0 if all(row.total is None for row in self._rows) else SHORTEST
        shown, spare = _fitting(widths, options.max_width)
        widths["bar"] += min(spare, LONGEST - SHORTEST)
        for row, cells in zip(self._rows, rows, strict=True):
            cells["bar"] = _bar(row, widths["bar"], console, options)
            yield _joined(cells, shown, widths)


def _fitting(widths: dict[str, int], room: int) -> tuple[list[str], int]:
    """Return the columns that there is room for, from left to right, and how much room is left."""
    shown: list[str] = []
    spare = room + len(GAP)
    for name in KEPT:
        needed = widths[name] + len(GAP)
        if widths[name] and needed <= spare:
            shown.append(name)
            spare -= needed
    return [name for name in COLUMNS if name in shown], spare if "bar" in shown else 0


def _joined(cells: dict[str, Text], shown: list[str], widths: dict[str, int]) -> Text:
    """Join the cells of a row, each as wide as its column: words are left in it, numbers right."""
    for name in shown:
        pad = cells[name].pad_right if name in ("label", "bar", "time", "failed", "dashboard") else cells[name].pad_left
        pad(widths[name] - cells[name].cell_len)
    row = Text(GAP, no_wrap=True, overflow="crop").join(cells[name] for name in shown)
    row.rstrip()
    return row


def _bar(row: Row, width: int, console: Console, options: ConsoleOptions) -> Text:
    """Draw the bar itself, to half a column."""
    if row.total is None:
        return Text()
    halves = 2 * width * row.done // row.total if row.total else 2 * width
    full, half, rest = ("#", "", ".") if options.ascii_only else ("━", "╸", "━")
    drawn = Text(full * (halves // 2) + half * (halves % 2), "bar.finished" if halves == 2 * width else "bar.complete")
    if options.ascii_only or console.color_system is not None:  # else it could not be told from what is done
        drawn.append(rest * (width - drawn.cell_len), "bar.back")
    return drawn


class _Console(Console):
    """A console that leaves the cursor alone."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing, whatever is asked."""
        return False


class _Live(Live):
    """
    The display of some bars.

    Args:
        screen: The terminal.
        rows: Returns what is to be drawn.
    """

    def __init__(self, screen: Screen, rows: Callable[[], _Rows]) -> None:
        self.screen = screen
        self._failed = False
        console = _console(screen)
        super().__init__(
            console=console,
            get_renderable=rows,
            refresh_per_second=FRAMES,
            redirect_stdout=console.is_jupyter,  # on a terminal that is done by `_Printed`
            redirect_stderr=console.is_jupyter,
        )

    def refresh(self) -> None:
        """Draw a frame, if there is room for it."""
        if self._failed or not self.screen.has_room():
            return
        try:
            super().refresh()
        except Exception:  # such as of what tells the number of workers: it must not end the map, nor the thread
            self._failed = True
            LOGGER.exception("a progress bar could not be drawn, and will not be any more")


def draws_on(screen: Screen) -> bool:
    """Tell whether bars can be drawn on *screen*, or are drawn in a notebook; rich also asks the environment."""
    console = _console(screen)
    return console.is_interactive or console.is_jupyter


def _console(screen: Screen) -> Console:
    return _Console(file=cast("IO[str]", screen))  # it is one as far as rich uses it


class _Printed(io.TextIOBase):
    """
    Stands for `sys.stdout` or `sys.stderr` while bars are drawn on the same terminal: what is printed goes above them.

    A line is printed when it is complete, or flushed. Whoever still has this when the bars have gone prints as before.

    Args:
        file: What it stands for.
        live: The display of the bars.
    """

    def __init__(self, file: TextIO, live: _Live) -> None:
        self.rich_proxied_file = file  # the name by which consoles of rich find it
        self._live: _Live | None = live
        self._line = ""  # what is printed of a line that goes on, guarded by `_lock`
        self._lock = threading.RLock()  # a signal handler may print in the middle of this

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        """Print the lines that *text* brings to their end; the rest waits for its own."""
        with self._lock:
            lines, end, self._line = (self._line + text).rpartition("\n")
        if end:
            self._print(lines)
        return len(text)

    def flush(self) -> None:
        """Print the line that has not come to its end, as what asks for an answer does not."""
        with self._lock:
            line, self._line = self._line, ""
        if line:
            self._print(line)
        self.rich_proxied_file.flush()

    def fileno(self) -> int:
        """Return the file's."""
        return self.rich_proxied_file.fileno()

    def isatty(self) -> bool:
        """Return what the file does."""
        return self.rich_proxied_file.isatty()

    def writable(self) -> bool:
        """Tell that it is made for writing."""
        return True

    def let_go(self) -> None:
        """Print to the file itself from now on."""
        self._live = None
        with self._lock:
            line, self._line = self._line, ""
        if line:
            self.rich_proxied_file.write(line)

    def forget(self) -> None:
        """In a forked child: print to the file itself from now on; the line that has been begun is the parent's."""
        self._lock = threading.RLock()  # a thread that is no more may have held the old one
        self._line = ""
        self._live = None

    def _print(self, lines: str) -> None:
        live = self._live
        if live is not None:
            live.screen.has_room(None)  # it waits here, as it would without bars, and holds no lock of rich's
        if live is None or live.screen.gone:
            self.rich_proxied_file.write(f"{lines}\n")
            return
        with live.screen.patiently():
            live.console.print(Text.from_ansi(lines), soft_wrap=True)


class _Stage:
    """
    The display that all bars share, while there are any.

    State: all below, guarded by `_lock`; the thread that draws reads `_bars`, which is never changed but replaced.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: tuple[Bar, ...] = ()
        self._live: _Live | None = None  # None: there is nothing to be drawn
        self._printed: list[_Printed] = []  # what stands for the program's standard streams

    def open(self, bar: Bar) -> None:
        """Begin to draw *bar*; where others are, below them."""
        with self._held() as held:
            if not held:
                return
            self._bars = (*self._bars, bar)
            try:
                if self._live is None:
                    self._begin()
            except BaseException:
                self._bars = ()
                self._end()
                raise

    def close(self, bar: Bar) -> None:
        """Leave the last row of *bar* on the terminal, above those that go on."""
        with self._held() as held:
            live, others = self._live, tuple(one for one in self._bars if one is not bar)
            if not held or live is None or len(others) == len(self._bars):
                return
            has_room = live.screen.has_room(PATIENCE)
            if others:
                self._bars = others
                if has_room:
                    live.console.print(_Rows([bar.row()]))
            else:
                live.screen.gone = not has_room
                self._end()  # its last frame has the last row of the last bar

    def leave(self) -> None:
        """At the interpreter's end: stop drawing, whatever goes on."""
        with self._held() as held:
            if held:
                self._end()

    @contextmanager
    def _held(self) -> Generator[bool]:
        """Hold the lock, if it is to be had soon; a mistake in drawing is no mistake of the map's."""
        if not self._lock.acquire(timeout=PATIENCE):
            yield False
            return
        try:
            yield True
        except Exception:
            LOGGER.exception("a progress bar can't be drawn")
        finally:
            self._lock.release()

    def forget(self) -> None:
        """In a forked child: the display is the parent's."""
        for one in self._printed:
            one.forget()
        self._hand_back()

    def _begin(self) -> None:
        live = self._live = _Live(Screen(), lambda: _Rows([each.row() for each in self._bars]))
        if not live.console.is_jupyter:
            for name in ("stdout", "stderr"):
                file = getattr(sys, name)
                if file is not None and file.isatty() and not hasattr(file, "rich_proxied_file"):
                    printed = _Printed(file, live)
                    self._printed.append(printed)
                    setattr(sys, name, printed)
        live.start(refresh=True)

    def _end(self) -> None:
        live, self._live = self._live, None
        try:
            if live is not None:
                live.stop()
        finally:
            self._bars = ()
            self._hand_back()

    def _hand_back(self) -> None:
        """Let the standard streams be again what they were, unless the program has set others meanwhile."""
        printed, self._printed = self._printed, []
        for one in printed:
            for name in ("stdout", "stderr"):
                if getattr(sys, name) is one:
                    setattr(sys, name, one.rich_proxied_file)
            one.let_go()


_stage = _Stage()


def _after_fork_in_child() -> None:
    global _stage
    left, _stage = _stage, _Stage()  # a thread that is no more may have held the locks of the old one
    left.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(lambda: _stage.leave())  # a thread that draws must not meet the end of the interpreter

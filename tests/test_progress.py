"""
What a map shows: numbers, lines, bars; and terminals that are slow, stopped or gone.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from textwrap import dedent, indent
from types import ModuleType
from typing import Any

import pytest
from terminals import Terminal

from parallel.meters import Meter, Progress, clock, how_often, total_of
from parallel.pools.base import Counts
from parallel.progress import make_display
from parallel.screens import Screen


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the displays look at a clock of the test's."""
    one = Clock()
    for room in ("meters", "progress"):
        monkeypatch.setattr(f"parallel.{room}.time", one)
    return one


def three() -> Counts:
    """What the pool does, here and below."""
    return Counts(3, 0, 0, 0)


START = """
    import sys, time
    from parallel import meters
    from parallel.pools.base import Counts
    class Clock:
        now = 1000.0
        def monotonic(self):
            return self.now
    meters.time = clock = Clock()
    from parallel.progress import make_display
    def three():
        return Counts(3, 0, 0, 0)
"""


def script(text: str) -> str:
    """Make a script with a clock that stands still."""
    return dedent(START) + dedent(text)


# -- totals -----------------------------------------------------------------------------------------------------------


class Hinted:
    """Has a hint of its length."""

    def __iter__(self) -> Any:
        return iter(())

    def __length_hint__(self) -> int:
        return 7


class Broken(Hinted):
    """Its hint fails."""

    def __length_hint__(self) -> int:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("iterables", "total", "expected"),
    [
        ([[1, 2, 3]], None, 3),
        ([iter([1, 2, 3])], None, 3),
        ([[1, 2, 3], "ab"], None, 2),
        ([[1, 2, 3], itertools.count()], None, 3),
        ([itertools.count()], None, None),
        ([(x for x in ())], None, None),
        ([Hinted()], None, 7),
        ([Broken()], None, None),
        ([range(10**30)], None, None),
        ([[]], None, 0),
        ([], None, None),
        ([[1, 2, 3]], 5, 5),
        ([itertools.count()], 0, 0),
    ],
    ids=str,
)
def test_totals(iterables: list[Iterable[object]], total: int | None, expected: int | None) -> None:
    """What is said counts; else the shortest of what has a length, or a hint of it."""
    assert total_of(iterables, total) == expected


@pytest.mark.parametrize(("total", "error"), [(-1, ValueError), (True, TypeError), (2.0, TypeError), ("9", TypeError)])
def test_wrong_totals(total: Any, error: type[Exception]) -> None:
    """What is no number of items is told."""
    with pytest.raises(error, match="total: expected an integer of at least 0, found"):
        total_of([[1]], total)


# -- a function that gets the numbers ---------------------------------------------------------------------------------


def test_a_function_gets_the_numbers(watch: Clock) -> None:
    """It is told of the first items, then not more than ten times a second, and of the end."""
    told: list[Progress] = []
    display = make_display(told.append, "x", 100, three)
    display.add(5)
    display.add(5)  # at the same time
    watch.now += 2
    display.add(10, 1)
    watch.now += 2
    display.close()
    display.close()
    assert told == [
        Progress(5, 0, 100, 0.0, 0.0, None, 3),
        Progress(20, 1, 100, 2.0, 10.0, 8.0, 3),
        Progress(20, 1, 100, 4.0, 5.0, 16.0, 3),
    ]


def test_the_rate_is_that_of_late(watch: Clock) -> None:
    """What was fast a hundred looks ago doesn't count any more."""
    told: list[Progress] = []
    display = make_display(told.append, "x", None, three)
    display.add(10**9)
    for _ in range(200):
        watch.now += 1
        display.add(2)
    assert told[-1].rate == pytest.approx(2)
    assert told[-1].left is None


def test_a_wrong_hint_is_forgotten() -> None:
    """More items than there were to be: nobody knows the total."""
    told: list[Progress] = []
    display = make_display(told.append, "x", 3, three)
    display.add(4)
    display.close()
    assert (told[-1].done, told[-1].total, told[-1].left) == (4, None, None)


def test_a_slow_function_is_told_less(watch: Clock) -> None:
    """What takes a second for each number gets one in twenty seconds."""
    told: list[int] = []

    def tell(now: Progress) -> None:
        watch.now += 1
        told.append(now.done)

    display = make_display(tell, "x", None, three)
    for _ in range(60):
        display.add(1)
        watch.now += 1
    assert told == [1, 20, 39, 58]


def test_a_function_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Its errors are logged once, and end nothing."""
    display = make_display(lambda now: 1 // 0, "x", None, three)
    display.add(1)
    display.close()
    assert [record.message for record in caplog.records] == [
        "exception in the function that is told the progress of a map; the map goes on"
    ]


# -- what may be said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [False, None])
def test_nothing(said: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Who wants none has one that counts, and shows nothing."""
    display = make_display(said, "x", 3, three)
    display.add(1, 1)
    display.close(interrupted=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("said", [3, 0, b"label", ["x"]])
def test_wrong_ways_to_show(said: Any) -> None:
    """Anything else is told as what it is."""
    with pytest.raises(TypeError, match="progress: expected a boolean, a label, 'tqdm' or a function, found"):
        make_display(said, "x", 3, three)


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (2.5e9, "2.5G/s"),
        (1_234_567, "1.2M/s"),
        (12_345, "12k/s"),
        (9_999, "9,999/s"),
        (103.4, "103/s"),
        (2.0, "2/s"),
        (0.02, "1.2/min"),
        (0.001, "3.6/h"),
        (1e-6, "0/h"),
    ],
)
def test_rates(rate: float, text: str) -> None:
    """A rate takes few characters, in the unit that suits it."""
    assert how_often(rate) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3_600, "1:00:00"), (1e300, "11,574,074d")])
def test_clock(seconds: float, text: str) -> None:
    """A time is written as on a clock, however long it is."""
    assert clock(seconds).startswith(text)


# -- lines ------------------------------------------------------------------------------------------------------------


def test_lines(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal there are lines: one in five seconds, and one at the end."""
    display = make_display(True, "thumb\x1b[1m\nnail", 1234, three)
    for _ in range(12):
        watch.now += 1
        display.add(100, 1)
    display.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == dedent("""\
        thumb [1m nail: 500/1,234 (40%), 100/s, 0:07 left, 5 failed, 3 workers
        thumb [1m nail: 1,000/1,234 (81%), 100/s, 0:02 left, 10 failed, 3 workers
        thumb [1m nail: 1,200/1,234 (97%), 100/s, in 0:12, 12 failed
        """)


def test_a_dashboard(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a cluster has a page, it is named."""
    display = make_display("far", "x", 10, lambda: Counts(2, 0, 0, 0, dashboard_link="http://head:8787/status"))
    watch.now += 6
    display.add(5)
    display.close()
    assert capsys.readouterr().err == dedent("""\
        far: 5/10 (50%), 50/min, 0:06 left, 2 workers, http://head:8787/status
        far: 5/10 (50%), 50/min, in 0:06
    """)


def test_lines_without_a_total(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows how many: there are counts."""
    display = make_display("crawl", "x", None, lambda: Counts(1, 0, 0, 0))
    watch.now += 5
    display.add(4)
    display.close(interrupted=True)
    assert capsys.readouterr().err == dedent("""\
        crawl: 4, 48/min, 1 worker
        crawl: 4, 48/min, interrupted after 0:05
        """)


def test_a_forked_child_shows_nothing(capfd: pytest.CaptureFixture[str], in_fork: Callable[..., Any]) -> None:
    """The display is the parent's: a child that goes on with it is not seen."""
    display = make_display("parent", "x", None, three)

    def child() -> None:
        display.add(1)
        display.close()

    in_fork(child)
    assert capfd.readouterr().err == ""
    display.close()
    assert capfd.readouterr().err == "parent: 0, in 0:00\n"


def test_without_rich() -> None:
    """On a terminal, it says once how to get a bar, and writes lines."""
    text = script("""
        sys.modules["rich"] = None
        make_display("one", "x", None, three).close()
        make_display("two", "x", None, three).close()
    """)
    with Terminal(text, 100) as terminal:
        assert terminal.read_until(None).splitlines() == [
            "for a progress bar in place of lines, install rich: pip install 'parallel-pools[rich]'",
            "one: 0, in 0:00",
            "two: 0, in 0:00",
        ]


# -- tqdm -------------------------------------------------------------------------------------------------------------


def test_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    """If it is asked for and there, it shows the bar, and no thread of its own stays behind."""
    pytest.importorskip("tqdm")
    display = make_display("tqdm", "thumbnail", 10, three)
    display.add(4, 1)
    display.add(6)
    display.close()
    display.close()
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert re.match(r"thumbnail: 100%\|█+\| 10/10 \[00:00<00:00, .*it/s, 1 failed\]", last)


def test_tqdm_by_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the numbers, less often than they come, and is closed."""
    calls: list[object] = []

    class Standin:
        def __init__(self, **options: object) -> None:
            calls.append((options["total"], options["desc"], type(self).__dict__["monitor_interval"]))

        def update(self, more: int) -> None:
            calls.append(more)

        def set_postfix_str(self, text: str, *, refresh: bool) -> None:
            calls.append(text)

        def close(self) -> None:
            calls.append("closed")

    module: Any = ModuleType("tqdm.auto")
    module.tqdm = Standin
    monkeypatch.setitem(sys.modules, "tqdm", ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    display = make_display("tqdm", "x", 10, three)
    display.add(4)
    display.add(3, 2)
    display.close()
    assert calls == [(10, "x", 0), 4, "2 failed", 3, "closed"]


def test_tqdm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is asked for and not there, that is told."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ModuleNotFoundError, match=r"progress='tqdm' needs tqdm.*`pip install tqdm`"):
        make_display("tqdm", "x", 10, three)


# -- screens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["closed", "broken", "none", "full"])
def test_a_screen_that_takes_nothing(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is closed, a pipe that nobody reads, none at all: nothing is shown, nothing fails."""
    theirs, ours = os.pipe()
    with open(ours, "w", encoding="utf-8") as file, open(theirs, "rb") as other:
        monkeypatch.setattr(sys, "stderr", None if end == "none" else file)
        monkeypatch.setattr("parallel.screens.PATIENCE", 0.01)
        monkeypatch.setattr("parallel.screens._ThisThread.patience", 0.01)
        if end == "closed":
            file.close()
        elif end == "broken":
            other.close()
        elif end == "full":
            os.set_blocking(ours, False)
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(ours, b"x" * 65536)
            os.set_blocking(ours, True)
        display = make_display("one", "x", None, three)
        display.add(1)
        display.close()
        screen = Screen()
        assert screen.write("text") == 4
        assert screen.gone
        assert not screen.isatty()


def test_a_screen_of_the_programs_own() -> None:
    """What is no file of the system's is written to as it is, as in a notebook."""
    file = io.StringIO()
    screen = Screen(file)
    screen.write("text")
    screen.flush()
    assert file.getvalue() == "text"
    assert screen.encoding == "utf-8"
    with pytest.raises(io.UnsupportedOperation):
        screen.fileno()


def test_long_texts_are_written_whole() -> None:
    """A text of many pieces arrives as it is, in the encoding of the file."""
    text = "<\u2501" * 1000
    theirs, ours = os.pipe()
    with open(ours, "w", encoding="ascii") as file, open(theirs, encoding="ascii") as other:
        Screen(file).write(text)
        file.close()
        assert other.read() == "<\\u2501" * 1000


# -- bars, as a person sees them --------------------------------------------------------------------------------------

TWO = script("""
    one, two = make_display(True, "thumbnail", 2_220, three), make_display("pages of the archive", "x", None, three)
    clock.now += 9
    one.add(1_073, 4)
    two.add(18)
    print("above them")
    sys.stdin.readline()
    two.close()
    clock.now += 9
    one.add(1_147)
    one.close()
""")

BAR = "━" * 40  # what is done differs from what is not in its colour

WIDE = f"""
above them
thumbnail             {BAR}  1,073/2,220  48%  119/s  0:10 left  4 failed  3 workers
pages of the archive  {" " * 40}           18         2/s                       3 workers
"""
WIDE_END = f"""
above them
pages of the archive  18  2/s  in 0:09
thumbnail  {BAR}  2,220/2,220  100%  123/s  in 0:18  4 failed
"""
NARROW = """
above them
thumbnail      1,073/2,220  4 failed
pages of the…           18
"""
NARROW_END = """
above them
pages of the…  18  2/s  in 0:09
thumbnail  ━━━━━━  2,220/2,220  4 failed
"""


@pytest.mark.parametrize(
    ("columns", "during", "end"), [(120, WIDE, WIDE_END), (40, NARROW, NARROW_END)], ids=["wide", "narrow"]
)
def test_two_bars(columns: int, during: str, end: str) -> None:
    """Two maps share a display, below what is printed; each leaves its last row. This is what is to be seen."""
    with Terminal(TWO, columns) as terminal:
        terminal.read_until(during.strip())
        terminal.type(b"\n")
        seen = terminal.read_until(None)
    assert seen == end.strip()
    assert terminal.status == 0
    assert b"\x1b[?25l" not in terminal.raw, "the cursor was hidden"
    assert b"\x1b[3" in terminal.raw, "there are no colours"


def test_a_plain_terminal() -> None:
    """Where the terminal has neither colours nor more than ASCII, the bar has neither."""
    with Terminal(TWO, 80, PYTHONIOENCODING="ascii", NO_COLOR="1") as terminal:
        terminal.read_until("18         2/s")
        terminal.type(b"\n")
        assert "thumbnail  ########################  2,220/2,220" in terminal.read_until(None)


def test_a_dumb_terminal() -> None:
    """Where nothing can be drawn, there are lines."""
    text = script("make_display(True, 'one', 3, three).close()")
    with Terminal(text, 80, TERM="dumb") as terminal:
        assert terminal.read_until(None) == "one: 0/3 (0%), in 0:00"


def test_what_is_printed_stays_whole() -> None:
    """Lines appear above the bar as they are, and an unfinished one at the latest when the bar has gone."""
    text = script("""
        one = make_display(True, "one", 3, three)
        print("a", "b" * 100, "\\033[31mred\\033[0m", file=sys.stderr)
        print("question? ", end="", flush=True)
        print("unfinished", end="")
        one.close()
        print(", finished")
    """)
    with Terminal(text, 60) as terminal:
        seen = terminal.read_until(None)
    printed, question, bar, rest = seen.split("\n")
    assert (printed, question, rest) == (f"a {'b' * 100} red", "question?", "unfinished, finished")
    assert bar.endswith("  0/3  0%  in 0:00")


def around(body: str, stats: str = "three", before: str = "") -> str:
    """Make a script that runs *body* while a bar is at 50 of 100."""
    head = f"""
        import os, signal, threading
        one = make_display(True, "one", 100, {stats})
        one.add(50)
        try:
    """
    tail = """
        finally:
            one.close(interrupted=sys.exc_info()[0] is not None)
            print("threads:", threading.active_count())
    """
    return dedent(START) + before + dedent(head).rstrip() + indent(dedent(body), "    ") + dedent(tail)


def test_ctrl_c() -> None:
    """After a Ctrl-C, and the same holds for any error, the last row tells where it was."""
    with Terminal(around("\nthreading.Event().wait(60)"), 100) as terminal:
        terminal.read_until("50/100  50%")
        terminal.type(b"\x03")
        seen = terminal.read_until(None)
    assert terminal.status == -signal.SIGINT
    assert "interrupted after 0:00" in seen
    assert "\nKeyboardInterrupt" in seen


def test_a_terminal_that_goes() -> None:
    """A program that outlives its terminal ends as if there were a bar."""
    theirs, ours = os.pipe()
    os.set_inheritable(ours, True)
    body = f"""
        gone = threading.Event()
        signal.signal(signal.SIGHUP, lambda *_: gone.set())
        print("ready")
        gone.wait(60)
        one.add(1)
        sys.stdout = open({ours}, "w")
    """
    with Terminal(around(body), 100) as terminal, open(theirs) as told:
        os.close(ours)
        terminal.read_until("ready")
        terminal.hang_up()
        assert terminal.wait() == 0
        assert re.match(r"threads: \d", told.read())


def test_a_terminal_that_stops() -> None:
    """A terminal that has been stopped by Ctrl-S keeps a map for a second or so, not until it goes on."""
    theirs, ours = os.pipe()
    os.set_inheritable(ours, True)
    body = f"""
        print("ready")
        sys.stdin.readline()
        sys.stdout = open({ours}, "w")
    """
    with Terminal(around(body), 100) as terminal, open(theirs) as told:
        os.close(ours)
        terminal.read_until("ready")
        terminal.type(b"\x13\n")
        assert re.match(r"threads: \d", told.read())
        terminal.type(b"\x11")
        terminal.read_until(None)
    assert terminal.status == 0


def test_a_child_of_a_fork_draws_nothing() -> None:
    """In a forked child, printing is as ever, and the parent's bar goes on."""
    body = """
        if os.fork() == 0:
            one.add(9)
            print("child", type(sys.stdout).__name__, flush=True)
            one.close()
            os._exit(0)
        os.wait()
        print("parent")
    """
    with Terminal(around(body), 100) as terminal:
        seen = terminal.read_until(None)
    assert "child TextIOWrapper" in seen
    assert re.search(r"parent\none .* 50/100  50%  .*in 0:00\nthreads", seen)


def test_a_bar_that_nobody_closes() -> None:
    """At the interpreter's end it is left as it is, below what was printed."""
    text = script("one = make_display(True, 'one', 3, three); print('end')")
    with Terminal(text, 100) as terminal:
        seen = terminal.read_until(None)
    assert terminal.status == 0
    assert seen.startswith("end\none  ━━━")


def test_workers_that_cannot_be_told() -> None:
    """An error while drawing is logged; the map, and what the program prints, go on."""
    fails = """
        import threading
        armed, hit = threading.Event(), threading.Event()
        def fails():
            if armed.is_set():
                hit.set()
                raise ZeroDivisionError
            return three()
    """
    body = """
        armed.set()
        hit.wait(60)
        print("printed")
    """
    with Terminal(around(body, "fails", dedent(fails)), 100) as terminal:
        seen = terminal.read_until(None)
    assert "a progress bar could not be drawn" in seen
    assert "printed" in seen


# -- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lines", "function"])
def test_adding_is_cheap(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes far less than the hundredth part of an item of a millisecond."""
    display: Meter = make_display((lambda now: None) if kind == "function" else "x", "x", 10**6, three)
    began = time.perf_counter()
    for _ in range(100_000):
        display.add(1)
    took = time.perf_counter() - began
    display.close()
    assert took / 100_000 < 10e-6


def test_adding_to_a_bar_is_cheap() -> None:
    """A bar too, the drawing included."""
    text = """
        import sys, time
        from parallel.pools.base import Counts
        from parallel.progress import make_display
        bar = make_display(True, "one", 10**6, lambda: Counts(3, 0, 0, 0))
        began = time.perf_counter()
        for _ in range(1_000_000):
            bar.add(1)
        took = time.perf_counter() - began
        bar.close()
        sys.exit(took / 1_000_000 > 10e-6)
    """
    with Terminal(dedent(text), 100) as terminal:
        terminal.read_until(None)
        assert terminal.status == 0

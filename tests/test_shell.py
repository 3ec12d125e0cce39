"""
`python -m parallel map`, as a user calls it: real pipes, real signals, real terminals.
"""

from __future__ import annotations

import csv
import fcntl
import io
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shell_jobs import whole
from terminals import Terminal

from parallel import Halt, MapHaltedError, Registry, interrupts, sleep, task, using
from parallel.inputs import FORMATS, HeaderError, Input, UnreadableError
from parallel.interrupts import Bell

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LONG = 60.0  # seconds; only a hang takes so long

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="made of POSIX signals and pipes")


POOLS = """
[pools.inline]
kind = "inline"
[pools.one]
kind = "process"
max_workers = 1
[pools.two]
kind = "process"
max_workers = 2
[pools.two-threads]
kind = "thread"
max_workers = 2
"""


class Map:
    """
    One run of the command, in a process group of its own.

    Args:
        folder: Its working directory, with the pipes `begun` and `go`.
        arguments: What stands behind `map`.
    """

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        (folder / "parallel.toml").write_text(POOLS)
        for name in ("begun", "go"):
            if not (folder / name).exists():
                os.mkfifo(folder / name)
        self.begun = os.open(folder / "begun", os.O_RDWR)  # with both ends open, nobody waits for the other
        self.go = os.open(folder / "go", os.O_RDWR)
        self.folder = folder
        self._seen = b""
        paths = os.pathsep.join([str(ROOT), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "parallel", "map", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "PARALLEL_CONFIG": "", "SHELL_JOBS": str(folder), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._watchdog = threading.Timer(LONG, self.process.send_signal, [signal.SIGABRT])  # shows where it hangs
        self._watchdog.start()

    def feed(self, data: str | bytes, end: bool = False) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data.encode() if isinstance(data, str) else data)
        if end:
            self.process.stdin.close()

    def record(self) -> Any:
        """Wait for the next record."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def hold_back(self, size: int) -> None:
        """Wait until its standard output holds that many bytes."""
        assert self.process.stdout is not None
        found = array("i", [0])
        end = time.monotonic() + LONG
        while found[0] < size:
            fcntl.ioctl(self.process.stdout, termios.FIONREAD, found)
            assert time.monotonic() < end, f"only {found[0]} bytes have come"

    def hear(self, text: str) -> str:
        """Wait until it says that on standard error; return all that it has said."""
        assert self.process.stderr is not None
        while text.encode() not in self._seen:
            piece = os.read(self.process.stderr.fileno(), 65536)
            assert piece, f"it ended and never said {text!r}: {self._seen.decode()}"
            self._seen += piece
        return self._seen.decode()

    def wait_for(self, *items: str) -> None:
        """Wait until `held` has begun these."""
        seen = b""
        while sorted(seen.decode().splitlines()) != sorted(items) or not seen.endswith(b"\n"):
            assert select.select([self.begun], [], [], LONG)[0], f"only these have begun: {seen!r}"
            seen += os.read(self.begun, 65536)

    def let_go(self, count: int = 1) -> None:
        """Let so many items go on."""
        os.write(self.go, b"!" * count)

    def interrupt(self) -> None:
        """Do what a terminal does for Ctrl-C; return when that has come: of two at once, one would be lost."""
        os.killpg(self.process.pid, signal.SIGINT)
        status = Path(f"/proc/{self.process.pid}/status")
        while any(int(mask, 16) & 2 for mask in re.findall(r"^S\w+Pnd:\s*(\w+)$", status.read_text(), re.MULTILINE)):
            pass

    def ended(self) -> tuple[int, list[Any], str]:
        """Wait for its end; return the exit status, the records left, and all that it has said."""
        if self.process.stdin is not None and self.process.stdin.closed:
            self.process.stdin = None
        out, err = self.process.communicate()
        self._seen += err
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], self._seen.decode()

    def close(self) -> None:
        """Leave nothing behind."""
        self._watchdog.cancel()
        self._watchdog.join()
        self.process.kill()
        with self.process:
            pass
        os.close(self.begun)
        os.close(self.go)


Start = Callable[..., Map]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command in a folder of its own."""
    made: list[Map] = []

    def start(*arguments: str, **env: str) -> Map:
        made.append(Map(tmp_path, *arguments, **env))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def ran(start: Start) -> Callable[..., tuple[int, list[Any], str]]:
    """Run the command over some input; return the exit status, the records, and what it has said."""

    def ran(data: str | bytes, *arguments: str, **env: str) -> tuple[int, list[Any], str]:
        one = start(*arguments, **env)
        one.feed(data, end=True)
        return one.ended()

    return ran


Ran = Callable[..., tuple[int, list[Any], str]]


def values(records: list[Any]) -> list[Any]:
    """Return the values, after a look that no index is missing."""
    assert [record["index"] for record in records] == list(range(len(records)))
    return [record.get("value", record.get("error", {}).get("type")) for record in records]


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_a_record_per_line(ran: Ran) -> None:
    """In input order, from worker processes, and nothing is said on standard error."""
    status, records, said = ran("a\n\nb\r\nlast", "shell_jobs:upper")
    assert (status, records, said) == (
        0,
        [
            {"index": 0, "value": "A"},
            {"index": 1, "value": ""},
            {"index": 2, "value": "B"},
            {"index": 3, "value": "LAST"},
        ],
        "",
    )


def test_no_items(ran: Ran) -> None:
    """They are all fine."""
    assert ran("", "shell_jobs:upper") == (0, [], "")


def test_many_items(ran: Ran) -> None:
    """None is lost, none comes twice, and the order is kept."""
    status, records, said = ran("".join(f"{n}\n" for n in range(20_000)), "shell_jobs:whole")
    assert (status, values(records), said) == (0, list(range(20_000)), "")


def test_what_ends_while_there_is_no_room(start: Start) -> None:
    """An item that ends while nobody reads is written when somebody does."""
    one = start("shell_jobs:broad_or_held", "--pool", "two-threads", "--unordered")
    one.feed("held\n")
    one.wait_for("held")
    one.feed("a\n")
    one.hold_back(60_000)
    one.feed("a\n", end=True)
    one.hold_back(61_000)  # this one is being written, and there is no room for it
    one.let_go()
    time.sleep(0.3)  # the first ends in this time
    status, records, said = one.ended()
    assert (status, [record["index"] for record in records], said) == (0, [1, 2, 0], "")


def test_a_failure_is_in_the_output_and_told(ran: Ran) -> None:
    """With its type, its text and the worker's traceback; the others go their way."""
    status, records, said = ran("1\nx\n3\n", "shell_jobs:whole")
    assert (status, values(records)) == (1, [1, "ValueError", 3])
    error = records[1]["error"]
    assert error["message"] == "invalid literal for int() with base 10: 'x'"
    assert "in whole\n" in error["traceback"]
    assert "item 1: ValueError: invalid literal" in said
    assert said.endswith("1 of 3 items failed\n")


def test_many_failures_are_told_briefly(ran: Ran) -> None:
    """All are in the output."""
    status, records, said = ran("x\n" * 100, "shell_jobs:whole", "--pool", "inline")
    assert (status, len(records), len(said.splitlines())) == (1, 100, 12)
    assert said.endswith("100 of 100 items failed\n")


def test_what_json_cannot_hold(ran: Ran) -> None:
    """It is an error of its item; what it can hold comes out as it is."""
    texts = ["{1}", "float('nan')", "[1, (2,), {'a': None}]", "'ä\\udc80'", "'ä'", "object()"]
    status, records, _ = ran("\n".join(texts), "shell_jobs:evaluated", "--pool", "inline")
    assert (status, [record.get("value") for record in records]) == (
        1,
        [None, None, [1, [2], {"a": None}], "ä\udc80", "ä", None],
    )
    assert records[0]["error"] == {
        "type": "UnwritableError",
        "message": "the value can't be written as JSON: Object of type set is not JSON serializable",
    }


def test_what_the_function_prints(ran: Ran) -> None:
    """It goes to standard error, and the function can't read the items; in a process, and in the command itself."""
    for pool in ("processes", "threads"):
        status, records, said = ran("a\n", "shell_jobs:talking", "--pool", pool)
        assert (status, values(records)) == (0, ["b'' a"])
        assert sorted(said.splitlines()) == ["print a", "write a"]


def test_a_file_in_and_a_file_out(ran: Ran, tmp_path: Path) -> None:
    """In place of standard input and output."""
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n\n[2]\n')
    arguments = ("--input", "in.jsonl", "--format", "jsonl", "--output", "out.jsonl", "--pool", "inline")
    assert ran("", "shell_jobs:same", *arguments) == (0, [], "")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert values([json.loads(line) for line in lines]) == [{"a": 1}, [2]]


def test_unordered(start: Start) -> None:
    """Each record comes as soon as it is there."""
    one = start("shell_jobs:held_if_odd", "--unordered")
    one.feed("1\n2\n")
    assert one.record() == {"index": 1, "value": "2"}
    one.let_go()
    assert one.record() == {"index": 0, "value": "1"}
    one.feed("", end=True)
    assert one.ended() == (0, [], "")


# -- what goes in -----------------------------------------------------------------------------------------------------


def test_results_come_out_as_items_come_in(start: Start) -> None:
    """The record of a line is there before the next line is."""
    one = start("shell_jobs:upper")
    for index, text in enumerate("abcdefghijkl"):
        one.feed(f"{text}\n")
        assert one.record() == {"index": index, "value": text.upper()}
    one.feed("half", end=False)
    one.feed(" a line\n", end=True)
    assert one.ended() == (0, [{"index": 12, "value": "HALF A LINE"}], "")


def test_an_output_file_can_be_followed(start: Start, tmp_path: Path) -> None:
    """A record is in the file before the next item comes."""
    one = start("shell_jobs:upper", "--output", "out.jsonl", "--pool", "inline")
    one.feed("a\n")
    end = time.monotonic() + LONG
    path = tmp_path / "out.jsonl"
    while not (path.exists() and path.read_text() == '{"index": 0, "value": "A"}\n'):
        assert time.monotonic() < end
        time.sleep(0.01)  # a file tells nobody
    one.feed("", end=True)
    assert one.ended() == (0, [], "")


def test_rows(ran: Ran) -> None:
    """A row is a dict by the header; quotes may hold commas and newlines."""
    table = '\ufeffname,text\r\na,"x, ""y""\nz"\r\n\r\nb,\r\n'
    status, records, said = ran(table, "shell_jobs:same", "--format", "csv", "--pool", "inline")
    assert (status, said) == (0, "")
    assert values(records) == [{"name": "a", "text": 'x, "y"\nz'}, {"name": "b", "text": ""}]


def test_items_that_cannot_be_read(ran: Ran) -> None:
    """Each is a failure in its place, with the number of its line; the others are run."""
    status, records, said = ran(b"[1]\n[2\n\n\xff\n[4]\n", "shell_jobs:same", "--format", "jsonl", "--pool", "inline")
    assert (status, values(records)) == (1, [[1], "UnreadableError", "UnreadableError", [4]])
    assert records[1]["error"]["message"] == "line 2 is not JSON: Expecting ',' delimiter, at column 3"
    assert records[2]["error"]["message"] == "line 4 is not UTF-8: byte 1 is 0xff"
    assert "item 2: UnreadableError: line 4" in said


def test_a_table_without_a_header(ran: Ran) -> None:
    """No row could be understood: nothing is run."""
    status, records, said = ran("a,a\n1,2\n", "shell_jobs:same", "--format", "csv")
    assert (status, records) == (2, [])
    assert "line 1 is the header, and has the field 'a' twice" in said


def test_an_input_that_cannot_be_read(ran: Ran, tmp_path: Path) -> None:
    """A folder can be opened."""
    status, records, said = ran("", "shell_jobs:same", "--input", str(tmp_path))
    assert (status, records) == (1, [])
    assert "IsADirectoryError" in said


def items_of(data: bytes, form: str, sizes: list[int] | None = None) -> list[Any]:
    """Return what comes out of an input, written in pieces of these sizes, and asked for a few items at a time."""
    read, write = os.pipe()
    found: list[Any] = []
    with open(read, "rb"), open(write, "wb", buffering=0) as pipe:
        source = Input(read, FORMATS[form]())
        for size in [*(sizes or []), len(data)]:
            pipe.write(data[:size])
            data = data[size:]
            while items := source.take(3):
                found += [items] if isinstance(items, BaseException) else items
        pipe.close()
        while (items := source.take(3)) is not None:
            found += [items] if isinstance(items, BaseException) else items
    return found


@settings(deadline=None)
@given(
    st.lists(st.lists(st.text(st.sampled_from('ab,"\n\r é'), max_size=5), min_size=2, max_size=2), max_size=5),
    st.lists(st.integers(0, 7), max_size=9),
)
def test_rows_in_any_pieces(rows: list[list[str]], sizes: list[int]) -> None:
    """Whatever a writer of CSV has written is read, wherever it is cut."""
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
    assert items_of(file.getvalue().encode(), "csv", sizes) == [{"x": x, "y": y} for x, y in rows]


@settings(deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 7), max_size=9), st.sampled_from(sorted(FORMATS)))
def test_any_bytes(data: bytes, sizes: list[int], form: str) -> None:
    """Nothing else than a wrong header ends an input, and it is the same however it is cut."""
    try:
        whole = items_of(data, form)
    except HeaderError:
        return
    assert [str(item) for item in items_of(data, form, sizes)] == [str(item) for item in whole]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a,b\n1\n2,3\n", ["line 2 has 1 field, and the header has 2", {"a": "2", "b": "3"}]),
        (b'a\n1\n"open,\n\n', [{"a": "1"}, "line 3 has a quote that is never closed"]),
        (b'a\n5" pipe\n1\n', [{"a": '5" pipe'}, {"a": "1"}]),
        (b'a\n"\xff"\n1\n', ["line 2 is not UTF-8: byte 2 is 0xff", {"a": "1"}]),
    ],
)
def test_wrong_rows(data: bytes, expected: list[Any]) -> None:
    """Each costs itself; a quote in the middle of a field is nothing special."""
    assert [str(each) if isinstance(each, UnreadableError) else each for each in items_of(data, "csv")] == expected


def test_a_quote_that_is_never_closed_costs_little() -> None:
    """The reader gives up where a field is longer than fields may be, and goes on behind it."""
    data = b'a\n"' + b"x\n" * 100_000
    found = items_of(data, "csv", [60_000] * 3)
    assert str(found[0]).startswith("line 2 is no row: field larger than field limit")
    assert found[1] == {"a": "x"}


# -- what is called ---------------------------------------------------------------------------------------------------


def test_declared_functions(start: Start, ran: Ran) -> None:
    """A task and a map keep their pools and options; a chain is run through."""
    one = start("shell_jobs:where")
    one.feed("a", end=True)
    assert values(one.ended()[1]) == [one.process.pid]
    one = start("shell_jobs:where", "--pool", "one")
    one.feed("a", end=True)
    assert values(one.ended()[1]) != [one.process.pid]
    assert values(ran("a", "shell_jobs:patient")[1]) == [3]
    assert values(ran("a", "shell_jobs:chain")[1])[0].isdecimal()


def test_a_coroutine_function(start: Start) -> None:
    """It runs in the loop."""
    one = start("shell_jobs:held_later")
    one.let_go(2)
    one.feed("a\nb\n", end=True)
    assert one.ended() == (0, [{"index": 0, "value": "a"}, {"index": 1, "value": "b"}], "")


def test_the_working_directory_is_in_reach(start: Start, ran: Ran, tmp_path: Path) -> None:
    """As for `python -m`, in the worker processes too; and so is its configuration."""
    (tmp_path / "mine.py").write_text("import os\ndef where(x): return os.getpid()")
    pid = values(ran("a", "mine:where")[1])
    one = start("mine:where", "--pool", "inline")  # a pool of the configuration there
    one.feed("a", end=True)
    assert values(one.ended()[1]) == [one.process.pid] != pid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: MODULE:FUNCTION"),
        (
            ("shell_jobs.upper",),
            "expected MODULE:FUNCTION, such as shop.images:thumbnail, found 'shell_jobs.upper' (did",
        ),
        (("nowhere:upper",), "no module named 'nowhere', neither in "),
        (("shell_jobs.deeper:upper",), "no module named 'shell_jobs.deeper'"),
        (("shell_jobs:uper",), "shell_jobs has no 'uper' (did you mean 'upper'?)"),
        (("shell_jobs:number",), "shell_jobs:number is 3, and can't be called"),
        (("shell_jobs:items_of",), "is a generator function"),
        (("shell_jobs:upper", "--pool", "nope"), "no pool named 'nope'"),
        (("shell_jobs:upper", "--pool", "loop"), "is no coroutine function"),
        (("shell_jobs:chain", "--pool", "inline"), "a chain has no options of its own"),
        (("shell_jobs:upper", "--input", "missing"), "--input: No such file or directory: 'missing'"),
        (("shell_jobs:upper", "--output", "no/where"), "--output: No such file or directory: 'no/where'"),
        (("shell_jobs:upper", "--halt", "later"), "expected soon or now, and after how many failures"),
        (("shell_jobs:upper", "--halt", "now,fail=0"), "expected soon or now, and after how many failures"),
        (("shell_jobs:upper", "--halt", "now,fail=101%"), "expected soon or now, and after how many failures"),
        (("shell_jobs:upper", "--timeout", "soon"), "expected a duration"),
        (("shell_jobs:upper", "--timeout", "-1"), "expected a duration"),
        (("shell_jobs:upper", "--timeout", "some median"), "a multiple of more than 1 as '3x median'"),
        (("shell_jobs:upper", "--retry", "0"), "expected an integer of at least 1"),
        (("shell_jobs:upper", "--format", "xml"), "invalid choice: 'xml'"),
        (("shell_jobs:upper", "--resume"), "--resume needs the --journal of the earlier run"),
        (("--resume", "shell_jobs:upper"), "the function comes before --resume"),
        (("shell_jobs:upper", "--journal", "no/where"), "can't be locked"),
    ],
)
def test_what_cannot_begin(arguments: tuple[str, ...], message: str, ran: Ran) -> None:
    """The status is 2, and standard error says what was found and what was expected."""
    status, records, said = ran("", *arguments)
    assert (status, records) == (2, [])
    assert message in said


def test_a_module_that_fails(ran: Ran, tmp_path: Path) -> None:
    """Its own error is shown."""
    (tmp_path / "broken.py").write_text("import os\nimport nowhere_at_all\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)")
    status, _, said = ran("", "broken:f")
    assert status == 2
    assert "broken can't be imported:\nTraceback" in said
    assert "No module named 'nowhere_at_all'" in said
    assert ran("", "leaving:f")[0] == 2


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies(ran: Ran) -> None:
    """It costs the item that it was in."""
    status, records, said = ran("a\ndie\nb\n", "shell_jobs:dying")
    assert (status, values(records)) == (1, ["a", "WorkerDiedError", "b"])
    assert "killed by SIGKILL" in said or "signal" in said


def test_a_timeout(ran: Ran) -> None:
    """It is that of one item."""
    status, records, _ = ran("0\n60\n0\n", "shell_jobs:napping", "--timeout", "3")
    assert (status, values(records)) == (1, ["0", "TaskTimeoutError", "0"])


def test_a_retry(ran: Ran) -> None:
    """It counts all attempts."""
    assert ran("a\n", "shell_jobs:third_time", "--retry", "3")[:2] == (0, [{"index": 0, "value": 3}])
    status, records, _ = ran("b\n", "shell_jobs:third_time", "--retry", "2")
    assert (status, values(records)) == (1, ["OSError"])


def test_a_halt_soon(start: Start) -> None:
    """What runs comes to its end, nothing more is begun, and no more is read."""
    one = start("shell_jobs:held_unless_bad", "--pool", "two-threads", "--halt", "soon")
    one.feed("0\n")
    one.wait_for("0")
    one.feed("bad\n2\n3\n4\n5\n")
    one.hear("was ended: 1 of ")
    one.let_go(9)
    status, records, _ = one.ended()
    assert (status, values(records)[:2]) == (1, ["0", "ValueError"])
    assert len(records) <= 3  # one more may have begun before the failure was seen


def test_a_halt_now(start: Start) -> None:
    """What runs is killed, and what has ended behind it is written."""
    one = start("shell_jobs:held_unless_bad", "--halt", "now,fail=2")
    one.feed("0\n")
    one.wait_for("0")
    one.feed("bad\nbad\n")
    status, records, _ = one.ended()
    assert (status, [record["index"] for record in records]) == (1, [1, 2])


def test_a_halt_now_on_threads(start: Start) -> None:
    """They can't be killed, and nobody waits for them."""
    one = start("shell_jobs:held_unless_bad", "--halt", "now", "--pool", "threads")
    one.feed("0\n")
    one.wait_for("0")
    one.feed("bad\n")
    status, records, _ = one.ended()
    assert (status, [record["index"] for record in records]) == (1, [1])


# -- Ctrl-C, and other ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["two", "two-threads"])
def test_ctrl_c_once(pool: str, start: Start) -> None:
    """What runs comes to its end and is written; what waits is not begun; the input, which goes on, is left alone."""
    one = start("shell_jobs:held", "--pool", pool)
    one.feed("a\nb\nc\nd\ne\n")
    one.wait_for("a", "b")
    one.interrupt()
    one.hear("waiting for what runs; Ctrl-C again kills it")
    one.feed("f\n")
    one.let_go(9)
    status, records, _ = one.ended()
    assert (status, values(records)) == (130, ["a", "b"])


def test_ctrl_c_with_coroutines(start: Start) -> None:
    """Those that run are not cancelled."""
    one = start("shell_jobs:held_later")
    one.feed("a\n")
    one.wait_for("a")
    one.interrupt()
    one.hear("waiting for what runs")
    one.let_go()
    assert one.ended()[:2] == (130, [{"index": 0, "value": "a"}])


@pytest.mark.parametrize("pool", ["processes", "threads", "inline"])
def test_ctrl_c_twice(pool: str, start: Start) -> None:
    """What runs is killed, and what has ended behind it is written; nobody waits for what can't be killed."""
    one = start("shell_jobs:held_if_odd", "--pool", pool)
    one.feed("0\n")
    assert one.record()["value"] == "0"
    one.feed("1\n2\n")
    one.wait_for("1")
    one.interrupt()
    if pool != "inline":  # where nobody is there to say anything
        one.hear("waiting for what runs")
    one.interrupt()
    status, records, _ = one.ended()
    assert (status, [record["index"] for record in records]) in ((130, []), (130, [2]))


def test_workers_do_not_outlive_a_kill(start: Start) -> None:
    """After the second Ctrl-C, nobody has the named pipe open that the item reads."""
    one = start("shell_jobs:held")
    one.feed("1\n")
    one.wait_for("1")
    one.interrupt()
    one.hear("waiting for what runs")
    one.interrupt()
    assert one.ended()[0] == 130
    os.close(one.begun)
    end = time.monotonic() + LONG
    while True:
        try:
            os.close(os.open(Path(one.folder, "begun"), os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            break
        assert time.monotonic() < end
    one.begun = os.open(os.devnull, os.O_RDONLY)


def test_ctrl_c_while_nothing_comes(start: Start) -> None:
    """Nobody waits for the input: the status says that it was interrupted."""
    one = start("shell_jobs:upper")
    one.feed("a\n")
    assert one.record()["value"] == "A"
    one.interrupt()
    assert one.process.wait(LONG) == 130  # with its input open
    assert one.ended() == (130, [], "")


def test_ctrl_c_while_nobody_reads(start: Start) -> None:
    """A reader that reads nothing holds up the first; the second ends it."""
    one = start("shell_jobs:long", "--pool", "inline")
    one.feed("a\n")
    assert one.process.stdout is not None
    assert select.select([one.process.stdout], [], [], LONG)[0]  # it writes, and more than a pipe holds
    one.interrupt()
    one.interrupt()
    assert one.process.wait(LONG) == 130


def test_ctrl_c_ends_the_reader_too(start: Start, ran: Ran) -> None:
    """As that of `... | tee`: what runs comes to its end all the same, and is in the journal."""
    arguments = ("shell_jobs:held", "--journal", "run.sqlite")
    one = start(*arguments)
    one.feed("a\n")
    one.wait_for("a")
    one.interrupt()
    one.hear("waiting for what runs")
    assert one.process.stdout is not None
    one.process.stdout.close()
    one.let_go()
    assert one.process.wait(LONG) == 130
    assert ran("a\n", *arguments, "--resume")[:2] == (0, [{"index": 0, "value": "a"}])


def test_ctrl_c_where_it_is_ignored(tmp_path: Path) -> None:
    """As behind `nohup`, or what a script runs with `&`: it stays so."""
    line = "trap '' INT; python -m parallel map shell_jobs:interrupting --pool threads <<< a"
    assert shell(line, tmp_path) == ('{"index": 0, "value": "a"}\n', "", 0)


def test_a_forked_child_has_its_own_ctrl_c(ran: Ran) -> None:
    """It is none of the command's."""
    assert ran("a\nb\n", "shell_jobs:forking", "--pool", "inline")[:2] == (
        0,
        [{"index": 0, "value": 7}, {"index": 1, "value": 7}],
    )


SCRIPT = """
import runpy, sys
sys.argv = ["parallel", "map", "shell_jobs:upper", "--pool", "threads"]
runpy.run_module("parallel", run_name="__main__", alter_sys=True)
"""


def test_in_a_terminal(nowhere: Path) -> None:
    """Lines are taken as they are typed, nothing is drawn among the records, and Ctrl-C ends it, as nothing runs."""
    with Terminal(SCRIPT, 80) as terminal:
        terminal.read_until("reading items from the terminal; Ctrl-D ends them")
        terminal.type(b"a\n")
        terminal.read_until('{"index": 0, "value": "A"}')
        terminal.type(b"b\n")
        terminal.read_until('{"index": 1, "value": "B"}')
        terminal.type(b"\x03")
        terminal.read_until(None)
        assert terminal.wait() == 130


def test_the_end_of_a_terminal(nowhere: Path) -> None:
    """Ctrl-D is the end of the items."""
    with Terminal(SCRIPT, 80) as terminal:
        terminal.read_until("Ctrl-D ends them")
        terminal.type(b"a\n\x04")
        terminal.read_until(None)
        assert terminal.wait() == 0
        assert '{"index": 0, "value": "A"}' in terminal.seen()


def test_a_bar_in_a_terminal(nowhere: Path) -> None:
    """It is drawn where the records are not, and a failure is told above it."""
    pytest.importorskip("rich")
    script = SCRIPT.replace('"--pool"', '"--output", "out.jsonl", "--pool"').replace("upper", "whole")
    with Terminal(script, 80) as terminal:
        terminal.read_until("Ctrl-D ends them")
        terminal.type(b"1\nx\n\x04")
        seen = terminal.read_until(None)
        assert terminal.wait() == 1
        assert "item 1: ValueError" in seen
        assert re.search("whole +2 .*1 failed", seen)
    assert len((nowhere / "out.jsonl").read_text().splitlines()) == 2


def shell(line: str, folder: Path) -> tuple[str, str, int]:
    """Run a line in a shell whose `python` is this one; return what it writes, what it says, and its status."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), "PARALLEL_CONFIG": ""},
        capture_output=True,
        encoding="utf-8",
        timeout=LONG,
    )
    return done.stdout, done.stderr, done.returncode


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """As with `yes | ... | head`: an endless input ends, with the status of SIGPIPE, and quietly."""
    line = "yes | python -m parallel map shell_jobs:upper | head -3; echo ${PIPESTATUS[@]}"
    records = "".join(f'{{"index": {n}, "value": "Y"}}\n' for n in range(3))
    assert shell(line, tmp_path) == (f"{records}141 141 0\n", "", 0)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str, tmp_path: Path) -> None:
    """What is needed is told to be missing; what is not makes no difference."""
    (tmp_path / "in").write_text("a\n")
    line = "python -m parallel map shell_jobs:upper --pool threads"
    assert shell(f"{line} --input in --output out {closed}", tmp_path)[2] == 0
    assert (tmp_path / "out").read_text() == '{"index": 0, "value": "A"}\n'
    _, said, status = shell(f"{line} < in {closed}", tmp_path)
    assert status == (0 if closed == "2>&-" else 2)
    if closed in ("<&-", ">&-"):
        assert f"standard {'input' if closed == '<&-' else 'output'} is closed" in said


PAGE = (ROOT / "docs" / "shell.md").read_text("utf-8")
SESSIONS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page(tmp_path: Path) -> None:
    """Every command on it writes what stands below it."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    for session in SESSIONS:
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", session, re.MULTILINE):
            if command.startswith("cat ") and command.endswith(".py"):
                (tmp_path / command.removeprefix("cat ")).write_text(shown, encoding="utf-8")
            else:
                written, said, _ = shell(command, tmp_path)
                assert (written, said) == (shown, ""), command


def test_a_full_disk(ran: Ran) -> None:
    """It is told, and the status says that not all went well."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no full disk")
    status, _, said = ran("a\n", "shell_jobs:upper", "--output", "/dev/full", "--pool", "inline")
    assert status == 1
    assert "the records can't be written" in said


# -- journals ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_resumed(start: Start, ran: Ran, tmp_path: Path) -> None:
    """No item that had ended is run again, and each comes out once."""
    first, then = [f"{n}" for n in range(20)], ["stop", *(f"{n}" for n in range(20, 40))]
    arguments = ("shell_jobs:noted", "--journal", "run.sqlite", "--pool", "one")
    one = start(*arguments)
    one.feed("".join(f"{item}\n" for item in first))
    assert [one.record()["value"] for _ in first] == first
    one.feed("".join(f"{item}\n" for item in then))
    one.wait_for("stop")
    one.process.kill()
    one.ended()
    (tmp_path / "resumed").touch()

    text = "".join(f"{item}\n" for item in first + then)
    status, records, said = ran(text, *arguments)
    assert (status, records) == (2, [])  # nothing is mixed in unasked
    assert "--resume goes on from there" in said
    status, records, said = ran(text, *arguments, "--resume")
    assert (status, values(records)) == (0, first + then), said
    assert "run.sqlite has 20 items of shell_jobs:noted from earlier runs, 0 of which failed" in said
    assert sorted((tmp_path / "notes").read_text().split()) == sorted([*first, *then, "stop"])


def test_the_output_of_a_resumed_run(ran: Ran, tmp_path: Path) -> None:
    """It is written anew, in order, with what the journal has; also if the one before has ended in a half line."""
    arguments = ("shell_jobs:noted", "--journal", "run.sqlite", "--output", "out.jsonl", "--pool", "inline")
    assert ran("a\nb\n", *arguments)[0] == 0
    path = tmp_path / "out.jsonl"
    path.write_text(path.read_text()[:-5])
    assert ran("b\nc\na\n", *arguments, "--resume")[0] == 0
    assert values([json.loads(line) for line in path.read_text().splitlines()]) == ["b", "c", "a"]
    assert (tmp_path / "notes").read_text().split() == ["a", "b", "c"]


def test_an_interrupted_run_is_resumed(start: Start, ran: Ran) -> None:
    """What has ended by Ctrl-C is recorded as well."""
    arguments = ("shell_jobs:held", "--journal", "run.sqlite")
    one = start(*arguments)
    one.feed("a\n")
    one.wait_for("a")
    one.interrupt()
    one.hear("waiting for what runs")
    one.let_go()
    assert one.ended()[:2] == (130, [{"index": 0, "value": "a"}])
    assert ran("a\n", *arguments, "--resume")[:2] == (0, [{"index": 0, "value": "a"}])


def test_failed_items_are_tried_again(ran: Ran, tmp_path: Path) -> None:
    """Only if that is said; an earlier failure is one of the resumed run as well."""
    arguments = ("shell_jobs:noted", "--journal", "run.sqlite", "--pool", "inline")
    assert ran("a\nbad\n", *arguments)[0] == 1
    status, records, _ = ran("a\nbad\n", *arguments, "--resume")
    assert (status, values(records)) == (1, ["a", "ValueError"])
    assert records[1]["error"]["message"] == "bad"
    assert ran("a\nbad\n", *arguments, "--resume", "failed")[0] == 1
    assert (tmp_path / "notes").read_text().split() == ["a", "bad", "bad"]


def test_a_new_journal_is_told_to_be_new(ran: Ran) -> None:
    """Who has mistyped its name sees that."""
    status, _, said = ran("a\n", "shell_jobs:upper", "--journal", "new.sqlite", "--resume", "--pool", "inline")
    assert (status, said) == (
        0,
        "python -m parallel map: new.sqlite has no items of shell_jobs:upper yet: all are run\n",
    )


def test_a_journal_in_use(start: Start, ran: Ran) -> None:
    """A second run is refused."""
    one = start("shell_jobs:held", "--journal", "run.sqlite")
    one.feed("a\n")
    one.wait_for("a")
    status, records, said = ran("a\n", "shell_jobs:held", "--journal", "run.sqlite")
    assert (status, records) == (2, [])
    assert "is in use by a run in process" in said
    one.let_go()
    one.feed("", end=True)
    assert one.ended()[0] == 0


def test_an_output_that_is_there(ran: Ran, tmp_path: Path) -> None:
    """Nothing is overwritten, but for the records of an earlier run when that is resumed."""
    (tmp_path / "precious").write_text("work of a year")
    said = ("shell_jobs:upper", "--pool", "inline", "--output")
    assert ran("a\n", *said, "precious")[0] == 2
    assert ran("a\n", *said, "precious", "--journal", "run.sqlite", "--resume")[0] == 2
    assert (tmp_path / "precious").read_text() == "work of a year"
    status, _, text = ran("", *said, "precious", "--input", "precious")
    assert status == 2
    assert "'precious' is the input" in text


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress(ran: Ran) -> None:
    """Asked for, it is shown on standard error; without a terminal nobody sees it unasked."""
    status, _, said = ran("a\nb\n", "shell_jobs:upper", "--progress", "--pool", "inline")
    assert status == 0
    assert said.startswith("upper: 2")


def test_help(ran: Ran) -> None:
    """It tells the statuses."""
    one = subprocess.run([sys.executable, "-m", "parallel", "map", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert one.returncode == 0
    assert "exit status:" in one.stdout


# -- the bell ---------------------------------------------------------------------------------------------------------


def test_no_ring_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while the one before is answered does not keep the next from being heard."""
    read = os.read

    def read_late(descriptor: int, size: int) -> bytes:
        bell.ring()
        data = read(descriptor, size)
        bell.ring()
        return data

    with Bell() as bell:
        bell.ring()
        monkeypatch.setattr(interrupts.os, "read", read_late)
        bell.wait(())
        monkeypatch.undo()
        bell.ring()
        waiter = threading.Thread(target=bell.wait, args=((),), daemon=True)
        waiter.start()
        waiter.join(LONG)
        assert not waiter.is_alive()


# -- what it needs of a stream ----------------------------------------------------------------------------------------


def test_failures_count_before_their_turn() -> None:
    """A stream in input order is halted though its first item has not ended."""

    def fail_but_first(number: int) -> None:
        if number:
            raise ValueError(number)
        sleep(LONG)  # until it is asked to stop

    began = time.monotonic()
    with Registry({"pools": {"two": {"kind": "thread", "max_workers": 2}}}) as registry, using(registry):
        stream = task(pool="two")(fail_but_first).stream(itertools.count(), errors="collect", halt=Halt("now", 10))
        with pytest.raises(MapHaltedError):
            list(stream)
    assert time.monotonic() - began < LONG / 2


def test_a_share_of_nobody_knows_how_many() -> None:
    """The first failure is not enough."""
    with Registry({"pools": {"inline": {"kind": "inline"}}}) as registry, using(registry):
        fail = task(pool="inline")(whole)
        few = fail.stream((text for text in "x1x"), errors="collect", halt=Halt("soon", "10%"))
        assert [one.ok for one in few] == [False, True, False]
        with pytest.raises(MapHaltedError):
            list(fail.stream((text for text in "xxxxx"), errors="collect", halt=Halt("soon", "10%")))


def test_a_source_that_can_only_be_asked() -> None:
    """Nobody iterates it by mistake."""
    with pytest.raises(TypeError, match="only a flow reads this source"):
        next(Input(0, FORMATS["lines"]()))

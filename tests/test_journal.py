"""
The journal: what is recorded is found by later runs, and by nobody else.
"""

from __future__ import annotations

import gc
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent
from typing import Any

import journal_jobs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_jobs import Falsy, Fragile, Refuses, Untimely

from parallel import JournalError, JournalLockedError, ParallelError, SerializationError, UnrecordableError
from parallel import journal as journals
from parallel.errors import RemoteTraceback
from parallel.journal import KIND, Entry, Journal, Recorded
from parallel.storage import Storage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def opened(path: Path, name: str = "shop:resize", fingerprint: str = "f", **options: bool) -> Journal:
    return Journal(path, name, fingerprint, **options)


def write(path: Path, entries: Sequence[Entry], **options: Any) -> None:
    """Record *entries* in a run of their own."""
    with opened(path, **options) as journal:
        assert journal.record(entries) == []


def find(path: Path, keys: Sequence[bytes], **options: Any) -> list[Recorded | None]:
    """Look for *keys* in a run of its own."""
    with opened(path, **options) as journal:
        return journal.find(keys)


def values(path: Path, keys: Sequence[bytes], **options: Any) -> list[object]:
    return [one and one.value for one in find(path, keys, **options)]


# --- Found again ------------------------------------------------------------------------------------------------------


def test_a_second_run_finds_what_the_first_recorded(path: Path) -> None:
    """An item that ended is found by its key, with its value; one that did not is not."""
    items = [("a.png", 100), ("b.png", 100), ("a.png", 200)]
    with opened(path) as journal:
        keys = journal.keys(items)
        assert journal.find(keys) == [None, None, None]
        assert journal.record([(keys[0], "small", None), (keys[2], None, None)]) == []
    with opened(path) as journal:
        assert journal.keys(items) == keys
        assert journal.find(keys) == [Recorded("small", None), None, Recorded(None, None)]
        assert journal.counts() == (2, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.text() | st.binary(max_size=9000) | st.lists(st.integers()), st.booleans())
    )
)
def test_round_trip(path: Path, ended: list[tuple[int, object, bool]]) -> None:
    """All that was recorded is found, the last of each key, in the order of the keys."""
    path.unlink(missing_ok=True)
    entries = [(b"%d" % key, *((None, KeyError(value)) if fails else (value, None))) for key, value, fails in ended]
    expected = {key: (value, error and error.args) for key, value, error in entries}
    keys = [b"%d" % number for number in range(45)]

    write(path, entries)

    with opened(path) as journal:
        found = [one and (one.value, one.error and one.error.args) for one in journal.find(keys)]
        failed = sum(error is not None for _, error in expected.values())
        assert journal.counts() == (len(expected) - failed, failed)
    assert found == [expected.get(key) for key in keys]


def test_more_than_one_statement_asks_for(path: Path) -> None:
    """Thousands of keys are found at once; each as often as it is asked for."""
    keys = [b"%d" % number for number in range(3_000)]
    write(path, [(key, number, None) for number, key in enumerate(keys)])
    assert values(path, [*keys, b"none", *keys]) == [*range(3_000), None, *range(3_000)]


def test_equal_items_are_different_items(path: Path) -> None:
    """The second of two equal items has another key, the same in each run, also across batches."""
    items = [("a",), ("b",), ("a",), ("a",)]
    with opened(path) as journal:
        keys = journal.keys(items)
    with opened(path) as journal:
        assert [key for item in items for key in journal.keys([item])] == keys
    assert len(set(keys)) == 4


def test_the_keys_of_the_user(path: Path) -> None:
    """What names an item may be its key; two items of one name are two, and no name is an item."""
    with opened(path) as journal:
        words = journal.keys_by(["a", 1, b"a", ("a", 1), "a"])
        keys = [*words, *journal.keys([("a",), (1,), (b"a",), ("a", 1)])]
        assert len(set(keys)) == 9
        with pytest.raises(TypeError, match=r"key= returned None, of type NoneType: a key is a str"):
            journal.keys_by(["a", None])
    with opened(path) as journal:
        assert journal.keys_by(["a", 1, b"a", ("a", 1), "a"]) == words


def test_large_values(path: Path) -> None:
    """Values of many pages are found whole."""
    large = {b"%d" % size: os.urandom(size) for size in (0, 500, 5_000, 5_000_000)}
    write(path, [(key, value, None) for key, value in large.items()])
    assert values(path, list(large)) == list(large.values())


def test_what_this_run_has_recorded(path: Path) -> None:
    """A run finds what it has recorded itself; an entry takes the place of an earlier one."""
    with opened(path) as journal:
        journal.record([(b"k", 1, None)])
        journal.record([(b"k", None, ValueError("no"))])
        journal.record([])
        [found] = journal.find([b"k"])
        assert found is not None and isinstance(found.error, ValueError)
        assert journal.counts() == (0, 1)


# --- Errors -----------------------------------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error", [ValueError("x", 1), Untimely("late", 3), Falsy(), OSError(2, "gone", "file"), SystemExit(3)], ids=repr
)
def test_errors(path: Path, error: BaseException) -> None:
    """An error is found as it was, whatever its constructor takes, with the traceback of its run."""
    error.add_note("seen")
    write(path, [(b"k", None, raised(error))])
    [found] = find(path, [b"k"])
    assert found is not None and found.error is not None
    assert (type(found.error), found.error.args, str(found.error)) == (type(error), error.args, str(error))
    assert {**vars(found.error)} == {**vars(error), "__notes__": ["seen"]}
    assert isinstance(found.error.__cause__, RemoteTraceback) and "in raised" in str(found.error.__cause__)


def test_an_error_that_can_not_be_pickled(path: Path) -> None:
    """Such an error is found in words."""
    write(path, [(b"k", None, ValueError(threading.Lock()))])
    [found] = find(path, [b"k"])
    assert found is not None and "ValueError: <unlocked _thread.lock" in str(found.error)


def test_failed_again(path: Path) -> None:
    """With *failed_again*, what failed is not found; once it is done, it is found by all."""
    write(path, [(b"done", 1, None), (b"failed", None, ValueError())])
    with opened(path, failed_again=True) as journal:
        assert journal.find([b"done", b"failed"]) == [Recorded(1, None), None]
        assert journal.counts() == (1, 1)
        journal.record([(b"failed", 2, None)])
        assert journal.counts() == (2, 0)
    assert values(path, [b"done", b"failed"]) == [1, 2]


# --- Mistaken for no other --------------------------------------------------------------------------------------------


def test_another_task_and_a_changed_function(path: Path) -> None:
    """What is recorded of one task, with one fingerprint, is found only there; changing it back finds it again."""
    write(path, [(b"a", "old", None), (b"b", "old", None)])
    write(path, [(b"a", "new", None)], fingerprint="g")
    write(path, [(b"a", "else", None)], name="shop:crop")
    assert values(path, [b"a", b"b"]) == ["old", "old"]
    assert values(path, [b"a", b"b"], fingerprint="g") == ["new", None]
    assert values(path, [b"a", b"b"], name="shop:crop") == ["else", None]


def test_stale(path: Path) -> None:
    """It tells how many items another version of the function has ended, and none of another task."""
    write(path, [(b"a", 1, None), (b"b", 2, None), (b"c", None, ValueError())])
    write(path, [(b"a", 1, None)], name="shop:crop")
    with opened(path) as journal:
        assert journal.stale() == 0
    with opened(path, fingerprint="g") as journal:
        assert (journal.stale(), journal.counts()) == (3, (0, 0))


# --- What does not travel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item", [threading.Lock(), lambda: None, Refuses(RuntimeError("never")), Refuses(SystemExit(1))], ids=type
)
def test_items_that_can_not_be_pickled(path: Path, item: object) -> None:
    """An item without a pickle is refused by its number; nothing of that batch has been counted."""
    with opened(path) as journal:
        first = journal.keys([("a",)])
        with pytest.raises(UnrecordableError, match=r"item 2 \(.*\) can't be written into a journal: .*key=") as caught:
            journal.keys([("a",), (item,)])
        assert caught.value.__cause__ is not None
        second = journal.keys([("a",)])
    assert second == [first[0] + b"\x01"]


@pytest.mark.parametrize("reason", [RuntimeError("never"), SystemExit(1), RecursionError()], ids=repr)
def test_values_that_can_not_be_pickled(path: Path, reason: BaseException) -> None:
    """Such a value is refused by its position, and all others are written."""
    with opened(path) as journal:
        [(position, error)] = journal.record([(b"a", 1, None), (b"b", Refuses(reason), None), (b"c", 3, None)])
        assert position == 1
        assert isinstance(error, SerializationError) and error.__cause__ is reason
        assert "a value of shop:resize can't be written into a journal" in str(error)
        assert journal.record([(b"b", threading.Lock(), None)])[0][0] == 0
    assert values(path, [b"a", b"b", b"c"]) == [1, None, 3]


def test_an_interrupt_while_a_value_is_pickled(path: Path) -> None:
    """It is no value's fault; nothing of the batch is written."""
    with opened(path) as journal:
        with pytest.raises(KeyboardInterrupt):
            journal.record([(b"a", 1, None), (b"b", Refuses(KeyboardInterrupt()), None)])
        assert journal.counts() == (0, 0)


def test_values_that_are_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that SQLite can't take is refused like one that can't be pickled."""
    monkeypatch.setattr(journals, "LARGEST", 1_000)
    with opened(path) as journal:
        [(position, error)] = journal.record([(b"a", bytes(900), None), (b"b", bytes(1_000), None)])
        assert position == 1
        assert "ValueError: it takes 1,0" in str(error)
        assert journal.counts() == (1, 0)


def test_values_by_value(path: Path) -> None:
    """A value that only cloudpickle can pickle is found."""
    write(path, [(b"k", lambda x: x + 1, None)])
    [found] = find(path, [b"k"])
    assert found is not None and callable(found.value) and found.value(1) == 2


def test_values_that_can_not_be_loaded_any_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as not done, with one warning."""
    write(path, [(b"a", Fragile(), None), (b"b", 2, None), (b"c", Fragile(), None)])
    monkeypatch.setattr(Fragile, "broken", True)
    with pytest.warns(RuntimeWarning, match=r"2 values of shop:resize in .* can't be loaded .* LookupError: its parts"):
        assert values(path, [b"a", b"b", b"c"]) == [None, 2, None]


# --- One run at a time ------------------------------------------------------------------------------------------------


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the journal."""
    command = [sys.executable, journal_jobs.__file__, "hold", str(path)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_two_runs_of_one_process(path: Path) -> None:
    """A journal that is open is refused, whatever path leads to it, and free when it is closed."""
    link = path.with_name("link.sqlite")
    link.symlink_to(path)
    with opened(path) as journal:
        for one in (path, link):
            with pytest.raises(JournalLockedError, match=f"in use by a run in process {os.getpid()} on .*: wait for"):
                opened(one)
        journal.record([(b"a", 1, None)])
    assert values(link, [b"a"]) == [1]


def test_runs_of_two_processes(path: Path) -> None:
    """A journal that another process has is refused at once; when that is killed it is free."""
    with holder(path) as process:
        with pytest.raises(JournalLockedError) as caught:
            opened(path)
        assert caught.value.holder.startswith(f"process {process.pid} on ")
        assert isinstance(caught.value, ParallelError)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    write(path, [(b"a", 1, None)])


def test_two_journals(tmp_path: Path) -> None:
    """Two files are two journals."""
    with opened(tmp_path / "a") as one, opened(tmp_path / "b") as other:
        one.record([(b"k", 1, None)])
        assert other.find([b"k"]) == [None]


def test_nothing_is_left_but_the_file(path: Path) -> None:
    """A closed journal is one file; closing it again does nothing, using it says that it is closed."""
    journal = opened(path)
    journal.record([(b"a", 1, None)])
    journal.close()
    journal.close()
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(JournalError, match=r"run\.sqlite' has been closed"):
        journal.find([b"a"])


def test_a_journal_that_nobody_closes(path: Path) -> None:
    """It is given back when nobody refers to it."""
    journal = opened(path)
    journal.record([(b"a", 1, None)])
    del journal
    gc.collect()
    assert values(path, [b"a"]) == [1]


def test_a_run_that_ends_without_closing(path: Path, run_script: Callable[..., CompletedProcess[str]]) -> None:
    """What it recorded is there, and nothing is said."""
    script = f"from parallel.journal import Journal; j = Journal({str(path)!r}, 'shop:resize', 'f'); "
    ended = run_script(script + "j.record([(b'a', 1, None)])", flags=("-W", "error"))
    assert (ended.stdout, ended.stderr) == ("", "")
    assert values(path, [b"a"]) == [1]


def test_any_thread_may_use_it(path: Path) -> None:
    """One thread after the other uses a journal."""
    with opened(path) as journal:
        thread = threading.Thread(target=journal.record, args=([(b"a", 1, None)],))
        thread.start()
        thread.join(10)
        assert journal.find([b"a"]) == [Recorded(1, None)]


# --- Forks ------------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_no_journal(path: Path, in_fork: Callable[[Callable[[], Any]], Any]) -> None:
    """A fork can't use the journal, nor give it back; the parent goes on with it."""
    with opened(path) as journal:
        journal.record([(b"a", 1, None)])

        def use() -> str:
            with pytest.raises(JournalError) as caught:
                journal.record([(b"b", 2, None)])
            journal.close()
            with pytest.raises(JournalLockedError):
                opened(path)
            return str(caught.value)

        assert f"was opened by process {os.getpid()}, and can't be used by a fork of that" in in_fork(use)
        journal.record([(b"c", 3, None)])
        with pytest.raises(JournalLockedError):
            opened(path)
    assert values(path, [b"a", b"b", b"c"]) == [1, None, 3]


def test_a_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """When a run is killed, its journal is free, though a child that it forked lives on."""
    script = dedent("""
    import os, signal, sys
    from parallel.journal import Journal
    journal = Journal(sys.argv[1], "shop:resize", "f")
    journal.record([(b"a", 1, None)])
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(go, b"!")  # it has let go of what is the parent's
        signal.pause()
    os.read(ready, 1)
    os.write(1, b"%d\\n" % child)
    os.kill(os.getpid(), signal.SIGKILL)
    """)
    path = tmp_path / "run.sqlite"
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert process.wait(10) == -signal.SIGKILL
            assert values(path, [b"a"]) == [1]
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_in_the_middle_of_a_record(path: Path, in_fork: Callable[[Callable[[], Any]], Any]) -> None:
    """A fork waits for the transaction of another thread, and children that end do no harm to it."""
    with opened(path) as journal:
        going = threading.Event()
        stop = threading.Event()
        count = 0

        def record() -> None:
            nonlocal count
            while not stop.is_set():
                journal.record([(b"%d" % (count + number), number, None) for number in range(100)])
                count += 100
                going.set()

        thread = threading.Thread(target=record)
        thread.start()
        try:
            assert going.wait(10)
            for _ in range(5):
                assert in_fork(lambda: sqlite3.connect(":memory:").execute("SELECT 1").fetchall()) == [(1,)]
        finally:
            stop.set()
            thread.join(10)
    assert None not in find(path, [b"%d" % number for number in range(count)])
    check(path)


def check(path: Path) -> None:
    """Nothing in the file is torn."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_file_of_something_else(path: Path) -> None:
    """It is refused, and not changed."""
    path.write_text("name,size\n" * 1_000)
    with pytest.raises(JournalError, match=r"is a file of something else: use another \(file is not a database\)"):
        opened(path)
    assert path.read_text() == "name,size\n" * 1_000
    assert os.listdir(path.parent) == [path.name]


def test_a_database_of_something_else(path: Path) -> None:
    """It is refused, and not changed."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE stock (name, size)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"is an SQLite file of something else: use another"):
        opened(path)
    assert path.read_bytes() == before


def test_a_newer_journal(path: Path) -> None:
    """A format of another version is refused, with both numbers."""
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(JournalError, match=r"has format 2, and this version of the library reads format 1"):
        opened(path)


def test_a_damaged_journal(path: Path) -> None:
    """Damage is told as such, where it is met, and not repaired."""
    write(path, [(b"%d" % number, bytes(100), None) for number in range(1_000)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"is damaged: use another file, or delete it to begin anew \(database disk"):
        find(path, [b"1"])
    assert os.listdir(path.parent) == [path.name]


def test_an_empty_file(path: Path) -> None:
    """An empty file, such as one of `mkstemp` or of a run killed at once, becomes a journal."""
    path.touch()
    write(path, [(b"a", 1, None)])
    path.with_name("run.sqlite.lock").write_text("left behind")
    assert values(path, [b"a"]) == [1]


def test_a_run_killed_before_it_made_the_tables(path: Path) -> None:
    """A database without anything in it becomes a journal."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert path.stat().st_size
    write(path, [(b"a", 1, None)])
    assert values(path, [b"a"]) == [1]


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A folder that is not there, one of the kernel's, and a folder as the file are told with the path."""
    for place in (tmp_path / "none" / "run.sqlite", Path("/proc/run.sqlite"), tmp_path):
        with pytest.raises(JournalError, match=f"the journal '{place}' can't be ") as caught:
            opened(place)
        assert caught.value.__cause__ is not None
        assert not Path(f"{place}.lock").exists()


def test_a_file_that_goes_away(path: Path) -> None:
    """A file that is removed or replaced while it is in use is told of: what is written there would be lost."""
    with opened(path) as journal:
        path.unlink()
        with pytest.raises(JournalError, match="has been removed, or replaced by another file, while it was in use"):
            journal.record([(b"a", 1, None)])
        path.touch()
        with pytest.raises(JournalError, match="has been removed, or replaced by another file, while it was in use"):
            journal.find([b"a"])


FULL = """
import resource, signal, sys
from parallel import JournalError
from parallel.journal import Journal
journal = Journal(sys.argv[0] + ".sqlite", "t", "f")
journal.record([(b"a", 1, None)])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 200_000))
try:
    journal.record([(b"b", bytes(1_000_000), None)])
except JournalError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
assert journal.find([b"a", b"b"])[1] is None
journal.record([(b"c", 3, None)])
journal.close()
"""


def test_no_room(tmp_path: Path, run_script: Callable[..., CompletedProcess[str]]) -> None:
    """When a batch can't be written, nothing of it is there; what was there stays, and the journal goes on."""
    told = run_script(FULL).stdout
    assert re.search(r"the journal '.*' can't be (read or )?written", told)
    connection = sqlite3.connect(tmp_path / "script_of_test.py.sqlite")
    assert connection.execute("SELECT key FROM ended ORDER BY key").fetchall() == [(b"a",), (b"c",)]
    connection.close()


def test_another_program_may_read_and_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at the file meanwhile stops nothing; whoever writes to it for long is told of."""
    monkeypatch.setattr("parallel.storage.PATIENCE", 0.01)
    with opened(path) as journal:
        looking = sqlite3.connect(path, isolation_level=None)
        looking.execute("BEGIN")
        assert looking.execute("SELECT count(*) FROM ended").fetchall() == [(0,)]
        journal.record([(b"a", 1, None)])
        looking.execute("COMMIT")
        looking.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="is being written by another program"):
            journal.record([(b"b", 2, None)])
        looking.close()
        journal.record([(b"b", 2, None)])
        assert journal.counts() == (2, 0)


def test_a_storage_that_can_not_be_set_up_is_given_back(path: Path) -> None:
    """A kind whose tables can't be made leaves an empty file and no lock."""
    with pytest.raises(JournalError, match="can't be read or written"):
        Storage(str(path), KIND._replace(tables=("CREATE TABLE",)))
    write(path, [(b"a", 1, None)])


# --- Small things -----------------------------------------------------------------------------------------------------


def test_repr(path: Path) -> None:
    """It tells the file and the task."""
    with opened(path) as journal:
        assert repr(journal) == f"<Journal '{os.path.realpath(path)}' of shop:resize>"
        assert journal.path == os.path.realpath(path)


def test_values_of_main_are_found_by_name(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """A value whose class `__main__` defines is of the present class when it is found, also in a notebook."""
    script = dedent("""
    import sys
    from parallel.journal import Journal
    class Point:
        pass
    with Journal("run.sqlite", "t", "f") as journal:
        [found] = journal.find([b"a"])
        print(found and type(found.value) is Point)
        assert not journal.record([(b"a", Point(), None)])
    """)
    prompt = f"import sys; exec({script!r}, vars(sys.modules['__main__']))"
    assert run_script(script).stdout == "None\n"
    assert run_script(script).stdout == "True\n"
    assert run_script(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {prompt!r}])").stdout == "True\n"


def test_importing_it_loads_nothing_heavy(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """SQLite, OpenSSL and multiprocessing come with the first journal, not with the module."""
    run_script(
        "import sys, parallel.journal; assert not {'sqlite3', 'hashlib', 'multiprocessing'} & sys.modules.keys()"
    )


def test_pickles_of_the_errors(path: Path) -> None:
    """The errors of a journal survive pickle, with the file and the process that has it."""
    with opened(path), pytest.raises(JournalLockedError) as caught:
        opened(path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.holder, str(again)) == (caught.value.path, caught.value.holder, str(caught.value))

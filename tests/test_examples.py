"""
The examples, the README's program and its two commands, run as a user would run them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from pools.clusters import dask_started, ray_started

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
INDEX = EXAMPLES / "index_sources.py"
TIMEOUT = 300
"""Seconds that only a deadlock reaches."""

SOURCES = {
    "good.py": b"import os, json\nfrom os import path\n\nclass A:\n    def f(self): ...\n\nasync def g(): ...\n",
    "package/latin.py": b"# -*- coding: latin-1 -*-\nimport os\nname = '\xe9'\n",
    "escapes.py": b"pattern = '\\d' is 'd'\n",
    "encoding.py": b"a = 1\nb = 2\nc = '\xff'\n",
    "syntax.py": b"def f(:\n",
    "cookie.py": b"# coding: klingon\n",
    "nulls.py": b"a = 1\0\n",
    "site-packages/other.py": b"import never\n",
}


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this Python, with *env* in its environment, and return how it ended."""
    arguments = [sys.executable, *map(str, command)]
    env = {**environment(), **env}
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT)


def environment() -> dict[str, str]:
    """Return the environment without what would change where tasks run."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PARALLEL_")}


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    """Query a database file."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Make a small tree of good and bad files."""
    folder = tmp_path / "sources"
    for name, content in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_index_summary(sources: Path, tmp_path: Path) -> None:
    """The summary counts files, definitions, imports and the errors by kind, and nobody's warnings are shown."""
    ended = run(INDEX, sources, cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert "indexing 7 files" in ended.stdout
    assert "3 indexed, 4 skipped" in ended.stdout
    assert "2 functions, 1 classes" in ended.stdout
    assert "os (2), json (1)" in ended.stdout
    assert "UnicodeDecodeError (1)" in ended.stdout
    assert re.search(
        r"^errors .*SyntaxError \([23]\)", ended.stdout, re.MULTILINE
    )  # null bytes: ValueError before 3.12
    assert "plain loop" not in ended.stdout
    assert "Warning" not in ended.stderr


def test_index_database(sources: Path, tmp_path: Path) -> None:
    """The database holds every good file's definitions and imports, and a second run replaces them."""
    for _ in range(2):
        assert run(INDEX, sources, cwd=tmp_path).returncode == 0

    database = tmp_path / "sources.sqlite"
    good = str(sources / "good.py")
    assert rows(database, "SELECT count(*) FROM files") == [(3,)]
    assert rows(database, "SELECT * FROM definitions ORDER BY line") == [
        (good, "class", "A", 4),
        (good, "function", "f", 5),
        (good, "function", "g", 7),
    ]
    assert rows(database, "SELECT DISTINCT module FROM imports ORDER BY module") == [("json",), ("os",)]


def test_index_compare(sources: Path, tmp_path: Path) -> None:
    """With --compare it tells how long a plain loop takes."""
    ended = run(INDEX, sources, "--compare", "--database", tmp_path / "elsewhere.sqlite", cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^plain loop +[0-9.]+ s, [0-9.]+ times as long$", ended.stdout, re.MULTILINE)
    assert rows(tmp_path / "elsewhere.sqlite", "SELECT count(*) FROM files") == [(3,)]


def test_index_recorded(sources: Path, tmp_path: Path) -> None:
    """With --record it writes what ran where; a name that can't be written is a usage error."""
    ended = run(INDEX, sources, "--record", "run.json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    calls = Counter(event["name"].rpartition(":")[2] for event in events if event["ph"] == "X")
    assert calls["read"] == 7
    assert calls["parse"] == 5  # two could not be read
    ended = run(INDEX, sources, "--record", "run.txt", cwd=tmp_path)
    assert ended.returncode == 2
    assert ".html, .json" in ended.stderr


@pytest.mark.parametrize("folder", ["nowhere", "good.py"])
def test_index_needs_a_folder(sources: Path, folder: str, tmp_path: Path) -> None:
    """What is no folder is a usage error, and no database is made."""
    ended = run(INDEX, sources / folder, cwd=tmp_path)

    assert ended.returncode == 2
    assert "is no folder" in ended.stderr
    assert not (tmp_path / "sources.sqlite").exists()


def test_index_bad_database(sources: Path, tmp_path: Path) -> None:
    """A file that is no database is left as it is."""
    (tmp_path / "notes.txt").write_text("no database\n" * 100)
    ended = run(INDEX, sources, "--database", "notes.txt", cwd=tmp_path)

    assert ended.returncode == 1
    assert ended.stderr == "notes.txt: file is not a database\n"
    assert (tmp_path / "notes.txt").read_text() == "no database\n" * 100


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["group", "parent"])
def test_index_interrupted(send: Callable[[int, int], None], tmp_path: Path) -> None:
    """Ctrl-C ends the program with status 130 and a message, and what was stored can be read."""
    with subprocess.Popen(
        [sys.executable, INDEX],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stderr is not None
        try:
            assert program.stderr.readline().startswith("indexing: ")
            send(program.pid, signal.SIGINT)
            rest = program.stderr.read()
            status = program.wait(TIMEOUT)
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise

    assert status == 130
    assert rest.splitlines()[-1] == "interrupted: sources.sqlite holds what was indexed so far"
    assert "Traceback" not in rest
    database = tmp_path / "sources.sqlite"
    assert rows(database, "PRAGMA integrity_check") == [("ok",)]
    [(stored,)] = rows(database, "SELECT count(*) FROM files")
    assert isinstance(stored, int)
    assert stored > 0


WATCHED = """
import ast, os, signal, tokenize

def watched(name, fn, path_in):
    def call(*args, **kwargs):
        path = str(args[path_in]) if len(args) > path_in else ""
        if path.startswith(os.environ["WATCHED_FOLDER"]):
            if path.endswith(os.environ["WATCHED_UNTIL"]):
                os.kill(os.getpid(), signal.SIGKILL)
            with open(os.environ["WATCHED_LOG"], "a") as log:
                log.write(f"{name} {os.path.basename(path)}\\n")
        return fn(*args, **kwargs)
    return call

tokenize.open = watched("read", tokenize.open, 0)
ast.parse = watched("parse", ast.parse, 1)
"""
"""A `sitecustomize.py` by which every interpreter of a program notes what is read and parsed, until one is killed."""

Watched: TypeAlias = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]
"""Runs the program, and tells how it ended, and what was noted."""


@pytest.fixture
def index_watched(tmp_path: Path) -> Watched:
    """Return what indexes `many` with a journal, and is killed at the file *until*; it tells what was done."""
    (tmp_path / "watching").mkdir()
    (tmp_path / "watching" / "sitecustomize.py").write_text(WATCHED)
    many = tmp_path / "many"
    many.mkdir()
    for number in range(600):
        (many / f"m{number:03}.py").write_text(f"import os, json\n\nclass A{number}:\n    def f(self): ...\n")
    (many / "bad.py").write_text("def f(:\n")
    log = tmp_path / "log"

    def index(until: str = "nowhere") -> tuple[subprocess.CompletedProcess[str], list[str]]:
        log.write_text("")
        ended = run(
            *(INDEX, many, "--journal", "index.journal"),
            cwd=tmp_path,
            PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path / "watching"), os.environ.get("PYTHONPATH")])),
            WATCHED_FOLDER=str(many),
            WATCHED_LOG=str(log),
            WATCHED_UNTIL=until,
        )
        return ended, log.read_text().splitlines()

    return index


def tables(database: Path) -> list[list[tuple[object, ...]]]:
    """Return all that an index holds."""
    orders = {"files": "1", "definitions": "1, 2, 3, 4", "imports": "1, 2"}
    return [rows(database, f"SELECT * FROM {table} ORDER BY {order}") for table, order in orders.items()]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_index_killed(index_watched: Watched, tmp_path: Path) -> None:
    """A run that was killed goes on where it stopped: nothing that was done is read or parsed again."""
    undisturbed = run(INDEX, tmp_path / "many", "--database", "undisturbed.sqlite", cwd=tmp_path)
    killed, _ = index_watched(until="m500.py")
    [(done,)] = rows(tmp_path / "index.journal", "SELECT count(*) FROM ended WHERE NOT failed")
    resumed, work = index_watched()

    assert killed.returncode == -signal.SIGKILL
    assert isinstance(done, int)
    assert 502 - 256 - 1 <= done < 600  # it was the 502nd; 256 are on their way at most, and one was bad
    assert len([line for line in work if line.startswith("read ")]) == 601 - done
    assert len([line for line in work if line.startswith("parse ")]) == 601 - done
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[1:-1] == undisturbed.stdout.splitlines()[1:-1]  # not the seconds
    assert "600 indexed, 1 skipped" in resumed.stdout
    assert tables(tmp_path / "sources.sqlite") == tables(tmp_path / "undisturbed.sqlite")


def test_index_again(index_watched: Watched, tmp_path: Path) -> None:
    """A run with the journal of one that has ended parses what has changed since, and what failed."""
    index_watched()
    (tmp_path / "many" / "m007.py").write_text("def later(): ...\n")
    (tmp_path / "many" / "m008.py").unlink()
    ended, work = index_watched()

    assert ended.returncode == 0, ended.stderr
    assert sorted(work) == ["parse bad.py", "parse m007.py", "read bad.py", "read m007.py"]
    assert "599 indexed, 1 skipped" in ended.stdout
    assert rows(tmp_path / "sources.sqlite", "SELECT name FROM definitions WHERE path LIKE '%m007.py'") == [("later",)]


def test_index_bad_journal(sources: Path, tmp_path: Path) -> None:
    """A file that is no journal is left as it is."""
    (tmp_path / "notes.txt").write_text("no journal\n" * 100)
    ended = run(INDEX, sources, "--journal", "notes.txt", cwd=tmp_path)

    assert ended.returncode == 1
    assert "notes.txt' is a file of something else" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "notes.txt").read_text() == "no journal\n" * 100


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "can't be read"),
        ("[pools.threads]\nkind = 'thraed'\n", "did you mean 'thread'?"),
        (f"extends = '{EXAMPLES / 'cluster.toml'}'\n[pools.processes]\nkind = 'dask'\nresources = 1\n", "resources"),
    ],
)
def test_index_bad_configuration(said: str, told: str, sources: Path, tmp_path: Path) -> None:
    """A configuration that can't be used is told as such, and an old index is left as it is."""
    if said:
        (tmp_path / "other.toml").write_text(said)
    ended = run(INDEX, sources, "--config", "other.toml", cwd=tmp_path)

    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "sources.sqlite").exists()


def index_far(tmp_path: Path, sources: Path, **env: str) -> None:
    """See that a cluster, which *env* names, makes the same index of real files, and bad ones, as processes do."""
    library = Path(sysconfig.get_path("stdlib"))
    for folder in ("", "asyncio", "collections", "email", "json"):
        (sources / folder).mkdir(exist_ok=True)
        for path in (library / folder).glob("*.py"):
            shutil.copy(path, sources / folder)
    here = run(INDEX, sources, "--database", "here.sqlite", cwd=tmp_path)
    there = run(
        *(INDEX, sources, "--database", "there.sqlite", "--config", EXAMPLES / "cluster.toml"), cwd=tmp_path, **env
    )

    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    assert there.stdout.splitlines()[1:-1] == here.stdout.splitlines()[1:-1]  # not the seconds
    assert "4 skipped" in there.stdout
    assert "Warning" not in there.stderr
    assert tables(tmp_path / "there.sqlite") == tables(tmp_path / "here.sqlite")
    assert len(tables(tmp_path / "there.sqlite")[0]) > 200


@pytest.mark.dask
def test_index_on_dask(sources: Path, tmp_path: Path) -> None:
    """The same program has the workers of a Dask cluster parse, by another configuration."""
    with dask_started(tmp_path) as address:
        index_far(tmp_path, sources, PARALLEL_POOLS__PROCESSES__ADDRESS=address)


@pytest.mark.ray
def test_index_on_ray(sources: Path, tmp_path: Path) -> None:
    """And those of a Ray cluster, by its profile."""
    pytest.importorskip("ray")
    with ray_started(tmp_path) as address:
        index_far(tmp_path, sources, PARALLEL_PROFILE="ray", PARALLEL_POOLS__PROCESSES__ADDRESS=address)


@pytest.mark.ray
def test_index_without_a_cluster(sources: Path, tmp_path: Path) -> None:
    """One that isn't there ends the program with a message."""
    pytest.importorskip("ray")
    env = {"PARALLEL_PROFILE": "ray", "PARALLEL_POOLS__PROCESSES__ADDRESS": "127.0.0.1:9"}
    ended = run(INDEX, sources, "--config", EXAMPLES / "cluster.toml", cwd=tmp_path, **env)

    assert ended.returncode == 1
    assert "nobody answers at 127.0.0.1:9" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("pool", "threads"), [("loop", "1, such as parallel-loop"), ("threads", r"\d+, such as parallel-threads_\d+")]
)
def test_fetch_pages(pool: str, threads: str, tmp_path: Path) -> None:
    """The same program fetches its pages on a loop or in threads, as its configuration says."""
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    configuration = folder / "parallel.toml"
    said = configuration.read_text()
    assert said.count('pool = "loop"') == 1
    configuration.write_text(said.replace('pool = "loop"', f'pool = "{pool}"'))
    ended = run(folder / "fetch_pages.py", cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert "pages    281 of 300, 38 of them not at once" in ended.stdout
    assert "errors   NoPageError (15), ConnectionResetError (4)" in ended.stdout
    assert re.search(f"^threads  {threads}$", ended.stdout, re.MULTILINE)


def test_monte_carlo(tmp_path: Path) -> None:
    """All runs agree, in this program and in the next one, and the known value is within four standard errors."""
    first, second = (run(EXAMPLES / "monte_carlo.py", "--paths", 10_500, cwd=tmp_path) for _ in range(2))

    assert first.returncode == 0, first.stderr
    assert "simulating 10,500 paths in 11 batches" in first.stdout
    values = re.findall(r"^  [12n].* s  (6\.[0-9]+)$", first.stdout, re.MULTILINE)
    assert len(values) == 6
    assert len({*values}) == 1
    assert "all 6 runs agree to the last bit" in first.stdout
    assert second.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]
    known = re.search(r"^geometric average +([0-9.]+) ± ([0-9.]+), exactly 5\.94020$", first.stdout, re.MULTILINE)
    assert known is not None
    assert abs(float(known[1]) - 5.94020) < 4 * float(known[2]) < 0.5
    corrected = re.search(r"known +([0-9.]+) ± ([0-9.]+)$", first.stdout, re.MULTILINE)
    assert corrected is not None
    assert abs(float(corrected[1]) - 6.1559) < 4 * float(corrected[2]) < 0.02  # found with 100 times as many


def test_monte_carlo_needs_paths(tmp_path: Path) -> None:
    """Too few paths are a usage error."""
    ended = run(EXAMPLES / "monte_carlo.py", "--paths", 10, cwd=tmp_path)

    assert ended.returncode == 2
    assert "--paths: 1,000 are the least" in ended.stderr


def test_arrays(tmp_path: Path) -> None:
    """A constant is mapped once in each worker process, an argument more often, and the results are those of numpy."""
    pytest.importorskip("numpy")
    ended = run(EXAMPLES / "arrays.py", "--vectors", 20_000, cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    lines = re.findall(r"^(\w+) +[0-9.]+ s +([0-9]+) +([0-9]+) x", ended.stdout, re.MULTILINE)
    mapped = {what: (int(workers), int(times)) for what, workers, times in lines}
    assert mapped["constants"] in ((1, 1), (2, 2))
    assert mapped["arguments"][1] > 2
    assert ended.stdout.endswith("all three found the same neighbours\n")


def test_arrays_without_numpy(tmp_path: Path) -> None:
    """Without numpy the program says what to install."""
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('none here', name='numpy')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    ended = run(EXAMPLES / "arrays.py", cwd=tmp_path, PYTHONPATH=path)

    assert ended.returncode == 1
    assert ended.stderr == "this example needs numpy: install it with `pip install numpy`\n"


@pytest.mark.parametrize("more", [[], ["--parallel-profile=small"]])
def test_the_tests_of_statements(more: list[str], tmp_path: Path) -> None:
    """The example's own tests pass, through inline, checked and real pools, from whatever directory they are run."""
    shutil.copytree(EXAMPLES / "testing", tmp_path / "testing", ignore=shutil.ignore_patterns("__pycache__"))
    said = ["-p", "no:cacheprovider", "-p", "parallel.pytest_plugin", f"--basetemp={tmp_path / 'temp'}", *more]
    ended = run("-m", "pytest", *said, "testing", cwd=tmp_path, PYTEST_ADDOPTS="")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "7 passed" in ended.stdout

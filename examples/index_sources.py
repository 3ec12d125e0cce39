"""
Index a tree of Python sources: its functions, classes and imports go to an SQLite database.

    paths ──▶ read (threads) ──▶ parse (processes) ──▶ store (one thread) ──▶ sources.sqlite

    python examples/index_sources.py                    the standard library of this interpreter
    python examples/index_sources.py FOLDER --compare   a tree of yours, and how fast a plain loop would have been
    python examples/index_sources.py --journal FILE     go on where a run with this journal was stopped
    python examples/index_sources.py --record run.html  and show what ran where, and when, as a page
    python examples/index_sources.py --config FILE      with other pools, such as those of `cluster.toml`

Each file takes its own way through the three stages; how many workers a stage has, and of what kind, stands in
`parallel.toml` beside this file; `cluster.toml` there has a cluster do the parsing. A file that can't be read or parsed
is reported; Ctrl-C leaves a readable database.

A journal has what was parsed, file by file, as soon as it has been. After a run that was interrupted or killed, or
whose machine went down, the same command reads and parses what is left; after one that ended, what has changed since.
The database is always made anew. What `read` and `parse` do may be changed: then everything is parsed again.
"""

import argparse
import ast
import importlib.util
import sqlite3
import sys
import sysconfig
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from parallel import ConfigError, JournalError, PoolBrokenError, Registry, Settled, WorkerDiedError, record, task

T = TypeVar("T")

CONFIGURATION = Path(__file__).with_name("parallel.toml")

IN_FLIGHT = 256
"""Files on their way at a time: enough to keep every worker busy, few enough to keep the memory flat."""

PER_TRANSACTION = 500
"""Files written at once: one transaction a file would wait for the disk all the time."""

BAD_FILE = (OSError, SyntaxError, ValueError, RecursionError, MemoryError, WorkerDiedError)
"""What a wild file does to its reader: wrong encodings, null bytes, nesting that overflows the parser."""

SCHEMA = """
    DROP TABLE IF EXISTS files;        CREATE TABLE files (path TEXT PRIMARY KEY, lines INTEGER);
    DROP TABLE IF EXISTS definitions;  CREATE TABLE definitions (path TEXT, kind TEXT, name TEXT, line INTEGER);
    DROP TABLE IF EXISTS imports;      CREATE TABLE imports (path TEXT, module TEXT);
"""


class Source(NamedTuple):
    """The text of one file."""

    path: str
    text: str


class Module(NamedTuple):
    """What one file defines and imports."""

    path: str
    lines: int
    definitions: list[tuple[str, str, int]]  # kind, name, line
    imports: set[str]


class Skipped(NamedTuple):
    """A file that could not be indexed."""

    path: str
    error: Exception


@task(pool="threads")
def read(path: Path) -> Source:
    """Read a file in the encoding that it declares (PEP 263)."""
    with tokenize.open(path) as file:
        return Source(str(path), file.read())


@task(pool="processes")
def parse(source: Source) -> Module:
    """Collect what a file defines and imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's escapes and comparisons
        tree = ast.parse(source.text, source.path)
    definitions: list[tuple[str, str, int]] = []
    imports: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                definitions.append(("function", name, node.lineno))
            case ast.ClassDef(name=name):
                definitions.append(("class", name, node.lineno))
            case ast.Import(names=names):
                imports.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                imports.add(module)
            case _:
                pass
    return Module(source.path, source.text.count("\n") + 1, definitions, imports)


class Database:
    """
    The index. Its tasks share one connection, so they belong in a pool of one thread.

    At the end of its `with` block, in whatever way that comes, everything stored so far is in the file.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.executescript(SCHEMA)
        self._stored = 0

    @task(pool="database")
    def store(self, path: Path, parsed: Settled[Module]) -> str | Skipped:
        """Write one file's rows and return its path, unless it is a bad one."""
        if isinstance(parsed.error, BAD_FILE):
            return Skipped(str(path), parsed.error)
        name, lines, definitions, imports = parsed.result()
        write = self._connection
        write.execute("INSERT INTO files VALUES (?, ?)", (name, lines))
        write.executemany("INSERT INTO definitions VALUES (?, ?, ?, ?)", [(name, *found) for found in definitions])
        write.executemany("INSERT INTO imports VALUES (?, ?)", [(name, module) for module in imports])
        self._stored += 1
        if self._stored % PER_TRANSACTION == 0:
            write.commit()
        return name

    def count(self, table: str, where: str = "TRUE") -> int:
        """Count the rows of a table."""
        return int(self._connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0])

    def most_imported(self, limit: int) -> list[tuple[str, int]]:
        """Return the modules that the most files import, and how many do."""
        query = "SELECT module, count(*) FROM imports GROUP BY module ORDER BY count(*) DESC, module LIMIT ?"
        return self._connection.execute(query, (limit,)).fetchall()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.commit()
        self._connection.close()


def index_all(paths: Sequence[Path], database: Database, journal: Path | None) -> Iterator[str | Skipped]:
    """Index *paths*, `IN_FLIGHT` at a time; yield what became of them, in the same order."""
    chain = read.then(parse)
    if journal is None:
        modules = chain.stream(paths, errors="collect", buffersize=IN_FLIGHT)
    else:  # what failed is tried again: the disk may have been at fault
        modules = chain.stream(
            paths, errors="collect", buffersize=IN_FLIGHT, journal=journal, key=version, resume="failed"
        )
    return database.store.stream(paths, modules)


def index_plainly(paths: Sequence[Path], database: Database) -> Iterator[str | Skipped]:
    """Do the same in a plain loop."""
    for path in paths:
        try:
            module = Settled(parse.local(read.local(path)), None)
        except BAD_FILE as error:
            module = Settled[Module](None, error)
        yield database.store.local(path, module)


def version(path: Path) -> tuple[str, int, int]:
    """Return what a file is known by in the journal: it is another one when it has been written to."""
    try:
        status = path.stat()
    except OSError:  # reading it will tell
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size


def shown(files: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass *files* on and show how far they are: a bar with rich on a terminal, else a line every two seconds."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import track

        yield from track(files, what, total, console=Console(stderr=True))
        return
    due = 0.0
    for number, file in enumerate(files, start=1):
        if time.monotonic() >= due:
            due = time.monotonic() + 2
            print(f"{what}: {number:,} of {total:,} files", file=sys.stderr, flush=True)
        yield file


def summarize(database: Database, skipped: Sequence[Skipped], seconds: float) -> None:
    """Print what was found."""
    functions, classes = (database.count("definitions", f"kind = '{kind}'") for kind in ("function", "class"))
    modules = ", ".join(f"{module} ({files:,})" for module, files in database.most_imported(10))
    errors = Counter(type(one.error).__name__ for one in skipped).most_common()
    print(f"files          {database.count('files'):,} indexed, {len(skipped):,} skipped")
    print(f"definitions    {functions:,} functions, {classes:,} classes")
    print(f"most imported  {modules or 'nothing'}")
    print(f"errors         {', '.join(f'{kind} ({number:,})' for kind, number in errors) or 'none'}")
    print(f"seconds        {seconds:.1f}")


def compare(paths: Sequence[Path], seconds: float) -> None:
    """Do the same work in a plain loop, into a database of its own, and print how much faster *seconds* were."""
    with TemporaryDirectory() as folder, Database(Path(folder, "plain.sqlite")) as database:
        start = time.perf_counter()
        for _ in shown(index_plainly(paths, database), len(paths), "plain loop"):
            pass
        plain = time.perf_counter() - start
    print(f"plain loop     {plain:.1f} s, {plain / seconds:.2f} times as long")


def run(folder: Path, file: Path, journal: Path | None, configuration: Path, comparing: bool) -> None:
    """Index *folder* into the database *file*, with what the *journal* has, and print what was found."""
    registry = Registry.from_toml(configuration)
    inside = (path.relative_to(folder) for path in folder.rglob("*.py"))
    paths = sorted(folder / path for path in inside if "site-packages" not in path.parts)
    print(f"indexing {len(paths):,} files of {folder} into {file}", flush=True)
    with Database(file) as database:
        start = time.perf_counter()
        with registry:
            files = list(shown(index_all(paths, database, journal), len(paths), "indexing"))
        seconds = time.perf_counter() - start
        summarize(database, [file for file in files if isinstance(file, Skipped)], seconds)
    if comparing:
        compare(paths, seconds)


def main() -> int:
    """Run the program and return its exit status."""
    library = Path(sysconfig.get_path("stdlib"))
    parser = argparse.ArgumentParser(description="Index a tree of Python sources into an SQLite database.")
    parser.add_argument("folder", nargs="?", type=Path, default=library, help="default: the standard library")
    parser.add_argument("--database", type=Path, default=Path("sources.sqlite"), help="its old index is replaced")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="remembers what is done if the run is stopped")
    parser.add_argument("--config", type=Path, metavar="FILE", default=CONFIGURATION, help="names the pools")
    parser.add_argument("--record", type=Path, metavar="FILE", help="shows what ran: .html a page, .json for Perfetto")
    parser.add_argument("--compare", action="store_true", help="do the same in a plain loop, and tell the speed-up")
    options = parser.parse_args()

    folder: Path = options.folder
    if not folder.is_dir():
        parser.error(f"{folder} is no folder")
    recording = ExitStack()
    if options.record:
        try:
            recording.enter_context(record(options.record))
        except (ValueError, OSError) as error:
            parser.error(str(error))
    try:
        with recording:
            run(folder, options.database, options.journal, options.config, options.compare)
    except KeyboardInterrupt:
        print(f"interrupted: {options.database} holds what was indexed so far", file=sys.stderr)
        return 130
    except sqlite3.Error as error:
        print(f"{options.database}: {error}", file=sys.stderr)
        return 1
    except (ConfigError, JournalError, PoolBrokenError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
